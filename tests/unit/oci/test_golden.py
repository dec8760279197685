"""Golden sets: every line is read before anything is pushed or scored."""

import json
from typing import Any

import pytest

from edgefleet.oci import media
from edgefleet.oci.errors import MalformedManifest, TooLarge
from edgefleet.oci.golden import MAX_LINES, parse_golden_lines, parse_golden_manifest

TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2.5]}
LINE: dict[str, Any] = {"inputs": [TENSOR], "expect": {"output": "y", "label": 3}}


def lines(*values: Any) -> bytes:
    return b"\n".join(json.dumps(value).encode() for value in values)


def test_lines_are_read() -> None:
    (first, second) = parse_golden_lines(lines(LINE, {**LINE, "expect": {"output": "z", "label": 0}}) + b"\n\n", "x")
    assert (first.inputs, first.output, first.label) == ((TENSOR,), "y", 3)
    assert (second.output, second.label) == ("z", 0)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        pytest.param({**LINE, "inputs": []}, "inputs", id="no inputs"),
        pytest.param({**LINE, "inputs": [{**TENSOR, "datatype": "FP8"}]}, "datatype", id="unknown datatype"),
        pytest.param({**LINE, "inputs": [{**TENSOR, "shape": [0]}]}, "shape", id="empty shape"),
        pytest.param({**LINE, "inputs": [{**TENSOR, "data": "AAAA"}]}, "data", id="data is text"),
        pytest.param({**LINE, "inputs": [{**TENSOR, "extra": 1}]}, "extra", id="unknown field"),
        pytest.param({**LINE, "expect": {"output": "y", "label": "3"}}, "label", id="label is text"),
        pytest.param({**LINE, "expect": {"output": "y", "label": -1}}, "label", id="negative label"),
        pytest.param({**LINE, "expect": {"output": "", "label": 1}}, "output", id="no output"),
        pytest.param({"inputs": [TENSOR]}, "expect", id="no expectation"),
        pytest.param([], "line 2", id="a list"),
    ],
)
def test_a_bad_line_is_named(line: Any, named: str) -> None:
    with pytest.raises(MalformedManifest, match=named) as raised:
        parse_golden_lines(lines(LINE, line), "set")
    assert "set: line 2" in raised.value.message


@pytest.mark.parametrize("data", [b"", b"\n \n", b"{", b"[" * 100_000, b"\xff"], ids=["empty", "blank", "cut", "nested", "not UTF-8"])
def test_what_are_no_lines(data: bytes) -> None:
    with pytest.raises(MalformedManifest):
        parse_golden_lines(data, "set")


def test_too_many_lines() -> None:
    with pytest.raises(TooLarge):
        parse_golden_lines(b"{}\n" * (MAX_LINES + 1), "set")


def manifest(**changes: Any) -> bytes:
    layer = {"mediaType": media.GOLDEN_LINES, "digest": "sha256:" + "a" * 64, "size": 5}
    document = {"schemaVersion": 2, "mediaType": media.MANIFEST, "artifactType": media.GOLDEN, "layers": [layer]}
    return json.dumps({**document, **changes}).encode()


def test_the_manifest_names_the_lines() -> None:
    assert parse_golden_manifest(manifest(), "x").size == 5
    for changes in ({"artifactType": media.MODEL}, {"layers": []}, {"layers": json.loads(manifest())["layers"] * 2}):
        with pytest.raises(MalformedManifest):
            parse_golden_manifest(manifest(**changes), "x")
