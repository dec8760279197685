"""A person's desk: a folder and a shell in which the commands of a page are run as they stand there.

What cannot be as on the page (a registry's name, files that the reader has) is replaced by name from one table for each desk.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from edgefleet.site.gateway_process import GatewayProcess
from tests.docs.pages import ROOT, read_blocks
from tests.lab.binaries import fetch_kubectl
from tests.lab.helm import fetch_helm
from tests.lab.processes import POLL, Process, start_process, stop_processes

LIMIT = 300.0  # seconds for one statement; a simulation takes the longest
PATIENT = ("edgefleet check", "edgefleet site identity")
"""What a person asks again until the answer is good: pods take their time to start."""
STAYING = "edgefleet agent"
"""What does not end by itself."""


class Desk:
    """`stand_ins` are texts of the pages and what takes their place here. `after` is called when a statement may have changed a cluster."""

    def __init__(self, folder: Path, kubeconfig: Path, stand_ins: Mapping[str, str], after: Callable[[], object]) -> None:
        self.folder, self._stand_ins, self._after = folder, dict(stand_ins), after
        self._done: set[str] = set()
        self._staying: list[Process] = []
        programs = folder / "bin"
        programs.mkdir(parents=True)
        for name, path in (("kubectl", fetch_kubectl()), ("helm", fetch_helm()), ("edgefleet", Path(sys.executable).parent / "edgefleet")):
            (programs / name).symlink_to(path)
        for name in ("charts", "examples"):
            (folder / name).symlink_to(ROOT / name)
        self._environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "KUBECONFIG": str(kubeconfig),
            "DOCKER_CONFIG": str(folder / "docker"),
            **{name: str(folder / "helm" / name) for name in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")},
        }

    def run_page(
        self,
        page: str,
        stand_ins: Mapping[str, str] | None = None,
        *,
        skip: Iterable[str] = (),
        users: Mapping[str, Path] | None = None,
        then: Mapping[str, Callable[[str], object]] | None = None,
    ) -> int:
        """Runs a page's shell blocks in order; how many commands these were. `stand_ins` are this page's own.

        Left out is what begins with one of `skip`, and what was done at this desk before. What begins with a key of `users` is done with
        that kubeconfig; after what begins with a key of `then` its value is called with the output. Raises AssertionError with the output
        of what fails.
        """
        count = 0
        for block in read_blocks(ROOT / page):
            for statement in block.statements() if block.is_shell else []:
                text = statement.text
                if text.startswith(tuple(skip)) or text in self._done:
                    continue
                self._done.add(text)
                said = self.run(text, stand_ins or {}, next((path for key, path in (users or {}).items() if text.startswith(key)), None))
                for key, look in (then or {}).items():
                    if text.startswith(key):
                        look(said)
                count += len(statement.commands)
        return count

    def run(self, text: str, stand_ins: Mapping[str, str] | None = None, user: Path | None = None) -> str:
        """Runs one statement in bash; what it said on stdout. Raises AssertionError with all of its output."""
        for there, here in {**(stand_ins or {}), **self._stand_ins}.items():
            text = text.replace(there, here)
        environment = {**self._environment, **({"KUBECONFIG": str(user)} if user else {})}
        command = ["bash", "-euo", "pipefail", "-c", text]
        if text.startswith(STAYING):
            self._staying.append(start_process(self.folder, "agent", command, env=environment, cwd=self.folder))
            return ""
        deadline = time.monotonic() + LIMIT
        while True:
            done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
            if not done.returncode or not text.startswith(PATIENT) or time.monotonic() > deadline:
                break
            time.sleep(10 * POLL)
        assert not done.returncode, f"{text}\n{done.stdout}{done.stderr}"
        self._after()
        return done.stdout

    def apply(self, manifests: str, stand_ins: Mapping[str, str] | None = None) -> None:
        """`kubectl apply` of YAML as it stands on a page."""
        self.run(f"kubectl apply -f - <<'YAML'\n{manifests}\nYAML", stand_ins)

    def stop(self) -> None:
        """Ends what was started and stays; an agent leaves its gateway behind, which serves on without it."""
        stop_processes(self._staying, grace=15)
        for gateway in self.folder.glob("*/gateway"):
            asyncio.run(GatewayProcess(gateway).stop())
