"""Releases and golden sets: enough trusted keys, a signature and an attestation each, for this model, not below the floor."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet.trust.errors import Rejected
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.publishers import Publisher
from edgefleet.trust.release import (
    GOLDEN_PREDICATE,
    MAX_BUNDLES,
    RELEASE_PREDICATE,
    SIGN_PREDICATE,
    GoldenFacts,
    ReleaseFacts,
    attest_golden,
    attest_release,
    sign_digest,
    verify_golden,
    verify_release,
)
from edgefleet.trust.signatures import KeyRing, Statement, read_claim, sign_statement, verify_bundle

ALICE, BOB, STRANGER = PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate()
DIGEST, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def attested(key: PrivateKey, seq: int = 7, version: str = "2.4", model: str = "digits", digest: str = DIGEST) -> bytes:
    return attest_release(key, digest, ReleaseFacts(model=model, version=version, release_seq=seq, created_at=AT))


def predicated(key: PrivateKey, predicate: Any, predicate_type: str = RELEASE_PREDICATE) -> bytes:
    return sign_statement(key, Statement(predicate_type, (DIGEST,), predicate))


def check(*bundles: bytes, keys: tuple[PrivateKey, ...] = (ALICE,), threshold: int = 1, min_seq: int = 0, model: str = "digits") -> Any:
    return verify_release(
        digest=DIGEST, model=model, bundles=bundles, publisher=Publisher(tuple(key.public for key in keys), threshold, min_seq)
    )


SIGNED, ATTESTED = sign_digest(ALICE, DIGEST), attested(ALICE)
OF_TWO: dict[str, Any] = {"keys": (ALICE, BOB), "threshold": 2}
BOTH_SIGN = (SIGNED, sign_digest(BOB, DIGEST))
FACTS = {"model": "digits", "version": "2.4", "releaseSeq": 7, "createdAt": "2026-01-02T03:04:05Z"}


def test_a_signed_and_attested_release_is_believed() -> None:
    found = check(SIGNED, ATTESTED, min_seq=7)
    assert (found.version, found.seq, found.created_at, found.signed_by) == ("2.4", 7, AT, (ALICE.public.id,))


def test_what_else_is_attached_does_not_hinder() -> None:
    junk = (b"", b"{}", b"null", sign_digest(STRANGER, DIGEST), sign_digest(ALICE, OTHER), attested(ALICE, model="other"))
    assert check(*junk, SIGNED, *junk, ATTESTED).seq == 7


def test_the_highest_attested_sequence_counts() -> None:
    assert check(SIGNED, ATTESTED, attested(ALICE, 9, "2.5"), attested(STRANGER, 99)).seq == 9


@pytest.mark.parametrize(
    "attested_variants",
    [{"fp32": OTHER}, {"fp32": DIGEST, "int8": DIGEST}, {"int8": DIGEST}],
    ids=["another digest", "one more", "another name"],
)
def test_variants_that_are_attested_must_be_those_of_the_index(attested_variants: dict[str, str]) -> None:
    index = {"fp32": DIGEST}
    check(SIGNED, ATTESTED).require_variants(index)
    check(SIGNED, predicated(ALICE, {**FACTS, "variants": index})).require_variants(index)
    # Whoever else attests it rightly, and in whatever order: a trusted publisher says that this is not the index it meant.
    wrong, right = (predicated(ALICE, {**FACTS, "variants": said}) for said in (attested_variants, index))
    for bundles in ((wrong,), (wrong, right), (right, wrong)):
        with pytest.raises(Rejected, match="VariantMismatch"):
            check(SIGNED, *bundles).require_variants(index)
    check(SIGNED, wrong, predicated(ALICE, {**FACTS, "releaseSeq": 8, "variants": index})).require_variants(index)


def test_two_of_two() -> None:
    found = check(*BOTH_SIGN, ATTESTED, attested(BOB), keys=(ALICE, BOB), threshold=2)
    assert set(found.signed_by) == {ALICE.public.id, BOB.public.id}


@pytest.mark.parametrize(
    ("bundles", "arguments", "reason"),
    [
        pytest.param((), {}, "SignatureMissing", id="nothing"),
        pytest.param((ATTESTED,), {}, "SignatureMissing", id="attested, not signed"),
        pytest.param((SIGNED,), {}, "AttestationMissing", id="signed, not attested"),
        pytest.param((sign_digest(STRANGER, DIGEST), attested(STRANGER)), {}, "SignatureInvalid", id="a stranger's"),
        pytest.param((sign_digest(ALICE, OTHER), attested(ALICE, digest=OTHER)), {}, "SignatureInvalid", id="of another release"),
        pytest.param((SIGNED, attested(STRANGER)), {}, "AttestationMissing", id="signed by us, attested by a stranger"),
        pytest.param((SIGNED, attested(ALICE, digest=OTHER)), {}, "AttestationMissing", id="attestation of another release"),
        pytest.param((SIGNED, ATTESTED), {"model": "weld-qc"}, "ModelMismatch", id="for another model"),
        pytest.param((SIGNED, ATTESTED), {"min_seq": 8}, "SeqTooLow", id="below the floor"),
        pytest.param((SIGNED, ATTESTED), OF_TWO, "ThresholdNotMet", id="one signature of two"),
        pytest.param(
            (SIGNED, sign_digest(ALICE, DIGEST), ATTESTED, ATTESTED),
            {"keys": (ALICE, BOB), "threshold": 2},
            "ThresholdNotMet",
            id="one key twice",
        ),
        pytest.param((SIGNED, ATTESTED, attested(BOB)), OF_TWO, "ThresholdNotMet", id="two attest, one signs"),
        pytest.param((*BOTH_SIGN, ATTESTED), OF_TWO, "ThresholdNotMet", id="two sign, one attests"),
        pytest.param(
            (*BOTH_SIGN, ATTESTED, attested(BOB, 8)),
            {"keys": (ALICE, BOB), "threshold": 2},
            "ThresholdNotMet",
            id="they attest different things",
        ),
        pytest.param(
            (*BOTH_SIGN, ATTESTED, attested(BOB)),
            {**OF_TWO, "keys": (ALICE, ALICE)},
            "ThresholdNotMet",
            id="trusted twice",
        ),
        pytest.param((SIGNED, ATTESTED), {"threshold": 0}, "ThresholdNotMet", id="threshold 0"),
        pytest.param((SIGNED, ATTESTED), {"keys": ()}, "ThresholdNotMet", id="no trusted keys"),
        pytest.param((*[b"junk"] * MAX_BUNDLES, SIGNED, ATTESTED), {}, "SignatureInvalid", id="flooded"),
        pytest.param((SIGNED, predicated(ALICE, {**FACTS, "releaseSeq": "7"})), {}, "AttestationMissing", id="sequence is a string"),
        pytest.param((SIGNED, predicated(ALICE, {**FACTS, "releaseSeq": True})), {}, "AttestationMissing", id="sequence is true"),
        pytest.param((SIGNED, predicated(ALICE, {**FACTS, "releaseSeq": -1})), {}, "AttestationMissing", id="sequence is negative"),
        pytest.param((SIGNED, predicated(ALICE, {**FACTS, "version": ""})), {}, "AttestationMissing", id="no version"),
        pytest.param((SIGNED, predicated(ALICE, {**FACTS, "createdAt": "2026-01-02T03:04"})), {}, "AttestationMissing", id="no zone"),
        pytest.param((SIGNED, predicated(ALICE, {"model": "digits"})), {}, "AttestationMissing", id="facts missing"),
        pytest.param((SIGNED, predicated(ALICE, FACTS, "https://example.com/v1")), {}, "AttestationMissing", id="another predicate type"),
        pytest.param((predicated(ALICE, {}, "https://example.com/v1"), ATTESTED), {}, "SignatureMissing", id="another kind of signature"),
    ],
)
def test_what_is_refused(bundles: tuple[bytes, ...], arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(Rejected) as raised:
        check(*bundles, **arguments)
    assert raised.value.reason == reason
    assert len(raised.value.message) <= 1024


def test_the_message_says_why_each_candidate_did_not_count() -> None:
    stranger = sign_digest(STRANGER, DIGEST)
    with pytest.raises(Rejected, match=STRANGER.public.id) as raised:
        verify_release(
            digest=DIGEST,
            model="digits",
            bundles=[b"junk", stranger, sign_digest(ALICE, OTHER), stranger, *[b"{}"] * 5],
            publisher=Publisher((ALICE.public,)),
            problems=["referrer sha256:1: it is gone", "referrer sha256:2: more than the 4096 bytes that are read"],
        )
    assert raised.value.reason == "SignatureInvalid"
    message = raised.value.message
    for part in (
        "candidate 1: ",
        "candidates 2, 4: not signed by a trusted key",
        f"candidate 3: it is about {OTHER}",
        "candidates 5 to 9, 5 of them: ",
    ):
        assert part in message
    assert "(referrer sha256:1: it is gone; referrer sha256:2: more than" in message
    assert len(message) <= 1024


def test_a_message_of_many_causes_stays_short() -> None:
    with pytest.raises(Rejected) as raised:
        verify_release(
            digest=DIGEST, model="digits", bundles=[], publisher=Publisher((ALICE.public,)), problems=[f"{n} " * 200 for n in range(64)]
        )
    assert "; and 54 more causes" in raised.value.message
    assert len(raised.value.message) <= 1024


# Golden sets


def golden(*bundles: bytes, model: str = "digits") -> Any:
    return verify_golden(digest=DIGEST, model=model, bundles=bundles, publisher=Publisher((ALICE.public,)))


EXAM = attest_golden(ALICE, DIGEST, GoldenFacts(model="digits", created_at=AT))


def test_a_golden_set_is_signed_and_verified_like_a_model() -> None:
    assert golden(SIGNED, EXAM).signed_by == (ALICE.public.id,)


@pytest.mark.parametrize(
    ("bundles", "model", "reason"),
    [
        ((), "digits", "SignatureMissing"),
        ((SIGNED,), "digits", "AttestationMissing"),
        ((SIGNED, ATTESTED), "digits", "AttestationMissing"),
        ((SIGNED, EXAM), "weld-qc", "ModelMismatch"),
        ((SIGNED, predicated(ALICE, {"model": 5}, GOLDEN_PREDICATE)), "digits", "AttestationMissing"),
    ],
    ids=["nothing", "signed only", "attested as a release", "another model's exam", "malformed"],
)
def test_what_golden_set_is_refused(bundles: tuple[bytes, ...], model: str, reason: str) -> None:
    with pytest.raises(Rejected) as raised:
        golden(*bundles, model=model)
    assert raised.value.reason == reason


def test_an_exam_is_no_release() -> None:
    with pytest.raises(Rejected) as raised:
        check(SIGNED, EXAM)
    assert raised.value.reason == "AttestationMissing"


# Bundles

RING = KeyRing([ALICE.public])


def test_a_claim_is_read_without_being_believed() -> None:
    claim = read_claim(sign_digest(STRANGER, DIGEST))
    assert (claim.statement.predicate_type, claim.statement.digests) == (SIGN_PREDICATE, (DIGEST,))
    assert (claim.names, claim.issuer) == (STRANGER.public.id, "")
    with pytest.raises(Rejected):
        read_claim(b"{}")


def edited(**changes: Any) -> bytes:
    return json.dumps({**json.loads(SIGNED), **changes}).encode()


def envelope(payload: Any = None, **changes: Any) -> dict[str, Any]:
    """A well-signed envelope over any payload."""
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signature = base64.b64encode(ALICE.sign("application/vnd.in-toto+json", data)).decode()
    found = {
        "payload": base64.b64encode(data).decode(),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"sig": signature}],
    }
    return {**found, **changes}


STATEMENT = {
    "_type": "https://in-toto.io/Statement/v1",
    "subject": [{"digest": {"sha256": "a" * 64}}],
    "predicateType": SIGN_PREDICATE,
}


@pytest.mark.parametrize("statement", [STATEMENT, {**STATEMENT, "_type": "https://in-toto.io/Statement/v0.1", "predicate": {}}])
def test_statements_of_both_versions_are_read(statement: dict[str, Any]) -> None:
    assert verify_bundle(edited(dsseEnvelope=envelope(statement)), RING).statement.digests == (DIGEST,)


def test_a_bundle_without_a_hint_is_tried_with_each_key() -> None:
    found = verify_bundle(edited(verificationMaterial={"publicKey": {}}), KeyRing([BOB.public, ALICE.public]))
    assert found.signer == ALICE.public.id


def test_log_entries_and_timestamps_beside_a_key_are_allowed() -> None:
    material = {"publicKey": {"hint": ALICE.public.hint}, "tlogEntries": [{}], "timestampVerificationData": {}}
    assert verify_bundle(edited(verificationMaterial=material), RING).signer == ALICE.public.id


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(edited(mediaType="application/vnd.dev.sigstore.bundle.v0.2+json"), id="older bundle"),
        pytest.param(edited(extra=1), id="unknown field"),
        pytest.param(edited(messageSignature={}), id="message signature"),
        pytest.param(edited(verificationMaterial={"certificate": {"rawBytes": ""}}), id="certificate"),
        pytest.param(edited(verificationMaterial={"publicKey": {"hint": ALICE.public.hint}, "certificate": {}}), id="key and certificate"),
        pytest.param(edited(verificationMaterial={"publicKey": {"hint": BOB.public.hint}}), id="another key's hint"),
        pytest.param(edited(dsseEnvelope=envelope(STATEMENT, payloadType="text/plain")), id="other payload type"),
        pytest.param(edited(dsseEnvelope=envelope(STATEMENT, signatures=[])), id="no signature"),
        pytest.param(edited(dsseEnvelope=envelope(STATEMENT, signatures=[{"sig": "AA=="}] * 2)), id="two signatures"),
        pytest.param(edited(dsseEnvelope=envelope({**STATEMENT, "_type": "https://in-toto.io/Statement/v9"})), id="newer statement"),
        pytest.param(edited(dsseEnvelope=envelope({**STATEMENT, "subject": []})), id="no subject"),
        pytest.param(edited(dsseEnvelope=envelope({**STATEMENT, "subject": [{"digest": {"sha512": "a" * 128}}]})), id="no sha256"),
        pytest.param(edited(dsseEnvelope=envelope({**STATEMENT, "subject": [{"digest": {"sha256": "A" * 64}}]})), id="upper-case digest"),
        pytest.param(edited(dsseEnvelope=envelope({**STATEMENT, "predicate": []})), id="predicate is a list"),
        pytest.param(edited(dsseEnvelope=envelope(b"\xff")), id="payload is not UTF-8"),
        pytest.param(edited(dsseEnvelope=envelope(b'{"a":1,"a":2}')), id="a key twice"),
        pytest.param(edited(dsseEnvelope=envelope(b'{"a":NaN}')), id="NaN"),
        pytest.param(SIGNED + b" " * (1 << 20), id="too large"),
        pytest.param(b"[" * 100_000, id="deeply nested"),
    ],
)
def test_what_bundle_is_refused(data: bytes) -> None:
    with pytest.raises(Rejected) as raised:
        verify_bundle(data, RING)
    assert raised.value.reason == "SignatureInvalid"


@given(st.binary(max_size=300))
def test_junk_is_rejected_and_nothing_else(junk: bytes) -> None:
    with pytest.raises(Rejected):
        verify_bundle(junk, RING)
    with pytest.raises(Rejected):
        check(junk)
