"""The agent of one site: its parts, wired, and the order in which they start.

What serves comes first, from the state folder alone; then trust; then the two clusters. Every part runs until the agent ends; one that
ends by an error ends the agent with it, and whoever supervises it starts it again. The gateway stays.
"""

import asyncio
import fcntl
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from edgefleet import __version__
from edgefleet.api.meta import site_namespace
from edgefleet.api.report import SiteReport
from edgefleet.api.site import Hardware
from edgefleet.core.pods import Place
from edgefleet.kube.client import Api
from edgefleet.kube.connection import Connection, load_connection
from edgefleet.kube.resources import SITE_ASSIGNMENTS
from edgefleet.kube.watch import Key, ListWatch
from edgefleet.site.external_gateway import ExternalGateway
from edgefleet.site.gateway import Gateway
from edgefleet.site.gateway_config import Endpoint, gateway_folder
from edgefleet.site.heartbeat import Heartbeat
from edgefleet.site.identity import Identity
from edgefleet.site.inbox import Inbox, inbox_folder
from edgefleet.site.intake import Intake
from edgefleet.site.link import Link
from edgefleet.site.pod_judge import PodJudge
from edgefleet.site.prefetch import Prefetcher
from edgefleet.site.reconciler import Reconciler
from edgefleet.site.registries import gather_access
from edgefleet.site.runtimes.choice import Runtimes
from edgefleet.site.runtimes.deployment import Pods
from edgefleet.site.runtimes.repository import RepositoryRuntime
from edgefleet.site.scrub import Scrub
from edgefleet.site.serving import Serving
from edgefleet.site.state import StateFile
from edgefleet.site.status import AssignmentRecord, StatusWriter
from edgefleet.site.store import Store
from edgefleet.site.summary import Finding
from edgefleet.site.telemetry.events import NOTHING
from edgefleet.site.telemetry.meter import Meter
from edgefleet.site.telemetry.verdict import OwnJudge
from edgefleet.site.trust_keeper import TrustKeeper
from edgefleet.site.worker import Site

if TYPE_CHECKING:
    from edgefleet.site.metrics import AgentMetrics

log = logging.getLogger(__name__)

USER_AGENT = "edgefleet-agent"
PODS_FOLDER = "pods"
"""In the state folder: what pods mount, one folder for each revision."""


@dataclass(frozen=True, slots=True)
class PodSettings:
    """Where this site starts pods: a namespace of its cluster, and the claim whose volume holds the state folder, in `folder` of it.

    `keep`: how long old pods run beside those that took their place.
    """

    namespace: str
    claim: str
    folder: str = ""
    keep: timedelta = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Settings:
    """What `edgefleet agent` was told. `hub` is a kubeconfig, or the identity that the site keeps by itself; `root` is the pinned root
    document; `renew` is the period of the heartbeat; `server_metrics` is the model server's Prometheus page, `metrics` where the agent
    gives its own. Without `site_kubeconfig` the pod's service account is used; without `gateway` somebody else runs Envoy."""

    site: str
    hub: Path | Identity
    site_kubeconfig: Path | None
    state: Path
    root: bytes
    hardware: Hardware
    server: Endpoint
    server_models: Path
    gateway: Endpoint | None
    envoy: Path | None = None
    renew: timedelta = timedelta(seconds=60)
    server_metrics: str | None = None
    metrics: Endpoint | None = None
    secrets_namespace: str = ""
    pods: PodSettings | None = None
    region: str | None = None


class StateInUse(Exception):
    """Another agent runs with this state folder."""


