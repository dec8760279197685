"""`python -m tests.bench.pull [MiB]`: a verified pull beside curl, which verifies nothing, and the oras CLI, from one registry in one run.

The registry is a process of its own, as registries are. All write to the same disk; rounds alternate, the best of each counts (a shared
machine is noisy one way only). We sync the file to disk before it gets its name, curl and oras do not: so curl is timed with a sync as
well, and we without, and with everything in one thread, to tell what each of these costs. Also printed: by how much memory grew, and what
is fetched and hashed twice when the connection is cut 50 times.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from edgefleet.oci.client import RegistryClient, digest_of
from edgefleet.oci.fetch import Blob, fetch
from edgefleet.oci.reference import Repository
from tests.lab.debian import fetch_oras
from tests.lab.registry import Fault, Registry, Request

ROUNDS = 5
CUTS = 50
CUT_MEBIBYTES = 102
GOAL, MAX_GROWTH_MEBIBYTES = 0.85, 60
PATH = "bench/model"


def main() -> None:
    """Run it; exits 1 if a pull is not what it should be."""
    if sys.argv[1:2] == ["--serve"]:
        _serve(int(sys.argv[2]))
        return
    mebibytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    oras = fetch_oras()
    with _registry(mebibytes) as (host, blob), RegistryClient() as client, tempfile.TemporaryDirectory() as folder:
        repository, target = Repository.parse(f"{host}/{PATH}"), Path(folder) / "model"
        ways = {
            "curl, no hash": lambda: _curl(repository, blob, target),
            "curl, then a sync": lambda: _sync(_curl(repository, blob, target)),
            "verified pull": lambda: fetch(client, repository, blob, target),
            "  without sync": lambda: _without_sync(lambda: fetch(client, repository, blob, target)),
            "  in one thread": lambda: _in_one_thread(lambda: fetch(client, repository, blob, target)),
            "oras blob fetch": lambda: _oras(oras, repository, blob, target),
        }
        seconds: dict[str, float] = dict.fromkeys(ways, float("inf"))
        grown = 0
        for _ in range(ROUNDS):
            for name, way in ways.items():
                target.unlink(missing_ok=True)
                # What earlier files left to be written would slow down the next.
                os.sync()
                before = _start_peak()
                seconds[name] = min(seconds[name], _timed(way))
                if name == "verified pull":
                    grown = max(grown, _memory("VmHWM") - before)
                    assert _digest(target) == blob.digest, "the pull brought other bytes"
        twice, hashed = _cut(Path(folder))
    print(f"{mebibytes} MiB, best of {ROUNDS}     MiB/s   against curl (goal of a verified pull: {GOAL})")
    for name, took in seconds.items():
        print(f"{name:20}   {mebibytes / took:9.0f}   {seconds['curl, no hash'] / took:.2f}")
    print(f"memory grew by {grown / 2**20:17.1f} MiB (goal {MAX_GROWTH_MEBIBYTES})")
    print(f"cut {CUTS} times {twice:20d} bytes fetched twice, {hashed} hashed twice")


def _serve(mebibytes: int) -> None:
    data = os.urandom(1 << 20) * mebibytes
    with Registry() as registry:
        print(registry.host, registry.content.put_blob(PATH, data), len(data), flush=True)
        sys.stdin.read()


@contextmanager
def _registry(mebibytes: int) -> Iterator[tuple[str, Blob]]:
    command = [sys.executable, "-m", "tests.bench.pull", "--serve", str(mebibytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        host, digest, size = serving.stdout.readline().split()
        yield host, Blob(digest, int(size))
        serving.communicate(timeout=30)


def _curl(repository: Repository, blob: Blob, target: Path) -> Path:
    subprocess.run(["curl", "-sSf", "-o", target, f"{repository.url}/blobs/{blob.digest}"], check=True)
    return target


def _oras(oras: Path, repository: Repository, blob: Blob, target: Path) -> None:
    command = [oras, "blob", "fetch", "--plain-http", "--no-tty", "--output", target, f"{repository}@{blob.digest}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _sync(target: Path) -> None:
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _without_sync(pull: Callable[[], None]) -> None:
    with patch("os.fsync"), patch("os.fdatasync"):
        pull()


class _Here:
    """Does at once what a ThreadPoolExecutor does beside."""

    def __init__(self, *_: Any) -> None: ...

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*arguments))
        return done

    def shutdown(self) -> None: ...


def _in_one_thread(pull: Callable[[], None]) -> None:
    with patch("edgefleet.oci.fetch.ThreadPoolExecutor", _Here):
        pull()


def _cut(folder: Path) -> tuple[int, int]:
    """Bytes that are fetched, and hashed, more often than once in a pull whose connection breaks CUTS times."""
    data = os.urandom(CUT_MEBIBYTES << 20)
    blob, left = Blob(digest_of(data), len(data)), [CUTS]

    def cutting(request: Request) -> Fault | None:
        if "/blobs/" not in request.path or not left[0]:
            return None
        left[0] -= 1
        return Fault(cut_after=blob.size // (CUTS + 1))

    counting = SimpleNamespace(sha256=_Counting)
    with Registry() as registry, RegistryClient() as client, patch("edgefleet.oci.fetch.hashlib", counting):
        registry.content.put_blob(PATH, data)
        registry.fault = cutting
        _Counting.taken = 0
        fetch(client, Repository.parse(f"{registry.host}/{PATH}"), blob, folder / "cut")
        return sum(one.sent for one in registry.requests) - len(data), _Counting.taken - len(data)


class _Counting:
    """SHA-256 that counts what it takes in."""

    taken = 0

    def __init__(self, state: Any = None) -> None:
        self._state = state or hashlib.sha256()

    def update(self, data: bytes) -> None:
        _Counting.taken += len(data)
        self._state.update(data)

    def copy(self) -> "_Counting":
        return _Counting(self._state.copy())

    def hexdigest(self) -> str:
        return str(self._state.hexdigest())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _start_peak() -> int:
    """Has the kernel count this process' peak anew; what it has now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _timed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


if __name__ == "__main__":
    main()
