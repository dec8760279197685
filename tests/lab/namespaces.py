"""A network, process tree and file system view of their own, for servers that change the machine they run on.

Everything inside dies with the one process that holds them, and that one dies with whoever made it: nothing is left to clean up. What is
not contained is said here too: cgroups are the machine's, and so are most of the kernel's settings, so `shield` covers those files.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import LabError
from tests.lab.processes import POLL, Process, start_process

_CLONE_NEWNET = 0x40000000
# Process 1 of a tree inherits what others leave behind; ignoring SIGCHLD is how it is told not to keep their exit codes.
_HOLD = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True: signal.pause()"
_START_LIMIT = 20.0
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Namespaces:
    """Held by process `pid` (as the machine counts), process 1 inside. No link to anywhere but its own loopback, until one is made."""

    name: str
    run: Path
    holder: Process
    pid: int

    @classmethod
    def make(cls, run: Path, name: str, inside: "Namespaces | None" = None) -> "Namespaces":
        """New ones, registered as `run/<name>.pid`; those made `inside` others end with these.

        The outermost end with the calling thread, so it must be one that lives as long as they shall. Raises LabError.
        """
        unshare = ["unshare", "--net", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", _HOLD]
        held = inside.entering() if inside else ["setpriv", "--pdeathsig", "KILL"]
        holder = start_process(run, name, [*held, *unshare])
        pid = 0

        def is_held() -> bool:
            nonlocal pid
            pid = _last_descendant(holder.pid)
            return "signal.pause" in _command_line(pid) and _mounts_own_proc(pid)

        holder.wait_until(is_held, "holding its namespaces", _START_LIMIT)
        made = cls(name, run, holder, pid)
        made.call("ip", "link", "set", "lo", "up")
        return made

    def entering(self, *, network_only: bool = False) -> list[str]:
        """The words before a command that make it run inside: wholly, or with the machine's own files and processes."""
        views = ["--net"] if network_only else ["--net", "--pid", "--mount"]
        return ["nsenter", "--target", str(self.pid), *views, "--"]

    def call(self, *command: str | Path, network_only: bool = False, stdin: str | None = None, limit: float = 60) -> str:
        """Output of a command that runs inside. Raises LabError with what it said."""
        words = [*self.entering(network_only=network_only), *map(str, command)]
        done = subprocess.run(words, capture_output=True, text=True, input=stdin, timeout=limit)
        if done.returncode:
            raise LabError(f"in {self.name}: {' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def start(self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Process:
        """A server that runs inside, registered as `run/<name>.pid`."""
        return start_process(self.run, name, [*self.entering(), *command], env=env)

    def enter(self) -> None:
        """From now on the calling thread, and whatever it starts, stands in this network. There is no way back. Raises OSError."""
        with Path(f"/proc/{self.pid}/ns/net").open("rb") as network:
            if _libc.setns(network.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter the network of {self.name}")

    def shield(self, values: Mapping[str, str], folder: Path) -> None:
        """Covers files below /proc/sys by files of `folder` with these values: who reads or writes them inside meets only those."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            cover = folder / name.replace("/", "_")
            cover.write_text(value + "\n")
            self.call("mount", "--bind", cover, f"/proc/sys/{name}")

    def cover(self, *folders: str) -> None:
        """Empty folders in memory over these, seen only inside; they must exist, so that no mount point is made on the machine."""
        for folder in folders:
            self.call("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)

    def end(self) -> None:
        """Kills everything inside and waits until it is gone. Raises LabError if it is not."""
        if self.holder.alive:
            os.kill(self.holder.pid, signal.SIGKILL)
        deadline = time.monotonic() + _START_LIMIT
        while Path(f"/proc/{self.pid}").exists() and "signal.pause" in _command_line(self.pid):
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: process {self.pid} still lives {_START_LIMIT:.0f} s after it was killed")
            time.sleep(POLL)


def _last_descendant(pid: int) -> int:
    while True:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return pid
        if not children:
            return pid
        pid = int(children[0])


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _mounts_own_proc(pid: int) -> bool:
    """Whether the file system view is complete: its /proc is the last thing that is mounted before the holder starts."""
    try:
        return Path(f"/proc/{pid}/root/proc/1/cmdline").read_text() == _command_line(pid)
    except OSError:
        return False
