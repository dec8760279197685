"""The site's Lease at the hub: heartbeat and report in one write, once per renewal and at once when what serves has changed.

Bad answers of a young revision are worth a write of their own (telemetry/report.py says which), but at most one every 5 s, and no more than
four in a renewal. Where the hub cannot be reached, nothing follows but silence there; the next renewal says it all again.
"""

import asyncio
import logging
import random
import time
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
from edgefleet.site.telemetry.meter import Meter

log = logging.getLogger(__name__)

JITTER = 0.1
EARLY_SECONDS = 5.0
EARLY_PER_RENEWAL = 4


class Heartbeat:
    """Renews the Lease `agent` every `renew`. `report` and `fleets` give the state of now, `meter` what live traffic says; `before` comes
    first each time, whether the hub can be reached or not."""

    def __init__(
        self,
        api: Api,
        *,
        site: str,
        report: Callable[[], SiteReport],
        renew: timedelta,
        fleets: Callable[[], Mapping[str, FleetState]],
        meter: Meter,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self._api = api
        self._site = site
        self._report = report
        self._renew = renew
        self._fleets = fleets
        self._meter = meter
        self._before = before
        self._changed = asyncio.Event()
        self._heard_at = self._tried_at = time.monotonic()
        self.last_contact: datetime | None = None
        self.writes = 0

    def report_now(self) -> None:
        """What serves has changed: do not wait for the next renewal."""
        self._changed.set()

    def report_soon(self) -> None:
        """There is news of live traffic: do not wait for the next renewal, unless the last write was a moment ago."""
        if time.monotonic() - self._tried_at >= max(EARLY_SECONDS, self._renew.total_seconds() / EARLY_PER_RENEWAL):
            self._changed.set()

    def silence(self) -> timedelta:
        """For how long the hub has not taken a Lease; counted from the start of the agent, if it never has."""
        return timedelta(seconds=time.monotonic() - self._heard_at)

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            self._changed.clear()
            try:
                self._before()
            except OSError as error:
                log.warning("not remembered: %s", error)
            await self._meter.look()
            self._tried_at = time.monotonic()
            try:
                await self._api.apply(LEASES, self._lease(), manager=FIELD_MANAGER)
                self.writes += 1
                self._heard_at, self.last_contact = time.monotonic(), datetime.now(UTC)
                self._meter.note_renewed()
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
        annotations = {SITE_ANNOTATION: self._report().model_dump_json(by_alias=True, exclude_none=True)}
        for fleet, state in self._fleets().items():
            annotations[fleet_annotation(fleet)] = plan_report(state).model_dump_json(by_alias=True, exclude_none=True)
        annotations |= self._meter.reports(skew=self._api.clock_skew)
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
