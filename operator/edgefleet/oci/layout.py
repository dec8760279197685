"""A release on disk as an OCI image layout: for sites that no registry reaches.

    oci-layout, index.json    written last: a layout is complete when its index.json is there
    blobs/sha256/<hex>        manifests, bundles and files

`index.json` lists the release's index, the golden set if one came along, and what is attached to either. Every byte is checked against its
digest when it is read; whether a publisher signed it is decided by trust.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from edgefleet.oci import media
from edgefleet.oci.client import MAX_MANIFEST_BYTES, digest_of
from edgefleet.oci.errors import DigestMismatch, MalformedManifest, NotFound, SizeMismatch, TooLarge
from edgefleet.oci.fetch import Blob
from edgefleet.oci.hashes import Hashes
from edgefleet.oci.manifest import Descriptor, parse_descriptor, parse_descriptors, parse_document
from edgefleet.oci.referrers import MAX_BUNDLE_BYTES, MAX_REFERRERS

CHUNK_BYTES = 1 << 20
MAX_ENTRIES = 4 * MAX_REFERRERS


class Layout:
    """One layout in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def is_complete(self) -> bool:
        """Whether all of it was written."""
        return (self.folder / "index.json").is_file()

    def prepare(self) -> None:
        """Make the folders; what is there stays. Raises OSError."""
        (self.folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where a blob is, or would be."""
        return self.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def read(self, digest: str, limit: int = MAX_MANIFEST_BYTES) -> bytes:
        """A small blob. Raises NotFound, TooLarge, DigestMismatch naming the file, OSError."""
        path = self.path(digest)
        try:
            with path.open("rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            raise NotFound(f"{path}: it is not there: the copy is not whole, make it again") from None
        if len(data) > limit:
            raise TooLarge(f"{path}: more than the {limit} bytes that are read")
        if digest_of(data) != digest:
            raise DigestMismatch(f"{path}: its content is {digest_of(data)}: the copy is damaged, make it again")
        return data

    def write(self, data: bytes) -> str:
        """Store bytes; their digest. Raises OSError."""
        digest = digest_of(data)
        path = self.path(digest)
        if not path.is_file() or path.read_bytes() != data:
            part = path.with_name(path.name + ".part")
            part.write_bytes(data)
            part.replace(path)
        return digest

    def entries(self) -> tuple[Descriptor, ...]:
        """What index.json lists. Raises NotFound, MalformedManifest, TooLarge."""
        path = self.folder / "index.json"
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"{path} is not there: not a layout, or one that `edgefleet model export` did not finish") from None
        return parse_descriptors(parse_document(data, media.INDEX, str(path)), "manifests", MAX_ENTRIES, str(path))

    def finish(self, entries: Sequence[Descriptor]) -> None:
        """Say that all of it is there. Raises OSError."""
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        index = {"schemaVersion": 2, "mediaType": media.INDEX, "manifests": [entry.to_json_dict() for entry in entries]}
        part = self.folder / "index.json.part"
        part.write_text(json.dumps(index, indent=1))
        part.replace(self.folder / "index.json")

    def bundles(self, digest: str) -> tuple[bytes, ...]:
        """The Sigstore bundles attached to a manifest or index. Raises NotFound, DigestMismatch, MalformedManifest, TooLarge."""
        found = []
        for entry in self.entries():
            if entry.media_type != media.MANIFEST:
                continue
            document = parse_document(self.read(entry.digest), media.MANIFEST, entry.digest)
            if "subject" not in document or parse_descriptor(document["subject"], entry.digest).digest != digest:
                continue
            for layer in parse_descriptors(document, "layers", MAX_REFERRERS, entry.digest):
                if layer.media_type == media.SIGSTORE_BUNDLE:
                    found.append(self.read(layer.digest, MAX_BUNDLE_BYTES))
        return tuple(found)

    def find(self, media_type: str, artifact_type: str) -> Descriptor | None:
        """The first entry of this kind; of several releases in one layout none is meant. Raises MalformedManifest."""
        found = [entry for entry in self.entries() if (entry.media_type, entry.artifact_type) == (media_type, artifact_type)]
        if len(found) > 1:
            raise MalformedManifest(f"{self.folder}: it holds {len(found)} entries of type {artifact_type}, exactly one is expected")
        return found[0] if found else None


def copy_blob(
    source: Path, blob: Blob, target: Path, progress: Callable[[int], None] = lambda _: None, hashes: Hashes | None = None
) -> None:
    """Copy a file whose content must be `blob`; a target that is right already is left alone, and not hashed again with the same `hashes`.

    Raises NotFound, SizeMismatch, DigestMismatch naming the source, OSError; then nothing new is at `target`.
    """
    hashes = hashes or Hashes()
    if hashes.matches(target, blob.digest, blob.size):
        progress(blob.size)
        return
    if not source.is_file():
        raise NotFound(f"{source}: it is not there: the copy is not whole, make it again")
    if source.stat().st_size != blob.size:
        raise SizeMismatch(f"{source}: {source.stat().st_size} bytes, {blob.size} are expected: the copy is cut off, make it again")
    part = target.with_name(target.name + ".part")
    hashed, have = hashlib.sha256(), 0
    with source.open("rb") as reader, part.open("wb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            writer.write(chunk)
            hashed.update(chunk)
            have += len(chunk)
            progress(have)
        writer.flush()
        os.fsync(writer.fileno())
    if "sha256:" + hashed.hexdigest() != blob.digest:
        part.unlink()
        raise DigestMismatch(f"{source}: its content is sha256:{hashed.hexdigest()}: the copy is damaged, make it again")
    part.replace(target)
    hashes.keep(target, hashed)
