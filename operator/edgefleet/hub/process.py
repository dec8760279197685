"""The hub's one process: wait at the gate and for the lead, build the parts, run them; any of them ending ends all.

Crash-only: all progress stands in the API server, so being started again is cheap and is the answer to everything unforeseen.
"""

import asyncio
import base64
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import kopf
from pydantic import ValidationError

from edgefleet.api.fleet import EdgeFleet
from edgefleet.api.meta import TRUST_BUNDLE, TRUST_BUNDLE_ENTRY
from edgefleet.core.facts import FleetKey
from edgefleet.hub.assignments import AssignmentWriter
from edgefleet.hub.events import Events
from edgefleet.hub.evidence import Evidence
from edgefleet.hub.fleets import Fleets, FleetView
from edgefleet.hub.gate import wait_until_served
from edgefleet.hub.gathering import Gatherer
from edgefleet.hub.handlers import make_registry, make_settings
from edgefleet.hub.heartbeat import BEAT_ANNOTATION, Heartbeat
from edgefleet.hub.inventory import Inventory
from edgefleet.hub.joining import Joining
from edgefleet.hub.leadership import LeaderApi, Leadership
from edgefleet.hub.metrics import CountingApi, Metrics
from edgefleet.hub.models import CONCURRENCY, Models
from edgefleet.hub.plans import settle_leftovers
from edgefleet.hub.probes import Probes
from edgefleet.hub.queue import PassQueue
from edgefleet.hub.records import BundleRecord, LeaseRecord
from edgefleet.hub.registries import Registries
from edgefleet.hub.runs import Runs
from edgefleet.hub.settings import FIELD_MANAGER, HUB_KEY_ENTRY, HUB_KEY_SECRET, Settings
from edgefleet.hub.sites import Sites
from edgefleet.kube.client import Api
from edgefleet.kube.connection import Connection, load_connection
from edgefleet.kube.errors import NotFound
from edgefleet.kube.resources import CONFIG_MAPS, EDGE_FLEETS, EDGE_MODELS, SECRETS
from edgefleet.kube.watch import Key, ListWatch
from edgefleet.trust.keys import PrivateKey

log = logging.getLogger(__name__)

Concerns = Callable[[EdgeFleet], bool]


