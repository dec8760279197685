"""The user cache of the lab: each entry is made once, under a lock, beside its place, and then renamed into it.

An entry is named by a digest of all that its content depends on, so it is never changed and may be deleted at any time.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.progress import say


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/edgefleet-lab`, by default `~/.cache/edgefleet-lab`; made if absent."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgefleet-lab"
    root.mkdir(parents=True, exist_ok=True)
    return root


def key_of(*parts: bytes | str) -> str:
    """16 hex digits over the parts; each part is length-prefixed, so ("ab", "c") is not ("a", "bc")."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path`; the kernel frees it when the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that holds {path.name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def provide(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder `<cache>/<name>-<key>`; where absent, `make(temporary folder)` fills it, once, under a lock.

    A failed `make` leaves nothing at the final name. Its temporary folder (with the logs) is removed by the next try.
    """
    final = cache_folder() / f"{name}-{key}"
    if final.is_dir():
        return final
    with locked(cache_folder() / f"{name}.lock"):
        if final.is_dir():
            return final
        for left in cache_folder().glob(f".{name}-tmp-*"):
            shutil.rmtree(left, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{name}-tmp-", dir=cache_folder()))
        make(draft)
        draft.chmod(0o755)
        draft.rename(final)
    return final
