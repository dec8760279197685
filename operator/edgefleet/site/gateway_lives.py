"""The lives of a gateway that is a process of its own: one Envoy each, with a folder for its sockets, beside the files that all share.

While one is upgraded two are alive. A life holds the lock in its folder from before anybody can see it until its end, so the agent, which
shares a volume with it and nothing else, knows who is alive. Before its end, when no request is under way any more, a drain writes down
what it has counted: its last words, kept until the agent has read them.
"""

import asyncio
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from edgefleet.site.durable import sync_folder, write_durably
from edgefleet.site.gateway_config import FLUSH_SECONDS, Endpoint, plan_bootstrap, plan_clusters, plan_routes
from edgefleet.site.gateway_envoy import Envoy
from edgefleet.site.gateway_process import start_time

LIVES = "lives"
POLL_SECONDS = 0.2
_LOCK, _LAST_WORDS, _PROCESS, _UNSEEN = "lock", "last.json", "process.json", ".new"


@dataclass(frozen=True, slots=True)
class Life:
    """One Envoy's, by its folder."""

    folder: Path

    @property
    def name(self) -> str:
        """No other life has it, ever."""
        return self.folder.name

    def is_running(self) -> bool:
        """Whether its process has not ended."""
        try:
            handle = os.open(self.folder / _LOCK, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def read_last_words(self) -> dict[str, Any] | None:
        """What it had counted when it was drained; None if it was not."""
        try:
            said = json.loads((self.folder / _LAST_WORDS).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return said if isinstance(said, dict) else None

    def is_process(self, pid: int) -> bool:
        """Whether it is this process of ours. Each pod numbers its processes from 1; when one began tells them apart."""
        return self._read_process() == (pid, start_time(pid))

    def is_near(self) -> bool:
        """Whether its process is among those that we see."""
        pid, began = self._read_process()
        return pid is not None and start_time(pid) == began

    def _read_process(self) -> tuple[int | None, int | None]:
        try:
            said = json.loads((self.folder / _PROCESS).read_bytes())
            return int(said["pid"]), int(said["started"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None, None

    def forget(self) -> None:
        """Take away what it left."""
        shutil.rmtree(self.folder, ignore_errors=True)


def list_lives(folder: Path) -> list[Life]:
    """Those of a gateway folder that run, or have left something."""
    try:
        folders = sorted((folder / LIVES).iterdir())
    except FileNotFoundError:
        return []
    return [Life(one) for one in folders if one.suffix != _UNSEEN]


def begin_life(folder: Path, address: Endpoint) -> Life:
    """Write what Envoy needs to start as this process, and lock it until the end of this process, whatever it executes.

    Envoy is to be started in the folder of the life. Where no agent was yet, it routes nothing; what one wrote stays.
    """
    (folder / LIVES).mkdir(parents=True, exist_ok=True, mode=0o700)
    for one in list_lives(folder):
        if not one.is_running() and one.read_last_words() is None:
            one.forget()
    name = secrets.token_hex(8)
    clusters, routes = folder / "clusters.json", folder / "routes.json"
    _write_if_absent(clusters, plan_clusters((), Endpoint("127.0.0.1", 1)))
    _write_if_absent(routes, plan_routes({}))
    unseen = folder / LIVES / f"{name}{_UNSEEN}"
    unseen.mkdir(mode=0o700)
    handle = os.open(unseen / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    os.set_inheritable(handle, True)
    bootstrap = plan_bootstrap(
        host=address.host,
        port=address.port,
        clusters_path=str(clusters.resolve()),
        routes_path=str(routes.resolve()),
        node=f"edgefleet-{name}",
        front=True,
    )
    write_durably(unseen / "bootstrap.json", json.dumps(bootstrap).encode())
    write_durably(unseen / _PROCESS, json.dumps({"pid": os.getpid(), "started": start_time(os.getpid())}).encode())
    seen = unseen.with_name(name)
    unseen.rename(seen)
    sync_folder(seen.parent)
    return Life(seen)


async def drain_life(life: Life, query: Mapping[str, str], *, seconds: float, limit: float) -> int | None:
    """Tell clients to close their connections, serve them for `seconds` more, wait until the last has its answer, and write down what was
    counted. How many have no answer after `limit` seconds; None where no Envoy answers. Raises OSError (disk)."""
    envoy = Envoy(life.folder)
    try:
        await envoy.send_clients_away()
        await asyncio.sleep(seconds)
        left = await envoy.count_active()
        for _ in range(int(limit / POLL_SECONDS)):
            if not left:
                break
            await asyncio.sleep(POLL_SECONDS)
            left = await envoy.count_active()
        await asyncio.sleep(FLUSH_SECONDS)
        said = await envoy.fetch_stats(query)
    except (aiohttp.ClientError, OSError, ValueError):
        return None
    write_durably(life.folder / _LAST_WORDS, json.dumps(said).encode())
    return left


def _write_if_absent(path: Path, content: dict[str, Any]) -> None:
    draft = path.with_suffix(f".{secrets.token_hex(4)}")
    write_durably(draft, json.dumps(content).encode())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
