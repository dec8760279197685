"""Every course that a small run can take: breadth first over all that two sites, time and a person can do, up to a depth.

Where the random worlds sample, this is exhaustive: no order of events lets a second wave open before the first has passed, promotes
what nobody proved, ends a run for silence, or makes the decision waver.
"""

from dataclasses import dataclass, replace
from datetime import datetime

import pytest

from edgefleet.api.policy import RolloutPolicySpec
from edgefleet.core.actions import AssignSite, EndRun, WithdrawSite
from edgefleet.core.facts import AssignmentFacts, ReportFacts, RunFacts, SiteFacts
from edgefleet.core.memory import exposed_to
from edgefleet.core.rollout import decide
from tests.unit.core.facts_of import NOW, A, B, fleet, minutes, policy, run, site, told

SITES = ("s1", "s2")
STABLE = run(1, A, outcome="Promoted")
REPORTS = ("Active", "Failed", "Blocked", "Late")
STEP = minutes(11)


@dataclass(frozen=True)
class World:
    """The run and its sites at one moment. `past` tells how the world came here, and is no part of it."""

    run: RunFacts
    sites: tuple[SiteFacts, ...]
    now: datetime
    past: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Equal for two worlds in which everything is equally long ago."""
        shift = self.now - NOW
        return repr((self.run.status.model_dump(exclude={"conditions"}), self.run.control, self.run.outcome, self.sites, shift))


def start(under: RolloutPolicySpec) -> World:
    first = run(2, B, plan=[("s1", 0), ("s2", 1)], under=under)
    return World(first, tuple(told(site(name), A, "weld-1") for name in SITES), NOW)


def settle(world: World) -> World:
    """Decide and apply until nothing is left to do; check every decision on the way."""
    for _ in range(5):
        facts = fleet(B, runs=[STABLE, world.run], sites=world.sites)
        decision = decide(world.run, {one.name: one for one in world.sites}, facts, world.now)
        check(world, decision.actions)
        ended = [action for action in decision.actions if isinstance(action, EndRun)]
        changed = replace(world.run, status=decision.status, outcome=ended[0].outcome if ended else world.run.outcome)
        sites = {one.name: one for one in world.sites}
        for action in decision.actions:
            if isinstance(action, AssignSite | WithdrawSite):
                sites[action.site] = order(sites[action.site], action)
        world = replace(world, run=changed, sites=tuple(sites.values()))
        if not decision.actions:
            return world
    raise AssertionError(f"does not come to rest: {world.past}")


def order(facts: SiteFacts, action: AssignSite | WithdrawSite) -> SiteFacts:
    held = facts.assignment
    assert held is not None
    revision = action.revision.hash if isinstance(action, AssignSite) else None
    kept = AssignmentFacts(
        held.sequence + 1,
        "Run" if revision else "Withdraw",
        held.model,
        revision,
        action.run,
        held.expires_at,
        status_sequence=held.status_sequence,
        state=held.state,
        fault=held.fault,
        since=held.since,
    )
    return replace(facts, assignment=kept)


def check(world: World, actions: tuple[object, ...]) -> None:
    sites = {one.name: one for one in world.sites}
    records = {record.name: record for record in world.run.status.waves}
    for action in actions:
        if isinstance(action, AssignSite) and action.revision == B:
            assert not world.run.control.aborted, world.past
            if action.site == "s2":
                assert proves(sites["s1"]) or records["canary"].passed_at, f"I3: the second wave opened too early: {world.past}"
        if isinstance(action, EndRun) and action.outcome == "Promoted":
            assert proves(sites["s1"]) or proves(sites["s2"]), f"I5: promoted in silence: {world.past}"
        if isinstance(action, EndRun) and action.outcome == "RolledBack":
            assert any(name in step for step in world.past for name in ("Failed",)), f"rolled back without a failure: {world.past}"


def proves(facts: SiteFacts) -> bool:
    held, report = facts.assignment, facts.report
    return (
        exposed_to(facts, B.hash)
        and held is not None
        and report is not None
        and (report.revision, report.sequence) == (B.hash, held.sequence)
    )


def follow(world: World) -> list[World]:
    """All that may happen next."""
    found = []
    for index, facts in enumerate(world.sites):
        held = facts.assignment
        assert held is not None
        if held.status_sequence != held.sequence or held.state in ("Progressing", "Blocked"):
            for state in REPORTS:
                spoken = speak(facts, held, state, world.now)
                sites = tuple(spoken if place == index else one for place, one in enumerate(world.sites))
                found.append(replace(world, sites=sites, past=(*world.past, f"{facts.name} {state}")))
    later = world.now + STEP
    for silent in (None, 0, 1):
        sites = tuple(one if place == silent else renew(one, later) for place, one in enumerate(world.sites))
        found.append(replace(world, now=later, sites=sites, past=(*world.past, f"time, {silent} silent")))
    if not world.run.control.aborted:
        aborted = world.run.control.model_copy(update={"aborted": True})
        found.append(replace(world, run=replace(world.run, control=aborted), past=(*world.past, "abort")))
    return found


def speak(facts: SiteFacts, held: AssignmentFacts, state: str, now: datetime) -> SiteFacts:
    """`Late` is a report that arrives for the sequence before."""
    if state == "Late":
        return replace(facts, last_heard=now, assignment=replace(held, status_sequence=held.sequence - 1, state="Active"))
    spoken = replace(held, status_sequence=held.sequence, state=state, since=now, fault=None)  # type: ignore[arg-type]
    report = ReportFacts(held.revision, held.sequence, held.sequence, now) if state == "Active" else facts.report
    return replace(facts, last_heard=now, assignment=spoken, report=report)


def renew(facts: SiteFacts, now: datetime) -> SiteFacts:
    return replace(facts, last_heard=now)


@pytest.mark.parametrize("on_failure", ["RollbackAll", "Pause"])
def test_every_course_of_a_small_run(on_failure: str) -> None:
    under = policy(onFailure=on_failure, unreachable={"skipAfter": "20m"}, soak={"min": "5m", "max": "30m"})
    frontier = [settle(start(under))]
    seen = {frontier[0].key}
    ends = set()
    for _ in range(5):
        following = []
        for world in frontier:
            if world.run.outcome:
                continue
            for moved in follow(world):
                rest = settle(moved)
                if rest.key not in seen:
                    seen.add(rest.key)
                    following.append(rest)
                    ends.add(rest.run.outcome or rest.run.status.waiting_for)
                    status = rest.run.status
                    assert rest.run.outcome or (status.waiting_for and status.since), f"I7: {rest.past}"
        frontier = following
    assert {"Promoted", "AbortedByUser", "SilentWave", "Soaking", "WaitingForSites"} <= ends
    assert ("RolledBack" in ends) is (on_failure == "RollbackAll")
    assert len(seen) > 300
