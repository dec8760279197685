"""A control group of one's own at the top of the machine's tree, under which a kubelet keeps its pods, and its removal afterwards."""

import os
import time
from pathlib import Path

from tests.lab import LabError
from tests.lab.processes import POLL

_ROOT = Path("/sys/fs/cgroup")
_CPUSET = ("cpuset.cpus", "cpuset.mems")
# A group's share of the processors is that of one process of the machine, whatever number of pods is in it: ask for as much as sixteen.
_SHARES = {"cpu.shares": "16384", "cpu.weight": "1600"}
_LIMIT = 20.0


def make_cgroup(name: str) -> None:
    """Makes group `name` in the unified tree, or in each controller's own where the machine still has those."""
    for tree in _trees():
        group = tree / name
        group.mkdir(exist_ok=True)
        for setting, value in _SHARES.items():
            if (group / setting).exists():
                (group / setting).write_text(value)
        for setting in _CPUSET:
            # In its old form a group without processors takes no process.
            if tree.name == "cpuset" and not (group / setting).read_text().strip():
                (group / setting).write_text((tree / setting).read_text())


def remove_cgroup(name: str) -> None:
    """Removes group `name` and all below it; the kernel lets go a moment after the last process died. Raises LabError."""
    deadline = time.monotonic() + _LIMIT
    while left := [group for tree in _trees() for group, _, _ in os.walk(tree / name, topdown=False)]:
        for group in left:
            try:
                Path(group).rmdir()
            except OSError as error:
                if time.monotonic() > deadline:
                    raise LabError(f"control group {group} cannot be removed: {error}; look for processes in it") from error
        time.sleep(POLL)


def list_cgroups(prefix: str) -> list[Path]:
    """All groups at the top whose name starts with `prefix`."""
    return [group for tree in _trees() for group in sorted(tree.glob(f"{prefix}*")) if group.is_dir()]


def _trees() -> list[Path]:
    if (_ROOT / "cgroup.controllers").exists():
        return [_ROOT]
    return [tree for tree in _ROOT.iterdir() if (tree / "cgroup.procs").exists() and tree.name != "unified" and not tree.is_symlink()]
