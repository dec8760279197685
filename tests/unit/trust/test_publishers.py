"""What a policy says beside who signs: what is revoked, and what must be attested too; in `spec.verify` and the trust bundle alike."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from edgefleet.trust.bundle import TrustBundle, make_bundle, make_root, open_bundle
from edgefleet.trust.bundle_content import BundleContent, read_content, write_content
from edgefleet.trust.errors import Rejected
from edgefleet.trust.identities import Identity, Keyless
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.publishers import Publisher, Revoked
from edgefleet.trust.release import RELEASE_PREDICATE, ReleaseFacts, attest_release, sign_digest, verify_release
from edgefleet.trust.signatures import Statement, sign_statement
from tests.lab.sigstore.private import PrivateSigstore

ALICE, BOB, STRANGER, ROOT_KEY, HUB = (PrivateKey.generate() for _ in range(5))
DIGEST = "sha256:" + "a" * 64
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
REVIEW = "https://acme.test/review/v1"
FACTS = ReleaseFacts(model="weld", version="2.4", release_seq=7, created_at=AT)
SIGSTORE = PrivateSigstore()
ISSUER, SUBJECT = "https://token.test", "https://acme.test/weld/release@v7"


def by(key: PrivateKey) -> list[bytes]:
    return [sign_digest(key, DIGEST), attest_release(key, DIGEST, FACTS)]


def reviewed(key: PrivateKey, digest: str = DIGEST) -> bytes:
    return sign_statement(key, Statement(REVIEW, (digest,), {"by": "carol"}))


def check(bundles: list[bytes], **policy: Any) -> Any:
    publisher = Publisher(**{"keys": (ALICE.public, BOB.public), **policy})
    return verify_release(digest=DIGEST, model="weld", bundles=bundles, publisher=publisher)


def reason_of(bundles: list[bytes], **policy: Any) -> str:
    with pytest.raises(Rejected) as raised:
        check(bundles, **policy)
    return raised.value.reason


def test_a_revoked_release_is_refused_whoever_signed() -> None:
    assert check(by(ALICE)).seq == 7
    assert reason_of(by(ALICE) + by(BOB), revoked=Revoked(digests=frozenset({DIGEST}))) == "Revoked"


def test_when_serving_ends_stands_in_the_bundle_for_revoked_digests_alone() -> None:
    revoked = Revoked(digests=frozenset({DIGEST}), stops={DIGEST: AT})
    document = write_content(BundleContent({"weld": Publisher((ALICE.public,), revoked=revoked)}, (HUB.public,), revoked))
    assert document["formatVersion"] == 3
    assert document["revoked"] == {"digests": [DIGEST], "stopServingBy": {DIGEST: "2026-01-02T03:04:05Z"}}
    assert read_content(document).revoked == revoked
    with pytest.raises(ValueError, match="stopServingBy names sha256:aa"):
        read_content({**document, "revoked": {"keys": [ALICE.public.id], "stopServingBy": {DIGEST: "2026-01-02T03:04:05Z"}}})


def test_a_revoked_key_does_not_count() -> None:
    revoked = Revoked(keys=frozenset({ALICE.public.id}))
    assert check(by(ALICE) + by(BOB), revoked=revoked).signed_by == (BOB.public.id,)
    assert reason_of(by(ALICE) + by(BOB), revoked=revoked, threshold=2) == "ThresholdNotMet"
    with pytest.raises(Rejected, match="PublisherRevoked: signed by key"):
        check(by(ALICE), revoked=revoked)


def test_a_revoked_identity_does_not_count() -> None:
    named: dict[str, Any] = {"subject": SUBJECT, "issuer": ISSUER, "at": AT}
    release = SIGSTORE.sign(RELEASE_PREDICATE, DIGEST, FACTS.to_json_dict() | {"createdAt": "2026-01-02T03:04:05Z"}, **named)
    bundles = [SIGSTORE.sign("https://sigstore.dev/cosign/sign/v1", DIGEST, {}, **named), release]
    keyless = Keyless((Identity(ISSUER, subject_regex="https://acme[.]test/weld/.*"),), json.dumps(SIGSTORE.trusted_root()).encode())
    assert check(bundles, keys=(), keyless=keyless).signers[0].name == SUBJECT
    elsewhere = Revoked(identities=(Identity(ISSUER, "https://acme.test/weld/release@v6"), Identity("https://other.test", SUBJECT)))
    assert check(bundles, keys=(), keyless=keyless, revoked=elsewhere).seq == 7
    with pytest.raises(Rejected, match="PublisherRevoked: signed by https://acme"):
        check(bundles, keys=(), keyless=keyless, revoked=Revoked(identities=(Identity(ISSUER, SUBJECT),)))


def test_what_is_demanded_beside_the_release_must_be_attested_by_one_who_is_trusted() -> None:
    demanding: dict[str, Any] = {"predicates": (REVIEW,)}
    assert check([*by(ALICE), reviewed(BOB)], **demanding).seq == 7
    assert reason_of(by(ALICE), **demanding) == "PredicateMissing"
    assert reason_of([*by(ALICE), reviewed(STRANGER)], **demanding) == "PredicateMissing"
    assert reason_of([*by(ALICE), reviewed(BOB, "sha256:" + "b" * 64)], **demanding) == "PredicateMissing"
    revoked = Revoked(keys=frozenset({BOB.public.id}))
    assert reason_of([*by(ALICE), reviewed(BOB)], revoked=revoked, **demanding) == "PredicateMissing"


def opened(content: BundleContent) -> tuple[bytes, TrustBundle]:
    ends = AT + timedelta(days=9)
    root = make_root([ROOT_KEY.public], signers=[ROOT_KEY], threshold=1, version=1, expires_at=ends)
    data = make_bundle(roots=[root], signers=[ROOT_KEY], version=1, content=content, expires_at=ends)
    return data, open_bundle(data, pinned_root=root, floor_version=0, now=AT)


def test_a_bundle_carries_the_whole_policy() -> None:
    revoked = Revoked(frozenset({DIGEST}), frozenset({BOB.public.id}), (Identity(ISSUER, SUBJECT), Identity(ISSUER, subject_regex="x.*")))
    content = BundleContent({"weld": Publisher((ALICE.public,), predicates=(REVIEW,))}, (HUB.public,), revoked)
    data, bundle = opened(content)
    assert b'"formatVersion": 3' in data
    assert (bundle.revoked, bundle.publishers["weld"].predicates, bundle.publishers["weld"].revoked) == (revoked, (REVIEW,), revoked)
    with pytest.raises(Rejected) as raised:
        verify_release(digest=DIGEST, model="weld", bundles=[*by(ALICE), reviewed(ALICE)], publisher=bundle.publishers["weld"])
    assert raised.value.reason == "Revoked"


def test_a_bundle_without_the_newer_parts_is_read_by_older_agents() -> None:
    data, bundle = opened(BundleContent({"weld": Publisher((ALICE.public,))}, (HUB.public,)))
    assert b'"formatVersion": 1' in data
    assert b"revoked" not in data
    assert bundle.revoked == Revoked()
