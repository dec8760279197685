"""Writing artifacts: blobs, model indexes, golden sets, and what is attached to them.

Everything is addressed by content, so pushing the same files again writes nothing new and yields the same digest. Tags come last,
after signing; signing is left to trust, here a bundle is bytes.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edgefleet.api.model import Variant
from edgefleet.oci import media
from edgefleet.oci.answers import join_address
from edgefleet.oci.client import RegistryClient, digest_of
from edgefleet.oci.errors import LayerUnsupported, MalformedManifest, NotFound, RegistryRefused
from edgefleet.oci.golden import parse_golden_lines
from edgefleet.oci.index import parse_index, variant_annotations
from edgefleet.oci.manifest import MAX_LAYERS, Descriptor, check_path, parse_descriptors, parse_document, parse_model_manifest
from edgefleet.oci.reference import Repository
from edgefleet.oci.referrers import MAX_LISTED, fallback_tag
from edgefleet.oci.transport import PUSH

ARCHIVES = ("tar", "+gzip", "+zstd", ".gzip", ".zip")
"""How media types of layers end that are not files as they are."""

Said = Callable[[str], None]
"""Told what is being written, for a person who waits."""


@dataclass(frozen=True)
class VariantFiles:
    """A variant to push: its selection facts (digest and size are not read) and its files by their path in the model's folder."""

    facts: Variant
    files: Mapping[str, Path]


def push_model(
    client: RegistryClient,
    repository: Repository,
    *,
    name: str,
    version: str,
    variants: Sequence[VariantFiles],
    say: Said = lambda _: None,
) -> str:
    """Push an index with one ModelPack manifest per variant; its digest. No tag names it yet. Raises RegistryError and OSError."""
    entries = []
    for variant in variants:
        say(f"variant {variant.facts.name}")
        manifest = _model_manifest(client, repository, name, version, variant, say)
        digest = push_manifest(client, repository, manifest, media.MANIFEST)
        entries.append(_entry(variant.facts, digest, len(manifest)))
    return _push_index(client, repository, entries)


def push_adopted(client: RegistryClient, repository: Repository, digest: str, *, name: str, version: str, facts: Variant) -> str:
    """Push an index whose one variant is an artifact that stands in this repository already; the index's digest. No tag names it yet.

    A ModelPack manifest is taken as it is. Of another one whose layers are plain files with a name (as `oras push` makes it) a ModelPack
    manifest of the same blobs is pushed. `facts` are read without digest and size. Raises LayerUnsupported, MalformedManifest,
    RegistryError.
    """
    data, what = client.fetch_manifest(repository, digest), f"{repository}@{digest}"
    document = parse_document(data, media.MANIFEST, what)
    if document.get("artifactType") != media.MODEL:
        data = _as_model(client, repository, document, what, name=name, version=version, facts=facts)
    parse_model_manifest(data, what)
    child = push_manifest(client, repository, data, media.MANIFEST)
    return _push_index(client, repository, [_entry(facts, child, len(data))])


def push_golden(client: RegistryClient, repository: Repository, lines: bytes) -> str:
    """Push a golden set, after reading every line; its digest. Raises MalformedManifest, RegistryError."""
    parse_golden_lines(lines, "golden set")
    layer = _push_bytes(client, repository, lines, media.GOLDEN_LINES)
    manifest = _artifact_manifest(client, repository, media.GOLDEN, [layer])
    return push_manifest(client, repository, manifest, media.MANIFEST)


