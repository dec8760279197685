"""The site's stable address: writes Envoy's two files, and returns from a switch only when clients get the new revision.

Files are replaced by rename, which is what Envoy watches. Clusters come before the routes that use them and go after the last request
on them has been answered; a request is thus always sent to a revision that can answer it. What to route is decided elsewhere.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiohttp

from edgefleet.site.durable import write_durably
from edgefleet.site.gateway_config import (
    ADMIN_SOCKET,
    NOBODY,
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
from edgefleet.site.gateway_envoy import Envoy
from edgefleet.site.gateway_lives import list_lives
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


class Look(NamedTuple):
    """Envoy's statistics; None if it tells nothing now. `ended`: they are the last words of one that runs no more."""

    stats: Mapping[str, Any] | None
    ended: bool = False


class Gateway:
    """One Envoy. `folder` keeps its files; several agents must not share it. Use it as an async context manager."""

    def __init__(self, folder: Path, *, address: Endpoint, server: Endpoint, envoy: Path | None = None) -> None:
        self.folder = folder
        self.address = address
        self._server = server
        self._binary = envoy
        self._envoy = Envoy(folder, address)
        self._process = GatewayProcess(folder)
        self._lock = asyncio.Lock()
        self._draining: set[Target] = set()
        self._table: dict[str, Target] = {}
        self._upstreams: dict[Target, Upstream] = {}
        self._taken = True
        self.restarts = 0
        self.before_removal: Callable[[], Awaitable[None]] | None = None
        """Called when a revision has answered its last request, before its counters are forgotten."""

    async def __aenter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self

    async def __aexit__(self, *_: object) -> None:
        pass  # Envoy goes on

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
            pid = self._process.start(find_envoy(self._binary))
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
            moved = new is not None and self._upstreams.get(new) != upstream
            if new and moved:
                self._upstreams = {target: where for target, where in self._upstreams.items() if target != new}
                if upstream:
                    self._upstreams[new] = upstream
            if new and (moved or old != new):
                self._draining.discard(new)
                self._write_clusters(new)
                await self._wait_for_cluster(new, moved=moved)
            if old == new:
                if not self._taken:
                    await self._require_taken()
                return
            table = {**self._table, model: new} if new else {name: one for name, one in self._table.items() if name != model}
            if old:
                self._draining.add(old)
            # Only what is on disk is routed: a disk that is full must not make us unload what clients still get.
            self._write("routes.json", plan_routes(table, self._upstreams))
            self._table, self._taken = table, False
            await self._require_taken()

    async def _wait_for_cluster(self, target: Target, *, moved: bool) -> None:
        server = self._upstreams[target].endpoint if target in self._upstreams else self._server
        if moved:
            await self._wait(
                lambda: self._all(lambda envoy: envoy.reaches(target, server)), SWITCH_SECONDS, f"Envoy does not move {target.served_name}"
            )
        else:
            await self._wait(
                lambda: self._all(lambda envoy: envoy.knows(target)),
                SWITCH_SECONDS,
                f"Envoy does not take the cluster {target.served_name}",
            )

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
        looks = await self.fetch_stats({"format": "json", "filter": f"^cluster.{name}.upstream_rq_503$"})
        entries = [entry for look in looks.values() if look.stats and not look.ended for entry in look.stats.get("stats", ())]
        return sum(int(entry["value"]) for entry in entries if "value" in entry)

    async def fetch_stats(self, query: Mapping[str, str]) -> dict[str, Look]:
        """What each life of the gateway that is not forgotten tells, by a name that no other one has. Raises GatewayDown if none tells."""
        life = self._process.find_life()
        try:
            stats = await self._envoy.fetch_stats(query)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise GatewayDown(f"Envoy tells no statistics: {error or type(error).__name__}") from error
        if life is None or life != self._process.find_life():
            raise GatewayDown("Envoy ended while it was asked for its statistics")
        return {life: Look(stats)}

    def forget(self, life: str) -> None:
        """What a life that has ended told last is known, and on disk."""

    def _envoys(self) -> Sequence[Envoy]:
        """Those that serve, or are about to."""
        return (self._envoy,)

    def _has_ended(self) -> bool:
        return self._process.find() is None

    async def forget_refused(self) -> None:
        """Models that were routed to nobody, and are not now, need no counting any more."""
        async with self._lock:
            kept = {target for target in self._draining if not target.is_nobody}
            if kept != self._draining:
                self._draining = kept
                self._write_clusters()

    async def _is_idle(self, served_name: str) -> bool:
        return not self._envoys() or await self._all(lambda envoy: envoy.is_idle(served_name))

    async def _is_current(self) -> bool:
        version = table_version(self._table)
        return await self._all(lambda envoy: envoy.shows(version))

    async def _all(self, holds: Callable[[Envoy], Awaitable[bool]]) -> bool:
        envoys = self._envoys()
        return bool(envoys) and all([await holds(envoy) for envoy in envoys])

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
    """For people: `pid` (None if it does not run as our process), `lives` (how many run in pods of their own), `address`, and `models` with
    their revisions, from the files of a gateway."""
    lives = [life for life in list_lives(folder) if life.is_running()]
    try:
        bootstrap = json.loads(((lives[-1].folder if lives else folder) / "bootstrap.json").read_bytes())
        socket = bootstrap["static_resources"]["listeners"][0]["address"]["socket_address"]
        table = read_table(json.loads((folder / "routes.json").read_bytes()))
    except (FileNotFoundError, ValueError):
        return {"pid": None, "lives": len(lives), "address": "", "models": {}}
    return {
        "pid": GatewayProcess(folder).find(),
        "lives": len(lives),
        "address": Endpoint(socket["address"], socket["port_value"]).url,
        "models": {model: target.revision for model, target in table.items()},
    }
