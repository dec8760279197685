"""No damage to what is signed is believed, and none of it does more than to be refused: bundles, attestations, trust bundles, orders.

By default a sample of it; EDGEFLEET_FUZZ=1 flips every bit and makes 100,000 mutations. A mutation that fails names its number, which
is all that it depends on beside the documents.
"""

import base64
import json
import os
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, TargetFile, Targets

from edgefleet.api.assignment import ORDER_PAYLOAD_TYPE
from edgefleet.trust.bundle import TRUST_FILE, make_bundle, make_root, open_bundle
from edgefleet.trust.bundle_content import BundleContent
from edgefleet.trust.documents import encode_base64, format_canonical
from edgefleet.trust.errors import Rejected
from edgefleet.trust.identities import Identity, Keyless
from edgefleet.trust.keyless import KeylessVerifier
from edgefleet.trust.keys import PrivateKey, PublicKey
from edgefleet.trust.orders import open_order, sign_order
from edgefleet.trust.publishers import Publisher, Revoked
from edgefleet.trust.release import ReleaseFacts, attest_release, sign_digest, verify_release
from edgefleet.trust.signatures import STATEMENT_PAYLOAD_TYPE, KeyRing, verify_bundle
from tests.lab.sigstore.vectors import ISSUER, SUBJECT
from tests.unit.trust.mutations import mutate
from tests.unit.trust.test_orders import RUN, WITHDRAWAL

EVERYTHING = os.environ.get("EDGEFLEET_FUZZ") == "1"
MUTATIONS = 100_000 if EVERYTHING else 5_000
FLIPS = None if EVERYTHING else 400
SLOWEST, HEAVIEST = 5.0, 200 << 10  # CPU seconds for one document, KiB for all of a kind: far above what they need
VECTORS = Path(__file__).parent / "vectors"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
R1, R2, R3, HUB, ALICE = (PrivateKey.generate() for _ in range(5))
DIGEST = "sha256:" + "a" * 64
FACTS = ReleaseFacts(model="weld", version="2.4", release_seq=7, created_at=NOW)


def vector(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


@dataclass(frozen=True)
class Subject:
    """A kind of document: what `judge` says of `data`, and of `partners`, is all that it may say; else it raises Rejected."""

    name: str
    data: bytes
    partners: tuple[bytes, ...]
    judge: Callable[[bytes], Any]


COSIGN = PublicKey.from_pem(vector("keyed.pub"))
TRUSTED_ROOT = vector("trusted_root.json")
IDENTITIES = KeylessVerifier(Keyless((Identity(ISSUER, SUBJECT),), TRUSTED_ROOT))
RING = KeyRing([COSIGN])
REVOKED = Revoked(
    frozenset({"sha256:" + "c" * 64}), frozenset({HUB.public.id}), (Identity(ISSUER, subject_regex="https://evil[.]test/.*"),)
)


def release_of(data: bytes) -> Any:
    """A release whose attestation is `data`; which spelling of it was believed is left out."""
    digest = json.loads(base64.b64decode(json.loads(vector("keyed.sign.json"))["dsseEnvelope"]["payload"]))["subject"][0]["digest"][
        "sha256"
    ]
    found = verify_release(
        digest=f"sha256:{digest}", model="weld", bundles=[vector("keyed.sign.json"), data], publisher=Publisher((COSIGN,))
    )
    return replace(found, bundles=())


def trust_bundles() -> tuple[bytes, bytes, bytes]:
    """The pinned root, and two bundles under it: over two roots, with all that a bundle can say."""
    keys = [key.public for key in (R1, R2, R3)]
    first = make_root(keys, signers=[R1, R2], threshold=2, version=1, expires_at=NOW + timedelta(days=3650))
    second = make_root(keys[:2], signers=[R1, R2], threshold=2, version=2, expires_at=NOW + timedelta(days=3650))
    keyless = Keyless((Identity(ISSUER, SUBJECT),), TRUSTED_ROOT)
    publisher = Publisher((ALICE.public, COSIGN), 2, 7, keyless, ("https://acme.test/review",), REVOKED)
    made = []
    for version, publishers in (
        (5, {"digits": publisher}),
        (6, {"digits": publisher, "weld": Publisher((ALICE.public,), revoked=REVOKED)}),
    ):
        content = BundleContent(publishers, (HUB.public,), REVOKED)
        made.append(
            make_bundle(roots=[first, second], signers=[R1, R2], version=version, content=content, expires_at=NOW + timedelta(days=365))
        )
    return first, made[0], made[1]


PINNED, TRUST, TRUST_LATER = trust_bundles()
ORDER, OTHER_ORDER = (base64.b64decode(sign_order(order, HUB)) for order in (RUN, WITHDRAWAL))


def opened(data: bytes) -> Any:
    return open_bundle(data, pinned_root=PINNED, floor_version=5, floor_root=2, now=NOW)


def ordered(data: bytes) -> Any:
    return open_order(encode_base64(data), [HUB.public])


def cosign_bundle(kind: str, judge: Callable[[bytes], Any]) -> Subject:
    return Subject(kind, vector(f"{kind}.sign.json"), (vector(f"{kind}.release.json"),), judge)


SUBJECTS = [
    cosign_bundle("keyed", lambda data: verify_bundle(data, RING)),
    Subject("attestation", vector("keyed.release.json"), (vector("keyed.sign.json"), vector("keyed.review.json")), release_of),
    *(cosign_bundle(kind, lambda data: verify_bundle(data, IDENTITIES)) for kind in ("log-v1", "log-v1-stamped", "log-v2")),
    Subject("trust bundle", TRUST, (TRUST_LATER,), opened),
    Subject("order", ORDER, (OTHER_ORDER,), ordered),
]
each_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)