def attach_bundle(client: RegistryClient, repository: Repository, subject_digest: str, bundle: bytes, predicate_type: str) -> str:
    """Attach a Sigstore bundle as a referrer of a manifest or index in this repository; the referrer's digest. Raises RegistryError."""
    subject_bytes = client.fetch_manifest(repository, subject_digest)
    subject = Descriptor(_media_type_of(subject_bytes, subject_digest), subject_digest, len(subject_bytes))
    layer = _push_bytes(client, repository, bundle, media.SIGSTORE_BUNDLE)
    annotations = {media.PREDICATE_TYPE: predicate_type}
    manifest = _artifact_manifest(client, repository, media.SIGSTORE_BUNDLE, [layer], subject=subject, annotations=annotations)
    entry = Descriptor(media.MANIFEST, digest_of(manifest), len(manifest), media.SIGSTORE_BUNDLE, annotations)
    url = f"{repository.url}/manifests/{entry.digest}"
    headers = {"Content-Type": media.MANIFEST}
    with closing(client.request("PUT", repository, url, headers=headers, data=manifest, action=PUSH)) as response:
        understood = response.headers.get("OCI-Subject") == subject_digest
    if not understood:
        _list_under_fallback_tag(client, repository, subject_digest, entry)
    return entry.digest


def tag_manifest(client: RegistryClient, repository: Repository, digest: str, tag: str) -> None:
    """Let `tag` name this digest: after signing, so that nobody meets the tag before the signature. Raises RegistryError."""
    data = client.fetch_manifest(repository, digest)
    push_manifest(client, repository, data, _media_type_of(data, digest), tag=tag)


def push_manifest(client: RegistryClient, repository: Repository, data: bytes, media_type: str, *, tag: str | None = None) -> str:
    """Push a manifest or index; its digest. Raises RegistryError."""
    digest = digest_of(data)
    url = f"{repository.url}/manifests/{tag or digest}"
    client.request("PUT", repository, url, headers={"Content-Type": media_type}, data=data, action=PUSH).close()
    return digest


def push_blob(client: RegistryClient, repository: Repository, data: bytes | Path, digest: str) -> None:
    """Push a blob unless the registry has it. Raises RegistryError and OSError."""
    try:
        client.request("HEAD", repository, f"{repository.url}/blobs/{digest}", action=PUSH).close()
        return
    except NotFound:
        pass
    start = f"{repository.url}/blobs/uploads/"
    with closing(client.request("POST", repository, start, action=PUSH)) as response:
        location = response.headers.get("Location")
    if not location:
        raise RegistryRefused(f"{repository}: the registry opens an upload without saying where")
    url = join_address(start, location)
    url += ("&" if "?" in url else "?") + "digest=" + quote(digest, safe="")
    client.request("PUT", repository, url, headers={"Content-Type": "application/octet-stream"}, data=data, action=PUSH).close()


def _entry(facts: Variant, digest: str, size: int) -> Descriptor:
    platform = {"os": "linux", "architecture": facts.arch}
    return Descriptor(media.MANIFEST, digest, size, media.MODEL, variant_annotations(facts), platform)


def _push_index(client: RegistryClient, repository: Repository, entries: Sequence[Descriptor]) -> str:
    index = _encode(
        {
            "schemaVersion": 2,
            "mediaType": media.INDEX,
            "artifactType": media.MODEL,
            "manifests": [entry.to_json_dict() for entry in entries],
        }
    )
    # What we could not read again must not be published.
    parse_index(index, f"{repository} (to be pushed)")
    return push_manifest(client, repository, index, media.INDEX)


def _as_model(
    client: RegistryClient, repository: Repository, document: Mapping[str, Any], what: str, *, name: str, version: str, facts: Variant
) -> bytes:
    layers = []
    for layer in parse_descriptors(document, "layers", MAX_LAYERS, what):
        if layer.media_type.endswith(ARCHIVES):
            raise LayerUnsupported(f"{what}: layer {layer.digest} is an archive ({layer.media_type}): push its files with `model push`")
        path = layer.annotations.get(media.FILEPATH) or layer.annotations.get(media.TITLE) or ""
        layers.append(Descriptor(media.WEIGHT_LAYER, layer.digest, layer.size, annotations={media.FILEPATH: check_path(path, what)}))
    config = {
        "descriptor": {"name": name, "version": version},
        "config": {"precision": facts.precision} if facts.precision else {},
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
    }
    return _encode(
        {
            "schemaVersion": 2,
            "mediaType": media.MANIFEST,
            "artifactType": media.MODEL,
            "config": _push_bytes(client, repository, _encode(config), media.MODEL_CONFIG).to_json_dict(),
            "layers": [layer.to_json_dict() for layer in layers],
            "annotations": {media.VARIANT_PREFIX + "name": facts.name},
        }
    )


