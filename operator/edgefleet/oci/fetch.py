"""Fetching a blob to a file: streamed, hashed as it comes, capped, resumed, and given its final name only when it is right.

While it is fetched the bytes are in `<target>.part`. That file stays when the line breaks, so that the next call goes on from there
(after hashing again what is there, unless this process knows it), and is removed when its content is wrong. Where targets are and how long
they stay is left to the site's store; two calls for one target must not run at once.
"""

import hashlib
import os
import re
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import requests

from edgefleet.oci.body import CHUNK_BYTES, read_chunks
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.errors import ContentError, DigestMismatch, NotFound, RegistryRefused, SizeMismatch, Stalled, TransportError, Unreachable
from edgefleet.oci.hashes import Hashes
from edgefleet.oci.reference import Repository

MAX_FRUITLESS_TRIES = 3
MIN_FRUIT_BYTES = 256 << 10
MAX_UNHASHED_CHUNKS = 4
# The disk begins to write while the rest still comes: else the end of a large model waits for all of it.
UNSYNCED_BYTES = 128 << 20


@dataclass(frozen=True)
class Blob:
    """Which bytes are meant: `digest` is `sha256:<hex>`, `size` in bytes."""

    digest: str
    size: int


Progress = Callable[[int], None]
"""Told the number of bytes that are on disk so far."""


def fetch(
    client: RegistryClient,
    repository: Repository,
    blob: Blob,
    target: Path,
    *,
    progress: Progress | None = None,
    hashes: Hashes | None = None,
) -> None:
    """Bring `blob` to `target`, whose folder exists. A target that is already right is left alone.

    With the same `hashes` in all calls nothing that was hashed is hashed again. Raises RegistryError (DigestMismatch, SizeMismatch,
    Stalled, Unreachable, ...) and OSError of the disk; then nothing new is at `target`.
    """
    hashes = hashes or Hashes()
    if hashes.matches(target, blob.digest, blob.size):
        return
    part = target.with_name(target.name + ".part")
    resumed = part.exists()
    job = _Job(client, repository, blob, part, progress or _ignore, hashes)
    try:
        state = job.run()
    except DigestMismatch:
        if not resumed:
            raise
        # The bytes of an earlier call may be the wrong ones: once more from nothing.
        state = job.run()
    part.replace(target)
    hashes.keep(target, state)
    _sync_folder(target.parent)


