"""A fleet in one process: the hub applies what decide_fleet asks for, sites obey orders with their faults, time goes by in minutes.

It is as strict as the real parts where it matters: a site refuses a sequence below its floor, unloads only on a withdrawal, fails or
blocks by itself, says nothing while it is down. Every pass checks the invariants of DESIGN section 5 that can be seen from outside.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from edgefleet.api.fleet import EdgeFleetStatus
from edgefleet.api.meta import LabelSelector
from edgefleet.api.model import Revision
from edgefleet.api.policy import RolloutPolicySpec
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
from edgefleet.core.facts import AssignmentFacts, FleetFacts, ReportFacts, RunFacts, SiteFacts
from edgefleet.core.fleet import decide_fleet
from edgefleet.core.memory import exposed_to
from edgefleet.core.status import summarise_fleet
from edgefleet.core.upkeep import ORDER_LIFETIME
from edgefleet.core.waves import list_waves
from tests.unit.core import facts_of
from tests.unit.core.facts_of import NOW, minutes

Choose = Callable[[Sequence[Action]], Sequence[Action]]
BARRED_OUTCOMES = ("RolledBack", "AbortedByUser")


@dataclass
class SimulatedSite:
    """One site and its agent. `down` holds intervals of minutes since the start in which it is cut off."""

    facts: SiteFacts
    bad: frozenset[str] = frozenset()
    down: tuple[tuple[int, int], ...] = ()
    faulty: tuple[int, int] = (0, 0)
    slow: int = 1
    floor: int = 0
    active: str | None = None
    active_since: datetime | None = None
    began: int = 0
    failed_at: int = 0

    def is_up(self, minute: int) -> bool:
        return not any(start <= minute < end for start, end in self.down)

    def obey(self, minute: int) -> None:
        """One minute of the agent, with the link up."""
        now = NOW + minutes(minute)
        held = self.facts.assignment
        if held is not None:
            assert held.sequence >= self.floor, "I4: the hub sent a sequence below the site's floor"
            if held.sequence > self.floor:
                self.floor, self.began = held.sequence, minute
            self.facts = replace(self.facts, assignment=self._work(held, minute, now))
        report = None
        if self.floor:
            report = ReportFacts(self.active, self.floor, self.floor, self.active_since)
        self.facts = replace(self.facts, last_heard=now, report=report)

    def _work(self, held: AssignmentFacts, minute: int, now: datetime) -> AssignmentFacts:
        spoken = replace(held, status_sequence=held.sequence, active_since=self.active_since)
        if held.action == "Withdraw":
            self.active = self.active_since = None
            return self._say(held, replace(spoken, state="Withdrawn", active_since=None, fault=None), now)
        if self.active == held.revision:
            return self._say(held, replace(spoken, state="Active", fault=None, reason=""), now)
        if self.failed_at == held.sequence:
            return held
        if self.faulty[0] <= minute < self.faulty[1]:
            return self._say(held, replace(spoken, state="Blocked", fault="Site", reason="RegistryUnreachable"), now)
        if minute - self.began < self.slow:
            return self._say(held, replace(spoken, state="Progressing", fault=None, reason=""), now)
        if held.revision in self.bad:
            self.failed_at = held.sequence
            return self._say(held, replace(spoken, state="Failed", fault="Revision", reason="GoldenBelowMinimum"), now)
        self.active, self.active_since = held.revision, now
        return self._say(held, replace(spoken, state="Active", fault=None, reason="", active_since=now), now)

    @staticmethod
    def _say(held: AssignmentFacts, said: AssignmentFacts, now: datetime) -> AssignmentFacts:
        same = held.status_sequence == said.status_sequence and held.state == said.state
        return replace(said, since=held.since if same else now)


@dataclass
class Simulator:
    """The hub, its API server and the world around one fleet.

    `choose` picks which actions of a pass are applied before a crash (all, if None); `record_first` tells whether the run's status is
    written before the actions, or only after all of them.
    """

    sites: dict[str, SimulatedSite]
    target: Revision | None
    policy: RolloutPolicySpec = field(default_factory=facts_of.policy)
    spec: dict[str, object] = field(default_factory=dict)
    revoked: frozenset[str] = frozenset()
    runs: list[RunFacts] = field(default_factory=list)
    minute: int = 0
    choose: Choose | None = None
    record_first: bool = True
    released: bool = False
    deleted_at: datetime | None = None
    status: EdgeFleetStatus = field(default_factory=EdgeFleetStatus)
    log: list[Action] = field(default_factory=list)

    @property
    def now(self) -> datetime:
        return NOW + minutes(self.minute)

    def facts(self) -> FleetFacts:
        return facts_of.fleet(
            self.target,
            runs=self.runs,
            sites=[site.facts for site in self.sites.values()],
            model=facts_of.model(self.target, revoked=self.revoked),
            policy=self.policy,
            spec=self.spec,
            deleting=self.deleted_at is not None,
            deleted_at=self.deleted_at,
        )

    def pass_time(self, count: int) -> None:
        """Minute by minute: sites act, then the hub looks until it has nothing more to do."""
        for _ in range(count):
            self.minute += 1
            for site in self.sites.values():
                if site.is_up(self.minute):
                    site.obey(self.minute)
            self.look()

    def run_until(self, done: Callable[["Simulator"], bool], limit: int) -> None:
        for _ in range(limit):
            if done(self):
                return
            self.pass_time(1)
        raise AssertionError(f"not reached within {limit} minutes: {self.describe()}")

    def look(self) -> None:
        """Passes of the hub until nothing is left to do. A crash loses part of one pass; the next look finds the rest."""
        for _ in range(30):
            if self.released:
                return
            decision = decide_fleet(self.facts(), self.now)
            self._check(decision)
            actions: Sequence[Action] = decision.actions
            if self.choose is not None:
                actions = self.choose(actions)
            if decision.rollout is not None and (self.record_first or len(actions) == len(decision.actions)):
                self._record(decision.run, decision.rollout.status)
            for action in actions:
                self._apply(action)
            self.status = summarise_fleet(self.facts(), decision, old=self.status, now=self.now)
            if not decision.actions:
                again = decide_fleet(self.facts(), self.now)
                assert again.actions == ()
                if decision.rollout is not None:
                    assert again.rollout is not None
                    assert again.rollout.status == decision.rollout.status, _differences(decision.rollout.status, again.rollout.status)
                return
            if self.choose is not None and len(actions) < len(decision.actions):
                return
        raise AssertionError(f"the hub does not come to rest: {self.describe()}")

    def describe(self) -> str:
        parts = [f"minute {self.minute}"]
        for run in self.runs:
            status = run.status
            parts.append(f"{run.name} {run.revision.version} {run.outcome or status.phase} {status.waiting_for} {status.message}")
        for name, site in self.sites.items():
            held = site.facts.assignment
            parts.append(f"{name}: {held and (held.sequence, held.action, (held.revision or '')[:4], held.run, held.state)}")
        return "\n".join(parts)

    def serving(self) -> dict[str, str | None]:
        return {name: site.active for name, site in self.sites.items()}

    def _replace_run(self, name: str, change: Callable[[RunFacts], RunFacts]) -> None:
        self.runs = [change(run) if run.name == name else run for run in self.runs]

    def _record(self, name: str, status: ModelRolloutStatus) -> None:
        self._replace_run(name, lambda run: replace(run, status=status, outcome=run.outcome or status.outcome))

    def _apply(self, action: Action) -> None:
        self.log.append(action)
        match action:
            case AssignSite(name, revision, variant, run):
                self._order(name, revision, variant, run)
            case WithdrawSite(name, run):
                self._order(name, None, "", run)
            case AdoptSite(name, revision, variant, sequence):
                self._order(name, revision, variant, None, sequence)
            case RenewSite(name):
                held = self.sites[name].facts.assignment
                assert held is not None
                renewed = replace(held, expires_at=self.now + ORDER_LIFETIME)
                self.sites[name].facts = replace(self.sites[name].facts, assignment=renewed)
            case StartRun(name, number, revision, policy, plan):
                assert not any(
                    run.revision.hash == revision.hash and run.outcome in BARRED_OUTCOMES and not run.control.retry for run in self.runs
                ), "I10"
                fresh = RunFacts(
                    name, number, revision, policy, facts_of.Control(), ModelRolloutStatus(), self.now, outcome=None, plan=plan
                )
                self.runs.append(fresh)
            case AdoptRun(name, number, revision, policy):
                status = ModelRolloutStatus(phase="Ended", outcome="Promoted", reason="Adopted")
                self.runs.append(RunFacts(name, number, revision, policy, facts_of.Control(), status, self.now, outcome="Promoted"))
            case EndRun(name, outcome, reason, message):
                ended = {"phase": "Ended", "outcome": outcome, "reason": reason, "message": message}
                self._replace_run(name, lambda run: replace(run, outcome=outcome, status=run.status.model_copy(update=ended)))
            case ForgetRun(name):
                self.runs = [run for run in self.runs if run.name != name]
            case ReleaseFleet():
                self.released = True

    def _order(self, name: str, revision: Revision | None, variant: str, run: str | None, sequence: int = 0) -> None:
        facts = self.sites[name].facts
        held, report = facts.assignment, facts.report
        known = max(held.sequence if held else 0, report.floor if report else 0)
        assignment = AssignmentFacts(
            sequence=sequence or known + 1,
            action="Run" if revision else "Withdraw",
            model="weld-qc",
            revision=revision.hash if revision else None,
            run=run,
            expires_at=self.now + ORDER_LIFETIME,
            variant=variant,
            status_sequence=held.status_sequence if held else 0,
            state=held.state if held else "Progressing",
            fault=held.fault if held else None,
            since=held.since if held else None,
        )
        self.sites[name].facts = replace(facts, assignment=assignment)

    def _check(self, decision: FleetDecision) -> None:
        """What must hold of every decision, whatever the world does."""
        if decision.wake_at is not None:
            assert decision.wake_at > self.now
        ordered = [action.site for action in decision.actions if isinstance(action, AssignSite | WithdrawSite | AdoptSite | RenewSite)]
        assert len(ordered) == len(set(ordered)), "two orders for one site in one pass"
        had_stable = decision.stable is not None
        for action in decision.actions:
            if isinstance(action, WithdrawSite) and self.deleted_at is None:
                assert not had_stable or action.run is not None, "I12: withdrawn although there is a stable revision to go to"
        if decision.rollout is None or not decision.run:
            return
        status = decision.rollout.status
        active = next(run for run in self.runs if run.name == decision.run)
        assert status.outcome or (status.waiting_for and status.since), "I7: neither ended nor waiting for something"
        self._check_waves(active, decision)

    def _check_waves(self, active: RunFacts, decision: FleetDecision) -> None:
        """I3 and I5: only sites of open waves get the revision, at most maxConcurrent at once, and no wave passes in silence."""
        assert decision.rollout is not None
        waves = list_waves(active.policy)
        records = {record.name: record for record in decision.rollout.status.waves}
        before = {record.name: record for record in active.status.waves}
        planned = {one.site: one.wave for one in active.plan}
        for action in decision.actions:
            if isinstance(action, AssignSite) and action.revision.hash == active.revision.hash:
                assert action.site in planned, "I3: a site outside of the frozen plan got the revision"
                assert records[waves[planned[action.site]].name].opened_at, "I3: a site of a closed wave got the revision"
                assert not active.control.paused
        for index, wave in enumerate(waves):
            record = records.get(wave.name)
            if record is None or not record.passed_at or before.get(wave.name, record).passed_at == record.passed_at:
                continue
            members = [self.sites[name].facts for name, planned_wave in planned.items() if planned_wave == index]
            assert any(self._proves(site, active) for site in members), f"I5: wave {wave.name} passed in silence"
        limits = {index: wave.max_concurrent for index, wave in enumerate(waves) if wave.max_concurrent}
        for index, limit in limits.items():
            started = [
                action.site
                for action in decision.actions
                if isinstance(action, AssignSite)
                and planned.get(action.site) == index
                and action.run == active.name
                and action.revision.hash == active.revision.hash
            ]
            assert len(started) <= limit

    @staticmethod
    def _proves(site: SiteFacts, active: RunFacts) -> bool:
        held, report = site.assignment, site.report
        return (
            exposed_to(site, active.revision.hash)
            and held is not None
            and report is not None
            and (report.revision, report.sequence) == (active.revision.hash, held.sequence)
        )


def _differences(first: ModelRolloutStatus, second: ModelRolloutStatus) -> str:
    one, two = first.to_json_dict(), second.to_json_dict()
    changed = {key: (one.get(key), two.get(key)) for key in {**one, **two} if one.get(key) != two.get(key)}
    return f"deciding twice gives two statuses: {changed}"


def build(
    count: int, target: Revision | None, *, arm: Sequence[int] = (), policy: RolloutPolicySpec | None = None, **more: object
) -> Simulator:
    """`count` sites s0, s1, ...; those whose number is in `arm` have the other hardware. `more` are fields of SimulatedSite for all."""
    sites = {}
    for number in range(count):
        hardware = facts_of.ARM64 if number in arm else facts_of.AMD64
        sites[f"s{number}"] = SimulatedSite(facts_of.site(f"s{number}", hardware=hardware), **more)  # type: ignore[arg-type]
    return Simulator(sites, target, policy or facts_of.policy())


def hold(simulator: Simulator, name: str, until: timedelta | None, selector: LabelSelector | None = None) -> None:
    """Put a site on hold, or lift it."""
    facts = simulator.sites[name].facts
    spec = facts.spec.model_dump()
    spec["hold"] = {"until": simulator.now + until, "reason": "maintenance"} if until else None
    simulator.sites[name].facts = replace(facts, spec=type(facts.spec).model_validate(spec))
