"""What the hub knows of its sites now: EdgeSites, their Leases, their assignments, and the labels of namespaces.

Kept by list-watches of our own; kopf sees only the kinds that come in tens. Decides which fleets to look at again when something
changed; what follows from it is decided in core.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import ValidationError

from edgefleet.api.meta import LEFT_ANNOTATION, SITE_LABEL, SITE_NAMESPACE_PREFIX, parse_time
from edgefleet.api.report import (
    LEASE_NAME,
    MAX_BACKLOG_BYTES,
    MAX_REPORT_BYTES,
    RENEWALS_PER_LEASE,
    SITE_ANNOTATION,
    FleetReport,
    HealthReport,
    SiteReport,
    fleet_annotation,
    fleet_of_annotation,
    fleet_of_health,
    health_annotation,
)
from edgefleet.core.attestation import find_standing
from edgefleet.core.facts import FleetKey
from edgefleet.hub.records import AssignmentRecord, LeaseRecord, NamespaceRecord, SiteRecord
from edgefleet.kube.client import Api
from edgefleet.kube.resources import EDGE_SITES, LEASES, NAMESPACES, SITE_ASSIGNMENTS
from edgefleet.kube.watch import Key, ListWatch

log = logging.getLogger(__name__)
R = TypeVar("R", SiteReport, FleetReport)


class Inventory:
    """`on_fleet` is called with a fleet whose facts changed (None: any may be touched), `on_site` with a site's name,
    `on_renewal` with a site whose Lease was renewed and says nothing new but of its traffic, `on_health` with a site and a fleet whose
    HealthReport there is new, `on_heartbeat` with the hub's own Lease."""

    def __init__(
        self,
        api: Api,
        *,
        on_fleet: Callable[[FleetKey | None], None],
        on_site: Callable[[str], None],
        on_renewal: Callable[[str], None],
        on_health: Callable[[str, FleetKey], None],
        on_heartbeat: Callable[[LeaseRecord], None],
    ) -> None:
        self._on_renewal = on_renewal
        self._on_health = on_health
        self._on_heartbeat = on_heartbeat
        self._on_fleet = on_fleet
        self._on_site = on_site
        self._heard: dict[str, datetime] = {}
        self.sites = ListWatch(api, EDGE_SITES, SiteRecord, on_change=self._site_changed)
        self.leases = ListWatch(
            api, LEASES, LeaseRecord, labels=SITE_LABEL, fields=f"metadata.name={LEASE_NAME}", on_change=self._lease_changed
        )
        self.assignments = ListWatch(api, SITE_ASSIGNMENTS, AssignmentRecord, on_change=self._assignment_changed)
        self.namespaces = ListWatch(api, NAMESPACES, NamespaceRecord, on_change=self._namespace_changed)
        self.watches: tuple[ListWatch[Any], ...] = (self.sites, self.leases, self.assignments, self.namespaces)

    async def run(self) -> None:
        """Keep everything current until cancelled."""
        async with asyncio.TaskGroup() as group:
            for watch in self.watches:
                group.create_task(watch.run())

    async def wait_synced(self) -> None:
        """Return when everything was listed once."""
        for watch in self.watches:
            await watch.synced.wait()

    def lease(self, site: str) -> LeaseRecord | None:
        """The site's Lease."""
        return self.leases.get(SITE_NAMESPACE_PREFIX + site, LEASE_NAME)

    def last_heard(self, site: str) -> datetime | None:
        """When the site's Lease last changed, by the hub's clock; before the first change seen, what the Lease itself says."""
        lease = self.lease(site)
        if lease is None:
            return None
        said = lease.spec.renew_time
        # A site whose clock is ahead, or that lies, has not been heard in the future.
        return self._heard.get(site) or (said and min(said, datetime.now(UTC)))

    def renew_seconds(self, site: str) -> int:
        """How often this site means to report."""
        lease = self.lease(site)
        return max(1, lease.spec.lease_duration_seconds // RENEWALS_PER_LEASE) if lease else 60

    def site_report(self, site: str) -> SiteReport | None:
        """Hardware and agent of the site, if it said so in a form that we read."""
        return _read(SiteReport, self.lease(site), SITE_ANNOTATION)

    def fleet_report(self, site: str, fleet: FleetKey) -> FleetReport | None:
        """What the site says of one fleet."""
        return _read(FleetReport, self.lease(site), fleet_annotation(str(fleet)))

    def health_report(self, site: str, fleet: FleetKey) -> HealthReport | None:
        """What the site's traffic says of one fleet's revision there."""
        lease = self.lease(site)
        text = lease.metadata.annotations.get(health_annotation(str(fleet))) if lease else None
        if text is None or len(text) > MAX_BACKLOG_BYTES:
            return None
        try:
            return HealthReport.model_validate_json(text)
        except ValidationError as error:
            log.warning("site %s, fleet %s: a HealthReport that cannot be read: %s", site, fleet, error.errors()[0]["msg"])
            return None

    def namespace_labels(self, namespace: str) -> dict[str, str]:
        """The labels of a namespace; none if it is gone."""
        record = self.namespaces.get("", namespace)
        return dict(record.metadata.labels) if record else {}

    def left_at(self, site: str) -> datetime | None:
        """Since when a site has left (`edgefleet site leave`); None while it may come."""
        record = self.namespaces.get("", SITE_NAMESPACE_PREFIX + site)
        text = record.metadata.annotations.get(LEFT_ANNOTATION) if record else None
        if text is None:
            return None
        try:
            return parse_time(text)
        except ValueError:
            # A mark that cannot be read is a mark.
            return datetime.fromtimestamp(0, UTC)

    def _site_changed(self, key: Key, old: SiteRecord | None, new: SiteRecord | None) -> None:
        self._on_site(key[1])
        if old is None or new is None or old.spec != new.spec or old.metadata.labels != new.metadata.labels or _stands_anew(old, new):
            self._on_fleet(None)

    def _lease_changed(self, key: Key, old: LeaseRecord | None, new: LeaseRecord | None) -> None:
        if not key[0].startswith(SITE_NAMESPACE_PREFIX):
            if new is not None:
                self._on_heartbeat(new)
            return
        site = key[0].removeprefix(SITE_NAMESPACE_PREFIX)
        now, before_that = datetime.now(UTC), self._heard.get(site)
        if new is None:
            self._heard.pop(site, None)
        elif old is not None or _is_now(new.spec.renew_time):
            self._heard[site] = now
        if old is not None and new is not None and _is_over(old, before_that, now):
            self._on_site(site)
            self._on_fleet(None)
        before, after = (dict(lease.metadata.annotations) if lease else {} for lease in (old, new))
        if before.get(SITE_ANNOTATION) != after.get(SITE_ANNOTATION):
            self._on_fleet(None)
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        # They change with every request: no other fact follows from them.
        judged = {name: fleet for name in changed if (fleet := fleet_of_health(name)) is not None}
        changed -= judged.keys()
        for name, fleet in judged.items():
            if name in after:
                self._on_health(site, FleetKey.parse(fleet))
        for name in changed:
            touched = fleet_of_annotation(name)
            if touched is not None:
                self._on_fleet(FleetKey.parse(touched))
        if changed or old is None or new is None:
            self._on_site(site)
        else:
            self._on_renewal(site)

    def _assignment_changed(self, key: Key, old: AssignmentRecord | None, new: AssignmentRecord | None) -> None:
        record = new or old
        if record is not None:
            self._on_fleet(FleetKey.parse(record.spec.fleet))
        if old is not None and new is None:
            self._on_fleet(None)  # a claim ended: another fleet may be waiting for the site

    def _namespace_changed(self, key: Key, old: NamespaceRecord | None, new: NamespaceRecord | None) -> None:
        if key[1].startswith(SITE_NAMESPACE_PREFIX):
            self._on_site(key[1].removeprefix(SITE_NAMESPACE_PREFIX))
        elif old is None or new is None or old.metadata.labels != new.metadata.labels:
            self._on_fleet(None)


def _stands_anew(old: SiteRecord, new: SiteRecord) -> bool:
    """Whether its TPM's word has changed what fleets may do: a renewal in time has not."""
    now = datetime.now(UTC)
    before, after = (find_standing(record.spec, record.status.attestation, now) for record in (old, new))
    return (before and (before.status, before.reason)) != (after and (after.status, after.reason))


def _is_over(lease: LeaseRecord, heard: datetime | None, now: datetime) -> bool:
    """Whether the Lease had run out when it was renewed: its site was unreachable and is back."""
    since = heard or lease.spec.renew_time
    return since is not None and (now - since).total_seconds() > lease.spec.lease_duration_seconds


def _is_now(moment: datetime | None) -> bool:
    return moment is not None and abs((datetime.now(UTC) - moment).total_seconds()) < 5


def _read(kind: type[R], lease: LeaseRecord | None, annotation: str) -> R | None:
    text = lease.metadata.annotations.get(annotation) if lease else None
    # What is longer than any agent writes would fill the cache.
    return None if text is None or len(text) > MAX_REPORT_BYTES else _parse(kind, text)


@lru_cache(maxsize=1 << 16)
def _parse(kind: type[R], text: str) -> R | None:
    # Kept by text: a pass over 10,000 sites reads the same reports again and again.
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        log.warning("a Lease holds a %s that cannot be read: %s", kind.__name__, error)
        return None
