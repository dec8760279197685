"""What one process knows of files because it hashed them: so that no byte that was finished is hashed twice.

A file is known as long as it is the same inode, of the same size and time of last writing, as when its hash was kept. That spares work and
guards against nothing: disks rot without a new time, and whoever writes a file can set it back (a link or a new mode changes the ctime, so
that says less still). Who must know reads the file (site/store.py). Nothing outlives the process: after a start, files are hashed again.
Whether the hash is the wanted one is decided by the callers.
"""

import hashlib
import threading
from pathlib import Path
from typing import Any

MAX_KEPT = 4096
_READ_BYTES = 1 << 20

_Mark = tuple[int, int, int]


class Hashes:
    """Hash states by file. Safe for threads."""

    def __init__(self) -> None:
        self._kept: dict[Path, tuple[_Mark, Any]] = {}
        self._lock = threading.Lock()

    def keep(self, path: Path, state: Any) -> None:
        """Remember that the content of `path`, which exists and is wholly written, has this hash so far. Raises OSError."""
        mark = _mark(path)
        with self._lock:
            self._kept.pop(path, None)
            self._kept[path] = mark, state.copy()
            if len(self._kept) > MAX_KEPT:
                del self._kept[next(iter(self._kept))]

    def recall(self, path: Path) -> Any | None:
        """A hash state that has taken in the whole of `path`, None if that is not known. Raises OSError if there is no such file."""
        mark = _mark(path)
        with self._lock:
            kept = self._kept.get(path)
        return kept[1].copy() if kept is not None and kept[0] == mark else None

    def matches(self, path: Path, digest: str, size: int) -> bool:
        """Whether a file is there and is `size` bytes with this digest (`sha256:<hex>`); read only if that is not known. Raises OSError."""
        if not path.is_file() or path.stat().st_size != size:
            return False
        state = self.recall(path)
        if state is None:
            state = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(_READ_BYTES):
                    state.update(chunk)
            self.keep(path, state)
        return "sha256:" + state.hexdigest() == digest


def _mark(path: Path) -> _Mark:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
