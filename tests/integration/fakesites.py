"""Fake sites: they do at the hub's API server what an agent does, with the agent's own rights, and serve nothing.

The real agent is tested in test_agent.py and in the demo; here the hub is, and needs sites that fail on demand.
"""

import asyncio
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from edgefleet.api.assignment import SiteAssignmentSpec
from edgefleet.api.meta import SITE_LABEL, format_time, site_namespace
from edgefleet.api.report import (
    LEASE_NAME,
    MARK_SECONDS,
    SITE_ANNOTATION,
    FleetReport,
    HealthBaseline,
    HealthEpoch,
    HealthReport,
    SiteReport,
    fleet_annotation,
    health_annotation,
)
from edgefleet.api.site import Hardware
from edgefleet.kube.client import Api
from edgefleet.kube.errors import ApiError
from edgefleet.kube.resources import LEASES, SITE_ASSIGNMENTS
from edgefleet.kube.watch import Key, ListWatch, Record
from edgefleet.trust.keys import PublicKey
from edgefleet.trust.orders import open_order
from tests.lab.cluster import Lab

RENEW_SECONDS = 1
Answer = dict[str, Any]
Behaviour = Callable[[SiteAssignmentSpec], Answer]


class AssignmentRecord(Record):
    spec: SiteAssignmentSpec


def activates(spec: SiteAssignmentSpec) -> Answer:
    """What a healthy site answers."""
    return {"state": "Withdrawn" if spec.action == "Withdraw" else "Active"}


