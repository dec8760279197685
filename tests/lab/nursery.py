"""Starts hubs and agents as forks of one process that has imported everything: 20 ms instead of 1 s of CPU each.

Each is a process of its own that runs `edgefleet ...` and can be killed. Two things differ from a command typed in a shell: every write
says in a header which line of code asked for it (the proxy takes it off), and `Knobs` shorten patience that is minutes long.

    python -m tests.lab.nursery     reads {"argv", "log", "knobs"} as JSON lines; answers {"pid"}, and {"pid", "ended"} at each end
"""

import asyncio
import importlib
import inspect
import json
import os
import select
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from edgefleet.kube import client

ROOT = Path(__file__).parents[2]
CALLER_HEADER = "X-Edgefleet-Caller"
WRITING = ("create", "apply", "patch", "delete")
_POLL_SECONDS = 0.02
_caller: ContextVar[str] = ContextVar("caller", default="")


@dataclass(frozen=True, slots=True)
class Knobs:
    """`request` and `silence`: seconds until a request, or a watch, without an answer counts as dead. `mutant`: module:function that
    breaks the product on purpose, called before it starts."""

    request: float = 0
    silence: float = 0
    mutant: str = ""


class Nursery:
    """The parent's side. `on_end(pid, code)` is called for each child that ended; code -9 is SIGKILL. `root` is the tree whose code runs,
    in the environment of this one."""

    def __init__(self, on_end: Callable[[int, int], None], root: Path = ROOT) -> None:
        self._on_end = on_end
        self._root = root
        self._starts: asyncio.Queue[int] = asyncio.Queue()
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.lab.nursery",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=self._root,
            env={**os.environ, "PYTHONPATH": str(self._root / "operator")},
        )
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        async with asyncio.timeout(20):
            await self._process.wait()
            await self._reader

    async def start(self, argv: Sequence[str], log: Path, knobs: Knobs) -> int:
        """Start `edgefleet ARGV`, output appended to `log`; its pid."""
        line = json.dumps({"argv": list(argv), "log": str(log), "knobs": asdict(knobs)})
        assert self._process.stdin is not None
        async with self._lock:
            self._process.stdin.write(line.encode() + b"\n")
            async with asyncio.timeout(20):
                return await self._starts.get()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            if "ended" in said:
                self._on_end(said["pid"], said["ended"])
            else:
                self._starts.put_nowait(said["pid"])


def name_callers() -> None:
    """From now on each write of kube.client.Api carries the place that asked for it."""
    for verb in WRITING:
        setattr(client.Api, verb, _naming(verb, getattr(client.Api, verb)))
    plain = client.Api._open

    def opened(self: client.Api, method: str, path: str, **options: Any) -> Any:
        headers = {**options.pop("headers", {}), **({CALLER_HEADER: _caller.get()} if _caller.get() else {})}
        return plain(self, method, path, headers=headers, **options)

    client.Api._open = opened  # type: ignore[method-assign]


def _naming(verb: str, plain: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def named(self: client.Api, *args: Any, **options: Any) -> Any:
        caller = inspect.currentframe()
        while caller is not None and isinstance(caller.f_locals.get("self"), client.Api):
            caller = caller.f_back  # also past clients that wrap this one
        place = f"{_module(caller.f_code.co_filename)}:{_first_line(caller)} {verb}" if caller else ""
        token = _caller.set(place)
        try:
            return await plain(self, *args, **options)
        finally:
            _caller.reset(token)

    return named


def _first_line(frame: Any) -> int:
    """The line on which the call begins: inside of a call over several lines the frame may stand at any of them."""
    positions = list(frame.f_code.co_positions())
    start = positions[frame.f_lasti // 2][0]
    return int(start or frame.f_lineno)


def _module(file: str) -> str:
    return file.rpartition("/edgefleet/")[2]


def _preload() -> None:
    for name in ("edgefleet.hub.process", "edgefleet.site.agent", "edgefleet.trust.bundle", "edgefleet.trust.release", "edgefleet.cli.app"):
        importlib.import_module(name)


def _run_child(order: dict[str, Any]) -> None:
    """In the fork: become the command, and never return."""
    code = 1
    try:
        # What libraries write to temporary files would stay after a SIGKILL.
        tempfile.tempdir = str(Path(order["log"]).parent)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, null), (1, log), (2, log)):
            os.dup2(source, target)
        os.setsid()
        knobs = Knobs(**order["knobs"])
        if knobs.request:
            client.REQUEST_TIMEOUT = client.aiohttp.ClientTimeout(total=knobs.request, connect=knobs.request)
        if knobs.silence:
            client.WATCH_SILENCE_SECONDS = knobs.silence  # type: ignore[assignment]
            _shorten_kopf(knobs.silence)
        if knobs.mutant:
            module, _, function = knobs.mutant.partition(":")
            getattr(importlib.import_module(module), function)()
        sys.argv = ["edgefleet", *order["argv"]]
        importlib.import_module("edgefleet.__main__").main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _shorten_kopf(silence: float) -> None:
    process = importlib.import_module("edgefleet.hub.process")
    plain = process.make_settings

    def make_settings() -> Any:
        settings = plain()
        settings.watching.inactivity_timeout = silence
        return settings

    process.make_settings = make_settings  # type: ignore[attr-defined]


def _say(**what: int) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Fork on demand until stdin ends; then end every child that is left."""
    _preload()
    name_callers()
    children: set[int] = set()
    pending = b""
    while True:
        ready, _, _ = select.select([0], [], [], _POLL_SECONDS)
        if ready:
            data = os.read(0, 1 << 16)
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    _run_child(json.loads(line))
                children.add(pid)
                _say(pid=pid)
        for pid in list(children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                children.discard(pid)
                _say(pid=pid, ended=os.waitstatus_to_exitcode(status))
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    for pid in children:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
