"""`python -m tests.lab.sigstore.vectors [keyed] [keyless]`: makes the golden vectors of tests/unit/trust/vectors anew, with real cosign 3.

Without a key, for each kind of log, cosign runs against a PrivateSigstore and a registry of the lab:

    cosign sign   --yes --identity-token TOKEN --signing-config signing.json --trusted-root trusted_root.json HOST/vectors@DIGEST
    cosign attest --yes --predicate predicate.json --type https://edgefleet.io/attestation/release/v1 ... HOST/vectors@DIGEST

With a key, off line (`signing-config create` with no service at all makes sc.json):

    cosign generate-key-pair --output-key-prefix publisher
    cosign sign   --yes --key publisher.key --signing-config sc.json HOST/keyed@DIGEST
    cosign attest --yes --key publisher.key --signing-config sc.json --predicate p.json --type TYPE HOST/keyed@DIGEST

TYPE is the release's, and that of a review, as `requiredPredicates` may demand it. The bundles are what the registry got, byte for byte;
of keys and Sigstores nothing but the public halves is kept.
"""

import json
import sys
import tempfile
from pathlib import Path

from edgefleet.api.model import Variant
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.push import VariantFiles, push_model
from edgefleet.oci.reference import Repository
from edgefleet.oci.referrers import fetch_bundles
from edgefleet.trust.release import RELEASE_PREDICATE, SIGN_PREDICATE
from edgefleet.trust.signatures import read_claim
from tests.lab.cosign import Cosign
from tests.lab.debian import fetch_cosign
from tests.lab.registry import Registry
from tests.lab.sigstore.clients import KeylessCosign
from tests.lab.sigstore.private import PrivateSigstore, Rekor
from tests.lab.sigstore.service import SigstoreService

TARGET = Path(__file__).parents[2] / "unit" / "trust" / "vectors"
ISSUER = "https://token.test"
SUBJECT = "https://github.com/acme/weld/.github/workflows/release.yml@refs/heads/main"
FACTS = {"model": "weld", "version": "2.4", "releaseSeq": 7, "createdAt": "2026-01-02T03:04:05Z"}
REVIEW_PREDICATE = "https://acme.test/attestation/review/v1"
REVIEW = {"reviewer": "bob", "approved": True}
SAID = {SIGN_PREDICATE: "sign", RELEASE_PREDICATE: "release", REVIEW_PREDICATE: "review"}
KINDS: dict[str, tuple[Rekor, bool]] = {"log-v1": (1, False), "log-v1-stamped": (1, True), "log-v2": (2, True)}


def make_keyless(registry: Registry, client: RegistryClient, folder: Path) -> None:
    """A signature and a release attestation for each kind of log."""
    service = SigstoreService(PrivateSigstore())
    (TARGET / "trusted_root.json").write_text(json.dumps(service.sigstore.trusted_root(), indent=1) + "\n")
    with service:
        for kind, (rekor, stamped) in KINDS.items():
            own = folder / kind
            who = KeylessCosign.make(fetch_cosign(), own, service, subject=SUBJECT, issuer=ISSUER, rekor=rekor, stamped=stamped)
            repository, digest = _push(registry, client, own, kind)
            who.sign(f"{repository}@{digest}")
            who.attest(f"{repository}@{digest}", RELEASE_PREDICATE, FACTS)
            _keep(client, repository, digest, kind)


def make_keyed(registry: Registry, client: RegistryClient, folder: Path) -> None:
    """A signature, a release attestation and a review by one key."""
    who = Cosign.make(fetch_cosign(), folder / "keyed")
    (TARGET / "keyed.pub").write_bytes(who.make_key("publisher").read_bytes())
    repository, digest = _push(registry, client, folder / "keyed", "keyed")
    who.sign(f"{repository}@{digest}", "publisher")
    for predicate_type, predicate in ((RELEASE_PREDICATE, FACTS), (REVIEW_PREDICATE, REVIEW)):
        file = folder / "predicate.json"
        file.write_text(json.dumps(predicate))
        who.attest(f"{repository}@{digest}", "publisher", predicate_type, file)
    _keep(client, repository, digest, "keyed")


def _push(registry: Registry, client: RegistryClient, folder: Path, kind: str) -> tuple[Repository, str]:
    (folder / "weights").write_text(kind)
    variant = VariantFiles(Variant(name="cpu", digest="sha256:" + "0" * 64, size=0, arch="amd64"), {"weights": folder / "weights"})
    repository = Repository.parse(f"{registry.host}/{kind}")
    return repository, push_model(client, repository, name="weld", version="2.4", variants=[variant])


def _keep(client: RegistryClient, repository: Repository, digest: str, kind: str) -> None:
    for bundle in fetch_bundles(client, repository, digest).bundles:
        (TARGET / f"{kind}.{SAID[read_claim(bundle).statement.predicate_type]}.json").write_bytes(bundle)


def main(wanted: list[str]) -> None:
    """Write those that are wanted; all without a word."""
    TARGET.mkdir(exist_ok=True)
    with Registry() as registry, RegistryClient() as client, tempfile.TemporaryDirectory() as name:
        for kind, make in (("keyed", make_keyed), ("keyless", make_keyless)):
            if kind in wanted or not wanted:
                make(registry, client, Path(name))


if __name__ == "__main__":
    main(sys.argv[1:])
