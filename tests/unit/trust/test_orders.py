"""Orders: what a trusted hub key signed comes out as it went in; all else is Rejected."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefleet.api.assignment import ORDER_PAYLOAD_TYPE, FrozenRevision, Order
from edgefleet.api.model import RepositoryRuntime, Serving, Variant
from edgefleet.trust.documents import format_canonical
from edgefleet.trust.errors import Rejected
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.orders import open_order, read_signer, sign_order

HUB, OLD_HUB, STRANGER = PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate()
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DIGEST = "sha256:" + "a" * 64
VARIANT = Variant(name="int8", digest=DIGEST, size=1 << 40, arch="amd64", features=("avx512_vnni",), min_memory=1 << 30)
REVISION = FrozenRevision(
    hash="b" * 64,
    model="digits",
    repository="registry.example/vision/digits",
    digest=DIGEST,
    version="2.4",
    seq=7,
    variant=VARIANT,
    serving=Serving(repository=RepositoryRuntime()),
)
WITHDRAWAL = Order(
    site="berlin",
    fleet="vision/digits",
    sequence=41,
    action="Withdraw",
    model="digits",
    issued_at=NOW,
    expires_at=NOW + timedelta(days=14),
)
RUN = WITHDRAWAL.model_copy(update={"action": "Run", "revision": REVISION, "sequence": 42})
ENVELOPE = sign_order(RUN, HUB)
INNER = base64.b64decode(ENVELOPE)
INNER_DOCUMENT = json.loads(INNER)
(SIGNATURE,) = INNER_DOCUMENT["signatures"]
INNER_PAYLOAD = base64.b64decode(INNER_DOCUMENT["payload"])


def reason_of(envelope: str, *keys: PrivateKey) -> str:
    with pytest.raises(Rejected) as raised:
        open_order(envelope, [key.public for key in keys or (HUB,)])
    return raised.value.reason


def envelope_of(payload: bytes, key: PrivateKey = HUB, /, **changes: Any) -> str:
    """A well-signed envelope over any payload."""
    signature = base64.b64encode(key.sign(ORDER_PAYLOAD_TYPE, payload)).decode()
    document = {
        "payloadType": ORDER_PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": key.public.id, "sig": signature}],
        **changes,
    }
    return base64.b64encode(format_canonical(document)).decode()


def payload_of(**changes: Any) -> bytes:
    return json.dumps({**RUN.to_json_dict(), **changes}).encode()


def pods_of(image: str) -> dict[str, Any]:
    """The signed revision, served by pods."""
    template = {"spec": {"containers": [{"name": "server", "image": image}]}}
    return {**REVISION.to_json_dict(), "serving": {"deployment": {"template": template, "port": 8080, "mountPath": "/models"}}}


BY_DIGEST, TAGGED = pods_of("registry.example/server@" + DIGEST), pods_of("registry.example/server:latest")


def test_pods_by_digest_are_ordered() -> None:
    order = open_order(envelope_of(payload_of(revision=BY_DIGEST)), [HUB.public])
    assert order.revision is not None
    assert order.revision.serving.deployment is not None


@pytest.mark.parametrize("order", [RUN, WITHDRAWAL], ids=["run", "withdrawal"])
def test_there_and_back(order: Order) -> None:
    assert open_order(sign_order(order, HUB), [OLD_HUB.public, HUB.public]) == order


def test_an_unknown_field_of_a_newer_hub_is_ignored() -> None:
    assert open_order(envelope_of(payload_of(newField={"x": 1})), [HUB.public]) == RUN


@pytest.mark.parametrize(
    ("envelope", "reason"),
    [
        pytest.param("", "OrderMalformed", id="empty"),
        pytest.param("e30", "OrderMalformed", id="unpadded"),
        pytest.param("e30=", "OrderMalformed", id="no DSSE"),
        pytest.param(ENVELOPE + "\n", "OrderMalformed", id="line break"),
        pytest.param("A" * 65_540, "OrderMalformed", id="too large"),
        pytest.param(envelope_of(payload_of(), payloadType="application/json"), "OrderMalformed", id="other payload type"),
        pytest.param(envelope_of(payload_of(), signatures=[]), "OrderMalformed", id="no signature"),
        pytest.param(envelope_of(payload_of(), signatures=[SIGNATURE, SIGNATURE]), "OrderMalformed", id="two signatures"),
        pytest.param(base64.b64encode(json.dumps(INNER_DOCUMENT).encode()).decode(), "OrderMalformed", id="another spelling"),
        pytest.param(envelope_of(payload_of(), signatures=None), "OrderMalformed", id="null signatures"),
        pytest.param(envelope_of(payload_of(), signatures=["sig"]), "OrderMalformed", id="signature is a string"),
        pytest.param(envelope_of(payload_of(), signatures=[{"keyid": [], "sig": "AA=="}]), "OrderMalformed", id="keyid is a list"),
        pytest.param(envelope_of(payload_of(), payload=5), "OrderMalformed", id="payload is a number"),
        pytest.param(envelope_of(payload_of(), extra=1), "OrderMalformed", id="unsigned field"),
        pytest.param(envelope_of(INNER_PAYLOAD, signatures=[SIGNATURE | {"x": 1}]), "OrderMalformed", id="unsigned field of a signature"),
        pytest.param(envelope_of(payload_of(newField="x" * 38_000)), "OrderMalformed", id="signed and too large"),
        pytest.param(envelope_of(payload_of(revision=TAGGED)), "OrderMalformed", id="a tag instead of a digest"),
        pytest.param(envelope_of(payload_of(), STRANGER), "OrderSignatureInvalid", id="a stranger's"),
        pytest.param(
            envelope_of(payload_of(), signatures=[{"keyid": HUB.public.id, "sig": "AA=="}]),
            "OrderSignatureInvalid",
            id="junk",
        ),
        pytest.param(envelope_of(payload_of(formatVersion=2)), "FormatUnknown", id="newer format"),
        pytest.param(envelope_of(payload_of(formatVersion=2, site=5)), "FormatUnknown", id="newer format, other fields"),
        pytest.param(envelope_of(payload_of(formatVersion=True)), "FormatUnknown", id="true is not 1"),
        pytest.param(envelope_of(b"{}"), "FormatUnknown", id="no format"),
        pytest.param(envelope_of(b"[]"), "OrderMalformed", id="no object"),
        pytest.param(envelope_of(payload_of(sequence=0)), "OrderMalformed", id="sequence 0"),
        pytest.param(envelope_of(payload_of(site="NOT A NAME")), "OrderMalformed", id="bad site"),
        pytest.param(envelope_of(b'{"formatVersion":1,"formatVersion":1}'), "OrderMalformed", id="a key twice"),
        pytest.param(envelope_of(b"[" * 30_000), "OrderMalformed", id="deeply nested"),
    ],
)
def test_what_is_refused(envelope: str, reason: str) -> None:
    assert reason_of(envelope) == reason


def test_a_retired_hub_key_is_not_believed() -> None:
    assert reason_of(ENVELOPE, OLD_HUB) == "OrderSignatureInvalid"
    with pytest.raises(Rejected):
        open_order(ENVELOPE, [])


def test_whose_signature_it_says_it_bears() -> None:
    assert read_signer(ENVELOPE) == HUB.public.id
    for other in ("", "x", ENVELOPE[:-4], ENVELOPE[:80], "\u00e4" * 400, ENVELOPE + ENVELOPE):
        assert read_signer(other) in ("", HUB.public.id)
    assert read_signer(ENVELOPE[:-4]) == ""


def test_what_does_not_fit_the_field_is_not_signed() -> None:
    many = tuple(f"f{number:031d}" for number in range(2000))
    huge = RUN.model_copy(update={"revision": REVISION.model_copy(update={"variant": VARIANT.model_copy(update={"features": many})})})
    with pytest.raises(ValueError, match="65536"):
        sign_order(huge, HUB)


@settings(max_examples=400, deadline=None)
@given(st.integers(min_value=0, max_value=len(ENVELOPE) * 8 - 1))
def test_no_flipped_bit_of_the_text_is_accepted(bit: int) -> None:
    flipped = bytearray(ENVELOPE.encode())
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Rejected):
        open_order(flipped.decode("latin-1"), [HUB.public])


@given(st.text(max_size=200))
def test_junk_is_rejected_and_nothing_else(junk: str) -> None:
    with pytest.raises(Rejected):
        open_order(junk, [HUB.public])
