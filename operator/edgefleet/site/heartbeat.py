"""The site's Lease at the hub: heartbeat and report in one write, once per renewal and at once when what serves has changed.

Where the hub cannot be reached, nothing follows but silence there; the next renewal says it all again.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from edgefleet.api.meta import SITE_LABEL, site_namespace
from edgefleet.api.report import LEASE_NAME, RENEWALS_PER_LEASE, SITE_ANNOTATION, FleetReport, SiteReport, fleet_annotation
from edgefleet.kube.client import Api
from edgefleet.kube.errors import ApiError
from edgefleet.kube.resources import LEASES
from edgefleet.site.state import FleetState
from edgefleet.site.status import FIELD_MANAGER

log = logging.getLogger(__name__)

JITTER = 0.1


class Heartbeat:
    """Renews the Lease `agent` every `renew`. `fleets` gives the state of now."""

    def __init__(
        self, api: Api, *, site: str, report: SiteReport, renew: timedelta, fleets: Callable[[], Mapping[str, FleetState]]
    ) -> None:
        self._api = api
        self._site = site
        self._report = report
        self._renew = renew
        self._fleets = fleets
        self._changed = asyncio.Event()
        self.writes = 0

    def report_now(self) -> None:
        """What serves has changed: do not wait for the next renewal."""
        self._changed.set()

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            self._changed.clear()
            try:
                await self._api.apply(LEASES, self._lease(), manager=FIELD_MANAGER)
                self.writes += 1
            except ApiError as error:
                log.warning("Lease at %s not renewed: %s", self._api.server, error)
            # Sites that started together must not stay together.
            pause = self._renew.total_seconds() * (1 - JITTER * random.random())  # noqa: S311
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _lease(self) -> dict[str, Any]:
        annotations = {SITE_ANNOTATION: self._report.model_dump_json(by_alias=True, exclude_none=True)}
        for fleet, state in self._fleets().items():
            annotations[fleet_annotation(fleet)] = plan_report(state).model_dump_json(by_alias=True, exclude_none=True)
        return {
            "metadata": {
                "name": LEASE_NAME,
                "namespace": site_namespace(self._site),
                "labels": {SITE_LABEL: self._site},
                "annotations": annotations,
            },
            "spec": {
                "holderIdentity": self._site,
                "leaseDurationSeconds": max(1, round(self._renew.total_seconds() * RENEWALS_PER_LEASE)),
                "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            },
        }


def plan_report(state: FleetState) -> FleetReport:
    """What the Lease says of one fleet: the sequence is the one under which `revision` serves."""
    return FleetReport(
        revision=state.active,
        sequence=state.served_sequence,
        floor=state.floor,
        active_since=state.active_since if state.active else None,
    )
