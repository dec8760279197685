"""The hub's signature over an `Order`, and its opening at a site.

The envelope is DSSE JSON in base64: one text that passes through any CRD version unchanged. Whether an order is for this site,
newer than the last one and not expired is decided in core.site; here only whether a trusted hub key signed these very bytes.
"""

import base64
import re
from collections.abc import Sequence

from edgefleet.api.assignment import ORDER_FORMAT, ORDER_PAYLOAD_TYPE, Order
from edgefleet.trust.documents import decode_base64, encode_base64, format_canonical, parse_json_object
from edgefleet.trust.errors import Rejected, rejecting
from edgefleet.trust.keys import PrivateKey, PublicKey

MAX_ENVELOPE_CHARACTERS = 65_536
TAIL_CHARACTERS = 400
_SIGNER = re.compile(rb'\[\{"keyid":"(sha256:[0-9a-f]{64})","sig":"[^"]*"\}\]\}\Z')


def sign_order(order: Order, hub_key: PrivateKey) -> str:
    """The text for `SiteAssignmentSpec.envelope`. Raises ValueError when the order is too large for that field."""
    payload = format_canonical(order.to_json_dict())
    envelope = {
        "payloadType": ORDER_PAYLOAD_TYPE,
        "payload": encode_base64(payload),
        "signatures": [
            {"keyid": hub_key.public.id, "sig": encode_base64(hub_key.sign(ORDER_PAYLOAD_TYPE, payload))},
        ],
    }
    text = encode_base64(format_canonical(envelope))
    if len(text) > MAX_ENVELOPE_CHARACTERS:
        raise ValueError(
            f"the order for site {order.site} and fleet {order.fleet} is {len(text)} characters long, "
            f"more than the {MAX_ENVELOPE_CHARACTERS} that spec.envelope holds"
        )
    return text


def read_signer(envelope: str) -> str:
    """Whose signature an envelope of sign_order bears, by its own word: a key id, or nothing where it says none. Believes nothing."""
    # The signature ends the canonical text, so that no payload need be decoded for it.
    try:
        found = _SIGNER.search(base64.b64decode(envelope[-TAIL_CHARACTERS:]))
    except ValueError:
        return ""
    return found[1].decode() if found else ""


def open_order(envelope: str, hub_keys: Sequence[PublicKey]) -> Order:
    """The order that a trusted hub key signed.

    Raises Rejected: OrderMalformed, OrderSignatureInvalid, FormatUnknown. The signature is checked before the payload is read.
    """
    with rejecting("OrderMalformed", "the assignment's envelope"):
        payload = _open(envelope, hub_keys)
        body = parse_json_object(payload, limit=MAX_ENVELOPE_CHARACTERS)
        found = body.get("formatVersion")
        if type(found) is not int or found != ORDER_FORMAT:
            raise Rejected("FormatUnknown", f"the order has formatVersion {found!r}, this agent reads {ORDER_FORMAT}: upgrade the agent")
        return Order.model_validate(body)


def _open(envelope: str, hub_keys: Sequence[PublicKey]) -> bytes:
    if len(envelope) > MAX_ENVELOPE_CHARACTERS:
        raise ValueError(f"{len(envelope)} characters, more than the {MAX_ENVELOPE_CHARACTERS} allowed")
    data = decode_base64(envelope)
    outer = parse_json_object(data, limit=MAX_ENVELOPE_CHARACTERS)
    if format_canonical(outer) != data:
        raise ValueError("its JSON is not in canonical form")
    if set(outer) != {"payloadType", "payload", "signatures"}:
        raise ValueError(f"not a DSSE envelope: it has {', '.join(sorted(outer)) or 'no fields'}")
    if outer["payloadType"] != ORDER_PAYLOAD_TYPE:
        raise ValueError(f"payloadType is {outer['payloadType']!r}, not {ORDER_PAYLOAD_TYPE}")
    payload = decode_base64(outer["payload"])
    by_id = {key.id: key for key in hub_keys}
    signatures = outer["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise ValueError("an order's envelope carries one signature")
    (entry,) = signatures
    if set(entry) != {"keyid", "sig"}:
        raise ValueError("a signature has exactly the fields keyid and sig")
    signature = decode_base64(entry["sig"])
    key = by_id.get(entry["keyid"])
    if key is None or not key.verifies(ORDER_PAYLOAD_TYPE, payload, signature):
        raise Rejected("OrderSignatureInvalid", f"signed by {str(entry['keyid'])[:80]}; trusted hub keys: {', '.join(by_id) or 'none'}")
    return payload
