"""Real cosign 3 and sigstore-python, told to use a PrivateSigstore: signing, attesting and verifying without keys."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.cosign import LOOPBACK, Cosign
from tests.lab.sigstore.private import Rekor, make_token
from tests.lab.sigstore.service import SigstoreService


@dataclass(frozen=True)
class KeylessCosign:
    """cosign for one identity; its folder holds `signing.json` and `trusted_root.json` of the Sigstore that is served."""

    cosign: Cosign
    subject: str
    issuer: str

    @classmethod
    def make(
        cls,
        binary: Path,
        folder: Path,
        service: SigstoreService,
        *,
        subject: str,
        issuer: str,
        rekor: Rekor = 1,
        stamped: bool | None = None,
    ) -> "KeylessCosign":
        """Writes the configuration; `rekor` says which log is used, `stamped` whether timestamps are asked for."""
        folder.mkdir(parents=True, exist_ok=True)
        config = service.sigstore.signing_config(service.url, rekor, stamped=stamped)
        (folder / "signing.json").write_text(json.dumps(config))
        (folder / "trusted_root.json").write_text(json.dumps(service.sigstore.trusted_root()))
        return cls(Cosign(binary, folder), subject, issuer)

    def sign(self, reference: str) -> None:
        """`cosign sign` of `HOST/REPO@sha256:...`."""
        self.cosign.run("sign", "--yes", *self._signing(), *LOOPBACK, reference)

    def attest(self, reference: str, predicate_type: str, predicate: dict[str, Any]) -> None:
        """`cosign attest` with a predicate of the given type URI."""
        file = self.cosign.folder / "predicate.json"
        file.write_text(json.dumps(predicate))
        self.cosign.run("attest", "--yes", "--predicate", str(file), "--type", predicate_type, *self._signing(), *LOOPBACK, reference)

    def verify(self, reference: str) -> str:
        """What cosign says of the signature, as JSON. Raises LabError where it refuses."""
        return self.cosign.run("verify", *self._expecting(), *LOOPBACK, reference)

    def verify_attestation(self, reference: str, predicate_type: str) -> str:
        """What cosign says of an attestation, as JSON. Raises LabError where it refuses."""
        return self.cosign.run("verify-attestation", "--type", predicate_type, *self._expecting(), LOOPBACK[0], reference)

    def _signing(self) -> tuple[str, ...]:
        token = make_token(self.subject, self.issuer)
        return ("--identity-token", token, "--signing-config", "signing.json", "--trusted-root", "trusted_root.json")

    def _expecting(self) -> tuple[str, ...]:
        identity = ("--certificate-identity", self.subject, "--certificate-oidc-issuer", self.issuer)
        return (*identity, "--trusted-root", "trusted_root.json")


def sign_as_sigstore_python(service: SigstoreService, payload: bytes, *, subject: str, issuer: str, rekor: Rekor = 1) -> bytes:
    """A bundle over an in-toto statement, made by the library's own signer."""
    from sigstore.dsse import Statement
    from sigstore.models import ClientTrustConfig
    from sigstore.oidc import IdentityToken
    from sigstore.sign import SigningContext

    config = {
        "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
        "trustedRoot": service.sigstore.trusted_root(),
        "signingConfig": service.sigstore.signing_config(service.url, rekor),
    }
    context = SigningContext.from_trust_config(ClientTrustConfig.from_json(json.dumps(config)))
    with context.signer(IdentityToken(make_token(subject, issuer))) as signer:
        return signer.sign_dsse(Statement(payload)).to_json().encode()