def judge_all(subject: Subject, made: Any) -> tuple[int, list[bytes]]:
    """How many of the documents were refused, and which were believed. Nothing else may come of one, and none may cost too much."""
    known = []
    for data in (subject.data, *subject.partners):
        try:
            known.append(subject.judge(data))
        except Rejected:
            continue
    assert known, "the document itself is believed"
    refused, believed, heaviest = 0, [], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, data in made:
        started = time.process_time()
        try:
            verdict = subject.judge(data)
        except Rejected:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}: {data[:2000]!r}") from error
        else:
            assert verdict in known, f"{name} is believed and says something else: {data!r}"
            believed.append(data)
        assert time.process_time() - started < SLOWEST, f"{name}: {data[:2000]!r}"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - heaviest < HEAVIEST
    return refused, believed


@pytest.mark.timeout(900)
@each_subject
def test_no_flipped_bit_is_believed(subject: Subject) -> None:
    count = len(subject.data) * 8
    bits = range(count) if FLIPS is None else Random(7).sample(range(count), FLIPS)

    def flipped() -> Any:
        for bit in bits:
            data = bytearray(subject.data)
            data[bit // 8] ^= 1 << bit % 8
            yield f"bit {bit}", bytes(data)

    assert judge_all(subject, flipped()) == (len(bits), [])


def meant(data: bytes) -> Any:
    """What a document says, without its spelling, and without what may stand there and says nothing."""
    document = json.loads(data)
    if "roots" in document:
        for one in (*document["roots"], document["targets"]):
            del one["signatures"]  # what the threshold does not need is passed over, as TUF demands
    material = document.get("verificationMaterial", {})
    if material.get("publicKey") is not None:
        del document["verificationMaterial"]  # a key is tried with or without its hint, and needs no log
    elif any(entry.get("integratedTime") for entry in material.get("tlogEntries", ())):
        material.pop("timestampVerificationData", None)  # the log says the time; what else says it must be right, or away
    return {name: value for name, value in document.items() if value is not None}


@pytest.mark.timeout(900)
@each_subject
def test_no_mutation_is_believed(subject: Subject) -> None:
    count = MUTATIONS // len(SUBJECTS)
    made = (
        (f"mutation {number}", mutate(subject.data, Random(f"{subject.name} {number}"), list(subject.partners))) for number in range(count)
    )
    refused, believed = judge_all(subject, made)
    valid = [meant(data) for data in (subject.data, *subject.partners)]
    for data in believed:
        assert meant(data) in valid, data.decode()
    print(f"{subject.name}: {refused} refused, {len(believed)} the same in another spelling")
    assert refused + len(believed) == count
    assert refused > count * 0.8


# What somebody who is trusted signs may be anything: it is read, or refused.


def statement_by_alice(payload: bytes) -> Any:
    signature = ALICE.sign(STATEMENT_PAYLOAD_TYPE, payload)
    document = json.loads(attest_release(ALICE, DIGEST, FACTS))
    document["dsseEnvelope"] |= {"payload": encode_base64(payload), "signatures": [{"sig": encode_base64(signature)}]}
    bundles = [sign_digest(ALICE, DIGEST), json.dumps(document).encode()]
    return verify_release(digest=DIGEST, model="weld", bundles=bundles, publisher=Publisher((ALICE.public,)))


def order_by_the_hub(payload: bytes) -> Any:
    signature = HUB.sign(ORDER_PAYLOAD_TYPE, payload)
    document = json.loads(ORDER) | {"payload": encode_base64(payload)}
    document["signatures"][0]["sig"] = encode_base64(signature)
    return ordered(format_canonical(document))


def trust_by_the_roots(data: bytes) -> Any:
    document = json.loads(TRUST)
    with suppress(Exception):  # what has no canonical form cannot be signed: then the old hash stands there
        document["trust"] = json.loads(data)
        targets = Targets(version=5, expires=NOW + timedelta(days=365))
        targets.targets[TRUST_FILE] = TargetFile.from_data(TRUST_FILE, format_canonical(document["trust"]), ["sha256"])
        metadata = Metadata(targets)
        for key in (R1, R2):
            metadata.sign(CryptoSigner(key.to_crypto()), append=True)
        document["targets"] = json.loads(metadata.to_bytes())
        document["formatVersion"] = document["trust"]["formatVersion"]
    return opened(json.dumps(document).encode())


def under_root(data: bytes) -> Any:
    return verify_bundle(vector("log-v2.sign.json"), KeylessVerifier(Keyless((Identity(ISSUER, SUBJECT),), data)))


def payload_of(data: bytes) -> bytes:
    document = json.loads(data)
    return base64.b64decode(document["dsseEnvelope"]["payload"] if "dsseEnvelope" in document else document["payload"])


def said_without_root() -> dict[str, Any]:
    """What the trust bundle says, for keys alone: the root of a Sigstore is a document of its own."""
    said: dict[str, Any] = json.loads(TRUST)["trust"]
    del said["trustedRoot"], said["publishers"]["digits"]["identities"]
    return said


SIGNED_BY_US = [
    pytest.param(payload_of(attest_release(ALICE, DIGEST, FACTS)), statement_by_alice, id="statement"),
    pytest.param(payload_of(ORDER), order_by_the_hub, id="order"),
    pytest.param(json.dumps(said_without_root()).encode(), trust_by_the_roots, id="trust"),
    pytest.param(TRUSTED_ROOT, under_root, id="trusted root"),
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("payload", "judge"), SIGNED_BY_US)
def test_nothing_that_is_signed_does_more_than_to_be_refused(payload: bytes, judge: Callable[[bytes], Any]) -> None:
    judge(payload)
    count, refused = MUTATIONS // 10, 0
    for number in range(count):
        made = mutate(payload, Random(number), [])
        started = time.process_time()
        try:
            judge(made)
        except Rejected:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"mutation {number}: {type(error).__name__}: {error}: {made[:2000]!r}") from error
        assert time.process_time() - started < SLOWEST, f"mutation {number}: {made[:2000]!r}"
    print(f"{refused} of {count} refused")
    assert count * 0.3 < refused < count
