"""One program as a container runtime would start it, for whoever may make a user namespace: no root is needed, and nothing is left behind.

It sees a file system that is read-only but for what is its own, a network of its own, where it may listen on whatever port its pod says,
and no other process. It has another user's number and no rights. The pod's address is a loopback address of the machine: connections to it
are carried in. What is not contained is memory and CPU. Run as a file, with a `Plan` as JSON; see containers.py.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

USER = 65532
_NEWNS, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x10000000, 0x20000000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _ATTR_RDONLY = 442, -100, 0x8000, 1
_PDEATHSIG, _NO_NEW_PRIVS = 1, 38
_IFF_UP, _SIOCSIFFLAGS = 1, 0x8914
_DEVICES = ("null", "zero", "full", "random", "urandom")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Plan:
    """What to run. `files` are the machine's files and folders by their place inside, all read-only; of those places that are in `own` it
    has a copy to change as it likes; `empty` are folders in memory; `work` is an empty folder of the machine that nobody else uses.
    Connections to `address`:`port` reach `port` inside."""

    command: Sequence[str]
    env: Mapping[str, str]
    files: Mapping[str, str]
    empty: Sequence[str]
    own: Sequence[str]
    work: str
    address: str
    port: int


def main(plan: Plan) -> int:
    """Runs it to its end; its exit code, 128 + N where signal N ended it. TERM is passed on."""
    _check(_libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")  # nothing outlives who started it
    listening = socket.create_server((plan.address, plan.port), backlog=128)
    user, group = os.geteuid(), os.getegid()
    _check(_libc.unshare(_NEWUSER | _NEWNS | _NEWPID | _NEWNET), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{USER} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{USER} {group} 1")
    _raise_loopback()
    child = os.fork()
    if child == 0:
        listening.close()
        _become(plan)
    return asyncio.run(_carry(listening, plan.port, child))


async def _carry(listening: socket.socket, port: int, child: int) -> int:
    """Carries connections in until the child ends."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner, outer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.transport.abort()  # what a client sees of a port on which nobody listens yet
            return
        await asyncio.gather(_pump(reader, outer), _pump(inner, writer))

    server = await asyncio.start_server(connected, sock=listening)
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, os.kill, child, signal.SIGTERM)
    loop.add_reader(os.pidfd_open(child), ended.set)  # whoever made a process tree for its children can start no thread to wait in
    await ended.wait()
    server.close()
    _, status = os.waitpid(child, os.WNOHANG)  # noqa: ASYNC222 - it has ended: this takes its exit code
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


def _become(plan: Plan) -> None:
    """Builds the file system, enters it and starts the program; does not return."""
    try:
        _check(_libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
        root = Path(plan.work)
        _mount("none", Path("/"), None, _MS_REC | _MS_PRIVATE)
        _mount("tmpfs", root, "tmpfs", 0)
        files = {f"/dev/{name}": f"/dev/{name}" for name in _DEVICES} | dict(plan.files)
        for place, source in sorted(files.items()):
            _bind(Path(source), root / place.lstrip("/"))
        inside = root / "proc"
        inside.mkdir()
        _mount("proc", inside, "proc", 0)
        _make_read_only(root)
        for place in ("/dev/shm", *plan.empty):
            _mount("tmpfs", root / place.lstrip("/"), "tmpfs", 0)
        for place in plan.own:
            _mount("tmpfs", root / place.lstrip("/"), "tmpfs", 0)
            shutil.copytree(plan.files[place], root / place.lstrip("/"), dirs_exist_ok=True)
        os.chroot(root)
        os.chdir("/")
        _check(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
        os.execvpe(plan.command[0], list(plan.command), dict(plan.env))  # noqa: S606
    except Exception as error:
        print(f"the container cannot be made: {error!r}", file=sys.stderr, flush=True)
    os._exit(127)


def _bind(source: Path, place: Path) -> None:
    """A folder's own mounts come with it; a link is copied as a link."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        place.symlink_to(source.readlink())
        return
    if source.is_dir():
        place.mkdir(exist_ok=True)
    else:
        place.touch()
    _mount(str(source), place, None, _MS_BIND | _MS_REC)


def _mount(source: str, place: Path, kind: str | None, flags: int) -> None:
    place.mkdir(parents=True, exist_ok=True) if kind else None
    words = (source.encode(), str(place).encode(), kind.encode() if kind else None)
    _check(_libc.mount(*words, ctypes.c_ulong(flags), b"mode=1777" if kind == "tmpfs" else None), f"mount {source} at {place}")


def _make_read_only(root: Path) -> None:
    """The whole tree; mounts that are made later in it can be written."""
    for place in ("dev/shm", "tmp"):
        (root / place).mkdir(parents=True, exist_ok=True)
    attributes = struct.pack("=QQQQ", _ATTR_RDONLY, 0, 0, 0)
    done = _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, str(root).encode(), _AT_RECURSIVE, attributes, len(attributes))
    _check(done, "mount_setattr")


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def _check(done: int, what: str) -> None:
    if done < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    sys.exit(main(Plan(**json.loads(sys.argv[1]))))
