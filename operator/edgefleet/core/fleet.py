"""One fleet, decided: its active run, whether it starts or ends one, what its sites get outside of runs, and its history.

Whenever the set of runs changes, nothing else is decided in the same pass: the next one, at once, sees the runs as they are. So a
crash between two actions leaves nothing that the next look does not see.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from edgefleet.api.model import Revision
from edgefleet.core.actions import Action, AdoptSite, AssignSite, EndRun, ForgetRun, WithdrawSite
from edgefleet.core.attestation import find_end
from edgefleet.core.decisions import FleetDecision, Obstacle, RolloutDecision
from edgefleet.core.eligibility import Eligibility, decide_eligibilities, selected
from edgefleet.core.facts import FleetFacts, RunFacts, SiteFacts
from edgefleet.core.memory import Memory, plan_forgetting, recall
from edgefleet.core.reach import earliest, unreachable_at
from edgefleet.core.restored import find_unknown_orders
from edgefleet.core.rollout import decide, end_rollout
from edgefleet.core.starting import decide_start, find_missing
from edgefleet.core.upkeep import Upkeep, plan_farewell, plan_upkeep


def decide_fleet(fleet: FleetFacts, now: datetime) -> FleetDecision:
    """Everything that the hub shall do for this fleet now."""
    memory = recall(fleet)
    target = fleet.model.target if fleet.model else None
    listed = selected(fleet)
    reference = (memory.active.revision if memory.active else target) or memory.stable
    found = _Found(fleet, memory, target, decide_eligibilities(fleet, listed, reference, now), now)
    if fleet.deleting:
        farewell = plan_farewell(fleet, memory, now)
        return found.decision(farewell.actions, obstacle=farewell.obstacle, wake_at=farewell.wake_at)
    if fleet.unreadable:
        # What is not known of a run may be all that keeps the next from starting: nothing moves until a person has looked.
        return found.decision((), obstacle=Obstacle("RunUnreadable", "; ".join(fleet.unreadable), stalled=True))
    if memory.surplus:
        return found.decision(tuple(_end_surplus(run, memory) for run in memory.surplus), again=True)
    unknown = find_unknown_orders(fleet, found.eligibilities)
    if unknown is not None:
        return found.decision((), obstacle=unknown)
    sites = {site.name: site for site in fleet.sites}
    if memory.active is not None:
        return found.with_run(memory.active, _decide_active(memory.active, sites, fleet, memory, now))
    start = decide_start(fleet, memory, found.eligibilities, now)
    if start.actions:
        return found.decision(start.actions, again=True)
    upkeep = plan_upkeep(fleet, memory, now)
    return found.with_upkeep(upkeep, obstacle=start.obstacle, wake_at=start.wake_at)


@dataclass(frozen=True, slots=True)
class _Found:
    """What is the same for every outcome of the decision."""

    fleet: FleetFacts
    memory: Memory
    target: Revision | None
    eligibilities: dict[str, Eligibility]
    now: datetime

    def decision(
        self,
        actions: tuple[Action, ...],
        *,
        obstacle: Obstacle | None = None,
        rollout: RolloutDecision | None = None,
        wake_at: datetime | None = None,
        again: bool = False,
    ) -> FleetDecision:
        return FleetDecision(
            actions=actions,
            stable=self.memory.stable,
            target=self.target,
            run=self.memory.active.name if self.memory.active else "",
            rollout=rollout,
            eligibilities=self.eligibilities,
            obstacle=obstacle,
            wake_at=wake_at,
            again=again,
        )

    def with_run(self, run: RunFacts, rollout: RolloutDecision) -> FleetDecision:
        if any(isinstance(action, EndRun) for action in rollout.actions):
            return self.decision(rollout.actions, rollout=rollout, again=True)
        ordered = {action.site for action in rollout.actions if isinstance(action, AssignSite | WithdrawSite | AdoptSite)}
        upkeep = plan_upkeep(self.fleet, self.memory, self.now, ordered=ordered)
        return self.with_upkeep(upkeep, obstacle=find_missing(self.fleet), rollout=rollout)

    def with_upkeep(
        self,
        upkeep: Upkeep,
        *,
        obstacle: Obstacle | None,
        rollout: RolloutDecision | None = None,
        wake_at: datetime | None = None,
    ) -> FleetDecision:
        first = rollout.actions if rollout else ()
        forgotten = tuple(ForgetRun(name) for name in plan_forgetting(self.fleet))
        moments = [upkeep.wake_at, wake_at, rollout.wake_at if rollout else None]
        for site in self.fleet.sites:
            if site.name in self.eligibilities:
                moments.append(unreachable_at(site.last_heard, site.renew_seconds))
                moments.append(site.spec.hold.until if site.spec.hold else None)
                moments.append(find_end(site.attestation))
        return self.decision(
            (*first, *upkeep.actions, *forgotten),
            obstacle=obstacle,
            rollout=rollout,
            wake_at=earliest(*moments, after=self.now),
        )


def _decide_active(run: RunFacts, sites: Mapping[str, SiteFacts], fleet: FleetFacts, memory: Memory, now: datetime) -> RolloutDecision:
    """The run goes on, unless the model names another revision now. A run that is taking its revision back ends as what it is: its
    revision stays barred whatever the model names meanwhile."""
    decision = decide(run, sites, fleet, now)
    target = fleet.model.target if fleet.model else None
    if target is None or target.hash == run.revision.hash or any(isinstance(action, EndRun) for action in decision.actions):
        return decision
    turn = f"EdgeModel {fleet.spec.model_ref.name} names {target.version} ({target.hash[:8]}) now"
    if decision.returning is not None or decision.taken_back:
        outcome = decision.returning or "RolledBack"
        status = decision.status
        return end_rollout(run, sites, fleet, now, outcome=outcome, reason=status.reason, message=f"{status.message}; {turn}")
    if memory.stable is not None and target.hash == memory.stable.hash:
        message = f"{turn}, which is stable: the run's sites go back to it"
        return end_rollout(run, sites, fleet, now, outcome="TargetChanged", reason="TargetChanged", message=message)
    if fleet.spec.suspend or (fleet.model is not None and not fleet.model.verified):
        # What is not verified starts nothing, so it must not end anything either.
        return decision
    message = f"{turn}: the run's sites go first in the next run"
    return end_rollout(run, sites, fleet, now, outcome="Superseded", reason="Superseded", message=message)


def _end_surplus(run: RunFacts, memory: Memory) -> EndRun:
    newest = memory.active.name if memory.active else ""
    return EndRun(run.name, "Superseded", "Superseded", f"{newest} is newer and active: a fleet has one active run")
