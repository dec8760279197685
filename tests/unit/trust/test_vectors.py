"""Bundles that real cosign 3 made (tests/lab/sigstore/vectors.py says with which commands) are believed for as long as this code lives."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgefleet.trust.errors import Rejected
from edgefleet.trust.identities import Identity, Keyless
from edgefleet.trust.keys import PrivateKey, PublicKey
from edgefleet.trust.publishers import Publisher
from edgefleet.trust.release import VerifiedRelease, verify_release
from edgefleet.trust.signatures import read_claim
from tests.lab.sigstore.vectors import ISSUER, KINDS, REVIEW, REVIEW_PREDICATE, SUBJECT

VECTORS = Path(__file__).parent / "vectors"
ROOT = (VECTORS / "trusted_root.json").read_bytes()
MADE = datetime(2026, 11, 28, tzinfo=UTC)


@pytest.mark.parametrize("kind", KINDS)
def test_what_cosign_made_is_believed(kind: str) -> None:
    bundles = [(VECTORS / f"{kind}.{said}.json").read_bytes() for said in ("sign", "release")]
    claim = read_claim(bundles[0])
    (digest,) = claim.statement.digests
    assert (claim.names, claim.issuer) == (SUBJECT, ISSUER)
    trusted = Keyless((Identity(ISSUER, SUBJECT),), ROOT)
    found = verify_release(digest=digest, model="weld", bundles=bundles, publisher=Publisher((), 1, 7, trusted))
    (signer,) = found.signers
    assert (found.version, found.seq, signer.name, signer.issuer) == ("2.4", 7, SUBJECT, ISSUER)
    assert signer.logged_at is not None
    assert signer.logged_at.date() == MADE.date()
    other = Keyless((Identity(ISSUER, SUBJECT[:-1]),), ROOT)
    with pytest.raises(Rejected, match="IdentityMismatch"):
        verify_release(digest=digest, model="weld", bundles=bundles, publisher=Publisher((), 1, 7, other))


def test_what_cosign_made_with_a_key_is_believed() -> None:
    bundles = {said: (VECTORS / f"keyed.{said}.json").read_bytes() for said in ("sign", "release", "review")}
    key = PublicKey.from_pem((VECTORS / "keyed.pub").read_bytes())
    claim, review = read_claim(bundles["sign"]), read_claim(bundles["review"])
    assert (claim.names, claim.issuer, review.names) == (key.id, "", key.id)
    assert (review.statement.predicate_type, review.statement.predicate) == (REVIEW_PREDICATE, REVIEW)
    (digest,) = claim.statement.digests

    def verify(*said: str, by: PublicKey = key) -> VerifiedRelease:
        publisher = Publisher((by,), 1, 7, predicates=(REVIEW_PREDICATE,))
        return verify_release(digest=digest, model="weld", bundles=[bundles[one] for one in said], publisher=publisher)

    found = verify("sign", "release", "review")
    assert (found.version, found.seq, found.signed_by) == ("2.4", 7, (key.id,))
    for said, reason in ((("sign", "release"), "PredicateMissing"), (("sign", "review"), "AttestationMissing")):
        with pytest.raises(Rejected) as refused:
            verify(*said)
        assert refused.value.reason == reason
    with pytest.raises(Rejected, match="not signed by a trusted key"):
        verify("sign", "release", "review", by=PrivateKey.generate().public)
