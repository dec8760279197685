"""One running Envoy of a site, asked through its sockets: what it routes, what it knows, what it counted.

Questions only. Which Envoys there are, what their files say and how long an answer is waited for is decided elsewhere.
"""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from edgefleet.site.gateway_config import ADMIN_SOCKET, FRONT_SOCKET, TABLE_PATH, Endpoint, Target

ANSWER = aiohttp.ClientTimeout(total=5)


class Envoy:
    """The one whose sockets are in `folder`. `address`: where clients find it; None if it answers at a Unix socket as it does there.

    All questions raise aiohttp.ClientError, OSError or ValueError when it does not answer as it should.
    """

    def __init__(self, folder: Path, address: Endpoint | None = None) -> None:
        self._folder = folder
        self._address = address

    @asynccontextmanager
    async def _open(self, socket: str) -> AsyncIterator[aiohttp.ClientSession]:
        # A socket's own path may be longer than the 107 bytes that a Unix address holds; one through an open folder is not.
        handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            connector = aiohttp.UnixConnector(path=f"/proc/self/fd/{handle}/{socket}", force_close=True)
            async with aiohttp.ClientSession(connector=connector, timeout=ANSWER) as session:
                yield session
        finally:
            os.close(handle)

    @asynccontextmanager
    async def _open_front(self) -> AsyncIterator[aiohttp.ClientSession]:
        if self._address is None:
            async with self._open(FRONT_SOCKET) as session:
                yield session
        else:
            async with aiohttp.ClientSession(timeout=ANSWER, trust_env=False) as session:
                yield session

    async def shows(self, version: str) -> bool:
        """Whether clients of it are routed by the table of this version."""
        url = f"{self._address.url if self._address else 'http://front'}{TABLE_PATH}"
        async with self._open_front() as session, session.get(url) as answer:
            shown = await answer.json(content_type=None)
            return isinstance(shown, dict) and shown.get("version") == version

    async def knows(self, target: Target) -> bool:
        """Whether it has taken the cluster of a revision."""
        return any(entry.get("name") == target.served_name for entry in await self._fetch_clusters())

    async def reaches(self, target: Target, server: Endpoint) -> bool:
        """Whether requests for a revision go to this server, and to no other."""
        found = [entry for entry in await self._fetch_clusters() if entry.get("name") == target.served_name]
        hosts = [host for entry in found for host in entry.get("host_statuses", ())]
        return bool(hosts) and all(
            # A name is resolved by Envoy, which then shows both.
            server.host in (host["address"]["socket_address"]["address"], host.get("hostname"))
            and host["address"]["socket_address"]["port_value"] == server.port
            for host in hosts
        )

    async def is_idle(self, served_name: str) -> bool:
        """Whether no request to a revision is under way."""
        # A request that still waits for a connection is not active yet, but pending.
        stats = await self.fetch_stats({"format": "json", "filter": f"^cluster.{served_name}.upstream_rq_(pending_)?active$"})
        return all(entry["value"] == 0 for entry in stats.get("stats", ()) if "value" in entry)

    async def count_active(self) -> int:
        """How many requests of clients are under way."""
        stats = await self.fetch_stats({"format": "json", "filter": "^http.gateway.downstream_rq_active$"})
        return sum(int(entry["value"]) for entry in stats.get("stats", ()) if "value" in entry)

    async def fetch_stats(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Its statistics."""
        return await self._ask("/stats", query)

    async def send_clients_away(self) -> None:
        """From now on each answer closes its client's connection."""
        async with self._open(ADMIN_SOCKET) as session, session.post("http://admin/healthcheck/fail") as answer:
            answer.raise_for_status()

    async def _fetch_clusters(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self._ask("/clusters", {"format": "json"})).get("cluster_statuses", [])
        return found

    async def _ask(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        async with self._open(ADMIN_SOCKET) as session, session.get(f"http://admin{path}", params=query) as answer:
            asked: dict[str, Any] = await answer.json(content_type=None)
            return asked
