"""`python -m tests.lab.sigstore.vectors`: makes the golden vectors of tests/unit/trust/vectors anew, with real cosign 3.

For each kind of log, cosign runs against a PrivateSigstore and a registry of the lab:

    cosign sign   --yes --identity-token TOKEN --signing-config signing.json --trusted-root trusted_root.json HOST/vectors@DIGEST
    cosign attest --yes --predicate predicate.json --type https://edgefleet.io/attestation/release/v1 ... HOST/vectors@DIGEST

The bundles are what the registry got, byte for byte; nothing of the Sigstore but its public root is kept.
"""

import json
import tempfile
from pathlib import Path

from edgefleet.api.model import Variant
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.push import VariantFiles, push_model
from edgefleet.oci.reference import Repository
from edgefleet.oci.referrers import fetch_bundles
from edgefleet.trust.release import RELEASE_PREDICATE, SIGN_PREDICATE
from edgefleet.trust.signatures import read_claim
from tests.lab.debian import fetch_cosign
from tests.lab.registry import Registry
from tests.lab.sigstore.clients import KeylessCosign
from tests.lab.sigstore.private import PrivateSigstore, Rekor
from tests.lab.sigstore.service import SigstoreService

TARGET = Path(__file__).parents[2] / "unit" / "trust" / "vectors"
ISSUER = "https://token.test"
SUBJECT = "https://github.com/acme/weld/.github/workflows/release.yml@refs/heads/main"
FACTS = {"model": "weld", "version": "2.4", "releaseSeq": 7, "createdAt": "2026-01-02T03:04:05Z"}
KINDS: dict[str, tuple[Rekor, bool]] = {"log-v1": (1, False), "log-v1-stamped": (1, True), "log-v2": (2, True)}


def main() -> None:
    """Write all of them."""
    TARGET.mkdir(exist_ok=True)
    service = SigstoreService(PrivateSigstore())
    (TARGET / "trusted_root.json").write_text(json.dumps(service.sigstore.trusted_root(), indent=1) + "\n")
    with service, Registry() as registry, RegistryClient() as client, tempfile.TemporaryDirectory() as name:
        for kind, (rekor, stamped) in KINDS.items():
            folder = Path(name) / kind
            who = KeylessCosign.make(fetch_cosign(), folder, service, subject=SUBJECT, issuer=ISSUER, rekor=rekor, stamped=stamped)
            (folder / "weights").write_text(kind)
            variant = VariantFiles(Variant(name="cpu", digest="sha256:" + "0" * 64, size=0, arch="amd64"), {"weights": folder / "weights"})
            repository = Repository.parse(f"{registry.host}/{kind}")
            digest = push_model(client, repository, name="weld", version="2.4", variants=[variant])
            who.sign(f"{repository}@{digest}")
            who.attest(f"{repository}@{digest}", RELEASE_PREDICATE, FACTS)
            for bundle in fetch_bundles(client, repository, digest).bundles:
                said = {SIGN_PREDICATE: "sign", RELEASE_PREDICATE: "release"}[read_claim(bundle).statement.predicate_type]
                (TARGET / f"{kind}.{said}.json").write_bytes(bundle)


if __name__ == "__main__":
    main()
