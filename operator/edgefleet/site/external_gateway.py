"""A gateway in a pod of its own: `edgefleet gateway run` starts it, the agent only writes its files and asks it through two Unix sockets.

Both pods share the folder. Envoy names itself anew at each start, by which the agent knows one life of its counters from the next.
"""

import asyncio
import json
import logging
import os
import secrets
from pathlib import Path
from typing import Any

import aiohttp

from edgefleet.site.durable import write_durably
from edgefleet.site.gateway import RESTART_PAUSE_SECONDS, START_SECONDS, Gateway, GatewayDown
from edgefleet.site.gateway_config import ADMIN_SOCKET, FRONT_SOCKET, Endpoint, plan_bootstrap, plan_clusters, plan_routes

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
_ACTIVE = "^http.gateway.downstream_rq_active$"


def prepare_gateway(folder: Path, address: Endpoint) -> None:
    """Write what Envoy needs to start in `folder`. Where no agent was yet, it routes nothing; what one wrote stays."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for socket in (ADMIN_SOCKET, FRONT_SOCKET):
        (folder / socket).unlink(missing_ok=True)
    clusters, routes = folder / "clusters.json", folder / "routes.json"
    bootstrap = plan_bootstrap(
        host=address.host,
        port=address.port,
        clusters_path=str(clusters.resolve()),
        routes_path=str(routes.resolve()),
        node=f"edgefleet-{secrets.token_hex(8)}",
        front=True,
    )
    write_durably(folder / "bootstrap.json", json.dumps(bootstrap).encode())
    _write_if_absent(clusters, plan_clusters((), Endpoint("127.0.0.1", 1)))
    _write_if_absent(routes, plan_routes({}))


async def drain_gateway(folder: Path, seconds: float, limit: float) -> int | None:
    """Tell clients to close their connections, serve them for `seconds` more, then wait until the last has its answer; how many have not
    after `limit` seconds. None where no Envoy answers."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # a Unix address is at most 107 bytes long
    async with _open(f"/proc/self/fd/{handle}/{ADMIN_SOCKET}") as admin:
        try:
            async with admin.post("http://admin/healthcheck/fail"):
                pass
            await asyncio.sleep(seconds)
            left = await _count_active(admin)
            for _ in range(int(limit / POLL_SECONDS)):
                if not left:
                    break
                await asyncio.sleep(POLL_SECONDS)
                left = await _count_active(admin)
            return left
        except (aiohttp.ClientError, OSError):
            return None
        finally:
            os.close(handle)


async def _count_active(admin: aiohttp.ClientSession) -> int:
    async with admin.get("http://admin/stats", params={"format": "json", "filter": _ACTIVE}) as answer:
        stats = await answer.json(content_type=None)
    return sum(int(entry["value"]) for entry in stats.get("stats", ()) if "value" in entry)


class ExternalGateway(Gateway):
    """The gateway of a folder, run by somebody else."""

    def __init__(self, folder: Path, *, server: Endpoint) -> None:
        super().__init__(folder, address=Endpoint("gateway", 80), server=server)

    async def __aenter__(self) -> "ExternalGateway":
        await super().__aenter__()
        await self._front.close()
        connector = aiohttp.UnixConnector(path=f"/proc/self/fd/{self._handle}/{FRONT_SOCKET}", force_close=True)
        self._front = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=5))
        return self

    async def start(self) -> None:
        """Write what shall be routed, and wait a while for the gateway to take it. One that is not there yet reads it when it starts."""
        self._table, self._upstreams = self._read_table(), self._read_upstreams()
        self._write_clusters()
        self._write("routes.json", plan_routes(self._table, self._upstreams))
        try:
            await self._wait(self._is_current, START_SECONDS, "the gateway does not answer")
        except GatewayDown as error:
            self._taken = False
            log.warning("%s: is it running, with the same state folder?", error)

    async def run(self) -> None:
        """Notice when another Envoy serves, until cancelled."""
        before = await self._find_life()
        while True:
            await asyncio.sleep(RESTART_PAUSE_SECONDS)
            now = await self._find_life()
            if now is not None and before is not None and now != before:
                self.restarts += 1
                log.warning("the gateway was started again")
            before = now or before

    async def _find_life(self) -> str | None:
        try:
            info: dict[str, Any] = await self._ask("/server_info")
        except (aiohttp.ClientError, OSError, ValueError):
            return None
        return str((info.get("node") or {}).get("id") or "") or None

    def _has_ended(self) -> bool:
        return False  # its end is for others to see; what is waited for has a limit


def _open(socket: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=socket, force_close=True), timeout=aiohttp.ClientTimeout(total=5))


def _write_if_absent(path: Path, content: dict[str, Any]) -> None:
    draft = path.with_suffix(f".{secrets.token_hex(4)}")
    write_durably(draft, json.dumps(content).encode())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
