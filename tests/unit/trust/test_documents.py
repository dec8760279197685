"""Signed documents have one reading: bounded strict JSON, and one base64 spelling of each byte string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet.trust.documents import decode_base64, encode_base64, format_canonical, parse_json_object


@given(st.binary(max_size=64))
def test_base64_there_and_back(data: bytes) -> None:
    assert decode_base64(encode_base64(data)) == data


@pytest.mark.parametrize("text", ["QR==", "QQ", "QQ=", "QQ==\n", " QQ==", "QUJ=", "Q-__", "QQ==QQ==", "ä"])
def test_base64_has_no_second_spelling(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_base64(text)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b'{"a":1,"a":1}', "twice"),
        (b'{"b":{"a":1,"a":2}}', "twice"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":-Infinity}', "Infinity"),
        (b"[]", "object was expected"),
        (b"null", "object was expected"),
        (b'{"a":1}{"b":2}', "Extra data"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"a":"\xff"}', "utf-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":"' + b"x" * 100 + b'"}', "more than the 64"),
    ],
)
def test_json_that_could_be_read_in_two_ways_is_refused(data: bytes, named: str) -> None:
    limit = 64 if b"xxx" in data else 1 << 20
    with pytest.raises(ValueError, match=named):
        parse_json_object(data, limit=limit)


def test_canonical_json_is_that_of_rfc_8785() -> None:
    assert format_canonical({"b": 1.0, "a": "é\n", "B": [True, None]}) == '{"B":[true,null],"a":"é\\n","b":1}'.encode()