class Hub:
    """The parts, and what wakes which. Implements handlers.Door and metrics.Parts."""

    def __init__(self, api: CountingApi, key: PrivateKey, registries: Registries, settings: Settings) -> None:
        self._api = api
        self._settings = settings
        self._known: dict[FleetKey, EdgeFleet] = {}
        self.heartbeat = Heartbeat(api, settings)
        self.inventory = Inventory(
            api,
            on_fleet=self._fleet_touched,
            on_site=lambda name: self.site_queue.add(name),
            on_renewal=self._site_renewed,
            on_health=self._traffic_heard,
            on_heartbeat=self._lease_beat,
        )
        self.events = Events(api, self._known)
        self.models = Models(api, registries, self.events)
        self.sites = Sites(api, self.inventory, self.events)
        self.joining = Joining(
            api, self.inventory, self.events, namespace=settings.namespace, on_request=lambda site: self.join_queue.add(site)
        )
        writer = AssignmentWriter(api, self.inventory, key)
        self.evidence = Evidence(api, self.inventory)
        gatherer = Gatherer(api, self.inventory, self.evidence, self._known, hub_key=key.public.id)
        self.fleets = Fleets(api, gatherer, writer, Runs(api, self.events), self.evidence, self.events, settings)
        self.model_queue: PassQueue[tuple[str, str]] = PassQueue("EdgeModel", self.models.reconcile, concurrency=CONCURRENCY)
        self.site_queue: PassQueue[str] = PassQueue("EdgeSite", self.sites.reconcile, concurrency=16)
        self.join_queue: PassQueue[str] = PassQueue("CertificateSigningRequest", self.joining.reconcile)
        self.fleet_queue: PassQueue[FleetKey] = PassQueue("EdgeFleet", self._reconcile_fleet)
        self.bundles = ListWatch(
            api,
            CONFIG_MAPS,
            BundleRecord,
            namespace=settings.namespace,
            fields=f"metadata.name={TRUST_BUNDLE}",
            on_change=self._bundle_changed,
        )
        self.queues: tuple[PassQueue[Any], ...] = (self.model_queue, self.site_queue, self.join_queue, self.fleet_queue)
        self.watches: tuple[ListWatch[Any], ...] = (*self.inventory.watches, self.bundles, self.joining.requests)
        self.metrics = Metrics(self)

    @property
    def views(self) -> Mapping[FleetKey, FleetView]:
        """See metrics.Parts."""
        return self.fleets.views

    @property
    def writes(self) -> Mapping[tuple[str, str], int]:
        """See metrics.Parts."""
        return self._api.writes

    def model_changed(self, namespace: str, name: str) -> None:
        """See handlers.Door."""
        self.model_queue.add((namespace, name))
        self._touch(lambda fleet: (fleet.metadata.namespace, fleet.spec.model_ref.name) == (namespace, name))

    def policy_changed(self, namespace: str, name: str) -> None:
        """See handlers.Door."""
        self._touch(
            lambda fleet: (
                fleet.metadata.namespace == namespace
                and fleet.spec.rollout_policy_ref is not None
                and fleet.spec.rollout_policy_ref.name == name
            )
        )

    def fleet_changed(self, key: FleetKey) -> None:
        """See handlers.Door."""
        self.fleet_queue.add(key)

    def beat(self, mark: str | None) -> None:
        """See handlers.Door."""
        self.heartbeat.heard("kopf", mark)

    async def run(self, registry: kopf.OperatorRegistry) -> None:
        """Run until cancelled, or until a part ends, which ends all."""
        kopf_is_up = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.inventory.run(), name="inventory")
            group.create_task(self.bundles.run(), name="bundle")
            await self.inventory.wait_synced()
            await self.bundles.synced.wait()
            await self._resync()
            gone = await settle_leftovers(self._api)
            log.info("%d sites, %d assignments, %d fleets; %d plans without a run deleted",
                     len(self.inventory.sites), len(self.inventory.assignments), len(self._known), gone)  # fmt: skip
            door = kopf.operator(registry=registry, settings=make_settings(), clusterwide=True, ready_flag=kopf_is_up)
            group.create_task(_never_ending("kopf", door), name="kopf")
            await kopf_is_up.wait()
            _stop_on_signals(asyncio.current_task())
            for name, part in (
                ("models", self.model_queue.run()),
                ("sites", self.site_queue.run()),
                ("join requests", self.join_queue.run()),
                ("joining", self.joining.run()),
                ("fleets", self.fleet_queue.run()),
                ("heartbeat", self.heartbeat.run()),
                ("resync", self._resync_for_ever()),
            ):
                group.create_task(part, name=name)

    async def _reconcile_fleet(self, key: FleetKey) -> timedelta | None:
        known = key in self._known
        wanted = await self.fleets.reconcile(key)
        if known and key not in self._known:
            self._fleet_touched(None)  # it is gone: others may have waited for its sites, or meet what it left there
        return wanted

    def _touch(self, concerns: Concerns) -> None:
        for key, fleet in self._known.items():
            if concerns(fleet):
                self.fleet_queue.add(key)

    def _fleet_touched(self, key: FleetKey | None) -> None:
        # Sites name fleets as they like: only those that exist are looked at. A new one comes through kopf.
        for fleet in self._known if key is None else self._known.keys() & {key}:
            self.fleet_queue.add(fleet)

    def _site_renewed(self, site: str) -> None:
        for key in self.fleets.awaiting(site):
            self.fleet_queue.add(key)

    def _traffic_heard(self, site: str, key: FleetKey) -> None:
        within = self.evidence.observe(site, key)
        if within is not None:
            self.fleet_queue.add_within(key, within)

    def _lease_beat(self, lease: LeaseRecord) -> None:
        self.heartbeat.heard("list-watch", lease.metadata.annotations.get(BEAT_ANNOTATION))

    def _bundle_changed(self, key: Key, old: BundleRecord | None, new: BundleRecord | None) -> None:
        if new is None:
            return  # an absent bundle is no instruction: sites keep theirs
        self.sites.bundle = new.data.get(TRUST_BUNDLE_ENTRY, "")
        for site in self.inventory.sites:
            self.site_queue.add(site.metadata.name)

    async def _resync_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.resync.total_seconds())
            await self._resync()

    async def _resync(self) -> None:
        """Look at everything, and forget fleets that went away while nobody watched."""
        before, found = set(self._known), {}
        for body in await self._api.list(EDGE_FLEETS):
            key = FleetKey(body["metadata"]["namespace"], body["metadata"]["name"])
            try:
                found[key] = EdgeFleet.parse(body)
            except ValidationError as error:
                # One that cannot be read must not end the hub at each start (I9).
                log.warning("EdgeFleet %s cannot be read: %s", key, error.errors()[0]["msg"])
        for key in before - found.keys():
            self._known.pop(key, None)
        self._known.update(found)
        for body in await self._api.list(EDGE_MODELS):
            self.model_queue.add((body["metadata"]["namespace"], body["metadata"]["name"]))
        self._fleet_touched(None)
        for site in self.inventory.sites:
            self.site_queue.add(site.metadata.name)


