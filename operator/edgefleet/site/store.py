"""The site's model store: blobs by digest, and one record per complete revision with the evidence that made it believed.

    blobs/<hex>            verified bytes, read-only; `<hex>.part` beside it is a download that may be resumed
    revisions/<hash>.json  written last: a revision is complete when this file is there

A crash at any point leaves complete revisions complete; what belongs to none is removed by the next `reserve`. A blob whose bytes are not
those of its digest any more is removed as soon as that is found, so that nothing can take it for good; a record that says otherwise than
its signed evidence is doubted until it is written anew. Which revisions go is decided in core/site.py; who may be believed is left to
prefetch.py; when blobs are looked at, to scrub.py.
"""

import errno
import hashlib
import logging
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from edgefleet.api.assignment import FrozenRevision
from edgefleet.api.meta import Schema
from edgefleet.api.quantities import Digest, parse_size
from edgefleet.api.site import Storage
from edgefleet.core.site import StoredRevision, plan_retention
from edgefleet.oci.errors import ContentError
from edgefleet.oci.golden import parse_golden_manifest
from edgefleet.oci.manifest import parse_model_manifest
from edgefleet.site.durable import Checkpoint, no_checkpoint, sync_folder, write_durably

log = logging.getLogger(__name__)

READ_BYTES = 1 << 20
# The model server may run as another user and gets links to these files; the folder itself is the agent's alone.
BLOB_MODE = 0o444
RECORD = "the record"
"""How a damaged record is named among damaged files."""

# Anything else (too many open files, no right) says nothing of what lies on the disk.
_LOST = (errno.ENOENT, errno.EIO)


Pace = Callable[[int], None]
"""Told the number of bytes that were read; may wait, or raise to end the reading."""


def no_pace(_: int) -> None:
    """As fast as the disk."""


class StoreFull(Exception):
    """The wanted revision does not fit under the limit beside what must stay."""

    reason = "StoreFull"


class StoredBlob(Schema):
    """One blob. `name` is the file's name in the artifact, empty for evidence."""

    digest: Digest
    size: Annotated[int, Field(ge=0)]
    name: Annotated[str, Field(max_length=255)] = ""


class StoredImage(Schema):
    """The signature bundles of one container image, `name@digest`."""

    image: Annotated[str, Field(max_length=512)]
    bundles: tuple[StoredBlob, ...]


class RevisionRecord(Schema):
    """A complete revision: what was ordered, its files, and its evidence (index, manifests, signature bundles, golden set).

    `images` are those whose signatures the trust bundle asked for.
    """

    format_version: Literal[1] = 1
    fleet: str
    revision: FrozenRevision
    files: tuple[StoredBlob, ...]
    index: StoredBlob
    manifest: StoredBlob
    bundles: tuple[StoredBlob, ...]
    golden_manifest: StoredBlob | None = None
    golden_lines: StoredBlob | None = None
    golden_bundles: tuple[StoredBlob, ...] = ()
    images: tuple[StoredImage, ...] = ()
    used_at: datetime

    def parts(self) -> tuple[StoredBlob, ...]:
        """All that it needs, the model's files first."""
        singles = [blob for blob in (self.index, self.manifest, self.golden_manifest, self.golden_lines) if blob]
        singles += [blob for image in self.images for blob in image.bundles]
        return (*self.files, *self.bundles, *self.golden_bundles, *singles)

    def blobs(self) -> dict[str, int]:
        """All that it needs, digest to bytes."""
        return {blob.digest: blob.size for blob in self.parts()}


