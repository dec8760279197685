"""One run, decided: waves and limits, people, the way back under each onFailure, the deadline, and what status says."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from edgefleet.api.conditions import find_condition
from edgefleet.api.meta import format_time
from edgefleet.api.rollout import Control, WaveApproval
from edgefleet.core.actions import AssignSite, EndRun, WithdrawSite
from edgefleet.core.decisions import RolloutDecision
from edgefleet.core.facts import RunFacts, SiteFacts
from edgefleet.core.rollout import decide
from tests.unit.core.facts_of import NOW, A, B, fleet, minutes, model, opened, policy, run, site, told

STABLE = run(1, A, outcome="Promoted")
CANARY_OPEN = opened(("canary", 5, None))
TWO_WAVES = [("s1", 0), ("s2", 1), ("s3", 1)]


def ago(count: float) -> Any:
    return NOW - minutes(count)


def go(
    *sites: SiteFacts, plan: Any = TWO_WAVES, runs: Sequence[RunFacts] = (STABLE,), spec: Any = None, revoked: Any = (), **more: Any
) -> RolloutDecision:
    """Decide run weld-2 of revision B over these sites. `more` goes to the run."""
    this = run(2, B, plan=plan, **{"phase": "Rolling", **more})
    facts = fleet(B, runs=[*runs, this], sites=sites, spec=spec or {}, model=model(B, revoked=frozenset(revoked)))
    return decide(this, {one.name: one for one in sites}, facts, NOW)


def assigned(decision: RolloutDecision) -> list[str]:
    return [action.site for action in decision.actions if isinstance(action, AssignSite)]


def names(*listed: str) -> list[SiteFacts]:
    return [site(name) for name in listed]


def on_b(name: str, state: Any = "Active", since: Any = None, heard: Any = NOW, **more: Any) -> SiteFacts:
    return told(site(name, last_heard=heard), B, "weld-2", state, sequence=2, since=since or ago(15), **more)


def on_a(name: str, run_name: str = "weld-1", state: Any = "Active", **more: Any) -> SiteFacts:
    return told(site(name), A, run_name, state, **more)


# -- forward ---------------------------------------------------------------------------------------------------------------------------


def test_the_first_wave_opens_and_its_sites_are_assigned() -> None:
    decision = go(*names("s1", "s2", "s3"), phase="Planned")
    assert decision.actions == (AssignSite("s1", B, "fp32", "weld-2"),)
    status = decision.status
    assert (status.phase, status.wave, status.waiting_for) == ("Rolling", "canary", "WaitingForSites")
    assert [(one.name, one.sites, one.opened_at is not None) for one in status.waves] == [
        ("canary", 1, True),
        ("all", 2, False),
    ]
    assert status.started_at == status.progressed_at == status.since == format_time(NOW)
    assert find_condition(status.conditions, "Progressing") is not None


def test_the_report_that_completes_a_wave_opens_the_next() -> None:
    decision = go(on_b("s1"), *names("s2", "s3"), waves=opened(("canary", 20, None)))
    assert assigned(decision) == ["s2", "s3"]
    assert [one.passed_at is not None for one in decision.status.waves] == [True, False]
    healthy = find_condition(decision.status.conditions, "Healthy")
    assert healthy is not None
    assert healthy.status == "Unknown"


def test_gates_not_configured_is_said() -> None:
    decision = go(on_b("s1"), plan=[("s1", 0), ("s2", 1)], waves=CANARY_OPEN_LONG, under=policy({"name": "canary", "sites": 1}, GATED))
    healthy = find_condition(decision.status.conditions, "Healthy")
    assert healthy is not None
    assert (healthy.status, healthy.reason) == ("True", "GatesNotConfigured")


CANARY_OPEN_LONG = opened(("canary", 20, None))
GATED: dict[str, Any] = {"name": "all", "percent": 100, "approval": {"required": 2}}
APPROVED_ONCE = (WaveApproval(wave="all", by="ada"), WaveApproval(wave="all", by="ada"), WaveApproval(wave="canary", by="bob"))


@pytest.mark.parametrize(
    ("approvals", "opens"),
    [
        pytest.param((), False, id="nobody"),
        pytest.param(APPROVED_ONCE, False, id="one-person-twice-and-another-wave"),
        pytest.param((*APPROVED_ONCE, WaveApproval(wave="all", by="bob")), True, id="two-people"),
    ],
)
def test_a_wave_waits_for_approvals_of_different_people(approvals: tuple[WaveApproval, ...], opens: bool) -> None:
    under = policy({"name": "canary", "sites": 1}, GATED)
    decision = go(on_b("s1"), *names("s2", "s3"), waves=CANARY_OPEN_LONG, under=under, control=Control(approvals=approvals))
    assert bool(assigned(decision)) is opens
    assert (decision.status.waiting_for == "AwaitingApproval") is not opens


@pytest.mark.parametrize(
    ("author", "people", "opens"),
    [
        pytest.param("ada", ("bob", "cyd"), True, id="two-others"),
        pytest.param("ada", ("ada", "bob"), False, id="the-author-and-another"),
        pytest.param("ada", ("ada", "bob", "cyd"), True, id="two-others-beside-the-author"),
        pytest.param("", ("bob", "cyd"), False, id="whoever-is-not-known-may-be-any-of-them"),
    ],
)
def test_the_author_of_a_release_does_not_count_where_the_wave_says_so(author: str, people: tuple[str, ...], opens: bool) -> None:
    waves = {"name": "canary", "sites": 1}, {"name": "all", "percent": 100, "approval": {"required": 2, "notAuthor": True}}
    facts = [on_b("s1"), *names("s2", "s3")]
    given = Control(approvals=tuple(WaveApproval(wave="all", by=by) for by in people))
    decision = go(*facts, waves=CANARY_OPEN_LONG, under=policy(*waves), control=given, author=author)
    assert bool(assigned(decision)) is opens
    if not opens:
        told = next(one.message for one in decision.status.conditions if one.type == "Progressing")
        assert f"of 2 people other than {author or 'the author, who is not known'} approved" in told


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        pytest.param(names("s1", "s2", "s3", "s4"), ["s1", "s2"], id="none-on-its-way"),
        pytest.param([on_b("s1", None), *names("s2", "s3", "s4")], ["s2"], id="one-on-its-way"),
        pytest.param([on_b("s1", None), on_b("s2", "Blocked"), *names("s3", "s4")], [], id="full"),
        pytest.param([on_b("s1"), on_b("s2", "Failed"), *names("s3", "s4")], ["s3", "s4"], id="active-and-failed-are-not-on-their-way"),
        pytest.param(
            [replace(on_b("s1", None), last_heard=ago(90)), *names("s2", "s3", "s4")], ["s2", "s3"], id="skipped-is-not-on-its-way"
        ),
        pytest.param([replace(on_b("s1", None), last_heard=ago(30)), *names("s2", "s3", "s4")], ["s2"], id="unreachable-is-waited-for"),
    ],
)
def test_max_concurrent(facts: list[SiteFacts], expected: list[str]) -> None:
    under = policy({"name": "all", "percent": 100, "maxConcurrent": 2}, maxFailed={"firstWave": 4})
    plan = [(one.name, 0) for one in facts]
    assert assigned(go(*facts, plan=plan, under=under, waves=opened(("all", 20, None)))) == expected


def test_a_site_that_becomes_eligible_again_catches_up_in_its_open_wave() -> None:
    """The canary wave has passed; a canary that was on hold then is assigned now."""
    under = policy({"name": "canary", "sites": 2}, {"name": "all", "percent": 100})
    waves = opened(("canary", 50, 20), ("all", 20, None))
    decision = go(on_b("s1"), site("s2"), on_b("s3", None), plan=[("s1", 0), ("s2", 0), ("s3", 1)], waves=waves, under=under)
    assert assigned(decision) == ["s2"]


def test_the_run_is_promoted_when_all_waves_have_passed() -> None:
    decision = go(on_b("s1"), on_b("s2"), on_b("s3"), waves=opened(("canary", 50, 30), ("all", 30, None)))
    assert decision.actions == (EndRun("weld-2", "Promoted", "AllWavesPassed", "all waves passed"),)
    status = decision.status
    assert (status.phase, status.outcome, status.waiting_for, status.ended_at) == ("Ended", "Promoted", "", format_time(NOW))
    assert all(one.passed_at for one in status.waves if one.sites)
    ready = find_condition(status.conditions, "Ready")
    assert ready is not None
    assert ready.status == "True"
    assert decision.wake_at is None


def test_what_is_not_proven_at_the_end_is_said() -> None:
    waves = opened(("canary", 50, 30), ("all", 200, None))
    dead = replace(on_b("s3", None), last_heard=ago(300))
    assert "not proven: s3" in go(on_b("s1"), on_b("s2"), dead, waves=waves).status.message


def test_a_run_that_ended_is_left_alone() -> None:
    ended = run(2, B, outcome="Superseded", plan=TWO_WAVES)
    decision = decide(ended, {}, fleet(B, runs=[ended]), NOW)
    assert (decision.actions, decision.wake_at) == ((), None)
    assert decision.status.outcome == "Superseded"


def test_a_run_whose_outcome_is_known_from_the_label_alone_gets_it_back() -> None:
    """A restore may drop status; the label keeps the outcome."""
    restored = replace(run(2, B), outcome="RolledBack")
    status = decide(restored, {}, fleet(B, runs=[restored]), NOW).status
    assert (status.phase, status.outcome) == ("Ended", "RolledBack")


def test_waves_are_judged_anew_when_their_record_was_lost() -> None:
    """A wave in which this run assigned sites is open, recorded or not; it soaks once more."""
    decision = go(on_b("s1", since=ago(300)), *names("s2", "s3"))
    assert assigned(decision) == []
    assert decision.status.waves[0].opened_at == format_time(NOW)
    assert decision.status.waiting_for == "Soaking"


def test_an_empty_wave_is_passed_over() -> None:
    decision = go(*names("s1"), plan=[("s1", 1)], phase="Planned")
    assert assigned(decision) == ["s1"]
    assert decision.status.wave == "all"


# -- people ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        pytest.param({"control": Control(paused=True)}, "UserPaused", id="paused"),
        pytest.param({"spec": {"suspend": True}}, "FleetSuspended", id="suspended"),
    ],
)
def test_nothing_goes_forward_while_held(more: Any, reason: str) -> None:
    before = go(*names("s1", "s2", "s3"), phase="Planned", **more)
    assert (before.actions, before.status.waiting_for) == ((), reason)
    amid = go(on_b("s1"), *names("s2", "s3"), waves=CANARY_OPEN_LONG, **more)
    assert (amid.actions, amid.status.waiting_for) == ((), reason)
    assert amid.status.waves[0].passed_at, "judging goes on"
    done = go(on_b("s1"), on_b("s2"), on_b("s3"), waves=opened(("canary", 50, 30), ("all", 30, None)), **more)
    assert (done.actions, done.status.phase) == ((), "Rolling")
    paused = find_condition(done.status.conditions, "Paused")
    assert paused is not None
    assert paused.reason == reason


def test_a_failure_is_acted_on_while_paused() -> None:
    decision = go(on_b("s1", "Failed"), *names("s2", "s3"), waves=CANARY_OPEN, control=Control(paused=True))
    assert decision.actions == (AssignSite("s1", A, "fp32", "weld-2"),)


def test_abort_sends_exposed_sites_back_and_ends_when_they_are_there() -> None:
    aborted = Control(aborted=True)
    waves = opened(("canary", 50, 30), ("all", 30, None))
    going = go(on_b("s1"), on_b("s2", None), site("s3"), waves=waves, control=aborted)
    assert assigned(going) == ["s1", "s2"]
    assert (going.status.phase, going.status.waiting_for, going.returning) == ("Returning", "WaitingForReturn", "AbortedByUser")
    back = go(on_a("s1", "weld-2"), on_a("s2", "weld-2"), site("s3"), waves=waves, control=aborted)
    assert [type(action) for action in back.actions] == [EndRun]
    assert (back.status.outcome, back.status.sites.rolled_back) == ("AbortedByUser", 2)
    assert find_condition(back.status.conditions, "Stalled") is not None


def test_abort_before_anything_was_assigned_ends_at_once() -> None:
    decision = go(*names("s1", "s2", "s3"), phase="Planned", control=Control(aborted=True))
    assert decision.status.outcome == "AbortedByUser"


def test_a_return_once_begun_is_finished() -> None:
    """The word may be taken back, the cause may be gone: the phase is remembered, and how it ends."""
    for reason, outcome in (("AbortedByUser", "AbortedByUser"), ("GoldenBelowMinimum", "RolledBack")):
        decision = go(on_a("s1", "weld-2"), phase="Returning", reason=reason, message="why")
        assert (decision.status.outcome, decision.status.reason, decision.status.message) == (outcome, reason, "why")


# -- the way back ----------------------------------------------------------------------------------------------------------------------

FAILED = on_b("s2", "Failed", reason="GoldenBelowMinimum")
SECOND_OPEN = opened(("canary", 50, 30), ("all", 30, None))


def act(policy_name: str, *sites: SiteFacts, **more: Any) -> RolloutDecision:
    return go(*sites, waves=SECOND_OPEN, under=policy(onFailure=policy_name), **more)


def test_rollback_all() -> None:
    decision = act("RollbackAll", on_b("s1"), FAILED, on_b("s3", None))
    assert assigned(decision) == ["s1", "s2", "s3"]
    assert all(isinstance(action, AssignSite) and action.revision == A for action in decision.actions)
    status = decision.status
    assert (status.phase, status.reason, decision.returning) == ("Returning", "GoldenBelowMinimum", "RolledBack")
    healthy = find_condition(status.conditions, "Healthy")
    assert healthy is not None
    assert (healthy.status, healthy.reason) == ("False", "GoldenBelowMinimum")


def test_rollback_wave() -> None:
    decision = act("RollbackWave", on_b("s1"), FAILED, on_b("s3", None))
    assert assigned(decision) == ["s2", "s3"]
    assert (decision.status.phase, decision.status.waiting_for, decision.status.reason) == (
        "Rolling",
        "MaxFailedExceeded",
        "MaxFailedExceeded",
    )


def test_rollback_failed() -> None:
    assert assigned(act("RollbackFailed", on_b("s1"), FAILED, on_b("s3", None))) == ["s2"]


def test_pause() -> None:
    decision = act("Pause", on_b("s1"), FAILED, on_b("s3", None))
    assert decision.actions == ()
    paused = find_condition(decision.status.conditions, "Paused")
    assert paused is not None
    assert paused.reason == "MaxFailedExceeded"
    progressing = find_condition(decision.status.conditions, "Progressing")
    assert progressing is not None
    assert "abort the run" in progressing.message


@pytest.mark.parametrize("policy_name", ["RollbackWave", "RollbackFailed", "Pause"])
def test_a_failed_run_stands_until_a_person_acts(policy_name: str) -> None:
    """Even if the failing site is gone: that it failed was recorded."""
    decision = act(policy_name, on_b("s1"), site("s3"), reason="MaxFailedExceeded", message="1 site(s) failed")
    assert decision.actions == ()
    assert (decision.status.waiting_for, decision.status.message) == ("MaxFailedExceeded", "1 site(s) failed")


@pytest.mark.parametrize(
    ("policy_name", "expected", "phase"),
    [
        pytest.param("RollbackAll", ["s1", "s3"], "Returning", id="RollbackAll"),
        pytest.param("RollbackWave", ["s3"], "Rolling", id="RollbackWave"),
        pytest.param("RollbackFailed", [], "Rolling", id="RollbackFailed"),
    ],
)
def test_a_crash_in_mid_return_is_finished(policy_name: str, expected: list[str], phase: str) -> None:
    """The failed site was sent back, the status was never written: its label is the proof."""
    decision = act(policy_name, on_b("s1"), on_a("s2", "weld-2"), on_b("s3", None))
    assert (assigned(decision), decision.status.phase) == (expected, phase)
    assert decision.taken_back


def test_silence_during_the_way_back() -> None:
    """The run ends when all that can be reached are back; who is silent is waited for until skipAfter, and keeps its order."""
    silent = on_a("s2", "weld-2", None)
    waiting = act("RollbackAll", on_a("s1", "weld-2"), replace(silent, last_heard=ago(59)), phase="Returning", reason="R")
    assert (waiting.status.phase, waiting.wake_at) == ("Returning", NOW + minutes(1))
    ended = act("RollbackAll", on_a("s1", "weld-2"), replace(silent, last_heard=ago(60)), phase="Returning", reason="R")
    assert ended.status.outcome == "RolledBack"


def test_a_held_site_is_not_sent_back() -> None:
    held = replace(on_b("s1"), spec=site("x", spec={"hold": {"until": NOW + minutes(5), "reason": "audit"}}).spec)
    decision = act("RollbackAll", held, on_a("s2", "weld-2"), site("s3"), phase="Returning", reason="R", message="m")
    assert decision.status.outcome == "RolledBack"
    assert "not sent back, as they take no change now: s1" in decision.status.message


def test_a_site_that_left_the_selector_is_sent_back() -> None:
    decision = act(
        "RollbackAll",
        replace(on_b("s1"), labels={}),
        FAILED,
        spec={"siteSelector": {"matchLabels": {"line": "weld"}}},
    )
    assert assigned(decision) == ["s1", "s2"]


def test_a_site_that_stable_does_not_fit_is_withdrawn() -> None:
    old = A.model_copy(update={"variants": A.variants[1:]})
    runs = [run(1, old, outcome="Promoted")]
    decision = act("RollbackAll", on_b("s1", "Failed"), runs=runs)
    assert decision.actions == (WithdrawSite("s1", "weld-2"),)


@pytest.mark.parametrize(("choice", "outcome"), [("Hold", None), ("Promote", None), ("Rollback", "RolledBack")])
def test_on_inconclusive(choice: str, outcome: str | None) -> None:
    """Two of three proved themselves, one is silent since the wave opened, soak.max is over."""
    sites = [on_b("s1", since=ago(80)), on_b("s2", since=ago(80)), replace(on_b("s3", None), last_heard=ago(65)), site("s4")]
    under = policy({"name": "canary", "sites": 3}, {"name": "all", "percent": 100}, onInconclusive=choice)
    plan = [("s1", 0), ("s2", 0), ("s3", 0), ("s4", 1)]
    decision = go(*sites, plan=plan, under=under, waves=opened(("canary", 80, None)))
    match choice:
        case "Hold":
            assert (decision.actions, decision.status.waiting_for) == ((), "InconclusiveAnalysis")
            assert find_condition(decision.status.conditions, "Paused") is not None
        case "Promote":
            assert assigned(decision) == ["s4"]
            assert decision.status.waves[0].passed_at
        case _:
            assert decision.returning == outcome
            assert decision.status.reason == "InconclusiveAnalysis"


@pytest.mark.parametrize("choice", ["Hold", "Promote", "Rollback"])
def test_i5_a_silent_wave_is_neither_promoted_nor_rolled_back(choice: str) -> None:
    silent = replace(on_b("s1", None), last_heard=ago(200))
    decision = go(silent, *names("s2", "s3"), under=policy(onInconclusive=choice), waves=opened(("canary", 190, None)))
    assert (decision.actions, decision.status.phase, decision.status.waiting_for) == ((), "Rolling", "SilentWave")


# -- deadline --------------------------------------------------------------------------------------------------------------------------


def long_ago(hours: float) -> str:
    return format_time(NOW - timedelta(hours=hours))


def test_progress_sets_the_deadline_back() -> None:
    decision = go(
        on_b("s1"),
        *names("s2", "s3"),
        waves=CANARY_OPEN_LONG,
        progressed_at=long_ago(20),
        since=long_ago(20),
        waiting_for="WaitingForSites",
    )
    assert assigned(decision) == ["s2", "s3"]
    assert decision.status.progressed_at == format_time(NOW)
    assert find_condition(decision.status.conditions, "Stalled") is None


@pytest.mark.parametrize("waiting", ["AwaitingApproval", "UserPaused", "FleetSuspended", "MaxFailedExceeded", "NoSafeTarget", "Soaking"])
def test_the_deadline_stands_still_while_a_person_or_a_soak_is_waited_for(waiting: str) -> None:
    """Nine of ten hours had gone when the wait began, thirty hours ago; one hour is left when it ends."""
    decision = go(
        on_b("s1", None),
        waves=opened(("canary", 2400, None)),
        progressed_at=long_ago(39),
        since=long_ago(30),
        waiting_for=waiting,
    )
    assert decision.status.waiting_for == "WaitingForSites"
    assert decision.status.progressed_at == long_ago(9)
    assert decision.wake_at == NOW + minutes(3)
    assert find_condition(decision.status.conditions, "Stalled") is None


def test_no_wave_opens_after_the_deadline_by_time_alone() -> None:
    """The wave passes because a silent site is skipped at last: that is no fact, so the next one stays closed."""
    under = policy({"name": "canary", "sites": 5}, {"name": "all", "percent": 100}, unreachable={"skipAfter": "12h"})
    sites = [on_b(f"s{number}", since=NOW - timedelta(hours=12)) for number in range(4)]
    silent = replace(on_b("s4", None), last_heard=NOW - timedelta(hours=12))
    decision = go(
        *sites,
        silent,
        site("s5"),
        plan=[*((f"s{number}", 0) for number in range(5)), ("s5", 1)],
        under=under,
        waves=opened(("canary", 780, None)),
        progressed_at=long_ago(11),
        since=long_ago(11),
        waiting_for="WaitingForSites",
        sites={"updated": 4},
    )
    assert decision.actions == ()
    assert decision.status.waves[0].passed_at
    assert decision.status.waiting_for == "ProgressDeadlineExceeded"


# -- status ----------------------------------------------------------------------------------------------------------------------------


def test_counters() -> None:
    plan = [(f"s{number}", 0) for number in range(8)]
    sites = [
        on_b("s0"),
        on_b("s1", since=ago(5)),
        on_b("s2", "Failed"),
        replace(on_b("s3", None), last_heard=ago(90)),
        replace(on_b("s4", None), last_heard=ago(30)),
        on_b("s5", "Blocked", since=ago(90)),
        site("s6", spec={"taints": [{"key": "x"}]}),
        on_b("s7", None),
    ]
    under = policy({"name": "all", "percent": 100}, maxFailed={"firstWave": 4})
    counts = go(*sites, plan=plan, under=under, waves=opened(("all", 60, None))).status.sites
    expected = {"desired": 7, "updated": 2, "ready": 2, "failed": 1, "inconclusive": 1, "unreachable": 2, "skipped": 2, "rolled_back": 0}
    assert counts.model_dump() == expected


def test_since_is_kept_while_the_same_thing_is_waited_for() -> None:
    waiting = go(on_b("s1", None), waves=CANARY_OPEN, since=long_ago(1), waiting_for="WaitingForSites", progressed_at=long_ago(1))
    assert waiting.status.since == long_ago(1)
    other = go(on_b("s1", None), waves=CANARY_OPEN, since=long_ago(1), waiting_for="Soaking", progressed_at=long_ago(1))
    assert other.status.since == format_time(NOW)
    told_since = find_condition(waiting.status.conditions, "Progressing")
    assert told_since is not None
    assert long_ago(1) in told_since.message


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        pytest.param(on_b("s1", since=ago(12), heard=ago(1)), frozenset(), id="proven"),
        pytest.param(on_b("s1", since=ago(12), heard=ago(3)), {"s1"}, id="soaked-and-not-heard-since"),
        pytest.param(on_b("s1", since=ago(8), heard=ago(1)), frozenset(), id="still-soaking"),
        pytest.param(on_b("s1", None), frozenset(), id="on-its-way"),
    ],
)
def test_unheard_are_sites_whose_next_lease_decides(facts: SiteFacts, expected: Any) -> None:
    assert go(facts, *names("s2", "s3"), waves=opened(("canary", 15, None))).unheard == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        pytest.param(on_b("s1", since=ago(4)), NOW + minutes(3), id="the-lease-before-the-soak"),
        pytest.param(on_b("s1", since=ago(8)), NOW + minutes(2), id="end-of-the-soak"),
        pytest.param(replace(on_b("s1", None), last_heard=ago(50)), NOW + minutes(10), id="skip-after"),
    ],
)
def test_wake_at(facts: SiteFacts, expected: Any) -> None:
    assert go(facts, *names("s2", "s3"), waves=CANARY_OPEN_LONG).wake_at == expected


def test_messages_of_any_length_fit_the_schema() -> None:
    loud = on_b("s1", "Failed", message="x" * 1024)
    status = go(loud, *names("s2"), waves=CANARY_OPEN).status
    assert len(status.message) == 1024
    assert all(len(one.message) <= 1024 for one in status.conditions)


# -- a person lets a wave pass ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("canary", "promoted", "opens"),
    [
        pytest.param(on_b("s1", since=ago(2)), "", False, id="nobody-said-so"),
        pytest.param(on_b("s1", since=ago(2)), "canary", True, id="in-mid-soak"),
        pytest.param(on_b("s1", since=ago(2)), "all", False, id="another-wave"),
        pytest.param(on_b("s1", state=None), "canary", False, id="told-and-silent"),
        pytest.param(on_b("s1", since=ago(2), reported=False), "canary", False, id="no-report-yet"),
        pytest.param(on_b("s1", since=ago(200), heard=ago(150), reported=False), "canary", False, id="skipped-as-silent"),
    ],
)
def test_promote_stands_in_for_time_but_not_for_silence(canary: SiteFacts, promoted: str, opens: bool) -> None:
    decision = go(canary, *names("s2", "s3"), waves=CANARY_OPEN, control=Control(promote=promoted))
    assert assigned(decision) == (["s2", "s3"] if opens else [])
    assert (decision.status.waves[0].passed_at is not None) is opens


def test_promote_does_not_keep_a_bad_revision() -> None:
    failed = on_b("s1", state="Failed", fault="Revision", reason="GoldenSetFailed")
    decision = go(failed, *names("s2", "s3"), waves=CANARY_OPEN, control=Control(promote="canary"))
    assert decision.returning == "RolledBack"
    assert assigned(decision) == ["s1"], "back to stable"


def test_promote_opens_nothing_that_is_paused_or_not_approved() -> None:
    paused = go(on_b("s1", since=ago(2)), *names("s2", "s3"), waves=CANARY_OPEN, control=Control(promote="canary", paused=True))
    assert (assigned(paused), paused.status.waiting_for) == ([], "UserPaused")
    under = policy({"name": "canary", "sites": 1}, {"name": "all", "percent": 100, "approval": {"required": 1}})
    asked = go(on_b("s1", since=ago(2)), *names("s2", "s3"), waves=CANARY_OPEN, under=under, control=Control(promote="canary"))
    assert (assigned(asked), asked.status.waiting_for) == ([], "AwaitingApproval")