@dataclass(frozen=True)
class _Job:
    """One blob on its way to one `.part` file."""

    client: RegistryClient
    repository: Repository
    blob: Blob
    part: Path
    progress: Progress
    hashes: Hashes

    def run(self) -> Any:
        """Bring all bytes and the disk's word for them; the state of their hash. Raises RegistryError, OSError."""
        what = f"{self.repository}@{self.blob.digest}"
        with self.part.open("r+b" if self.part.exists() else "w+b") as file, _Part(file, self.blob.size) as content:
            content.take_over(self.hashes.recall(self.part))
            try:
                self._complete(what, content)
            except BaseException as error:
                if isinstance(error, ContentError) and not isinstance(error, NotFound):
                    self.part.unlink()
                else:
                    self._remember(content, file)
                raise
            os.fsync(file.fileno())
            return content.settle()

    def _remember(self, content: "_Part", file: BinaryIO) -> None:
        # Whoever comes back for the rest need not hash again what is there now.
        state = content.settle()
        if os.fstat(file.fileno()).st_size == content.have:
            self.hashes.keep(self.part, state)

    def _complete(self, what: str, content: "_Part") -> None:
        best, fruitless = content.have, 0
        while content.have < self.blob.size:
            broken: TransportError | None = None
            with closing(self.client.open_blob(self.repository, self.blob.digest, start=content.have)) as response:
                try:
                    self._take(response, content, what)
                except (Unreachable, Stalled) as error:
                    broken = error
            # What came before the line broke is kept. Tries that bring next to nothing must not go on for ever: the caller decides.
            fruitless = 0 if content.have - best >= MIN_FRUIT_BYTES else fruitless + 1
            best = max(best, content.have)
            if fruitless >= MAX_FRUITLESS_TRIES and content.have < self.blob.size:
                raise broken or RegistryRefused(f"{what}: the registry does not send the part that was asked for")
            if fruitless:
                self.client.patience.sleep(self.client.patience.draw_wait(fruitless))
        found = f"sha256:{content.settle().hexdigest()}"
        if found != self.blob.digest:
            raise DigestMismatch(f"{what}: the registry sent {found}")

    def _take(self, response: requests.Response, content: "_Part", what: str) -> None:
        """Add what an answer to `bytes=<have>-` brings. Raises SizeMismatch, Stalled, Unreachable."""
        if response.status_code == 416:
            raise SizeMismatch(f"{what}: the registry has only {content.have} bytes or fewer, the descriptor says {self.blob.size}")
        if response.status_code != 206:
            content.restart()
        elif not _begins_at(content.have, response):
            # Another part than asked for: drop the answer, and ask for the whole next.
            content.restart()
            return
        expected = self.blob.size - content.have
        announced = response.headers.get("Content-Length", "")
        if re.fullmatch(r"[0-9]{1,18}", announced) and int(announced) != expected:
            raise SizeMismatch(
                f"{what}: the registry announces {int(announced)} bytes from byte {content.have} on, "
                f"{expected} are missing of the {self.blob.size} that the descriptor says"
            )
        for chunk in read_chunks(response, what, self.client.patience.watchdog):
            if content.have + len(chunk) > self.blob.size:
                raise SizeMismatch(f"{what}: more bytes came than the {self.blob.size} that the descriptor says")
            content.add(chunk)
            self.progress(content.have)
        if content.have < self.blob.size:
            raise SizeMismatch(f"{what}: it ended after {content.have} bytes, the descriptor says {self.blob.size}")


class _Part:
    """The content of one `.part` file. It is hashed and brought to the disk by other threads while the next chunk comes, since neither
    needs the interpreter."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.have = 0
        self._file, self._size = file, size
        self._hash: Any = hashlib.sha256()
        self._hashing, self._syncing = ThreadPoolExecutor(1, "hash"), ThreadPoolExecutor(1, "sync")
        self._unhashed: deque[Future[None]] = deque()
        self._sync: Future[None] | None = None
        self._synced = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hashing.shutdown()
        self._syncing.shutdown()

    def take_over(self, known: Any | None) -> None:
        """Count what is there already, whose hash may be `known`; more than the blob has is cut off."""
        there = os.fstat(self._file.fileno()).st_size
        if known is not None and there <= self._size:
            self._hash, self.have = known, there
            self._file.seek(there)
            return
        self._file.truncate(min(there, self._size))
        self._file.seek(0)
        while chunk := self._file.read(CHUNK_BYTES):
            self._hash.update(chunk)
            self.have += len(chunk)

    def restart(self) -> None:
        """Forget what is there."""
        self.settle()
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.have = self._synced = 0

    def add(self, chunk: bytes) -> None:
        """Write and hash. Raises OSError of the disk."""
        self._unhashed.append(self._hashing.submit(self._hash.update, chunk))
        if len(self._unhashed) > MAX_UNHASHED_CHUNKS:
            self._unhashed.popleft().result()
        self._file.write(chunk)
        self.have += len(chunk)
        if self.have - self._synced >= UNSYNCED_BYTES and (self._sync is None or self._sync.done()):
            self._await_sync()
            self._sync = self._syncing.submit(os.fdatasync, self._file.fileno())
            self._synced = self.have

    def settle(self) -> Any:
        """The state of the hash, when all that was added is in it and in the file. Raises OSError of the disk."""
        while self._unhashed:
            self._unhashed.popleft().result()
        self._await_sync()
        self._file.flush()
        return self._hash

    def _await_sync(self) -> None:
        # A disk tells of an error once, and whoever asked first hears it.
        if self._sync is not None:
            self._sync.result()
            self._sync = None


def _begins_at(start: int, response: requests.Response) -> bool:
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
    return bool(match) and int(match[1]) == start  # type: ignore[index]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _ignore(_: int) -> None:
    return