class Store:
    """Safe for threads. `folder` is made if absent; with `reading` nothing is made or tidied, as the store is another process's."""

    def __init__(self, folder: Path, checkpoint: Checkpoint = no_checkpoint, *, reading: bool = False) -> None:
        self._blobs = folder / "blobs"
        self._revisions = folder / "revisions"
        self._checkpoint = checkpoint
        self._lock = threading.RLock()
        self._writing: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._reserved: dict[str, dict[str, int]] = {}
        self._doubted: set[str] = set()
        self.damaged = 0
        """How many blobs were found damaged, and removed."""
        if reading:
            return
        for part in (self._blobs, self._revisions):
            part.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in (*self._blobs.glob("*.new"), *self._revisions.glob("*.new")):
            leftover.unlink()

    def path(self, digest: str) -> Path:
        """Where a blob is, or would be."""
        return self._blobs / digest.removeprefix("sha256:")

    def find(self, revision: str) -> RevisionRecord | None:
        """The record of a complete revision; a damaged one counts as absent, and its blobs are fetched again. Raises OSError."""
        try:
            record = RevisionRecord.model_validate_json(self._record_path(revision).read_bytes())
        except ValidationError:
            return None
        except OSError as error:
            if error.errno in _LOST:
                return None
            raise
        return record if record.revision.hash == revision else None

    def has_damaged_record(self, revision: str) -> bool:
        """Whether a revision was complete here, and its record cannot be read any more. Raises OSError."""
        return self._record_path(revision).exists() and self.find(revision) is None

    def records(self) -> list[RevisionRecord]:
        """All complete revisions."""
        found = (self.find(path.stem) for path in sorted(self._revisions.glob("*.json")))
        return [record for record in found if record is not None]

    @contextmanager
    def writing(self, digest: str) -> Iterator[Path]:
        """Exclusive use of a blob's place: two fleets may want the same one."""
        with self._lock:
            lock = self._writing[digest]
        with lock:
            yield self.path(digest)

    def put(self, data: bytes, name: str = "") -> StoredBlob:
        """Store bytes that were verified in memory. Raises OSError."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        with self.writing(digest) as path:
            if not path.exists() or path.read_bytes() != data:
                write_durably(path, data, mode=BLOB_MODE, checkpoint=self._checkpoint)
        return StoredBlob(digest=digest, size=len(data), name=name)

    def read(self, blob: StoredBlob) -> bytes | None:
        """A blob's bytes, or None when it is absent or damaged. For evidence, which is small."""
        try:
            data = self.path(blob.digest).read_bytes()
        except OSError as error:
            if error.errno in _LOST:
                return None
            raise
        return data if "sha256:" + hashlib.sha256(data).hexdigest() == blob.digest else None

    def is_whole(self, record: RevisionRecord) -> bool:
        """Whether all its blobs are there, and its record is not known to be wrong; bytes are not looked at."""
        return record.revision.hash not in self._doubted and all(self.path(blob.digest).is_file() for blob in record.parts())

    def holds(self, blob: StoredBlob, pace: Pace = no_pace) -> bool:
        """Whether a blob is there and its bytes are those of its digest, read anew. What the disk does not give back counts as damaged.

        Raises OSError where it cannot be asked for another reason.
        """
        digest, size = hashlib.sha256(), 0
        try:
            with self.path(blob.digest).open("rb", buffering=0) as file:
                # What the kernel has in memory says nothing of the disk; pages that a server has mapped stay.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while chunk := file.read(READ_BYTES):
                    digest.update(chunk)
                    size += len(chunk)
                    pace(len(chunk))
        except OSError as error:
            if error.errno in _LOST:
                return False
            raise
        return (f"sha256:{digest.hexdigest()}", size) == (blob.digest, blob.size)

    def find_damage(self, record: RevisionRecord, pace: Pace = no_pace) -> list[str]:
        """The parts of a revision that are gone, or damaged and therefore removed now, as messages name them. Raises OSError.

        RECORD is among them when the record says otherwise than the signed evidence beside it.
        """
        found = []
        for blob in record.parts():
            if self.holds(blob, pace):
                continue
            with self.writing(blob.digest) as path:
                # Somebody may have brought it meanwhile.
                if self.holds(blob):
                    continue
                if path.is_file():
                    path.unlink()
                    self.damaged += 1
                    log.error(
                        "%s of revision %s was damaged on the disk, and is removed", blob.name or blob.digest, record.revision.hash[:8]
                    )
            found.append(blob.name or f"evidence {blob.digest[:19]}")
        if not found and not self.agrees(record):
            log.error("the record of revision %s is not what its signed evidence says", record.revision.hash[:8])
            # It stays: its evidence, if that convinces, is what it is written anew from.
            self._doubted.add(record.revision.hash)
            found.append(RECORD)
        return found

    def agrees(self, record: RevisionRecord) -> bool:
        """Whether a record says what the evidence beside it says. Raises OSError."""
        revision, golden = record.revision, record.revision.golden
        if (record.index.digest, record.manifest.digest) != (revision.digest, revision.variant.digest):
            return False
        if (record.golden_manifest.digest if record.golden_manifest else None) != (golden.digest if golden else None):
            return False
        try:
            layers = parse_model_manifest(self.read(record.manifest) or b"", "manifest").layers
            lines = parse_golden_manifest(self.read(record.golden_manifest) or b"", "golden set") if record.golden_manifest else None
        except ContentError:
            return False
        exam = (record.golden_lines.digest, record.golden_lines.size) if record.golden_lines else None
        files = [(blob.name, blob.digest, blob.size) for blob in record.files]
        signed = [(layer.path, layer.blob.digest, layer.blob.size) for layer in layers]
        return (files, exam) == (signed, (lines.digest, lines.size) if lines else None)

    def complete(self, record: RevisionRecord) -> None:
        """Say that all blobs of a revision are there. Raises OSError."""
        for blob in record.files:
            self.path(blob.digest).chmod(BLOB_MODE)
        with self._lock:
            data = record.model_dump_json(by_alias=True, exclude_none=True).encode()
            write_durably(self._record_path(record.revision.hash), data, checkpoint=self._checkpoint)
            self._doubted.discard(record.revision.hash)
            self._reserved.pop(record.fleet, None)

    def reserve(self, fleet: str, wanted: Mapping[str, int], *, protected: Iterable[str], storage: Storage) -> list[str]:
        """Make room for the blobs of a revision that is about to be fetched; returns the revisions that had to go.

        Raises StoreFull (then nothing is removed) and OSError.
        """
        with self._lock:
            self._reserved[fleet] = dict(wanted)
            needed = {digest: size for reserved in self._reserved.values() for digest, size in reserved.items()}
            limit = parse_size(storage.limit)
            plan = plan_retention(self._stored(), protected=protected, keep=storage.keep, limit=limit, wanted=needed)
            if not plan.fits:
                del self._reserved[fleet]
                raise StoreFull(
                    f"{sum(wanted.values())} bytes do not fit under storage.limit {storage.limit} beside the revisions that must stay: "
                    "raise the limit of this site"
                )
            self._remove(plan.remove)
            return list(plan.remove)

    def tidy(self, *, protected: Iterable[str], storage: Storage) -> list[str]:
        """After a switch: remove what is no longer kept; returns these revisions. Raises OSError."""
        with self._lock:
            plan = plan_retention(self._stored(), protected=protected, keep=storage.keep, limit=parse_size(storage.limit))
            self._remove(plan.remove)
            return list(plan.remove)

    def release(self, fleet: str) -> None:
        """What was reserved for a fleet is not wanted any more; the next tidying removes what came of it."""
        with self._lock:
            self._reserved.pop(fleet, None)

    def used_bytes(self) -> int:
        """What lies in the store, unfinished downloads included."""
        return sum(path.stat().st_size for path in self._blobs.iterdir())

    def free_bytes(self) -> int:
        """What the disk still has room for."""
        return shutil.disk_usage(self._blobs).free

    def _record_path(self, revision: str) -> Path:
        return self._revisions / f"{revision}.json"

    def _stored(self) -> list[StoredRevision]:
        return [StoredRevision(one.revision.hash, one.fleet, one.blobs(), one.used_at) for one in self.records()]

    def _remove(self, revisions: Iterable[str]) -> None:
        # Records first: a revision without its record is incomplete, one without a blob would be a lie.
        for revision in revisions:
            self._checkpoint(f"remove record {revision}")
            self._record_path(revision).unlink(missing_ok=True)
        sync_folder(self._revisions)
        needed = {digest for reserved in self._reserved.values() for digest in reserved}
        for record in self.records():
            needed |= record.blobs().keys()
        for path in self._blobs.iterdir():
            if "sha256:" + path.name.removesuffix(".part") not in needed and not path.name.endswith(".new"):
                self._checkpoint(f"remove blob {path.name}")
                path.unlink(missing_ok=True)
