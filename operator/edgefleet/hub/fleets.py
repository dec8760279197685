"""The loop over EdgeFleets: gather the facts, decide, act, summarise, and write each status once.

One pass covers a fleet and its active run. Facts about people's objects are read fresh; facts about sites come from the inventory. An
action on a run that meets a changed object (Conflict) ends the pass, and the next one looks again. A site that cannot be written to
holds up nothing but itself (I9).
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from edgefleet.api.fleet import EdgeFleet, EdgeFleetStatus
from edgefleet.api.meta import FINALIZER
from edgefleet.api.model import Revision
from edgefleet.api.policy import Analysis, HardChecks
from edgefleet.api.rollout import ModelRolloutStatus
from edgefleet.core.actions import (
    Action,
    AdoptRun,
    AdoptSite,
    AssignSite,
    EndRun,
    ForgetRun,
    ReleaseFleet,
    RenewSite,
    StartRun,
    WithdrawSite,
)
from edgefleet.core.decisions import FleetDecision
from edgefleet.core.events import plan_fleet_events, plan_quarantine_events
from edgefleet.core.facts import FleetFacts, FleetKey, RunFacts
from edgefleet.core.fleet import decide_fleet
from edgefleet.core.status import summarise_fleet
from edgefleet.hub.assignments import AssignmentWriter, Task
from edgefleet.hub.events import Events
from edgefleet.hub.evidence import Evidence
from edgefleet.hub.gathering import Gatherer
from edgefleet.hub.queue import until
from edgefleet.hub.runs import Runs
from edgefleet.hub.settings import FIELD_MANAGER, Settings
from edgefleet.kube.client import Api
from edgefleet.kube.errors import Conflict, Denied, Invalid, NotFound
from edgefleet.kube.resources import EDGE_FLEETS

log = logging.getLogger(__name__)

STATUS_SPACING_SECONDS = 1.0
GATES_SPACING_SECONDS = 5.0
SITE_RETRY = timedelta(seconds=10)
CONFLICT_RETRY = timedelta(milliseconds=100)


@dataclass(frozen=True, slots=True)
class FleetView:
    """What the last pass over a fleet came to; `rollout` is None while no run is under way."""

    status: EdgeFleetStatus
    rollout: ModelRolloutStatus | None


class Fleets:
    """Reconciles EdgeFleets. `views` holds those that exist."""

    def __init__(
        self,
        api: Api,
        gatherer: Gatherer,
        writer: AssignmentWriter,
        runs: Runs,
        evidence: Evidence,
        events: Events,
        settings: Settings,
    ) -> None:
        self._api = api
        self._events = events
        self._evidence = evidence
        self._gatherer = gatherer
        self._writer = writer
        self._runs = runs
        self._writers = asyncio.Semaphore(settings.writers)
        self._written: dict[FleetKey, float] = {}
        self._gates_written: dict[FleetKey, float] = {}
        self._unheard: dict[FleetKey, frozenset[str]] = {}
        self.views: dict[FleetKey, FleetView] = {}

    def awaiting(self, site: str) -> list[FleetKey]:
        """The fleets whose decision changes with the next Lease from this site: an ordinary renewal concerns no other."""
        return [key for key, sites in self._unheard.items() if site in sites]

    async def reconcile(self, key: FleetKey) -> timedelta | None:
        """One pass over one fleet. Returns when time alone will change the decision."""
        gathered = await self._gatherer.gather(key)
        if gathered is None:
            self._written.pop(key, None)
            self._gates_written.pop(key, None)
            self._unheard.pop(key, None)
            self.views.pop(key, None)
            return None
        fleet, facts = gathered
        await self._apply_finalizer(fleet)
        for run in facts.runs:
            if run.outcome is not None and not run.recorded:
                await self._runs.complete(key, run.name, run.outcome)
        now = datetime.now(UTC)
        decision = decide_fleet(facts, now)
        self._unheard[key] = decision.rollout.unheard if decision.rollout else frozenset()
        try:
            later = await self._record(facts, decision)
            await self._events.tell(EDGE_FLEETS, fleet.metadata, plan_quarantine_events(decision.run, decision.actions))
            retry = await self._act(facts, decision.actions)
        except Conflict as conflict:
            log.info("fleet %s: %s; looking again", key, conflict)
            return timedelta(0)
        if decision.again:
            return timedelta(0)
        status = summarise_fleet(facts, decision, old=fleet.status, now=now)
        self.views[key] = FleetView(status, decision.rollout.status if decision.rollout else None)
        wanted = min((moment for moment in (until(decision.wake_at, now), retry, later) if moment is not None), default=None)
        if status != fleet.status:
            # Counters change with every site; a status is written at once when its conditions do, else once a second.
            wait = self._written.get(key, 0.0) + STATUS_SPACING_SECONDS - time.monotonic()
            if status.conditions == fleet.status.conditions and wait > 0:
                return min(wanted, timedelta(seconds=wait)) if wanted is not None else timedelta(seconds=wait)
            await self._events.tell(EDGE_FLEETS, fleet.metadata, plan_fleet_events(fleet.status, status))
            body = {"metadata": {"name": key.name, "namespace": key.namespace}, "status": status.to_json_dict()}
            try:
                await self._api.apply(EDGE_FLEETS, body, manager=FIELD_MANAGER, subresource="status")
            except NotFound:
                return None
            self._written[key] = time.monotonic()
        return wanted

    async def _record(self, facts: FleetFacts, decision: FleetDecision) -> timedelta | None:
        """The record comes first: a wave's opening, the turn to go back, and the evidence for both, are known before the first site is
        touched. Returns after how long numbers that changed alone are to be written."""
        run = next((run for run in facts.runs if run.name == decision.run), None)
        if run is None or decision.rollout is None:
            return None
        old, new, case = run.status, decision.rollout.status, decision.rollout.case
        turned = (old.phase, old.outcome, old.waves) != (new.phase, new.outcome, new.waves)
        if case is not None:
            await self._evidence.store(facts.key, case, new.gates, facts.health, now=turned)
        if old.model_copy(update={"gates": new.gates}) == new:
            if old.gates == new.gates:
                return None
            wait = self._gates_written.get(facts.key, 0.0) + GATES_SPACING_SECONDS - time.monotonic()
            if wait > 0:
                return timedelta(seconds=wait)
        await self._runs.apply_status(facts.key, run.name, new)
        self._gates_written[facts.key] = time.monotonic()
        return None

    async def _apply_finalizer(self, fleet: EdgeFleet) -> None:
        wanted = fleet.spec.on_delete == "Withdraw"
        held = FINALIZER in fleet.metadata.finalizers
        if fleet.metadata.deletion_timestamp is None and wanted != held:
            await self._set_finalizer(fleet, wanted)

    async def _set_finalizer(self, fleet: EdgeFleet, present: bool) -> None:
        others = [name for name in fleet.metadata.finalizers if name != FINALIZER]
        meta = {
            "finalizers": [*others, FINALIZER] if present else others,
            "resourceVersion": fleet.metadata.resource_version,
        }
        await self._api.patch(EDGE_FLEETS, fleet.metadata.name, fleet.metadata.namespace, {"metadata": meta})

    async def _act(self, facts: FleetFacts, actions: Sequence[Action]) -> timedelta | None:
        """Runs first and in order; then the sites, several at once. Returns when to try again what failed at single sites."""
        sites = []
        for action in actions:
            match action:
                case AssignSite() | WithdrawSite() | RenewSite() | AdoptSite():
                    task = self._task(facts, action)
                    if task is not None:
                        sites.append(task)
                case StartRun():
                    await self._runs.start(facts.key, action)
                case AdoptRun():
                    await self._runs.adopt(facts.key, action)
                case EndRun():
                    await self._runs.end(facts.key, action)
                case ForgetRun():
                    await self._runs.forget(facts.key, action.run)
                case ReleaseFleet():
                    await self._release(facts.key)
        retries = []
        # All are tried, whatever becomes of the others.
        for outcome in await asyncio.gather(*(self._write(facts, task) for task in sites), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
            retries += [outcome] if outcome else []
        return min(retries, default=None)

    async def _write(self, facts: FleetFacts, task: Task) -> timedelta | None:
        """Write one site's assignment; if that fails, say so and return when to try again. Raises Throttled, Unavailable."""
        async with self._writers:
            try:
                stops = facts.model.stops if facts.model else ()
                await self._writer.apply(facts.key, facts.spec.model_ref.name, replace(task, stops=stops))
            except Conflict as conflict:
                log.info("fleet %s, site %s: %s; looking again", facts.key, task.site, conflict)
                return CONFLICT_RETRY
            except (Denied, Invalid, NotFound, LookupError, ValueError) as error:
                # ValueError: a report whose numbers fit no order, or an order that is too large.
                log.warning("fleet %s, site %s: not assigned: %s", facts.key, task.site, error)
                return SITE_RETRY
        return None

    def _task(self, facts: FleetFacts, action: AssignSite | WithdrawSite | RenewSite | AdoptSite) -> Task | None:
        match action:
            case AssignSite(site, revision, variant, run, quarantine):
                return _run_task(facts, site, revision, variant, run=run, quarantine=quarantine)
            case AdoptSite(site, revision, variant, sequence):
                return _run_task(facts, site, revision, variant, sequence=sequence)
            case WithdrawSite(site, run, quarantine):
                return Task(site, run=run, quarantine=quarantine)
            case RenewSite(site):
                return _renewal(facts, site)

    async def _release(self, key: FleetKey) -> None:
        try:
            fleet = EdgeFleet.parse(await self._api.get(EDGE_FLEETS, key.name, key.namespace))
        except NotFound:
            return
        await self._set_finalizer(fleet, present=False)


