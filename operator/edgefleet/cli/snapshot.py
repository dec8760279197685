"""One look at a hub through the hub's own eyes: what it keeps in memory is listed once, and facts are gathered as it gathers them.

So a command answers with the hub's own decisions, taken again and not carried out. It needs the right to read sites, their Leases and
their assignments, which teams do not have by themselves.
"""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from edgefleet.api.fleet import EdgeFleet
from edgefleet.api.meta import SITE_LABEL, site_namespace
from edgefleet.api.report import LEASE_NAME
from edgefleet.cli.cluster import server_now
from edgefleet.core.decisions import FleetDecision
from edgefleet.core.facts import FleetFacts, FleetKey
from edgefleet.core.fleet import decide_fleet
from edgefleet.hub.evidence import Evidence
from edgefleet.hub.gathering import Gatherer
from edgefleet.hub.inventory import Inventory
from edgefleet.kube.client import Api
from edgefleet.kube.errors import NotFound
from edgefleet.kube.resources import EDGE_FLEETS, EDGE_SITES, LEASES, NAMESPACES, SITE_ASSIGNMENTS


class Snapshot:
    """What was there at one moment. `now` is that moment."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.inventory = Inventory(api, on_fleet=_ignore, on_site=_ignore, on_renewal=_ignore, on_health=_ignore, on_heartbeat=_ignore)
        self.fleets: dict[FleetKey, EdgeFleet] = {}
        self.now = datetime.now(UTC)

    @classmethod
    async def fetch(cls, api: Api, site: str | None = None) -> "Snapshot":
        """Everything; with `site`, nothing of other sites. Raises NotFound if there is no such site."""
        one = cls(api)
        for body in await api.list(EDGE_FLEETS):
            fleet = EdgeFleet.parse(body)
            one.fleets[FleetKey(fleet.metadata.namespace or "", fleet.metadata.name)] = fleet
        for namespace in {key.namespace for key in one.fleets}:
            one.inventory.namespaces.observe(await api.get(NAMESPACES, namespace))
        if site is None:
            sites, leases = await api.list(EDGE_SITES), await api.list(LEASES, labels=SITE_LABEL)
        else:
            sites, leases = [await api.get(EDGE_SITES, site)], []
            with suppress(NotFound):  # never heard
                leases.append(await api.get(LEASES, LEASE_NAME, site_namespace(site)))
        assignments = await api.list(SITE_ASSIGNMENTS, site_namespace(site) if site else None)
        for body in sites:
            one.inventory.sites.observe(body)
        for body in leases:
            one.inventory.leases.observe(_dated_by_server(body))
        for body in assignments:
            one.inventory.assignments.observe(body)
        one.now = server_now(api)
        return one

    async def decide(self, key: FleetKey) -> tuple[FleetFacts, FleetDecision] | None:
        """The facts about a fleet, and what the hub decides from them; None if the fleet is gone."""
        gathered = await Gatherer(self._api, self.inventory, Evidence(self._api, self.inventory), self.fleets).gather(key)
        return (gathered[1], decide_fleet(gathered[1], self.now)) if gathered else None


def _dated_by_server(lease: dict[str, Any]) -> dict[str, Any]:
    """The hub dates Leases by when they arrive; the nearest to that is when the API server took the last write. A site's clock may be
    wrong."""
    times = [entry["time"] for entry in lease["metadata"].get("managedFields", ()) if entry.get("time")]
    return {**lease, "spec": {**lease["spec"], "renewTime": max(times)}} if times else lease


def _ignore(*_: object) -> None:
    """Nobody waits for news of a snapshot."""
