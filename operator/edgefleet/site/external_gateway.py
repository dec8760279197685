"""A gateway that others run: `edgefleet gateway run` starts it, in a pod of its own; the agent only writes its files and asks.

While it is upgraded two Envoys serve the same files. A switch is done when both have taken it, and what a life has counted to its last
answer is read before it is forgotten. How a life is known is gateway_lives.py's.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp

from edgefleet.site.gateway import RESTART_PAUSE_SECONDS, START_SECONDS, Gateway, GatewayDown, Look
from edgefleet.site.gateway_config import Endpoint, plan_routes
from edgefleet.site.gateway_envoy import Envoy
from edgefleet.site.gateway_lives import list_lives

log = logging.getLogger(__name__)


class ExternalGateway(Gateway):
    """The gateway of a folder, run by somebody else."""

    def __init__(self, folder: Path, *, server: Endpoint) -> None:
        super().__init__(folder, address=Endpoint("gateway", 80), server=server)

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
        known = set(self._find_lives())
        while True:
            await asyncio.sleep(RESTART_PAUSE_SECONDS)
            now = set(self._find_lives())
            if known and now - known:
                self.restarts += 1
                log.warning("another gateway serves")
            known |= now

    async def fetch_stats(self, query: Mapping[str, str]) -> dict[str, Look]:
        """As Gateway.fetch_stats: of those that run, and the last words of those that have ended."""
        running = self._find_lives()
        looks = {life.name: Look(life.read_last_words(), ended=True) for life in list_lives(self.folder) if life.name not in running}
        for name, envoy in running.items():
            try:
                looks[name] = Look(await envoy.fetch_stats(query))
            except (aiohttp.ClientError, OSError, ValueError) as error:
                log.debug("gateway %s tells no statistics: %s", name, error)
                looks[name] = Look(None)
        if not any(look.stats for look in looks.values()):
            raise GatewayDown("no gateway tells its statistics")
        return looks

    def forget(self, life: str) -> None:
        """What this life has said is known, and on disk."""
        for one in list_lives(self.folder):
            if one.name == life and not one.is_running():
                one.forget()

    def _envoys(self) -> Sequence[Envoy]:
        return tuple(self._find_lives().values())

    def _find_lives(self) -> dict[str, Envoy]:
        return {life.name: Envoy(life.folder) for life in list_lives(self.folder) if life.is_running()}

    def _has_ended(self) -> bool:
        return False  # its end is for others to see; what is waited for has a limit
