"""Reading manifests: descriptors and layers as strict values, from bytes that somebody else wrote.

The bytes' digest is checked by the client before they come here, and whether a publisher signed them by trust. Every list is bounded,
every path stays inside its folder, and what we would not know how to treat is refused by name.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgefleet.api.quantities import DIGEST_PATTERN
from edgefleet.oci import media
from edgefleet.oci.errors import LayerUnsupported, MalformedManifest, TooLarge
from edgefleet.oci.fetch import Blob

MAX_LAYERS = 64
MAX_OBJECTS = 50_000
MAX_SIZE = 1 << 50
MAX_PATH_CHARACTERS = 255

_DIGEST = re.compile(DIGEST_PATTERN.strip("^$"))
_PATH_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@=-]*")


@dataclass(frozen=True)
class Descriptor:
    """What points to content: `size` in bytes; `platform` and `annotations` as they stand in the index."""

    media_type: str
    digest: str
    size: int
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Mapping[str, Any] = field(default_factory=dict)

    @property
    def blob(self) -> Blob:
        """The part that fetch needs."""
        return Blob(self.digest, self.size)

    def to_json_dict(self) -> dict[str, Any]:
        """The descriptor as manifests spell it."""
        found: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.artifact_type:
            found["artifactType"] = self.artifact_type
        if self.platform:
            found["platform"] = dict(self.platform)
        if self.annotations:
            found["annotations"] = dict(self.annotations)
        return found


@dataclass(frozen=True)
class Layer:
    """One file of a model: `path` is relative, with `/`, and stays inside the model's folder."""

    path: str
    blob: Blob


@dataclass(frozen=True)
class ModelManifest:
    """One variant's files."""

    layers: tuple[Layer, ...]

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(layer.blob.size for layer in self.layers)


def parse_model_manifest(data: bytes, what: str) -> ModelManifest:
    """Read a ModelPack manifest with raw layers. Raises MalformedManifest, LayerUnsupported, TooLarge, naming `what`."""
    document = parse_document(data, media.MANIFEST, what)
    artifact = document.get("artifactType")
    if artifact != media.MODEL:
        raise MalformedManifest(f"{what}: artifactType is {str(artifact)[:100]!r}, a model has {media.MODEL}")
    layers = []
    for descriptor in parse_descriptors(document, "layers", MAX_LAYERS, what):
        if descriptor.media_type in media.TAR_LAYERS:
            raise LayerUnsupported(
                f"{what}: layer {descriptor.digest} is an archive ({descriptor.media_type}): push the files as raw layers"
            )
        if descriptor.media_type not in media.RAW_LAYERS:
            raise LayerUnsupported(f"{what}: layer {descriptor.digest} has the unknown media type {descriptor.media_type[:100]!r}")
        path = descriptor.annotations.get(media.FILEPATH) or descriptor.annotations.get(media.TITLE) or ""
        layers.append(Layer(check_path(path, f"{what}: layer {descriptor.digest}"), descriptor.blob))
    if not layers:
        raise MalformedManifest(f"{what}: it has no layers")
    _require_distinct_paths([layer.path for layer in layers], what)
    return ModelManifest(tuple(layers))


def check_path(path: str, what: str) -> str:
    """The path, if it is relative, plain and stays inside. Raises MalformedManifest, naming `what`."""
    if len(path) > MAX_PATH_CHARACTERS or not all(_PATH_PART.fullmatch(part) for part in path.split("/")):
        raise MalformedManifest(
            f"{what}: the file path {path[:100]!r} is not allowed: a relative path of letters, digits and . _ + @ = -, "
            f"no part beginning with a dot, at most {MAX_PATH_CHARACTERS} characters"
        )
    return path


def parse_document(data: bytes, media_type: str, what: str) -> dict[str, Any]:
    """Read a manifest or index of this media type. Raises MalformedManifest, TooLarge."""
    # Empty objects of a few bytes take 30 times as many in memory.
    objects = data.count(b"{") + data.count(b"[")
    if objects > MAX_OBJECTS:
        raise TooLarge(f"{what}: {objects} objects and lists, at most {MAX_OBJECTS} are read")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedManifest(f"{what}: not JSON") from error
    if not isinstance(document, dict) or document.get("schemaVersion") != 2:
        raise MalformedManifest(f"{what}: not an OCI document with schemaVersion 2")
    found = document.get("mediaType", media_type)
    if found != media_type:
        raise MalformedManifest(f"{what}: mediaType is {str(found)[:100]!r}, expected {media_type}")
    return document


def parse_descriptors(document: Mapping[str, Any], field_name: str, limit: int, what: str) -> tuple[Descriptor, ...]:
    """Read a list of descriptors. Raises MalformedManifest and TooLarge."""
    entries = document.get(field_name)
    if not isinstance(entries, list):
        raise MalformedManifest(f"{what}: {field_name} is not a list")
    if len(entries) > limit:
        raise TooLarge(f"{what}: {len(entries)} {field_name}, at most {limit} are read")
    return tuple(parse_descriptor(entry, f"{what}: {field_name}[{i}]") for i, entry in enumerate(entries))


def parse_descriptor(entry: Any, what: str) -> Descriptor:
    """Read one descriptor. Raises MalformedManifest."""
    if not isinstance(entry, dict):
        raise MalformedManifest(f"{what} is not a descriptor")
    digest, size, media_type = entry.get("digest"), entry.get("size"), entry.get("mediaType")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise MalformedManifest(f"{what}: {str(digest)[:100]!r} is not a SHA-256 digest")
    if type(size) is not int or not 0 <= size <= MAX_SIZE:
        raise MalformedManifest(f"{what}: size {str(size)[:40]!r} is not a number of bytes")
    if not isinstance(media_type, str):
        raise MalformedManifest(f"{what}: it has no mediaType")
    annotations = entry.get("annotations") or {}
    platform = entry.get("platform") or {}
    if not isinstance(annotations, dict) or not all(isinstance(value, str) for value in annotations.values()):
        raise MalformedManifest(f"{what}: annotations is not a map of strings")
    if not isinstance(platform, dict):
        raise MalformedManifest(f"{what}: platform is not a map")
    artifact_type = entry.get("artifactType") or ""
    return Descriptor(media_type, digest, size, str(artifact_type)[:255], annotations, platform)


def _require_distinct_paths(paths: list[str], what: str) -> None:
    seen: set[str] = set()
    for path in sorted(paths):
        parents = {path[:i] for i, letter in enumerate(path) if letter == "/"}
        if path in seen or parents & seen:
            raise MalformedManifest(f"{what}: two layers claim the path {path!r}")
        seen.add(path)