async def run_hub(kubeconfig: Path | None, settings: Settings) -> None:
    """Run the hub against one API server. Returns when told to stop; raises when it must be started again."""
    connection = load_connection(kubeconfig)
    _stop_on_signals(asyncio.current_task())
    try:
        async with Api(connection, user_agent=FIELD_MANAGER, attempts=1) as lease_api:
            leadership = Leadership(lease_api, settings.namespace, settings.identity)
            probes = Probes(leadership)
            async with asyncio.TaskGroup() as group:
                if settings.metrics_port is not None:
                    group.create_task(probes.serve(settings.metrics_host, settings.metrics_port), name="probes")
                await _lead(connection, settings, leadership, probes)
    except asyncio.CancelledError:
        log.info("told to stop")


async def _lead(connection: Connection, settings: Settings, leadership: Leadership, probes: Probes) -> None:
    """Wait for what is needed and for the lead, then work until cancelled, or until a part or the lead is lost."""
    async with LeaderApi(connection, leadership, user_agent=FIELD_MANAGER) as api:
        await wait_until_served(api, settings.namespace)
        probes.waits_for = f"the Secret {settings.namespace}/{HUB_KEY_SECRET}"
        key = await _fetch_hub_key(api, settings.namespace)
        probes.waits_for = ""
        await leadership.acquire()
        try:
            with Registries(api, settings.registry_proxy) as registries:
                hub = Hub(api, key, registries, settings)
                probes.work = hub.metrics.registry
                log.info("hub of %s: signing as %s", api.server, key.public.id)
                async with asyncio.TaskGroup() as group:
                    group.create_task(leadership.keep(), name="leadership")
                    await hub.run(make_registry(hub, connection))
        finally:
            await leadership.release()


async def _never_ending(name: str, part: Awaitable[None]) -> None:
    await part
    raise RuntimeError(f"{name} ended: the hub must be started again")


def _stop_on_signals(task: asyncio.Task[None] | None) -> None:
    """A signal cancels everything at once: nothing here needs a farewell. kopf's own handlers, set before, would wait for its workers."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel if task else lambda: None)


async def _fetch_hub_key(api: Api, namespace: str) -> PrivateKey:
    said = False
    while True:
        try:
            secret = await api.get(SECRETS, HUB_KEY_SECRET, namespace)
            return PrivateKey.from_pem(base64.b64decode(secret["data"][HUB_KEY_ENTRY]))
        except (NotFound, KeyError):
            if not said:
                log.info("waiting: Secret %s/%s with entry %s (`edgefleet trust init` makes it)", namespace, HUB_KEY_SECRET, HUB_KEY_ENTRY)
                said = True
            await asyncio.sleep(1)
