"""The site's stable address: writes Envoy's two files, and returns from a switch only when clients get the new revision.

Files are replaced by rename, which is what Envoy watches. Clusters come before the routes that use them and go after the last request
on them has been answered; a request is thus always sent to a revision that can answer it. What to route is decided elsewhere.
"""

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from edgefleet.site.durable import write_durably
from edgefleet.site.gateway_config import (
    ADMIN_SOCKET,
    NOBODY,
    TABLE_PATH,
    Endpoint,
    Target,
    Upstream,
    plan_bootstrap,
    plan_clusters,
    plan_routes,
    read_table,
    read_upstreams,
    table_version,
)
from edgefleet.site.gateway_process import GatewayProcess, find_envoy

log = logging.getLogger(__name__)

START_SECONDS = 20.0
SWITCH_SECONDS = 10.0
DRAIN_SECONDS = 65.0
RESTART_PAUSE_SECONDS = 1.0
POLL_SECONDS = 0.005


class GatewayDown(Exception):
    """Envoy does not run or does not take our configuration. It is the site's fault."""

    reason = "GatewayDown"


class Gateway:
    """One Envoy. `folder` keeps its files; several agents must not share it. Use it as an async context manager."""

    def __init__(self, folder: Path, *, address: Endpoint, server: Endpoint, envoy: Path | None = None) -> None:
        self.folder = folder
        self.address = address
        self._server = server
        self._envoy = envoy
        self._process = GatewayProcess(folder)
        self._lock = asyncio.Lock()
        self._draining: set[Target] = set()
        self._table: dict[str, Target] = {}
        self._upstreams: dict[Target, Upstream] = {}
        self._taken = True
        self.restarts = 0
        self.before_removal: Callable[[], Awaitable[None]] | None = None
        """Called when a revision has answered its last request, before its counters are forgotten."""

    async def __aenter__(self) -> "Gateway":
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # The socket's own path may be longer than the 107 bytes that a Unix address holds; one through an open folder is not.
        self._handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        connector = aiohttp.UnixConnector(path=f"/proc/self/fd/{self._handle}/{ADMIN_SOCKET}", force_close=True)
        timeout = aiohttp.ClientTimeout(total=5)
        self._admin = aiohttp.ClientSession(connector=connector, timeout=timeout)
        self._front = aiohttp.ClientSession(timeout=timeout, trust_env=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._admin.close()
        await self._front.close()
        os.close(self._handle)

    @property
    def table(self) -> dict[str, Target]:
        """What is routed now."""
        return dict(self._table)

    async def start(self) -> None:
        """Find the running Envoy or start one, and wait until it answers. Raises GatewayDown, GatewayMissing."""
        bootstrap = plan_bootstrap(
            host=self.address.host,
            port=self.address.port,
            clusters_path=str((self.folder / "clusters.json").resolve()),
            routes_path=str((self.folder / "routes.json").resolve()),
        )
        pid = self._process.find()
        self._table, self._upstreams = self._read_table(), self._read_upstreams()
        if pid is None:
            (self.folder / ADMIN_SOCKET).unlink(missing_ok=True)
            self._write("bootstrap.json", bootstrap)
            self._write_clusters()
            self._write("routes.json", plan_routes(self._table, self._upstreams))
            pid = self._process.start(find_envoy(self._envoy))
            log.info("gateway started: http port %d, pid %d", self.address.port, pid)
        else:
            self._require_same_address()
        await self._wait(self._is_current, START_SECONDS, f"Envoy does not answer on {self.address.url}")

    async def run(self) -> None:
        """Keep Envoy running until cancelled; the end of this task is not the end of Envoy."""
        while True:
            pid = self._process.find()
            if pid is not None:
                await self._process.wait_for_end(pid)
                self.restarts += 1
                log.error("the gateway ended: starting it again. %s", self._process.log_tail())
            try:
                await self.start()
            except GatewayDown as error:
                log.error("%s", error)
                await asyncio.sleep(RESTART_PAUSE_SECONDS)

    async def switch(self, model: str, revision: str | None, upstream: Upstream | None = None) -> None:
        """Route `model` to this revision, or to nothing; returns when every further request goes there. Raises GatewayDown.

        `upstream` is where the revision answers now, if not at the one model server; another one for what is routed already moves it.
        """
        async with self._lock:
            old = self._table.get(model)
            new = Target(model, revision) if revision else None
            if new and self._upstreams.get(new) != upstream:
                self._upstreams = {target: where for target, where in self._upstreams.items() if target != new}
                if upstream:
                    self._upstreams[new] = upstream
                if old == new:
                    self._write_clusters()
                    await self._wait(lambda: self._is_at(new, upstream), SWITCH_SECONDS, f"Envoy does not move {new.served_name}")
            if old == new:
                if not self._taken:
                    await self._require_taken()
                return
            table = {**self._table, model: new} if new else {name: one for name, one in self._table.items() if name != model}
            if new:
                self._draining.discard(new)
                self._write_clusters(new)
                await self._wait(lambda: self._knows(new), SWITCH_SECONDS, f"Envoy does not take the cluster {new.served_name}")
            if old:
                self._draining.add(old)
            # Only what is on disk is routed: a disk that is full must not make us unload what clients still get.
            self._write("routes.json", plan_routes(table, self._upstreams))
            self._table, self._taken = table, False
            await self._require_taken()

    async def _require_taken(self) -> None:
        await self._wait(self._is_current, SWITCH_SECONDS, "Envoy does not take the routes")
        self._taken = True

    async def drain(self, served_name: str) -> None:
        """Wait until no request is under way at a revision that is no longer routed to, then forget it with its counters.

        After 65 s, more than any request may take here, it returns anyway.
        """
        if any(target.served_name == served_name for target in self._table.values()):
            raise ValueError(f"{served_name} is routed to: switch first")
        try:
            await self._wait(lambda: self._is_idle(served_name), DRAIN_SECONDS, f"requests to {served_name} do not end")
        except GatewayDown as error:
            log.warning("%s", error)
        if self.before_removal is not None:
            await self.before_removal()
        async with self._lock:
            self._draining = {target for target in self._draining if target.served_name != served_name}
            self._upstreams = {target: where for target, where in self._upstreams.items() if target.served_name != served_name}
            self._write_clusters()

    async def count_refused(self, model: str) -> int:
        """How many requests were refused since `model` is routed to nobody. Raises GatewayDown."""
        name = Target(model, NOBODY).served_name
        _, stats = await self.fetch_stats({"format": "json", "filter": f"^cluster.{name}.upstream_rq_503$"})
        return sum(int(entry["value"]) for entry in stats.get("stats", ()) if "value" in entry)

    async def fetch_stats(self, query: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
        """Envoy's statistics, and the name of the life that they are of. Raises GatewayDown."""
        life = await self._find_life()
        try:
            stats = await self._ask("/stats", **query)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise GatewayDown(f"Envoy tells no statistics: {error or type(error).__name__}") from error
        if life is None or life != await self._find_life():
            raise GatewayDown("Envoy ended while it was asked for its statistics")
        return life, stats

    async def _find_life(self) -> str | None:
        """A name for the running Envoy that no other one has, None where none runs."""
        return self._process.find_life()

    def _has_ended(self) -> bool:
        return self._process.find() is None

    async def _knows(self, target: Target) -> bool:
        clusters = await self._ask("/clusters", format="json")
        return any(entry.get("name") == target.served_name for entry in clusters.get("cluster_statuses", ()))

    async def forget_refused(self) -> None:
        """Models that were routed to nobody, and are not now, need no counting any more."""
        async with self._lock:
            kept = {target for target in self._draining if not target.is_nobody}
            if kept != self._draining:
                self._draining = kept
                self._write_clusters()

    async def _is_at(self, target: Target, upstream: Upstream | None) -> bool:
        port = (upstream.endpoint if upstream else self._server).port
        host = (upstream.endpoint if upstream else self._server).host
        clusters = await self._ask("/clusters", format="json")
        found = [one for one in clusters.get("cluster_statuses", ()) if one.get("name") == target.served_name]
        addresses = [one["address"]["socket_address"] for entry in found for one in entry.get("host_statuses", ())]
        return any((one["address"], one["port_value"]) == (host, port) for one in addresses) or upstream is None

    async def _is_idle(self, served_name: str) -> bool:
        # A request that still waits for a connection is not active yet, but pending.
        stats = await self._ask("/stats", format="json", filter=f"^cluster.{served_name}.upstream_rq_(pending_)?active$")
        return all(entry["value"] == 0 for entry in stats.get("stats", ()) if "value" in entry)

    async def _is_current(self) -> bool:
        async with self._front.get(f"{self.address.url}{TABLE_PATH}") as answer:
            shown = await answer.json(content_type=None)
            return isinstance(shown, dict) and shown.get("version") == table_version(self._table)

    async def _ask(self, path: str, **query: str) -> dict[str, Any]:
        async with self._admin.get(f"http://admin{path}", params=query) as answer:
            asked: dict[str, Any] = await answer.json(content_type=None)
            return asked

    async def _wait(self, holds: Callable[[], Awaitable[bool]], seconds: float, otherwise: str) -> None:
        last = ""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        if await holds():
                            return
                    except (aiohttp.ClientError, OSError, ValueError) as error:
                        last = f": {error or type(error).__name__}"
                    if self._has_ended():
                        raise GatewayDown(f"{otherwise}: it has ended. {self._process.log_tail()}".strip())
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise GatewayDown(f"{otherwise} within {seconds:g} s{last}. {self._process.log_tail()}".strip()) from None

    def _read_table(self) -> dict[str, Target]:
        try:
            return read_table(json.loads((self.folder / "routes.json").read_bytes()))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise GatewayDown(f"{self.folder / 'routes.json'}: {error}; remove it") from error

    def _read_upstreams(self) -> dict[Target, Upstream]:
        try:
            return read_upstreams(json.loads((self.folder / "clusters.json").read_bytes()))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise GatewayDown(f"{self.folder / 'clusters.json'}: {error}; remove it") from error

    def _write_clusters(self, *more: Target) -> None:
        targets = {*self._table.values(), *self._draining, *more}
        self._write("clusters.json", plan_clusters(targets, self._server, self._upstreams))

    def _require_same_address(self) -> None:
        running = json.loads((self.folder / "bootstrap.json").read_bytes())
        address = running["static_resources"]["listeners"][0]["address"]["socket_address"]
        if address["port_value"] != self.address.port:
            raise GatewayDown(
                f"the running gateway listens on port {address['port_value']}, this agent was told {self.address.port}: "
                "run `edgefleet gateway stop` first"
            )

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_durably(self.folder / name, json.dumps(content).encode())


def read_status(folder: Path) -> dict[str, Any]:
    """For people: `pid` (None if it does not run), `address`, and `models` with their revisions, from the files of a gateway."""
    try:
        bootstrap = json.loads((folder / "bootstrap.json").read_bytes())
        socket = bootstrap["static_resources"]["listeners"][0]["address"]["socket_address"]
        table = read_table(json.loads((folder / "routes.json").read_bytes()))
    except (FileNotFoundError, ValueError):
        return {"pid": None, "address": "", "models": {}}
    return {
        "pid": GatewayProcess(folder).find(),
        "address": Endpoint(socket["address"], socket["port_value"]).url,
        "models": {model: target.revision for model, target in table.items()},
    }
