"""How signed documents are read and written: bounded strict JSON and canonical base64.

A signature covers bytes, so two readings of the same bytes must not exist: duplicate keys, NaN, and base64 with stray bits or
line breaks are refused. What a document means is left to the modules that read one.
"""

import base64
import json
from typing import Any

import rfc8785

MAX_DOCUMENT_BYTES = 1 << 20


def parse_json_object(data: bytes, *, limit: int = MAX_DOCUMENT_BYTES) -> dict[str, Any]:
    """Read one JSON object of at most `limit` bytes. Raises ValueError."""
    if len(data) > limit:
        raise ValueError(f"{len(data)} bytes, more than the {limit} allowed")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object was expected, found {type(value).__name__}")
    return value


def format_canonical(value: Any) -> bytes:
    """RFC 8785 JSON: the same value is always the same bytes."""
    return rfc8785.dumps(value)


def encode_base64(data: bytes) -> str:
    """Standard base64 with padding, on one line."""
    return base64.b64encode(data).decode("ascii")


def decode_base64(text: str) -> bytes:
    """The inverse of encode_base64, and of nothing else: the one spelling of these bytes. Raises ValueError."""
    data = base64.b64decode(text, validate=True)
    if encode_base64(data) != text:
        raise ValueError("base64 that is not in canonical form")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a JSON object names one key twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
