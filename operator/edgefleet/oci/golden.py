"""Golden sets as artifacts: an OCI manifest of its own artifactType with one layer of JSON lines.

Each line is `{"inputs": [tensor, ...], "expect": {"output": NAME, "label": N}}`, tensors as in the Open Inference Protocol v2:
`{"name", "datatype", "shape", "data"}`. How lines are scored is decided in core, whether the set is signed in trust.
"""

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgefleet.core.golden import GoldenLine
from edgefleet.oci import media
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.errors import MalformedManifest, TooLarge
from edgefleet.oci.manifest import Descriptor, parse_descriptors, parse_document
from edgefleet.oci.reference import Repository

MAX_GOLDEN_BYTES = 64 << 20
MAX_LINES = 100_000


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Tensor(_Strict):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    datatype: Annotated[str, Field(pattern=r"^(BOOL|U?INT(8|16|32|64)|FP(16|32|64)|BYTES)$")]
    shape: Annotated[list[Annotated[int, Field(ge=1, le=1 << 31)]], Field(max_length=8)]
    data: list[Any]


class _Expect(_Strict):
    output: Annotated[str, Field(min_length=1, max_length=256)]
    label: Annotated[int, Field(ge=0, le=1 << 31)]


class _Line(_Strict):
    inputs: Annotated[list[_Tensor], Field(min_length=1, max_length=16)]
    expect: _Expect


def fetch_golden(client: RegistryClient, repository: Repository, digest: str) -> tuple[GoldenLine, ...]:
    """The lines of the golden set with this digest. Raises RegistryError."""
    what = f"{repository}@{digest}"
    layer = parse_golden_manifest(client.fetch_manifest(repository, digest), what)
    return parse_golden_lines(client.fetch_small_blob(repository, layer.digest, layer.size, MAX_GOLDEN_BYTES), what)


def parse_golden_manifest(data: bytes, what: str) -> Descriptor:
    """The descriptor of the lines. Raises MalformedManifest."""
    document = parse_document(data, media.MANIFEST, what)
    if document.get("artifactType") != media.GOLDEN:
        raise MalformedManifest(f"{what}: artifactType is {str(document.get('artifactType'))[:100]!r}, a golden set has {media.GOLDEN}")
    layers = parse_descriptors(document, "layers", 8, what)
    if len(layers) != 1 or layers[0].media_type != media.GOLDEN_LINES:
        raise MalformedManifest(f"{what}: a golden set has exactly one layer, of type {media.GOLDEN_LINES}")
    return layers[0]


def parse_golden_lines(data: bytes, what: str) -> tuple[GoldenLine, ...]:
    """Read JSON lines: 1 to 100,000 of them, blank ones not counted. Raises MalformedManifest naming the line, TooLarge."""
    texts = [(number, text) for number, text in enumerate(data.split(b"\n"), start=1) if text.strip()]
    if not texts:
        raise MalformedManifest(f"{what}: no lines")
    if len(texts) > MAX_LINES:
        raise TooLarge(f"{what}: {len(texts)} lines, at most {MAX_LINES} are read")
    return tuple(_parse_line(text, f"{what}: line {number}") for number, text in texts)


def _parse_line(text: bytes, where: str) -> GoldenLine:
    try:
        line = _Line.model_validate(json.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        raise MalformedManifest(f"{where}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise MalformedManifest(f"{where}: not JSON") from error
    return GoldenLine(tuple(tensor.model_dump() for tensor in line.inputs), line.expect.output, line.expect.label)