@dataclass
class FakeTraffic:
    """What clients of a fake site see. `rate` is in requests a second; `failed` and `slow` are shares by version (others: 0). The site
    has answered a week of the same traffic before, of which `usual_failed` and `usual_slow` were bad; `le_ms` is where it counts."""

    rate: float = 20.0
    failed: dict[str, float] = field(default_factory=dict)
    slow: dict[str, float] = field(default_factory=dict)
    usual_failed: float = 0.001
    usual_slow: float = 0.001
    le_ms: int | None = 50

    def report(self, spec: SiteAssignmentSpec, revision: str, activated: datetime, now: datetime) -> HealthReport:
        start = int(activated.timestamp())
        requests = int(self.rate * (now - activated).total_seconds())
        week = int(self.rate * 7 * 86_400)
        past = HealthBaseline(week, int(week * self.usual_failed), int(week * self.usual_slow), 0, 0)
        failed, slow = (int(share.get(spec.version, 0.0) * requests) for share in (self.failed, self.slow))
        record = (int(now.timestamp()) // MARK_SECONDS, requests, failed, slow, 0, 0)
        epochs = (HealthEpoch(start=start, records=(record,)),)
        return HealthReport(
            revision=revision,
            sequence=spec.sequence,
            activation=start,
            le_ms=self.le_ms,
            usual=past,
            before=past,
            epochs=epochs,
        )


@dataclass
class FakeSite:
    """One site. `behaviour` answers each order; `silent` stops the Lease and all answers; `orders` are those it was given; `traffic` is
    reported of what serves, if it is set."""

    name: str
    hub_key: PublicKey
    hardware: Hardware
    behaviour: Behaviour = activates
    silent: bool = False
    traffic: FakeTraffic | None = None
    orders: list[SiteAssignmentSpec] = field(default_factory=list)
    serving: dict[str, FleetReport] = field(default_factory=dict)

    async def run(self, api: Api) -> None:
        """Answer orders and renew the Lease until cancelled."""
        changed: asyncio.Queue[Key] = asyncio.Queue()
        watch = ListWatch(
            api,
            SITE_ASSIGNMENTS,
            AssignmentRecord,
            namespace=site_namespace(self.name),
            on_change=lambda key, old, new: changed.put_nowait(key),
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(watch.run())
            # Refused until the hub has made its namespace: a site that reports before it can hear orders would be skipped as silent.
            await watch.synced.wait()
            while True:
                try:
                    await self._renew(api)
                    async with asyncio.timeout(RENEW_SECONDS):
                        key = await changed.get()
                except TimeoutError:
                    continue
                except ApiError:
                    await asyncio.sleep(0.2)
                    continue
                record = watch.get(*key)
                while self.silent:
                    await asyncio.sleep(0.05)
                if record is not None and record.spec.sequence > self._floor(record.spec.fleet):
                    await self._obey(api, record)

    def _floor(self, fleet: str) -> int:
        return max((order.sequence for order in self.orders if order.fleet == fleet), default=0)

    async def _obey(self, api: Api, record: AssignmentRecord) -> None:
        spec = record.spec
        order = open_order(spec.envelope, [self.hub_key])
        revision = order.revision.hash if order.revision else None
        assert (order.site, order.sequence, revision) == (self.name, spec.sequence, spec.revision), (
            "the envelope says another thing than the spec"
        )
        self.orders.append(spec)
        now = datetime.now(UTC)
        answer = self.behaviour(spec)
        before = self.serving.get(spec.fleet)
        active = before.revision if before else None
        if answer["state"] == "Active":
            active = spec.revision
        elif answer["state"] == "Withdrawn":
            active = None
        self.serving[spec.fleet] = FleetReport(revision=active, sequence=spec.sequence, floor=spec.sequence, active_since=now)
        status: Answer = {"sequence": spec.sequence, "revision": spec.revision, "since": format_time(now), **answer}
        if active:
            status["active"] = {"revision": active, "version": spec.version, "variant": spec.variant, "since": format_time(now)}
        status = {field: value for field, value in status.items() if value is not None}
        body = {"metadata": {"name": record.metadata.name, "namespace": record.metadata.namespace}, "status": status}
        await api.apply(SITE_ASSIGNMENTS, body, manager="edgefleet-agent", subresource="status")

    async def _renew(self, api: Api) -> None:
        if self.silent:
            return
        about = SiteReport(agent_version="fake", hardware=self.hardware)
        notes = {SITE_ANNOTATION: json.dumps(about.to_json_dict())}
        for fleet, report in self.serving.items():
            notes[fleet_annotation(fleet)] = json.dumps(report.to_json_dict())
            order = next((order for order in reversed(self.orders) if order.fleet == fleet), None)
            if self.traffic and order and report.active_since and report.revision and report.revision == order.revision:
                health = self.traffic.report(order, report.revision, report.active_since, datetime.now(UTC))
                notes[health_annotation(fleet)] = json.dumps(health.to_json_dict())
        meta = {
            "name": LEASE_NAME,
            "namespace": site_namespace(self.name),
            "labels": {SITE_LABEL: self.name},
            "annotations": notes,
        }
        spec = {
            "holderIdentity": self.name,
            "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "leaseDurationSeconds": 3 * RENEW_SECONDS,
        }
        await api.apply(LEASES, {"metadata": meta, "spec": spec}, manager="edgefleet-agent")


class FakeSites:
    """Several fake sites, each with its own client certificate and connection."""

    def __init__(self, lab: Lab, hub_key: PublicKey) -> None:
        self._lab = lab
        self._hub_key = hub_key
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self.sites: dict[str, FakeSite] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    def __getitem__(self, name: str) -> FakeSite:
        return self.sites[name]

    async def add(self, name: str, *features: str, behaviour: Behaviour = activates) -> FakeSite:
        """Start one more site."""
        kubeconfig = self._lab.client_kubeconfig("hub", f"edgefleet:site:{name}", ["edgefleet:sites"])
        api = await self._stack.enter_async_context(Api.connect(kubeconfig, user_agent="fake-site", attempts=1))
        hardware = Hardware(arch="amd64", memory=1 << 30, features=features)
        site = self.sites[name] = FakeSite(name, self._hub_key, hardware, behaviour)
        self._tasks.append(asyncio.create_task(site.run(api), name=f"site {name}"))
        return site
