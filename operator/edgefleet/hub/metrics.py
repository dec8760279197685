"""What Prometheus may ask of a hub: `edgefleet hub --metrics-port`. Labels are bounded: fleets, models, regions and our own words, never
sites.

Nearly everything is read from the parts when it is asked for, so that what is gone (a fleet, a run) leaves no series behind. It is served
from the hub's own loop: a hub that hangs does not answer.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgefleet import __version__
from edgefleet.api.conditions import find_condition
from edgefleet.api.meta import parse_time
from edgefleet.core.facts import FleetKey
from edgefleet.core.skew import Skew, judge_skew
from edgefleet.hub.events import Events
from edgefleet.hub.fleets import FleetView
from edgefleet.hub.heartbeat import Heartbeat
from edgefleet.hub.inventory import Inventory
from edgefleet.hub.models import Models
from edgefleet.hub.queue import PassQueue
from edgefleet.hub.sites import Sites
from edgefleet.kube.client import Api
from edgefleet.kube.resources import Resource
from edgefleet.kube.watch import ListWatch
from edgefleet.trust.bundle import read_expiry
from edgefleet.trust.errors import Rejected

CONDITIONS = ("Ready", "Stalled", "Paused", "RolledBack")
SITE_STATES = ("connected", "unreachable", "never_heard")
NO_REGION = "none"
STUCK = ("Blocked", "Failed", "Refused")
TOLD_REASONS = frozenset(
    {
        "StoreFull",
        "DiskFull",
        "DiskFailed",
        "TrustMissing",
        "TrustStale",
        "SignatureMissing",
        "SignatureInvalid",
        "ThresholdNotMet",
        "DigestMismatch",
        "RegistryUnreachable",
        "ServerUnreachable",
    }
)
"""Reasons of sites that are told apart; any other counts as `Other`."""
OTHER = "Other"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Parts(Protocol):
    """What is read; the hub's process implements it."""

    inventory: Inventory
    sites: Sites
    models: Models
    events: Events
    heartbeat: Heartbeat
    queues: tuple[PassQueue[Any], ...]
    watches: tuple[ListWatch[Any], ...]

    @property
    def views(self) -> Mapping[FleetKey, FleetView]:
        """The fleets that exist."""

    @property
    def writes(self) -> Mapping[tuple[str, str], int]:
        """Writes by kind and verb."""


