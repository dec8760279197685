"""Sites that are cut off while the fleet goes on: a week of it, sites that come late, leave, or are held; silence counts for nothing."""

import pytest

from edgefleet.core.actions import AssignSite
from tests.unit.core.facts_of import A, B, C, minutes, policy
from tests.unit.core.simulator import Simulator, build, hold

WEEK = 7 * 24 * 60
DAY = 24 * 60
QUICK = policy({"name": "canary", "sites": 1}, {"name": "all", "percent": 100}, unreachable={"skipAfter": "30m"})


def ended(version: str, outcome: str) -> object:
    return lambda simulator: any((run.revision.version, run.outcome) == (version, outcome) for run in simulator.runs)


def promoted(count: int = 4) -> Simulator:
    """A fleet whose sites all serve A, by a run."""
    simulator = build(count, A, policy=QUICK)
    simulator.run_until(ended(A.version, "Promoted"), 240)  # type: ignore[arg-type]
    assert set(simulator.serving().values()) == {A.hash}
    return simulator


def release(simulator: Simulator, what: object, outcome: str = "Promoted", limit: int = 400) -> None:
    simulator.target = what  # type: ignore[assignment]
    simulator.run_until(ended(what.version, outcome), limit)  # type: ignore[attr-defined, arg-type]


def sent_to(simulator: Simulator, site: str, since: int) -> list[str]:
    return [action.revision.version for action in simulator.log[since:] if isinstance(action, AssignSite) and action.site == site]


def test_a_site_cut_off_for_a_week_serves_and_goes_straight_to_the_newest() -> None:
    """Two releases pass it by. Neither waits for it, and it never sees the first of them."""
    simulator = promoted()
    away = simulator.sites["s0"]
    away.down = ((simulator.minute, simulator.minute + WEEK),)
    release(simulator, B)
    release(simulator, C)
    assert away.active == A.hash, "it serves what it had"
    counted = simulator.runs[-1].status.sites
    assert (counted.unreachable, counted.failed) == (1, 0), "four outcomes apart: unreachable is no failure"
    assert counted.updated == 3, "and no success"
    simulator.pass_time(WEEK)
    assert away.active == C.hash
    assert away.floor == away.facts.assignment.sequence  # type: ignore[union-attr]
    assert B.hash not in {away.active, away.facts.report and away.facts.report.revision}


def test_what_was_taken_back_meanwhile_is_never_sent_to_a_site_that_returns() -> None:
    simulator = promoted()
    away = simulator.sites["s0"]
    away.down = ((simulator.minute, simulator.minute + DAY),)
    for name in ("s1", "s2", "s3"):
        simulator.sites[name].bad = frozenset({B.hash})
    mark = len(simulator.log)
    release(simulator, B, "RolledBack")
    simulator.pass_time(DAY)
    assert away.active == A.hash
    told = sent_to(simulator, "s0", mark)
    assert not told or told[-1] == A.version, f"the last word to it must be stable, it was told {told}"


def test_a_site_that_was_told_just_before_the_cut_fails_by_itself_and_is_counted_when_it_returns() -> None:
    """Its new revision is bad there: it goes back locally, and its word counts once it is heard."""
    simulator = promoted()
    simulator.policy = QUICK.model_copy(update={"on_inconclusive": "Promote"})
    simulator.target = B
    simulator.run_until(lambda world: any(run.revision == B and run.status.wave == "all" for run in world.runs), 60)
    late = next(name for name, site in simulator.sites.items() if site.active == A.hash)
    simulator.sites[late].bad = frozenset({B.hash})
    simulator.sites[late].down = ((simulator.minute, simulator.minute + DAY),)
    simulator.run_until(ended(B.version, "Promoted"), 400)  # type: ignore[arg-type]
    assert simulator.sites[late].active == A.hash
    simulator.pass_time(DAY)
    held = simulator.sites[late].facts.assignment
    assert held is not None
    assert (held.state, held.fault, simulator.sites[late].active) == ("Failed", "Revision", A.hash)


@pytest.mark.parametrize("share", [1, 2, 4], ids=["one", "half", "all"])
def test_unreachable_sites_neither_block_for_ever_nor_count_as_success(share: int) -> None:
    simulator = promoted()
    for number in range(share):
        simulator.sites[f"s{number}"].down = ((simulator.minute, simulator.minute + DAY),)
    simulator.target = B
    simulator.pass_time(300)
    run = simulator.runs[-1]
    if share == 4:
        assert run.outcome is None, "an empty wave is never promoted"
        assert run.status.waiting_for == "SilentWave"
        simulator.pass_time(DAY)
        assert set(simulator.serving().values()) == {B.hash}, "it goes on when the fact arrives"
    else:
        # The canary may be one of those that are away: its wave then waits, and says so.
        assert run.outcome == "Promoted" or run.status.waiting_for == "SilentWave", simulator.describe()
        assert run.status.sites.updated <= 4 - share


def test_a_site_that_joins_late_gets_stable_when_the_run_is_over() -> None:
    simulator = promoted()
    simulator.sites["s9"] = build(1, A).sites["s0"]
    newcomer = simulator.sites["s9"]
    newcomer.facts = type(newcomer.facts)(**{**{f: getattr(newcomer.facts, f) for f in newcomer.facts.__slots__}, "name": "s9"})
    newcomer.down = ((0, simulator.minute + 30),)
    release(simulator, B)
    simulator.pass_time(60)
    assert newcomer.active == B.hash


def test_a_site_held_in_mid_run_is_left_alone_and_catches_up_when_the_hold_ends() -> None:
    simulator = promoted()
    simulator.target = B
    simulator.run_until(lambda world: any(run.revision == B and run.status.wave == "canary" for run in world.runs), 30)
    waiting = next(name for name, site in simulator.sites.items() if site.active == A.hash and site.facts.assignment.revision == A.hash)  # type: ignore[union-attr]
    hold(simulator, waiting, minutes(DAY))
    simulator.run_until(ended(B.version, "Promoted"), 400)  # type: ignore[arg-type]
    assert simulator.sites[waiting].active == A.hash
    hold(simulator, waiting, None)
    simulator.pass_time(10)
    assert simulator.sites[waiting].active == B.hash


def test_unreachable_sites_are_drawn_last_so_that_no_canary_is_one() -> None:
    simulator = promoted(6)
    for name in ("s0", "s2", "s4"):
        simulator.sites[name].down = ((simulator.minute, simulator.minute + DAY),)
    simulator.pass_time(10)
    release(simulator, B)
    plan = simulator.runs[-1].plan
    assert {one.site for one in plan[:3]} == {"s1", "s3", "s5"}


def test_a_last_wave_of_which_nobody_can_be_had_does_not_keep_the_run_from_its_end() -> None:
    """Its wave has not passed, and the run says who is not proven."""
    simulator = build(
        4, A, policy=policy({"name": "half", "percent": 50}, {"name": "all", "percent": 100}, unreachable={"skipAfter": "30m"})
    )
    simulator.run_until(ended(A.version, "Promoted"), 240)  # type: ignore[arg-type]
    away = ("s0", "s1")
    for name in away:
        simulator.sites[name].down = ((simulator.minute, simulator.minute + DAY),)
    simulator.pass_time(10)
    release(simulator, B)
    run = simulator.runs[-1]
    assert [wave.passed_at is None for wave in run.status.waves] == [False, True]
    assert "not proven: s0, s1" in run.status.message
    simulator.pass_time(DAY)
    assert set(simulator.serving().values()) == {B.hash}
