"""Processes that outlive their starter and are still found and ended by it, or by anyone after it crashed.

Each process writes its own line of /proc (pid and start time) into a folder before it becomes the server, so there is no
moment in which a server runs and no file names it; and a recycled pid is never taken for the old process.
"""

import atexit
import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import LabError
from tests.lab.progress import tail

POLL = 0.05  # seconds between two looks at a fact that is waited for
# Below the range the kernel hands out for outgoing connections, so none of those takes a port between choice and use.
_PORTS = range(20000, 30000)
_REGISTER = 'cat "/proc/$$/stat" >"$0.new" && mv "$0.new" "$0" && exec "$@"'
# Reaps the children of this very process; those of a crashed starter belong to init.
_children: dict[int, subprocess.Popen[bytes]] = {}


@atexit.register
def _reap() -> None:
    """Children that ended by themselves or by another's hand are not waited for anywhere else."""
    for child in _children.values():
        child.poll()


@dataclass(frozen=True)
class Process:
    """One running server: its name in the run folder, pid, start time in clock ticks since boot, and its log."""

    name: str
    pid: int
    started: int
    log: Path

    @property
    def alive(self) -> bool:
        """Whether this very process (not a later one with its pid) still runs."""
        found = _read_stat(Path(f"/proc/{self.pid}/stat"))
        return found is not None and found[1] == self.started and found[2] not in "ZX"

    def wait_until(self, fact: Callable[[], bool], what: str, limit: float = 90) -> None:
        """Waits at most `limit` seconds for `fact`. Raises LabError with the end of the log on death or timeout."""
        deadline = time.monotonic() + limit
        while not fact():
            if not self.alive:
                raise LabError(f"{self.name} ended before {what}; its log:\n{tail(self.log)}")
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: not {what} within {limit:.0f} s; its log:\n{tail(self.log)}")
            time.sleep(POLL)
        if not self.alive:
            raise LabError(f"{self.name} ended, though something {what} in its place; its log:\n{tail(self.log)}")


def start_process(
    run: Path,
    name: str,
    command: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Process:
    """Starts `command` in a session of its own, registered as `run/<name>.pid`; its output is appended to `run/<name>.log`."""
    run.mkdir(parents=True, exist_ok=True)
    record, log = run / f"{name}.pid", run / f"{name}.log"
    record.unlink(missing_ok=True)
    with log.open("ab") as out:
        child = subprocess.Popen(
            ["/bin/sh", "-c", _REGISTER, str(record), *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
    _children[child.pid] = child
    found = _read_stat(Path(f"/proc/{child.pid}/stat"))
    if found is None:
        raise LabError(f"{name} ended at once; its log:\n{tail(log)}")
    return Process(name, child.pid, found[1], log)


def list_processes(run: Path) -> list[Process]:
    """The processes registered in `run` that still run, in order of their start."""
    found = []
    for record in run.glob("*.pid"):
        stat = _read_stat(record)
        if stat is not None:
            process = Process(record.stem, stat[0], stat[1], record.with_suffix(".log"))
            if process.alive:
                found.append(process)
    return sorted(found, key=lambda process: process.started)


def stop_processes(processes: Iterable[Process], grace: float = 5) -> None:
    """TERM to all, at most `grace` seconds, then KILL. Raises LabError if one survives even that."""
    waiting = list(processes)
    for which, limit in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        for process in waiting:
            _send(process, which)
        deadline = time.monotonic() + limit
        while (waiting := [process for process in waiting if not _reaped(process)]) and time.monotonic() < deadline:
            time.sleep(POLL)
        if not waiting:
            return
    raise LabError(f"still alive after KILL: {', '.join(f'{p.name} (pid {p.pid})' for p in waiting)}")


def own_identity() -> tuple[int, int]:
    """(pid, start time) of the running process."""
    found = _read_stat(Path("/proc/self/stat"))
    if found is None:
        raise LabError("/proc is not readable: the lab needs Linux with /proc mounted")
    return found[0], found[1]


def is_alive(pid: int, started: int) -> bool:
    """Whether the process with this pid is still the one that started at `started` ticks."""
    return Process("", pid, started, Path(os.devnull)).alive


def free_ports(count: int) -> list[int]:
    """`count` different loopback ports that nobody listens on now."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise LabError(f"fewer than {count} free ports between {_PORTS.start} and {_PORTS.stop} on 127.0.0.1")


def _send(process: Process, which: signal.Signals) -> None:
    if process.alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, which)


def _reaped(process: Process) -> bool:
    child = _children.get(process.pid)
    if child is None:
        return not process.alive
    # Its main thread may be a zombie while others still hold the port: for a child, only wait() tells the end.
    if child.poll() is None:
        return False
    _children.pop(process.pid, None)
    return True


def _read_stat(path: Path) -> tuple[int, int, str] | None:
    """(pid, start time, state) of a line as in /proc/PID/stat; None where the process or file is gone or unfinished."""
    try:
        line = path.read_text()
        head, _, rest = line.rpartition(")")
        fields = rest.split()
        return int(head.split()[0]), int(fields[19]), fields[0]
    except (OSError, ValueError, IndexError):
        return None
