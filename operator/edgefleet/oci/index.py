"""A release's index: its variants, and what hardware each of them needs.

Selection facts stand as `platform.architecture` and as annotations `io.edgefleet.variant.<fact>` on the index entries, where the
signature over the index covers them. A fact that we do not know is refused, not ignored: it might be the one that
keeps a variant off hardware that cannot run it. Which variant fits a site is decided in core.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from edgefleet.api.model import Variant
from edgefleet.api.quantities import parse_size
from edgefleet.oci import media
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.errors import MalformedManifest, NoVariant
from edgefleet.oci.manifest import Descriptor, ModelManifest, parse_descriptors, parse_document, parse_model_manifest
from edgefleet.oci.reference import Repository

MAX_VARIANTS = 32

_FACTS = ("name", "accelerator", "features", "min-memory", "precision", "priority")


@dataclass(frozen=True)
class ModelIndex:
    """An index and its variants. `data` are the bytes whose SHA-256 is `digest`."""

    digest: str
    data: bytes
    variants: tuple[Variant, ...]


def fetch_index(client: RegistryClient, repository: Repository, digest: str) -> ModelIndex:
    """The index with this digest and the sizes of its variants. Raises RegistryError."""
    data = client.fetch_manifest(repository, digest)
    what = f"{repository}@{digest}"
    variants = []
    for entry in parse_index(data, what):
        manifest = parse_model_manifest(client.fetch_manifest(repository, entry.digest), f"{repository}@{entry.digest}")
        variants.append(read_variant(entry, manifest.size, what))
    return ModelIndex(digest, data, tuple(variants))


def fetch_variant(client: RegistryClient, repository: Repository, index_digest: str, variant_digest: str) -> ModelManifest:
    """The files of a variant that this index contains. Raises RegistryError, NoVariant if it does not."""
    what = f"{repository}@{index_digest}"
    entries = parse_index(client.fetch_manifest(repository, index_digest), what)
    if variant_digest not in {entry.digest for entry in entries}:
        raise NoVariant(f"{what}: it has no variant {variant_digest}")
    return parse_model_manifest(client.fetch_manifest(repository, variant_digest), f"{repository}@{variant_digest}")


def parse_index(data: bytes, what: str) -> tuple[Descriptor, ...]:
    """The entries of a model's index: 1 to 32, distinct in name and digest. Raises MalformedManifest, TooLarge."""
    document = parse_document(data, media.INDEX, what)
    entries = parse_descriptors(document, "manifests", MAX_VARIANTS, what)
    if not entries:
        raise MalformedManifest(f"{what}: an index without variants")
    names = [entry.annotations.get(media.VARIANT_PREFIX + "name", "") for entry in entries]
    for values, verb in ((names, "are called"), ([entry.digest for entry in entries], "have the manifest")):
        for value in values:
            if values.count(value) > 1:
                raise MalformedManifest(f"{what}: two variants {verb} {value[:80]!r}")
    for entry in entries:
        if entry.media_type != media.MANIFEST:
            raise MalformedManifest(f"{what}: entry {entry.digest} is not a manifest but {entry.media_type[:100]!r}")
        read_variant(entry, 0, what)
    return entries


def name_variants(entries: Sequence[Descriptor]) -> dict[str, str]:
    """The name of each variant, and its digest."""
    return {entry.annotations[media.VARIANT_PREFIX + "name"]: entry.digest for entry in entries}


def read_variant(entry: Descriptor, size: int, what: str) -> Variant:
    """An index entry as a variant of `size` bytes. Raises MalformedManifest naming the annotation."""
    facts = {
        key.removeprefix(media.VARIANT_PREFIX): value for key, value in entry.annotations.items() if key.startswith(media.VARIANT_PREFIX)
    }
    where = f"{what}: variant {facts.get('name', entry.digest)[:60]!r}"
    unknown = sorted(set(facts) - set(_FACTS))
    if unknown:
        raise MalformedManifest(f"{where}: unknown annotation {media.VARIANT_PREFIX}{unknown[0][:60]} (known: {', '.join(_FACTS)})")
    if entry.platform.get("os") != "linux" or not set(entry.platform) <= {"os", "architecture", "variant"}:
        raise MalformedManifest(f"{where}: platform must be linux with an architecture, found {str(dict(entry.platform))[:120]}")
    if entry.platform.get("variant") not in (None, "") and (entry.platform.get("architecture"), entry.platform["variant"]) != (
        "arm64",
        "v8",
    ):
        raise MalformedManifest(
            f"{where}: platform.variant {str(entry.platform['variant'])[:40]!r} cannot be told from others: leave it out"
        )
    try:
        return Variant(
            name=facts.get("name", ""),
            digest=entry.digest,
            size=size,
            arch=entry.platform.get("architecture", ""),
            accelerator=facts.get("accelerator"),
            features=tuple(sorted(facts["features"].split(","))) if "features" in facts else (),
            min_memory=parse_size(facts["min-memory"]) if "min-memory" in facts else 0,
            precision=facts.get("precision", ""),
            priority=_whole(facts["priority"]) if "priority" in facts else 0,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise MalformedManifest(f"{where}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
    except ValueError as error:
        raise MalformedManifest(f"{where}: {error}") from error


def variant_annotations(variant: Variant) -> dict[str, str]:
    """The annotations that say what read_variant reads, without those that say nothing."""
    facts: dict[str, Any] = {
        "name": variant.name,
        "accelerator": variant.accelerator,
        "features": ",".join(variant.features),
        "min-memory": variant.min_memory or "",
        "precision": variant.precision,
        "priority": variant.priority or "",
    }
    return {media.VARIANT_PREFIX + key: str(value) for key, value in facts.items() if value}


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ValueError(f"priority {text[:40]!r} is not a whole number from 0 to 1000")
    return int(text)