def _model_manifest(client: RegistryClient, repository: Repository, name: str, version: str, variant: VariantFiles, say: Said) -> bytes:
    layers, digests = [], []
    for path, file in sorted(variant.files.items()):
        check_path(path, f"variant {variant.facts.name}")
        with file.open("rb") as stream:
            digest = "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
        size = file.stat().st_size
        say(f"  {path} ({size:,} bytes)")
        push_blob(client, repository, file, digest)
        layers.append(Descriptor(media.WEIGHT_LAYER, digest, size, annotations={media.FILEPATH: path}))
        digests.append(digest)
    if not layers:
        raise MalformedManifest(f"variant {variant.facts.name}: it has no files")
    config = {
        "descriptor": {"name": name, "version": version},
        "config": {"precision": variant.facts.precision} if variant.facts.precision else {},
        "modelfs": {"type": "layers", "diffIds": digests},
    }
    return _encode(
        {
            "schemaVersion": 2,
            "mediaType": media.MANIFEST,
            "artifactType": media.MODEL,
            "config": _push_bytes(client, repository, _encode(config), media.MODEL_CONFIG).to_json_dict(),
            "layers": [layer.to_json_dict() for layer in layers],
            # Two variants of the same files (one ONNX for two architectures) must still be two manifests.
            "annotations": {media.VARIANT_PREFIX + "name": variant.facts.name},
        }
    )


def _artifact_manifest(
    client: RegistryClient,
    repository: Repository,
    artifact_type: str,
    layers: Sequence[Descriptor],
    *,
    subject: Descriptor | None = None,
    annotations: Mapping[str, str] | None = None,
) -> bytes:
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media.MANIFEST,
        "artifactType": artifact_type,
        "config": _push_bytes(client, repository, media.EMPTY_BYTES, media.EMPTY).to_json_dict(),
        "layers": [layer.to_json_dict() for layer in layers],
    }
    if subject:
        manifest["subject"] = subject.to_json_dict()
    if annotations:
        manifest["annotations"] = dict(annotations)
    return _encode(manifest)


def _list_under_fallback_tag(client: RegistryClient, repository: Repository, subject_digest: str, entry: Descriptor) -> None:
    # Source: OCI distribution spec 1.1, "Pushing Manifests with Subject". Two writers at once can lose an entry; there is no lock to take.
    tag = fallback_tag(subject_digest)
    what = f"{repository}:{tag}"
    found = client.fetch_tagged(repository, tag)
    entries = list(parse_descriptors(parse_document(found, media.INDEX, what), "manifests", MAX_LISTED, what)) if found else []
    if any(known.digest == entry.digest for known in entries):
        return
    listed = [known.to_json_dict() for known in [*entries, entry]]
    index = _encode({"schemaVersion": 2, "mediaType": media.INDEX, "manifests": listed})
    push_manifest(client, repository, index, media.INDEX, tag=tag)


def _push_bytes(client: RegistryClient, repository: Repository, data: bytes, media_type: str) -> Descriptor:
    digest = digest_of(data)
    push_blob(client, repository, data, digest)
    return Descriptor(media_type, digest, len(data))


def _media_type_of(data: bytes, digest: str) -> str:
    found = json.loads(data).get("mediaType")
    if found not in (media.INDEX, media.MANIFEST):
        raise MalformedManifest(f"{digest} is neither an OCI index nor a manifest (mediaType {str(found)[:100]!r})")
    return str(found)


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
