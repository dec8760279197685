"""Real cosign 3, keyed and off line: the flags that keep it away from the public Sigstore, in one place.

Where the binary comes from is debian.py's matter.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.lab import LabError

LOOPBACK = ("--allow-http-registry", "--allow-insecure-registry")


@dataclass(frozen=True)
class Cosign:
    """cosign with a folder of its own for keys and its empty trust configuration."""

    binary: Path
    folder: Path

    @classmethod
    def make(cls, binary: Path, folder: Path) -> "Cosign":
        """Writes an empty signing config (no log, no timestamps) and an empty trusted root into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        cosign = cls(binary, folder)
        cosign.run(
            "signing-config",
            "create",
            "--no-default-fulcio",
            "--no-default-oidc",
            "--no-default-rekor",
            "--no-default-tsa",
            "--out",
            "sc.json",
        )
        cosign.run(
            "trusted-root",
            "create",
            "--no-default-ctfe",
            "--no-default-fulcio",
            "--no-default-rekor",
            "--no-default-tsa",
            "--out",
            "tr.json",
        )
        return cosign

    def make_key(self, name: str) -> Path:
        """A new key pair `<name>.key`, `<name>.pub` (ECDSA P-256); path of the public key."""
        self.run("generate-key-pair", "--output-key-prefix", name)
        return self.folder / f"{name}.pub"

    def sign(self, reference: str, key: str) -> None:
        """Signs `HOST/REPO@sha256:...` with the key called `key`: a Sigstore bundle v0.3 as referrer."""
        self.run("sign", "--yes", "--key", f"{key}.key", "--signing-config", "sc.json", *LOOPBACK, reference)

    def attest(self, reference: str, key: str, predicate_type: str, predicate: Path) -> None:
        """Attests a predicate (JSON file) of the given type URI."""
        arguments = ["--predicate", str(predicate), "--type", predicate_type]
        self.run("attest", "--yes", "--key", f"{key}.key", "--signing-config", "sc.json", *arguments, *LOOPBACK, reference)

    def verify(self, reference: str, public_key: Path) -> str:
        """What cosign says of the signature, as JSON. Raises LabError where it refuses."""
        return self.run("verify", "--key", str(public_key), "--trusted-root", "tr.json", "--insecure-ignore-tlog", *LOOPBACK, reference)

    def run(self, *arguments: str, limit: float = 60) -> str:
        """Output of `cosign ARGUMENTS` in the folder; keys have an empty password. Raises LabError with its stderr."""
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        environment |= {"COSIGN_PASSWORD": "", "HOME": str(self.folder), "DOCKER_CONFIG": str(self.folder)}
        done = subprocess.run(
            [self.binary, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=limit,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise LabError(f"cosign {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout
