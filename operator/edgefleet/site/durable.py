"""Files that survive a power cut: written beside, synced, renamed, and the folder synced.

A reader finds the old content or the new one, never a part. `checkpoint` is told each step before it is taken; tests raise in it to
stand for a crash at that point.
"""

import os
from collections.abc import Callable
from pathlib import Path

Checkpoint = Callable[[str], None]


def no_checkpoint(_: str) -> None:
    """The checkpoint of production: nothing."""


def write_durably(path: Path, data: bytes, *, mode: int = 0o600, checkpoint: Checkpoint = no_checkpoint) -> None:
    """Put `data` at `path`, whose folder exists. Raises OSError."""
    beside = path.with_name(path.name + ".new")
    checkpoint(f"write {path.name}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        checkpoint(f"sync {path.name}")
        os.fsync(file.fileno())
    checkpoint(f"rename {path.name}")
    beside.replace(path)
    checkpoint(f"sync folder of {path.name}")
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` permanent. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
