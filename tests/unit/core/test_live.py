"""What live traffic does to a run: it fails, holds, goes on, or takes one site back alone. The statistics are tried in test_evidence."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from edgefleet.api.fleet import EdgeFleetStatus
from edgefleet.api.model import Revision, Slo
from edgefleet.api.report import HealthBaseline, HealthCounts
from edgefleet.api.rollout import Control
from edgefleet.core.actions import AssignSite, EndRun, StartRun, WithdrawSite
from edgefleet.core.case import decode_line, encode_case, encode_stream
from edgefleet.core.decisions import FleetDecision
from edgefleet.core.facts import FleetFacts, SiteFacts
from edgefleet.core.fleet import decide_fleet
from edgefleet.core.health import Stream
from edgefleet.core.live import judge_case, record_gate
from edgefleet.core.status import summarise_fleet
from tests.unit.core.facts_of import NOW, A, fleet, minutes, opened, policy, revision, run, site, told

SLO = Slo.model_validate({"latency": {"le": "50ms", "share": "99%"}})
B = revision("2.0").model_copy(update={"slo": SLO})
C = revision("3.0")
START = int((NOW - minutes(20)).timestamp())
WEEK = HealthBaseline(1_000_000, 1000, 1000, 0, 0)


def stream(what: Revision, slow: int, of: int = 1000, *, sequence: int = 2, **more: Any) -> Stream:
    """What a site has answered in the 20 minutes since its switch."""
    records = {START // 300 + 2: HealthCounts(of // 2, 0, slow // 2), START // 300 + 4: HealthCounts(of, 0, slow)}
    fields: dict[str, Any] = {"le_ms": 50, "usual": WEEK, "before": WEEK, **more}
    return Stream(what.hash, START, sequence, {START: records}, **fields)


def canary(name: str = "s0", *, since: float = 20) -> SiteFacts:
    """A site that has run B for so many minutes."""
    return told(site(name), B, "weld-2", sequence=2, since=NOW - minutes(since))


def world(
    health: dict[str, tuple[Stream, ...]],
    *,
    exposed: Sequence[SiteFacts] = (),
    first: bool = False,
    under: dict[str, Any] | None = None,
    plan: Sequence[tuple[str, int]] = (),
    **status: Any,
) -> FleetFacts:
    """Six sites, s0 the canary of a run from A to B; the others run A."""
    canaries = list(exposed) or [canary()]
    others = [told(site(f"s{n}"), None if first else A, None if first else "weld-1") for n in range(6)]
    sites = canaries + [one for one in others if one.name not in {each.name for each in canaries}]
    if first:
        sites = canaries + [site(one.name) for one in others if one.name not in {each.name for each in canaries}]
    rules = policy(**{"soak": {"min": "10m", "max": "60m", "minRequests": 500}, **(under or {})})
    planned = plan or [("s0", 0), *((f"s{n}", 1) for n in range(1, 6))]
    fields: dict[str, Any] = {"phase": "Rolling", "waves": opened(("canary", 20, None)), **status}
    runs = [run(2, B, plan=planned, under=rules, **fields)]
    if not first:
        runs.insert(0, run(1, A, outcome="Promoted"))
    return fleet(B, runs=runs, sites=sites, health=health)


def decide(facts: FleetFacts) -> FleetDecision:
    return decide_fleet(facts, NOW)


def waits_for(facts: FleetFacts) -> str:
    decision = decide(facts)
    assert decision.rollout is not None
    return decision.rollout.status.waiting_for


def orders(decision: FleetDecision, name: str) -> list[Any]:
    return [action for action in decision.actions if isinstance(action, AssignSite | WithdrawSite) and action.site == name]


def test_a_healthy_canary_passes_and_says_that_its_gates_did() -> None:
    decision = decide(world({"s0": (stream(B, 1),)}))
    assert decision.rollout is not None
    healthy = next(one for one in decision.rollout.status.conditions if one.type == "Healthy")
    assert decision.rollout.status.waves[0].passed_at
    assert healthy.reason in ("GatesPassed", "WaitingForSites")
    gate = decision.rollout.status.gates[0]
    assert (gate.name, gate.kind, gate.verdict, gate.requests, gate.seen, gate.bound) == ("latency", "Absolute", "Quiet", 1000, 1, "20.0")


def test_a_slow_canary_turns_the_run_round_in_the_same_look() -> None:
    decision = decide(world({"s0": (stream(B, 200),)}))
    assert decision.rollout is not None
    status = decision.rollout.status
    assert (status.phase, status.reason) == ("Returning", "LatencyRegression")
    assert "200 of 1000" in status.message
    (order,) = orders(decision, "s0")
    assert order.revision == A
    assert order.quarantine == "", "all go back: nobody is singled out"
    assert decision.rollout.case is not None, "the evidence is kept before the site is told"


def test_the_evidence_that_decided_stays_in_the_record_on_the_way_back() -> None:
    turned = decide(world({"s0": (stream(B, 200),)}))
    assert turned.rollout is not None
    gates = turned.rollout.status.gates
    facts = world({"s0": (stream(B, 0),)}, **turned.rollout.status.model_dump(exclude={"observed_generation"}))
    again = decide(facts)
    assert again.rollout is not None
    assert again.rollout.status.phase == "Returning", "a Fail is final"
    assert again.rollout.status.gates == gates


@pytest.mark.parametrize("sequence", [1, 3], ids=["older", "newer"])
def test_i6_a_report_of_another_sequence_does_not_count(sequence: int) -> None:
    assert waits_for(world({"s0": (stream(B, 900, sequence=sequence),)})) == "TooFewRequests"


def test_a_report_of_another_revision_does_not_count() -> None:
    assert waits_for(world({"s0": (stream(A, 900),)})) == "TooFewRequests"


def test_too_few_requests_wait_and_say_how_many() -> None:
    decision = decide(world({"s0": (stream(B, 0, of=100),)}))
    assert decision.rollout is not None
    assert decision.rollout.status.waiting_for == "TooFewRequests"
    progressing = next(one for one in decision.rollout.status.conditions if one.type == "Progressing")
    assert "100 requests" in progressing.message
    assert "minRequests is 500" in progressing.message


@pytest.mark.parametrize(("choice", "expected"), [("Hold", None), ("Promote", "passed"), ("Rollback", "Returning")])
def test_after_soak_max_on_inconclusive_decides(choice: str, expected: str | None) -> None:
    facts = world(
        {"s0": (stream(B, 0, of=100),)},
        exposed=[canary(since=70)],
        under={"onInconclusive": choice},
        plan=[("s0", 0)],
        waves=opened(("canary", 70, None)),
    )
    decision = decide(facts)
    assert decision.rollout is not None
    status = decision.rollout.status
    match expected:
        case "passed":
            assert status.outcome == "Promoted"
        case "Returning":
            assert status.phase == "Returning"
        case _:
            assert status.waiting_for == "InconclusiveAnalysis"


def test_a_dry_run_gate_shows_its_verdict_and_changes_nothing() -> None:
    decision = decide(world({"s0": (stream(B, 900),)}, under={"analysis": {"gates": [{"name": "latency", "dryRun": True}]}}))
    assert decision.rollout is not None
    (gate,) = decision.rollout.status.gates
    assert (gate.verdict, gate.dry_run) == ("Fail", True)
    assert decision.rollout.status.phase == "Rolling"
    assert decision.rollout.status.waves[0].passed_at, "it does not even ask for requests"


RELATIVE = {"analysis": {"gates": [{"name": "latency", "max": "100%", "maxIncrease": "25%"}]}}


def controls(slow: int = 1, count: int = 5) -> dict[str, tuple[Stream, ...]]:
    return {f"s{n}": (stream(A, slow, sequence=1),) for n in range(1, 1 + count)}


def test_a_relative_gate_fails_where_enough_controls_stay_as_they_were() -> None:
    decision = decide(world({"s0": (stream(B, 100),), **controls()}, under=RELATIVE))
    assert decision.rollout is not None
    assert (decision.rollout.status.phase, decision.rollout.status.reason) == ("Returning", "LatencyRegression")


def test_a_fleet_wide_shock_is_not_the_revisions_fault() -> None:
    decision = decide(world({"s0": (stream(B, 100),), **controls(slow=100)}, under=RELATIVE))
    assert decision.rollout is not None
    assert decision.rollout.status.phase == "Rolling"
    relative = decision.rollout.status.gates[1]
    assert (relative.kind, relative.verdict) == ("Relative", "Quiet")


def test_with_fewer_than_five_controls_a_relative_gate_holds() -> None:
    decision = decide(world({"s0": (stream(B, 100),), **controls(count=4)}, under=RELATIVE))
    assert decision.rollout is not None
    status = decision.rollout.status
    assert (status.phase, status.waiting_for) == ("Rolling", "RegressionUnconfirmed")
    assert status.gates[1].verdict == "Hold"
    assert orders(decision, "s0") == []


def test_on_a_first_release_relative_gates_do_not_apply_and_absolute_ones_withdraw() -> None:
    under = {"analysis": {"gates": [{"name": "latency", "maxIncrease": "25%"}]}}
    fine = decide(world({"s0": (stream(B, 5, before=None),)}, first=True, under=under))
    assert fine.rollout is not None
    assert [(gate.kind, gate.verdict) for gate in fine.rollout.status.gates] == [("Absolute", "Quiet"), ("Relative", "NotApplicable")]
    assert fine.rollout.status.gates[0].bound == "20.0", "what cannot act costs no evidence"
    bad = decide(world({"s0": (stream(B, 300, before=None),)}, first=True, under=under))
    (order,) = orders(bad, "s0")
    assert isinstance(order, WithdrawSite)


def two_exposed(later: str) -> FleetFacts:
    """s0 is fine, s1 of the second wave is not."""
    exposed = [canary("s0"), canary("s1", since=15)]
    health = {"s0": (stream(B, 1),), "s1": (stream(B, 400),)}
    waves = opened(("canary", 40, 20), ("all", 20, None))
    facts = world(health, exposed=exposed, under={"maxFailed": {"later": later}})
    status = facts.runs[1].status.model_copy(update={"waves": waves})
    return replace(facts, runs=(facts.runs[0], replace(facts.runs[1], status=status)))


def test_one_site_goes_back_alone_where_so_many_may_fail() -> None:
    decision = decide(two_exposed("50%"))
    assert decision.rollout is not None
    assert decision.rollout.status.phase == "Rolling"
    assert decision.rollout.status.sites.failed == 1
    (order,) = orders(decision, "s1")
    assert (order.revision, order.run, order.quarantine) == (A, "weld-2", "LatencyRegression")
    assert orders(decision, "s0") == []


def test_one_site_is_one_too_many_where_none_may_fail() -> None:
    decision = decide(two_exposed("0%"))
    assert decision.rollout is not None
    assert (decision.rollout.status.phase, decision.rollout.status.reason) == ("Returning", "LatencyRegression")
    assert {order.site for order in decision.actions if isinstance(order, AssignSite)} == {"s0", "s1"}


def quarantined(state: Any = "Active") -> SiteFacts:
    back = told(site("s1"), A, "weld-2", state, sequence=3, quarantine="LatencyRegression")
    return replace(back, report=None) if state is None else back


def test_a_quarantined_site_counts_as_failed_and_does_not_turn_the_run_round() -> None:
    """The memory is in its assignment: whoever looks after a crash sees the same."""
    for state in ("Active", None):
        facts = two_exposed("50%")
        facts = replace(facts, sites=tuple(quarantined(state) if one.name == "s1" else one for one in facts.sites))
        decision = decide(facts)
        assert decision.rollout is not None
        assert decision.rollout.status.phase == "Rolling"
        assert decision.rollout.status.sites.failed == 1
        assert orders(decision, "s1") == []


def test_a_promoted_revision_is_not_sent_to_a_site_that_proved_it_worse_and_the_next_one_is() -> None:
    runs = [run(1, A, outcome="Promoted"), run(2, B, outcome="Promoted")]
    rest = [told(site(f"s{n}"), B, "weld-2", sequence=2) for n in (0, 2, 3)]
    facts = fleet(B, runs=runs, sites=[*rest, quarantined()])
    decision = decide(facts)
    assert orders(decision, "s1") == []
    assert decision.eligibilities["s1"].reason == "Quarantined"
    status = summarise_fleet(facts, decision, old=EdgeFleetStatus(), now=NOW)
    assert (status.sites.desired, status.sites.skipped) == (3, 1)
    following = decide(fleet(C, runs=runs, sites=[*rest, quarantined()]))
    (start,) = [action for action in following.actions if isinstance(action, StartRun)]
    assert "s1" in {one.site for one in start.plan}


def test_a_run_does_not_end_before_its_quarantined_sites_were_told() -> None:
    facts = two_exposed("50%")
    rest = [told(site(f"s{n}"), B, "weld-2", sequence=2, since=NOW - minutes(15)) for n in range(2, 6)]
    health = {**facts.health, **{one.name: (stream(B, 1),) for one in rest}}
    facts = replace(facts, sites=(facts.sites[0], facts.sites[1], *rest), health=health)
    decision = decide(facts)
    assert not any(isinstance(action, EndRun) for action in decision.actions)
    assert orders(decision, "s1")[0].quarantine
    after = replace(facts, sites=tuple(quarantined() if one.name == "s1" else one for one in facts.sites))
    ended = decide(after)
    assert any(isinstance(action, EndRun) and action.outcome == "Promoted" for action in ended.actions)


def test_gates_go_on_while_the_run_is_paused() -> None:
    facts = world({"s0": (stream(B, 300),)})
    facts = replace(facts, runs=(facts.runs[0], replace(facts.runs[1], control=Control(paused=True))))
    decision = decide(facts)
    assert decision.rollout is not None
    assert decision.rollout.status.phase == "Returning"


def test_a_gate_that_no_site_can_deliver_starts_nothing_and_names_both_objects() -> None:
    rules = policy(analysis={"gates": [{"name": "latency", "maxIncrease": "25%"}]})
    facts = fleet(C, runs=[run(1, A, outcome="Promoted")], sites=[told(site("s0"), A, "weld-1")], policy=rules)
    decision = decide(facts)
    assert decision.obstacle is not None
    assert (decision.obstacle.reason, decision.obstacle.stalled) == ("GateInputMissing", True)
    assert "RolloutPolicy standard" in decision.obstacle.message
    assert "EdgeModel weld-qc" in decision.obstacle.message


def test_a_record_read_back_gives_the_same_bits() -> None:
    health = {"s0": (stream(B, 37),), **controls(slow=3)}
    facts = world(health, under=RELATIVE)
    decision = decide(facts)
    assert decision.rollout is not None
    case = decision.rollout.case
    assert case is not None
    lines = [encode_case(case), *(encode_stream(name, one) for name, streams in health.items() for one in streams)]
    read = [decode_line(line) for line in reversed(lines)]
    streams: dict[str, tuple[Stream, ...]] = {}
    for one in read:
        if isinstance(one, tuple):
            streams[one[0]] = (*streams.get(one[0], ()), one[1])
    again = next(one for one in read if not isinstance(one, tuple))
    assert tuple(map(record_gate, judge_case(again, streams))) == decision.rollout.status.gates


def test_nothing_is_judged_or_kept_without_gates() -> None:
    plain = revision("2.0")
    facts = fleet(
        plain,
        runs=[run(1, A, outcome="Promoted"), run(2, plain, plan=[("s0", 0)], phase="Rolling", waves=opened(("canary", 20, None)))],
        sites=[told(site("s0"), plain, "weld-2", sequence=2, since=NOW - timedelta(minutes=20))],
    )
    decision = decide(facts)
    assert decision.rollout is not None
    assert (decision.rollout.case, decision.rollout.status.gates) == (None, ())