def _run_task(
    facts: FleetFacts,
    site: str,
    revision: Revision,
    variant: str,
    *,
    run: str | None = None,
    sequence: int | None = None,
    quarantine: str = "",
) -> Task:
    """An order to run this revision, with the checks and gates that came with it: those of its newest run."""
    runs = sorted((one for one in facts.runs if one.revision.hash == revision.hash), key=lambda one: -one.number)
    checks, analysis = (runs[0].policy.hard_checks, runs[0].policy.analysis) if runs else (HardChecks(), Analysis())
    return Task(site, revision, variant, run, checks, analysis, sequence, quarantine, _find_soak(runs[0], site) if runs else None)


def _find_soak(run: RunFacts, site: str) -> str:
    """The least that this site soaks: as its wave says, or the policy."""
    number = next((line.wave for line in run.plan if line.site == site), len(run.policy.waves))
    soak = run.policy.soak_of(run.policy.waves[number]) if number < len(run.policy.waves) else run.policy.soak
    return soak.min


def _renewal(facts: FleetFacts, site: str) -> Task | None:
    """The same assignment once more, under the same sequence. None when what it runs is not known any more."""
    held = next((facts_of.assignment for facts_of in facts.sites if facts_of.name == site), None)
    if held is None:
        return None
    if held.action == "Withdraw":
        return Task(site, run=held.run, sequence=held.sequence, quarantine=held.quarantine)
    revision = next((run.revision for run in facts.runs if run.revision.hash == held.revision), None)
    if revision is None:
        return None
    return _run_task(facts, site, revision, held.variant, run=held.run, sequence=held.sequence, quarantine=held.quarantine)