@contextmanager
def exclusive(state: Path) -> Iterator[None]:
    """The state folder for this process alone, made if absent. Raises StateInUse."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StateInUse(f"another agent runs with the state folder {state}: give each site a folder of its own") from error
    else:
        yield
    finally:
        os.close(handle)


async def run_agent(settings: Settings) -> None:
    """Serve and obey until cancelled. Raises StateInUse, StateUnreadable, GatewayDown, GatewayMissing, ValueError (kubeconfig)."""
    with exclusive(settings.state):
        state = StateFile.open(settings.state / "state.json", site=settings.site)
        store = Store(settings.state / "store")
        async with (
            _gateway(settings) as gateway,
            RepositoryRuntime(settings.server, settings.server_models) as runtime,
            Api(_connect(settings.hub), user_agent=USER_AGENT, attempts=2) as hub,
            Api.connect(settings.site_kubeconfig, user_agent=USER_AGENT, attempts=2) as local,
        ):
            await gateway.start()
            async with _open_pods(settings, local) as pods:
                runtimes = Runtimes(runtime, pods)
                keep = settings.pods.keep if settings.pods else timedelta(0)
                serving = Serving(state=state, store=store, runtimes=runtimes, gateway=gateway, keep=keep)
                agent = Agent(settings, state=state, store=store, serving=serving, runtimes=runtimes, gateway=gateway, hub=hub, local=local)
                await agent.run()


def _open_pods(settings: Settings, local: Api) -> AbstractAsyncContextManager[Pods | None]:
    if settings.pods is None:
        return nullcontext()
    folder = "/".join(filter(None, (settings.pods.folder.strip("/"), PODS_FOLDER)))
    place = Place(settings.site, settings.pods.namespace, settings.pods.claim, folder)
    return Pods(local, place, settings.state / PODS_FOLDER)


def _gateway(settings: Settings) -> Gateway:
    folder = gateway_folder(settings.state)
    if settings.gateway is None:
        return ExternalGateway(folder, server=settings.server)
    return Gateway(folder, address=settings.gateway, server=settings.server, envoy=settings.envoy)


def _connect(hub: Path | Identity) -> Connection:
    return hub.connect() if isinstance(hub, Identity) else load_connection(hub)


async def _run(part: Callable[[], Awaitable[None]]) -> None:
    await part()


class Agent:
    """The parts that talk to clusters, around those that serve."""

    def __init__(
        self,
        settings: Settings,
        *,
        state: StateFile,
        store: Store,
        serving: Serving,
        runtimes: Runtimes,
        gateway: Gateway,
        hub: Api,
        local: Api,
    ) -> None:
        namespace = site_namespace(settings.site)
        self._settings = settings
        self._hub = hub
        self._store = store
        self._findings: dict[str, Finding] = {}
        self._serving = serving
        self._gateway = gateway
        self._trust = TrustKeeper(settings.state / "bundle.json", root=settings.root, state=state, on_change=self._nudge)
        self._hub_watch = ListWatch(hub, SITE_ASSIGNMENTS, AssignmentRecord, namespace=namespace, on_change=self._hub_changed)
        self._local_watch = ListWatch(local, SITE_ASSIGNMENTS, AssignmentRecord, namespace=namespace, on_change=self._local_changed)
        self._hub_status = StatusWriter(hub, self._hub_watch, namespace)
        self._local_status = StatusWriter(local, self._local_watch, namespace)
        self._link = Link(
            hub=hub,
            local_api=local,
            assignments=self._hub_watch,
            local=self._local_watch,
            namespace=namespace,
            trust=self._trust,
        )
        self._meter = Meter(settings.state / "telemetry", state=state, gateway=gateway, metrics_url=settings.server_metrics)
        self._heartbeat = Heartbeat(
            hub,
            site=settings.site,
            report=lambda: SiteReport(agent_version=__version__, hardware=settings.hardware, trust=self._trust.report()),
            renew=settings.renew,
            fleets=lambda: state.fleets,
            meter=self._meter,
            before=state.remember_time,
        )
        self._trust.on_report = self._heartbeat.report_now
        self._state = state
        self._site = Site(
            state=state,
            store=store,
            trust=self._trust,
            intake=Intake(
                site=settings.site,
                hardware=settings.hardware,
                trust=self._trust,
                state=state,
                store=store,
                pods=runtimes.pods is not None,
                region=settings.region,
            ),
            serving=serving,
            runtimes=runtimes,
            prefetcher=Prefetcher(store, Inbox(inbox_folder(settings.state))),
            access=lambda order: gather_access(local, settings.secrets_namespace or namespace, order),
            publish=self._publish,
            report_now=self._heartbeat.report_now,
        )
        self._reconciler = Reconciler(self._site)
        serving.find_over = self._site.revoking.find_over
        self._scrub = Scrub(store, state, self._reconciler.look_again)
        self._judge = OwnJudge(
            state=state,
            store=store,
            meter=self._meter,
            renew=settings.renew,
            silence=self._heartbeat.silence,
            take_back=self._reconciler.take_back,
        )
        self._pods = runtimes.pods
        self._pod_judge: PodJudge | None = None
        if runtimes.pods is not None and settings.pods is not None:
            self._pod_judge = PodJudge(
                state=state, store=store, pods=runtimes.pods, keep=settings.pods.keep, take_back=self._reconciler.take_back
            )
            runtimes.pods.on_change = self._pods_changed
        gateway.before_removal = self._meter.settle
        serving.on_switch = self._meter.look_now
        self._meter.on_look = self._looked

    async def run(self) -> None:
        """Run all parts until cancelled."""
        await self._serving.sweep()
        await self._trust.restore()
        parts = (
            self._gateway.run(),
            self._meter.run(),
            self._serving.run(self._reconciler.look_again),
            self._reconciler.run(),
            self._scrub.run(),
            self._local_watch.run(),
            self._link.run(),
            self._local_status.run(),
            *((self._pods.run(),) if self._pods is not None else ()),
            self._talk_to_the_hub(self._hub_watch.run, self._link.bundles.run, self._hub_status.run, self._heartbeat.run),
        )
        try:
            with self._metrics():
                async with self._meter, asyncio.TaskGroup() as group:
                    for part in parts:
                        group.create_task(part)
        finally:
            await self._serving.close()

    async def _talk_to_the_hub(self, *parts: Callable[[], Awaitable[None]]) -> None:
        identity = self._settings.hub if isinstance(self._settings.hub, Identity) else None
        async with asyncio.TaskGroup() as group:
            if identity is not None:
                group.create_task(identity.run(self._hub))
                await identity.joined.wait()
            for part in parts:
                group.create_task(_run(part))

    def _metrics(self) -> AbstractContextManager[None]:
        if self._settings.metrics is None:
            return nullcontext()
        # Imported late: it costs memory that a site without Prometheus need not have.
        from edgefleet.site.metrics import serving_metrics

        return serving_metrics(self._settings.metrics, self._measure)

    def _measure(self) -> "AgentMetrics":
        from edgefleet.site.metrics import AgentMetrics, FleetMetrics

        fleets = {}
        for fleet in list(self._state.fleets):
            found = self._meter.find(fleet)
            total = found[1].total if found else NOTHING
            fleets[fleet] = FleetMetrics(
                finding=self._findings.get(fleet),
                requests=total.requests,
                failed=total.failed,
                lost=found[0].lost if found else 0,
                taken_back=self._judge.taken_back.get(fleet, 0) + (self._pod_judge.taken_back.get(fleet, 0) if self._pod_judge else 0),
                gap_seconds=self._state.fleet(fleet).gap_seconds,
                gap_requests=self._state.fleet(fleet).gap_requests,
            )
        return AgentMetrics(
            last_contact=self._heartbeat.last_contact,
            lease_writes=self._heartbeat.writes,
            certificate_ends=self._settings.hub.expires_at if isinstance(self._settings.hub, Identity) else None,
            store_bytes=self._store.used_bytes(),
            gateway_restarts=self._gateway.restarts,
            fleets=fleets,
            store_free_bytes=self._store.free_bytes(),
            trust_ends=self._trust.ends,
            store_damaged=self._store.damaged,
            store_read_at=self._scrub.passed_at,
        )

    def _publish(self, name: str, finding: Finding) -> None:
        fleet = name.replace(".", "/", 1)
        self._findings[fleet] = finding
        active = self._serving.active(fleet)
        self._local_status.offer(name, finding, active)
        self._hub_status.offer(name, finding, active)

    def _looked(self) -> None:
        if self._meter.is_urgent():
            self._heartbeat.report_soon()
        self._judge.look()

    def _pods_changed(self) -> None:
        self._serving.look_now()
        if self._pod_judge is not None:
            self._pod_judge.look()

    def _nudge(self) -> None:
        self._reconciler.nudge()

    def _hub_changed(self, key: Key, old: AssignmentRecord | None, new: AssignmentRecord | None) -> None:
        self._link.look_again()
        self._hub_status.look_again()

    def _local_changed(self, key: Key, old: AssignmentRecord | None, new: AssignmentRecord | None) -> None:
        self._reconciler.observe(key, old, new)
        self._link.look_again()
        self._local_status.look_again()