class CountingApi(Api):
    """An Api that counts the writes that were asked for, by kind and verb."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.writes: Counter[tuple[str, str]] = Counter()

    async def create(self, resource: Resource, body: dict[str, Any]) -> dict[str, Any]:
        """See Api."""
        self.writes[resource.kind, "create"] += 1
        return await super().create(resource, body)

    async def apply(self, resource: Resource, body: dict[str, Any], *, manager: str, subresource: str | None = None) -> dict[str, Any]:
        """See Api."""
        self.writes[resource.kind, "apply"] += 1
        return await super().apply(resource, body, manager=manager, subresource=subresource)

    async def patch(
        self, resource: Resource, name: str, namespace: str | None, body: dict[str, Any], *, subresource: str | None = None
    ) -> dict[str, Any]:
        """See Api."""
        self.writes[resource.kind, "patch"] += 1
        return await super().patch(resource, name, namespace, body, subresource=subresource)

    async def delete(self, resource: Resource, name: str, namespace: str | None = None, *, uid: str | None = None) -> None:
        """See Api."""
        self.writes[resource.kind, "delete"] += 1
        await super().delete(resource, name, namespace, uid=uid)


class Metrics:
    """All metrics of one hub, in a registry of their own."""

    def __init__(self, parts: Parts) -> None:
        self.registry = CollectorRegistry()
        duration = Histogram(
            "edgefleet_reconcile_duration_seconds",
            "How long passes took, by the kind that they were over.",
            ["kind"],
            buckets=SECONDS,
            registry=self.registry,
        )
        for queue in parts.queues:
            queue.on_pass = duration.labels(queue.name).observe
        self.registry.register(_Reading(parts))
        ProcessCollector(registry=self.registry)


class _Reading(Collector):
    """Reads the parts at each scrape."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        """All that is not counted where it happens."""
        parts, now, beat = self._parts, datetime.now(UTC), time.monotonic()
        yield _gauge("edgefleet_build_info", "The version that runs.", ["version"], {(__version__,): 1})
        yield _gauge("edgefleet_sites", "EdgeSites, by whether they are heard.", ["region", "state"], _count_sites(parts.inventory))
        skews = _count_agents(parts.inventory)
        yield _gauge("edgefleet_agents", "Agents that were heard, by how their version stands to the hub's.", ["skew"], skews)
        yield _gauge(
            "edgefleet_assignments_stuck",
            "SiteAssignments that are not carried out, by what their site says.",
            ["state", "reason"],
            _count_stuck(parts.inventory),
        )
        yield _gauge(
            "edgefleet_trust_bundle_expiry_timestamp_seconds",
            "When the trust bundle ends, as it says itself; the root keys must sign a new one before.",
            [],
            _find_trust_end(parts.sites),
        )
        yield from _describe_fleets(parts.views)
        yield from _describe_rollouts(parts.views, now)
        yield _gauge("edgefleet_queue_depth", "Objects that wait for a pass.", ["kind"], {(one.name,): one.depth for one in parts.queues})
        errors = {(one.name,): one.errors for one in parts.queues}
        yield _counter("edgefleet_reconcile_errors", "Passes that failed and are tried again.", ["kind"], errors)
        lists = {(one.kind,): one.lists for one in parts.watches}
        yield _counter(
            "edgefleet_watch_lists", "Whole lists: one at the start, one more for each watch that could not go on.", ["kind"], lists
        )
        silence = {(one.kind,): beat - one.heard_at for one in parts.watches}
        yield _gauge("edgefleet_watch_silence_seconds", "Since an API server last said anything in a watch.", ["kind"], silence)
        ages = {(channel,): beat - heard for channel, heard in parts.heartbeat.last_heard.items()}
        yield _gauge("edgefleet_heartbeat_age_seconds", "Since the hub last heard its own heartbeat.", ["channel"], ages)
        yield _counter("edgefleet_api_writes", "Writes to the API server that were asked for.", ["kind", "verb"], parts.writes)
        told = {(result,): count for result, count in parts.events.counts.items()}
        yield _counter("edgefleet_events", "Events, by what became of them.", ["result"], told)
        yield _counter(
            "edgefleet_model_verification_failures",
            "Looks at a model's source that found nothing to believe, or found nobody there.",
            ["namespace", "model", "reason"],
            parts.models.failures,
        )


def _describe_fleets(views: Mapping[FleetKey, FleetView]) -> Iterator[Metric]:
    sites, conditions = {}, {}
    for key, view in views.items():
        for state, count in view.status.sites.model_dump().items():
            sites[key.namespace, key.name, state] = count
        for kind in CONDITIONS:
            found = find_condition(view.status.conditions, kind)
            conditions[key.namespace, key.name, kind] = int(found is not None and found.status == "True")
    yield _gauge("edgefleet_fleet_sites", "Sites of a fleet; `desired` holds most of the others.", ["namespace", "fleet", "state"], sites)
    yield _gauge("edgefleet_fleet_condition", "1 if the condition is True.", ["namespace", "fleet", "condition"], conditions)


def _describe_rollouts(views: Mapping[FleetKey, FleetView], now: datetime) -> Iterator[Metric]:
    infos, ages, waits, gates = {}, {}, {}, {}
    for key, view in views.items():
        rollout, fleet = view.rollout, (key.namespace, key.name)
        if rollout is None:
            continue
        infos[(*fleet, rollout.phase, rollout.waiting_for)] = 1
        opened = next((wave.opened_at for wave in rollout.waves if wave.name == rollout.wave), None)
        if opened:
            ages[fleet] = (now - parse_time(opened)).total_seconds()
        if rollout.waiting_for and rollout.since:
            waits[fleet] = (now - parse_time(rollout.since)).total_seconds()
        for gate in rollout.gates:
            gates[(*fleet, gate.name, gate.kind)] = float(gate.evidence) / float(gate.bound)
    labels = ["namespace", "fleet"]
    yield _gauge("edgefleet_rollout_info", "Rollouts that are under way.", [*labels, "phase", "waiting_for"], infos)
    yield _gauge("edgefleet_rollout_wave_age_seconds", "Since the wave that is open was opened.", labels, ages)
    yield _gauge("edgefleet_rollout_waiting_seconds", "Since the rollout began to wait for what it waits for.", labels, waits)
    told = "Evidence that the revision is worse, of what is enough: at 1 the gate speaks."
    yield _gauge("edgefleet_gate_evidence_ratio", told, [*labels, "gate", "kind"], gates)


def _count_sites(inventory: Inventory) -> Mapping[tuple[str, str], int]:
    counts: Counter[tuple[str, str]] = Counter()
    for site in inventory.sites:
        found = find_condition(site.status.conditions, "Connected")
        silent = "unreachable" if found and found.reason == "HeartbeatLost" else "never_heard"
        region = site.spec.region or NO_REGION
        for state in SITE_STATES:
            counts[region, state] += 0
        counts[region, "connected" if found and found.status == "True" else silent] += 1
    return counts


def _count_agents(inventory: Inventory) -> Mapping[tuple[str], int]:
    counts: dict[tuple[str], int] = {(skew,): 0 for skew in Skew}
    for site in inventory.sites:
        if site.status.agent_version:
            counts[judge_skew(site.status.agent_version, __version__),] += 1
    return counts


def _count_stuck(inventory: Inventory) -> Mapping[tuple[str, str], int]:
    # A site words its reason itself: one that lies must not be able to make series.
    counts: Counter[tuple[str, str]] = Counter()
    for one in inventory.assignments:
        if one.status.state in STUCK and one.status.sequence == one.spec.sequence:
            counts[one.status.state, one.status.reason if one.status.reason in TOLD_REASONS else OTHER] += 1
    return counts


def _find_trust_end(sites: Sites) -> Mapping[tuple[()], float]:
    try:
        return {(): read_expiry(sites.bundle.encode()).timestamp()} if sites.bundle else {}
    except Rejected:
        return {}  # nothing to warn of can be read; sites refuse it and say so


def _gauge(name: str, told: str, labels: Sequence[str], values: Mapping[Any, float]) -> Metric:
    return _fill(GaugeMetricFamily(name, told, labels=labels), values)


def _counter(name: str, told: str, labels: Sequence[str], values: Mapping[Any, float]) -> Metric:
    return _fill(CounterMetricFamily(name, told, labels=labels), values)


def _fill(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[Any, float]) -> Metric:
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
