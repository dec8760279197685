"""Fetching a blob to a file: streamed, hashed as it comes, capped, resumed, and given its final name only when it is right.

While it is fetched the bytes are in `<target>.part`. That file stays when the line breaks, so that the next call goes on from there
(after hashing again what is there), and is removed when its content is wrong. Where targets are and how long they stay is left to
the site's store; two calls for one target must not run at once.
"""

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import requests

from edgefleet.oci.body import CHUNK_BYTES, read_chunks
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.errors import ContentError, DigestMismatch, RegistryRefused, SizeMismatch, Stalled, TransportError, Unreachable
from edgefleet.oci.reference import Repository

MAX_FRUITLESS_TRIES = 3
MIN_FRUIT_BYTES = 256 << 10


@dataclass(frozen=True)
class Blob:
    """Which bytes are meant: `digest` is `sha256:<hex>`, `size` in bytes."""

    digest: str
    size: int


Progress = Callable[[int], None]
"""Told the number of bytes that are on disk so far."""


def fetch(client: RegistryClient, repository: Repository, blob: Blob, target: Path, *, progress: Progress | None = None) -> None:
    """Bring `blob` to `target`, whose folder exists. A target that is already right is left alone.

    Raises RegistryError (DigestMismatch, SizeMismatch, Stalled, Unreachable, ...) and OSError of the disk; then nothing new is at `target`.
    """
    if _is_right(target, blob):
        return
    part = target.with_name(target.name + ".part")
    resumed = part.exists()
    try:
        _fetch_part(client, repository, blob, part, progress or _ignore)
    except DigestMismatch:
        if not resumed:
            raise
        # The bytes of an earlier call may be the wrong ones: once more from nothing.
        _fetch_part(client, repository, blob, part, progress or _ignore)
    part.replace(target)
    _sync_folder(target.parent)


def _fetch_part(client: RegistryClient, repository: Repository, blob: Blob, part: Path, progress: Progress) -> None:
    what = f"{repository}@{blob.digest}"
    with part.open("r+b" if part.exists() else "w+b") as file:
        download = _Download(what, blob, file, progress)
        download.rehash()
        best, fruitless = download.have, 0
        while download.have < blob.size:
            broken: TransportError | None = None
            with closing(client.open_blob(repository, blob.digest, start=download.have)) as response:
                try:
                    download.take(response, client)
                except (Unreachable, Stalled) as error:
                    broken = error
                except ContentError:
                    part.unlink()
                    raise
            # What came before the line broke is kept. Tries that bring next to nothing must not go on for ever: the caller decides.
            fruitless = 0 if download.have - best >= MIN_FRUIT_BYTES else fruitless + 1
            best = max(best, download.have)
            if fruitless >= MAX_FRUITLESS_TRIES and download.have < blob.size:
                raise broken or RegistryRefused(f"{what}: the registry does not send the part that was asked for")
            if fruitless:
                client.patience.sleep(client.patience.draw_wait(fruitless))
        if download.digest != blob.digest:
            part.unlink()
            raise DigestMismatch(f"{what}: the registry sent {download.digest}")
        file.flush()
        os.fsync(file.fileno())


class _Download:
    """The state of one `.part` file: how many bytes it has and their hash."""

    def __init__(self, what: str, blob: Blob, file: BinaryIO, progress: Progress) -> None:
        self.what, self.blob, self.file, self.progress = what, blob, file, progress
        self.have = 0
        self._hash: Any = hashlib.sha256()

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def rehash(self) -> None:
        """Count what is there already; more than the blob has is cut off."""
        self.file.truncate(min(os.fstat(self.file.fileno()).st_size, self.blob.size))
        self.file.seek(0)
        while chunk := self.file.read(CHUNK_BYTES):
            self._hash.update(chunk)
            self.have += len(chunk)

    def restart(self) -> None:
        """Forget what is there."""
        self.file.seek(0)
        self.file.truncate()
        self._hash = hashlib.sha256()
        self.have = 0

    def take(self, response: requests.Response, client: RegistryClient) -> None:
        """Write what an answer to `bytes=<have>-` brings. Raises SizeMismatch, Stalled, Unreachable."""
        if response.status_code == 416:
            raise SizeMismatch(f"{self.what}: the registry has only {self.have} bytes or fewer, the descriptor says {self.blob.size}")
        if response.status_code != 206:
            self.restart()
        elif not self._continues(response):
            # Another part than asked for: drop the answer, and ask for the whole next.
            self.restart()
            return
        expected = self.blob.size - self.have
        announced = response.headers.get("Content-Length", "")
        if re.fullmatch(r"[0-9]{1,18}", announced) and int(announced) != expected:
            raise SizeMismatch(
                f"{self.what}: the registry announces {int(announced)} bytes from byte {self.have} on, "
                f"{expected} are missing of the {self.blob.size} that the descriptor says"
            )
        for chunk in read_chunks(response, self.what, client.patience.watchdog):
            if self.have + len(chunk) > self.blob.size:
                raise SizeMismatch(f"{self.what}: more bytes came than the {self.blob.size} that the descriptor says")
            self.file.write(chunk)
            self._hash.update(chunk)
            self.have += len(chunk)
            self.progress(self.have)
        if self.have < self.blob.size:
            raise SizeMismatch(f"{self.what}: it ended after {self.have} bytes, the descriptor says {self.blob.size}")

    def _continues(self, response: requests.Response) -> bool:
        match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
        return bool(match) and int(match[1]) == self.have  # type: ignore[index]


def _is_right(target: Path, blob: Blob) -> bool:
    if not target.is_file() or target.stat().st_size != blob.size:
        return False
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == blob.digest.removeprefix("sha256:")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _ignore(_: int) -> None:
    return
