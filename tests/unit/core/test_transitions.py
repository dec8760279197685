"""DESIGN section 4: a fleet's memory and its transitions. Each row of the table is a test with its name, and so is each rule around it."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from edgefleet.api.conditions import find_condition
from edgefleet.api.fleet import EdgeFleetStatus
from edgefleet.api.rollout import Control
from edgefleet.core.actions import (
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
from edgefleet.core.facts import Claim, FleetFacts, FleetKey, ReportFacts, SiteFacts
from edgefleet.core.fleet import decide_fleet
from edgefleet.core.memory import next_run, recall
from edgefleet.core.status import summarise_fleet
from edgefleet.core.upkeep import HALF_LIFE, terms_of
from tests.unit.core.facts_of import NOW, A, B, C, fleet, minutes, model, opened, policy, run, site, told

STABLE = run(1, A, outcome="Promoted")
PLAN = [("s1", 0), ("s2", 1)]
ROLLING = run(2, B, plan=PLAN, phase="Rolling", waves=opened(("canary", 5, None)))


def on_a(name: str, run_name: str | None = "weld-1", state: Any = "Active", **more: Any) -> SiteFacts:
    return told(site(name), A, run_name, state, **more)


def on_b(name: str, run_name: str | None = "weld-2", state: Any = "Active", **more: Any) -> SiteFacts:
    return told(site(name), B, run_name, state, **{"sequence": 2, "since": NOW - minutes(4), **more})


def only(decision: FleetDecision, kind: type) -> list[Any]:
    return [action for action in decision.actions if isinstance(action, kind)]


def ended(decision: FleetDecision) -> list[tuple[str, str]]:
    return [(action.run, action.outcome) for action in only(decision, EndRun)]


def orders(decision: FleetDecision) -> dict[str, str]:
    """Which revision goes to which site."""
    return {action.site: action.revision.version for action in only(decision, AssignSite)}


def decide(facts: FleetFacts) -> FleetDecision:
    return decide_fleet(facts, NOW)


# -- the table -------------------------------------------------------------------------------------------------------------------------


def test_git_names_the_stable_revision_during_a_run() -> None:
    """Run ends TargetChanged, exposed sites return at once; no bar."""
    sites = [on_b("s1"), on_a("s2")]
    decision = decide(fleet(A, runs=[STABLE, ROLLING], sites=sites))
    assert ended(decision) == [("weld-2", "TargetChanged")]
    assert decision.again
    assert decision.rollout is not None
    assert decision.rollout.status.outcome == "TargetChanged"
    over = run(2, B, outcome="TargetChanged")
    after = decide(fleet(A, runs=[STABLE, over], sites=sites))
    assert orders(after) == {"s1": "1.0"}
    assert not recall(fleet(A, runs=[STABLE, over])).barred
    assert only(decide(fleet(B, runs=[STABLE, over], sites=[on_a("s1"), on_a("s2")])), StartRun)


def test_git_names_a_third_revision_during_a_run() -> None:
    """Run Superseded; its sites go first in the next run; a rollback goes to stable, never to the superseded one."""
    sites = [on_a(f"s{number}") for number in range(9)]
    for chosen in (3, 7):
        world = [on_b(one.name) if one.name == f"s{chosen}" else one for one in sites]
        assert ended(decide(fleet(C, runs=[STABLE, ROLLING], sites=world))) == [("weld-2", "Superseded")]
        over = run(2, B, outcome="Superseded")
        start = only(decide(fleet(C, runs=[STABLE, over], sites=world)), StartRun)[0]
        assert (start.name, start.revision, start.plan[0].site) == ("weld-3", C, f"s{chosen}")
        third = run(3, C, plan=[(f"s{chosen}", 0)], phase="Rolling", waves=opened(("canary", 5, None)))
        failed = told(site(f"s{chosen}"), C, "weld-3", "Failed", sequence=3)
        back = decide(fleet(C, runs=[STABLE, over, third], sites=[failed]))
        assert orders(back) == {f"s{chosen}": "1.0"}


def test_a_superseded_site_waits_for_its_wave() -> None:
    """It keeps what it has until then: it is not sent to stable first."""
    over, third = run(2, B, outcome="Superseded"), run(3, C, plan=[("s1", 0), ("s2", 1)], phase="Rolling")
    decision = decide(fleet(C, runs=[STABLE, over, third], sites=[on_b("s1"), on_b("s2")]))
    assert orders(decision) == {"s1": "3.0"}


def test_a_superseded_site_goes_to_stable_if_no_run_follows() -> None:
    runs = [STABLE, run(2, B, outcome="Superseded"), run(3, C, outcome="RolledBack")]
    assert orders(decide(fleet(C, runs=runs, sites=[on_b("s1")]))) == {"s1": "1.0"}


def test_policy_edited() -> None:
    """The active run keeps its copy; a new policy alone starts nothing."""
    edited = policy({"name": "only", "percent": 100})
    steady = decide(fleet(A, runs=[STABLE], sites=[on_a("s1")], policy=edited))
    assert steady.actions == ()
    rolling = decide(fleet(B, runs=[STABLE, ROLLING], sites=[on_b("s1"), on_a("s2")], policy=edited))
    assert rolling.rollout is not None
    assert [one.name for one in rolling.rollout.status.waves] == ["canary", "all"]


def test_no_stable_yet_rollback_is_a_signed_withdraw() -> None:
    first = run(1, B, plan=PLAN, phase="Rolling", waves=opened(("canary", 5, None)))
    decision = decide(fleet(B, runs=[first], sites=[on_b("s1", "weld-1", "Failed"), site("s2")]))
    assert decision.actions == (WithdrawSite("s1", "weld-1"),)


def test_no_stable_yet_the_golden_set_and_readiness_decide() -> None:
    """The first release passes its waves like any other."""
    first = run(1, B, plan=PLAN, phase="Rolling", waves=opened(("canary", 20, None)))
    decision = decide(fleet(B, runs=[first], sites=[on_b("s1", "weld-1", since=NOW - minutes(15)), site("s2")]))
    assert orders(decision) == {"s2": "2.0"}


def test_stable_is_revoked() -> None:
    """Newest admissible Promoted run."""
    runs = [STABLE, run(2, B, outcome="Promoted")]
    revoked = model(B, revoked=frozenset({B.digest}))
    decision = decide(fleet(B, runs=runs, sites=[on_b("s1"), on_b("s2")], model=revoked))
    assert decision.stable == A
    assert orders(decision) == {"s1": "1.0", "s2": "1.0"}
    assert decision.obstacle is not None
    assert (decision.obstacle.reason, decision.obstacle.stalled) == ("Revoked", True)


def test_stable_is_revoked_during_a_run() -> None:
    runs = [STABLE, run(2, B, outcome="Promoted"), run(3, C, plan=[("s1", 0), ("s2", 1)], phase="Rolling")]
    revoked = model(C, revoked=frozenset({B.digest}))
    decision = decide(fleet(C, runs=runs, sites=[told(site("s1"), C, "weld-3"), on_b("s2")], model=revoked))
    assert orders(decision) == {"s2": "1.0"}


def test_stable_is_revoked_and_there_is_no_other() -> None:
    """Paused, NoSafeTarget; nothing is withdrawn."""
    revoked = model(A, revoked=frozenset({A.digest}))
    decision = decide(fleet(A, runs=[STABLE], sites=[on_a("s1")], model=revoked))
    assert decision.actions == ()
    assert decision.obstacle is not None
    assert (decision.obstacle.reason, decision.obstacle.paused) == ("NoSafeTarget", True)


def test_a_run_that_fails_without_a_safe_target_stands() -> None:
    revoked = model(B, revoked=frozenset({A.digest}))
    decision = decide(fleet(B, runs=[STABLE, ROLLING], sites=[on_b("s1", state="Failed"), on_a("s2")], model=revoked))
    assert decision.actions == ()
    assert decision.rollout is not None
    status = decision.rollout.status
    assert (status.phase, status.waiting_for) == ("Returning", "NoSafeTarget")
    paused = find_condition(status.conditions, "Paused")
    assert paused is not None
    assert paused.reason == "NoSafeTarget"


def test_without_a_safe_target_a_good_release_still_starts() -> None:
    revoked = model(C, revoked=frozenset({A.digest}))
    decision = decide(fleet(C, runs=[STABLE], sites=[on_a("s1")], model=revoked))
    assert [action.revision for action in only(decision, StartRun)] == [C]


def test_what_was_promoted_once_and_taken_back_later_is_no_safe_target() -> None:
    runs = [STABLE, run(2, B, outcome="Promoted"), run(3, A, outcome="RolledBack")]
    revoked = model(A, revoked=frozenset({B.digest}))
    assert decide(fleet(A, runs=runs, sites=[on_b("s1")], model=revoked)).stable is None


def test_the_runs_own_revision_is_revoked() -> None:
    revoked = model(B, revoked=frozenset({B.digest}))
    decision = decide(fleet(B, runs=[STABLE, ROLLING], sites=[on_b("s1"), on_a("s2")], model=revoked))
    assert orders(decision) == {"s1": "1.0"}
    assert decision.rollout is not None
    assert (decision.rollout.status.reason, decision.rollout.returning) == ("Revoked", "RolledBack")


def test_no_eligible_site() -> None:
    """No run, NoSiteMatched; it starts when one appears."""
    waiting = decide(fleet(A, sites=[site("s1", spec={"allowedNamespaces": None})]))
    assert waiting.obstacle is not None
    assert (waiting.actions, waiting.obstacle.reason) == ((), "NoSiteMatched")
    assert "NamespaceNotAllowed 1" in waiting.obstacle.message
    none = decide(fleet(A))
    assert none.obstacle is not None
    assert "matches none of 0" in none.obstacle.message
    assert only(decide(fleet(A, sites=[site("s1")])), StartRun)


def test_a_site_joins_without_a_run() -> None:
    """Stable at once."""
    decision = decide(fleet(A, runs=[STABLE], sites=[on_a("s1"), site("s2")]))
    assert decision.actions == (AssignSite("s2", A, "fp32", None),)


def test_a_site_joins_during_a_run() -> None:
    """The plan is frozen (I3): it waits for the run's end, and gets what is stable then."""
    joined = [on_b("s1"), on_a("s2"), site("s3")]
    assert decide(fleet(B, runs=[STABLE, ROLLING], sites=joined)).actions == ()
    promoted = [STABLE, run(2, B, outcome="Promoted")]
    assert orders(decide(fleet(B, runs=promoted, sites=[on_b("s1"), on_b("s2"), site("s3")]))) == {"s3": "2.0"}
    back = [STABLE, run(2, B, outcome="RolledBack")]
    assert orders(decide(fleet(B, runs=back, sites=[on_a("s1"), on_a("s2"), site("s3")]))) == {"s3": "1.0"}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"labels": {}}, id="leaves-the-selector"),
        pytest.param({"spec": {"hold": {"until": NOW + minutes(9), "reason": "audit"}}}, id="held"),
        pytest.param({"spec": {"taints": [{"key": "dirty"}]}}, id="tainted"),
        pytest.param({"spec": {"allowedNamespaces": None}}, id="not-ours-any-more"),
        pytest.param({"spec": {"region": "us"}}, id="moved"),
    ],
)
def test_a_site_leaves_mid_run(change: Any) -> None:
    """Recounted with its reason; it keeps serving: no order goes to it, and the wave does not wait for it."""
    spec = {"siteSelector": {"matchLabels": {"line": "weld"}}, "residency": {"allowedRegions": ["kz"]}}
    rolling = run(
        2,
        B,
        plan=[("s1", 0), ("s2", 0)],
        phase="Rolling",
        waves=opened(("two", 20, None)),
        under=policy({"name": "two", "sites": 2}, {"name": "all", "percent": 100}),
    )
    stays = on_b("s1", since=NOW - minutes(15))
    for leaves in (told(site("s2", **change), B, "weld-2", "Progressing", sequence=2), told(site("s2", **change), A, "weld-1")):
        decision = decide(fleet(B, runs=[STABLE, rolling], sites=[stays, leaves], spec=spec))
        assert decision.rollout is not None
        assert ended(decision) == [("weld-2", "Promoted")]
        assert not orders(decision)
        assert not only(decision, WithdrawSite)
        counts = decision.rollout.status.sites
        assert (counts.desired, counts.skipped) == (1, 1)


def test_two_fleets_claim_one_model_at_one_site() -> None:
    """Who is there keeps it, else the older, then by name; the other shows SiteTaken for that site only."""
    other = Claim(FleetKey("plants", "other"), NOW - timedelta(days=3), assigned=False)
    decision = decide(fleet(A, runs=[STABLE], sites=[site("s1", claims=(other,)), site("s2")]))
    assert orders(decision) == {"s2": "1.0"}
    assert decision.eligibilities["s1"].reason == "SiteTaken"
    held = replace(on_a("s1"), claims=(other,))
    assert decide(fleet(A, runs=[STABLE], sites=[held])).eligibilities["s1"].eligible


def test_progress_deadline_passes() -> None:
    """Nothing ends: Stalled, what it waits for, since when; no wave opens; it goes on when the fact arrives."""
    stuck = run(
        2,
        B,
        plan=PLAN,
        phase="Rolling",
        waves=opened(("canary", 700, None)),
        waiting_for="WaitingForSites",
        since="2026-03-01T01:00:00Z",
        progressed_at="2026-03-01T01:00:00Z",
    )
    late = decide(fleet(B, runs=[STABLE, stuck], sites=[on_b("s1", state="Progressing"), on_a("s2")]))
    assert late.actions == ()
    assert late.rollout is not None
    stalled = find_condition(late.rollout.status.conditions, "Stalled")
    assert stalled is not None
    assert stalled.reason == "ProgressDeadlineExceeded"
    assert "WaitingForSites since 2026-03-01T01:00:00Z" in stalled.message
    arrived = decide(fleet(B, runs=[STABLE, stuck], sites=[on_b("s1", since=NOW - minutes(15)), on_a("s2")]))
    assert orders(arrived) == {"s2": "2.0"}


def test_fleet_deleted_retain() -> None:
    """Sites keep serving (I12)."""
    decision = decide(fleet(A, runs=[STABLE, ROLLING], sites=[on_a("s1"), on_b("s2")], deleting=True))
    assert decision.actions == (ReleaseFleet(),)


def test_fleet_deleted_withdraw() -> None:
    """Signed withdrawals; the finalizer ends when all confirmed, or after skipAfter."""
    held = told(site("s3", spec={"hold": {"until": NOW + minutes(9), "reason": "audit"}}), A, "weld-1")
    more: dict[str, Any] = {"runs": [STABLE, ROLLING], "spec": {"onDelete": "Withdraw"}, "deleting": True, "deleted_at": NOW}
    sites = [on_a("s1"), on_b("s2"), held, site("s4")]
    decision = decide(fleet(A, sites=sites, **more))
    assert ended(decision) == [("weld-2", "TargetChanged")]
    assert only(decision, WithdrawSite) == [WithdrawSite("s1"), WithdrawSite("s2")]
    assert not only(decision, ReleaseFleet)
    more["runs"] = [STABLE, run(2, B, outcome="TargetChanged")]
    gone, going = told(site("s1"), None, None, "Withdrawn"), told(site("s2"), None, None, None)
    waiting = decide(fleet(A, sites=[gone, going], **more))
    assert (waiting.actions, waiting.wake_at) == ((), NOW + minutes(60))
    assert waiting.obstacle is not None
    assert "s2" in waiting.obstacle.message
    more["deleted_at"] = NOW - minutes(60)
    assert decide(fleet(A, sites=[gone, going], **more)).actions == (ReleaseFleet(),)
    more["deleted_at"] = NOW
    assert decide(fleet(A, sites=[gone], **more)).actions == (ReleaseFleet(),)


def test_run_deleted() -> None:
    """The sites keep serving what the runs that are left call stable; without any run, what they report is adopted."""
    assert decide(fleet(A, runs=[], sites=[on_a("s1")])).actions == (AdoptRun("weld-2", 2, A, policy()),)


# -- memory ----------------------------------------------------------------------------------------------------------------------------


def test_a_run_starts() -> None:
    decision = decide(fleet(B, runs=[STABLE], sites=[on_a("s1"), on_a("s2")]))
    start = only(decision, StartRun)[0]
    assert (start.name, start.number, start.revision, start.policy) == ("weld-2", 2, B, policy())
    assert [one.wave for one in start.plan] == [0, 1]
    assert decision.again


@pytest.mark.parametrize("outcome", ["RolledBack", "AbortedByUser"])
def test_i10_a_barred_revision_does_not_start(outcome: Any) -> None:
    """And it is Stalled, with the way out; deleting the run lifts it."""
    runs = [STABLE, run(2, B, outcome=outcome, reason="GoldenBelowMinimum", message="score 12%")]
    decision = decide(fleet(B, runs=runs, sites=[on_a("s1")]))
    assert decision.actions == ()
    assert decision.obstacle is not None
    assert (decision.obstacle.reason, decision.obstacle.stalled) == (outcome, True)
    assert "edgefleet rollout forget weld-2" in decision.obstacle.message
    assert "score 12%" in decision.obstacle.message
    assert only(decide(fleet(B, runs=[STABLE], sites=[on_a("s1")])), StartRun)


def test_a_fixed_spec_is_a_new_revision_and_not_barred() -> None:
    fixed = B.model_copy(update={"hash": C.hash})
    runs = [STABLE, run(2, B, outcome="RolledBack")]
    assert only(decide(fleet(fixed, runs=runs, sites=[on_a("s1")])), StartRun)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        pytest.param({"model": None}, "ModelNotFound", id="model-missing"),
        pytest.param({"policy": None, "spec": {"rolloutPolicyRef": {"name": "careful"}}}, "PolicyNotFound", id="policy-missing"),
        pytest.param({"model": model(None)}, "ReleaseNotVerified", id="not-yet-verified"),
        pytest.param({"model": model(None, reason="SignatureMissing", message="m")}, "SignatureMissing", id="never-verified"),
        pytest.param({"model": model(B, verified=False, reason="SignatureMissing")}, "SignatureMissing", id="not-verified-now"),
        pytest.param({"model": model(B, verified=False, reason="")}, "ReleaseNotVerified", id="not-verified-no-reason"),
        pytest.param({"model": model(B, revoked=frozenset({B.digest}))}, "Revoked", id="revoked"),
        pytest.param({"spec": {"suspend": True}}, "FleetSuspended", id="suspended"),
    ],
)
def test_what_keeps_a_run_from_starting(facts: Any, reason: str) -> None:
    decision = decide(fleet(B, runs=[STABLE], sites=[on_a("s1")], **facts))
    assert decision.obstacle is not None
    assert (decision.actions, decision.obstacle.reason) == ((), reason)


def test_without_a_policy_ref_the_standard_policy_holds() -> None:
    start = only(decide(fleet(B, sites=[site("s1")], policy=None)), StartRun)[0]
    assert [wave.name for wave in start.policy.waves] == ["canary", "ten", "half", "all"]


def test_a_missing_model_or_policy_does_not_stop_a_run() -> None:
    decision = decide(fleet(None, runs=[STABLE, ROLLING], sites=[site("s1"), on_a("s2")], model=None))
    assert orders(decision) == {"s1": "2.0"}
    assert decision.obstacle is not None
    assert decision.obstacle.reason == "ModelNotFound"


def test_a_failed_verification_does_not_stop_a_run() -> None:
    unsigned = model(B, verified=False, reason="SignatureMissing")
    assert orders(decide(fleet(B, runs=[STABLE, ROLLING], sites=[site("s1"), on_a("s2")], model=unsigned))) == {"s1": "2.0"}


def test_a_run_that_takes_back_ends_barring_whatever_git_names() -> None:
    """The way back is not an escape: a failed revision stays barred when Git names another one meanwhile."""
    returning = replace(ROLLING, status=ROLLING.status.model_copy(update={"phase": "Returning", "reason": "GoldenBelowMinimum"}))
    for target in (A, C):
        decision = decide(fleet(target, runs=[STABLE, returning], sites=[on_b("s1"), on_a("s2")]))
        assert ended(decision) == [("weld-2", "RolledBack")]
        assert decision.rollout is not None
        assert decision.rollout.status.reason == "GoldenBelowMinimum"
    aborted = replace(ROLLING, control=Control(aborted=True))
    assert ended(decide(fleet(C, runs=[STABLE, aborted], sites=[on_b("s1")]))) == [("weld-2", "AbortedByUser")]
    partly = run(2, B, plan=PLAN, phase="Rolling", under=policy(onFailure="RollbackFailed"), waves=opened(("canary", 5, None)))
    assert ended(decide(fleet(C, runs=[STABLE, partly], sites=[on_a("s1", "weld-2")]))) == [("weld-2", "RolledBack")]


def test_sites_that_a_run_left_behind_go_to_stable_even_during_the_next_run() -> None:
    over, third = run(2, B, outcome="RolledBack"), run(3, C, plan=[("s2", 0), ("s1", 1)], phase="Rolling")
    decision = decide(fleet(C, runs=[STABLE, over, third], sites=[on_b("s1"), on_a("s2")]))
    assert orders(decision) == {"s2": "3.0", "s1": "1.0"}


def test_a_site_left_behind_stays_if_its_revision_is_wanted_again() -> None:
    """Git named B, then A, then B again: a site that never came back from B waits for its wave with B."""
    over, again = run(2, B, outcome="TargetChanged"), run(3, B, plan=[("s2", 0), ("s1", 1)], phase="Rolling")
    assert orders(decide(fleet(B, runs=[STABLE, over, again], sites=[on_b("s1"), on_a("s2")]))) == {"s2": "2.0"}


def test_one_order_per_site_and_pass() -> None:
    """A site left behind whose wave is open gets the new revision, not stable first."""
    over, third = run(2, B, outcome="RolledBack"), run(3, C, plan=[("s1", 0)], phase="Rolling")
    assert orders(decide(fleet(C, runs=[STABLE, over, third], sites=[on_b("s1")]))) == {"s1": "3.0"}


def test_a_site_left_behind_by_a_first_run_is_withdrawn() -> None:
    decision = decide(
        fleet(
            C, runs=[run(2, B, outcome="RolledBack")], sites=[on_b("s1"), site("s2", spec={"region": "us"})], model=model(C, verified=False)
        )
    )
    assert decision.actions == (WithdrawSite("s1", None),)


def test_what_is_not_verified_supersedes_nothing_but_stable_is_gone_back_to() -> None:
    """A changed golden set or serving entry is another revision at once, before anybody verified it."""
    world = [told(site("s1"), B, run="weld-2"), site("s2")]
    decision = decide_fleet(fleet(C, model=model(C, verified=False), runs=[STABLE, ROLLING], sites=world), NOW)
    assert ended(decision) == []
    assert decision.run == "weld-2"
    decision = decide_fleet(fleet(A, model=model(A, verified=False), runs=[STABLE, ROLLING], sites=world), NOW)
    assert ended(decision) == [("weld-2", "TargetChanged")]


def test_a_run_that_cannot_be_read_stops_its_fleet_and_says_so() -> None:
    """Without its plan the run would have no site left to wait for, and be promoted; without the run, another would start."""
    world = [told(site("s1"), A, run="weld-1"), site("s2")]
    facts = fleet(B, runs=[STABLE], sites=world, unreadable=("ModelRollout weld-2 cannot be used: its plan is gone. Delete it",))
    decision = decide_fleet(facts, NOW)
    assert decision.actions == ()
    stalled = find_condition(summarise_fleet(facts, decision, old=EdgeFleetStatus(), now=NOW).conditions, "Stalled")
    assert stalled is not None
    assert (stalled.reason, stalled.message) == ("RunUnreadable", "ModelRollout weld-2 cannot be used: its plan is gone. Delete it")


def test_a_superseded_run_waits_while_the_fleet_is_suspended() -> None:
    decision = decide(fleet(C, runs=[STABLE, ROLLING], sites=[on_b("s1"), on_a("s2")], spec={"suspend": True}))
    assert decision.actions == ()
    assert decision.rollout is not None
    assert decision.rollout.status.waiting_for == "FleetSuspended"


def test_suspend_keeps_joiners_waiting_but_not_the_way_back() -> None:
    suspended: dict[str, Any] = {"spec": {"suspend": True}}
    assert decide(fleet(A, runs=[STABLE], sites=[site("s1")], **suspended)).actions == ()
    runs = [STABLE, run(2, B, outcome="RolledBack")]
    assert orders(decide(fleet(B, runs=runs, sites=[on_b("s1")], **suspended))) == {"s1": "1.0"}


def test_two_active_runs_the_newest_stays() -> None:
    """A crash between ending one and starting the next leaves two."""
    third = run(3, C, plan=PLAN, phase="Planned")
    decision = decide(fleet(C, runs=[STABLE, ROLLING, third], sites=[on_b("s1"), on_a("s2")]))
    assert ended(decision) == [("weld-2", "Superseded")]
    assert decision.again


def test_history_keeps_three_promoted_and_every_barring_run() -> None:
    runs = [run(number, A, outcome="Promoted") for number in range(1, 6)]
    runs += [run(number, B, outcome="RolledBack") for number in range(6, 11)]
    runs += [run(number, C, outcome="Superseded") for number in range(11, 16)]
    decision = decide(fleet(A, runs=runs, sites=[on_a("s1", "weld-2")]))
    assert {action.run for action in only(decision, ForgetRun)} == {"weld-1", "weld-11", "weld-12"}


def test_a_forgotten_number_is_not_used_again_while_a_site_names_it() -> None:
    assert next_run(fleet(B, runs=[STABLE], sites=[on_b("s1", "weld-7"), on_a("s2", "other-9"), on_a("s3", "weld-x")])) == (8, "weld-8")
    assert next_run(fleet(B)) == (1, "weld-1")


# -- adoption --------------------------------------------------------------------------------------------------------------------------


def reporting(name: str, what: Any, sequence: int = 7, **more: Any) -> SiteFacts:
    return site(name, report=ReportFacts(what.hash if what else None, sequence, sequence, NOW), **more)


def test_adoption() -> None:
    """Without any run, if all reporting eligible sites name the target: one run, Promoted, and each site's own sequence."""
    decision = decide(fleet(A, sites=[reporting("s1", A, 7), reporting("s2", A, 9), site("s3")]))
    assert decision.actions == (
        AdoptRun("weld-1", 1, A, policy()),
        AdoptSite("s1", A, "fp32", 7),
        AdoptSite("s2", A, "fp32", 9),
    )
    assert decision.again
    adopted = run(1, A, outcome="Promoted", reason="Adopted")
    rest = decide(fleet(A, runs=[adopted], sites=[told(site("s1"), A, None, sequence=7), reporting("s2", A, 9), site("s3")]))
    assert rest.actions == (AdoptSite("s2", A, "fp32", 9), AssignSite("s3", A, "fp32", None))


def test_adoption_goes_above_an_order_that_failed_at_the_site() -> None:
    """The site runs A from order 7 and has refused 8 since: an order 7 again would be below its floor."""
    facts = replace(site("s1"), report=ReportFacts(A.hash, 7, 8, NOW))
    assert only(decide(fleet(A, sites=[facts])), AdoptSite) == [AdoptSite("s1", A, "fp32", 9)]


@pytest.mark.parametrize(
    "sites",
    [
        pytest.param([reporting("s1", A), reporting("s2", B)], id="they-differ"),
        pytest.param([reporting("s1", B), reporting("s2", B)], id="they-differ-from-the-target"),
    ],
)
def test_adoption_conflict(sites: Any) -> None:
    decision = decide(fleet(A, sites=sites))
    assert decision.obstacle is not None
    assert (decision.actions, decision.obstacle.reason, decision.obstacle.paused) == ((), "AdoptionConflict", True)
    assert "spec.hold" in decision.obstacle.message


def test_adoption_leaves_out_who_may_not_be_used() -> None:
    refused = reporting("s2", B, spec={"allowedNamespaces": None})
    assert only(decide(fleet(A, sites=[reporting("s1", A), refused])), AdoptRun)


def test_sites_that_report_nothing_for_this_fleet_start_a_normal_run() -> None:
    assert only(decide(fleet(A, sites=[site("s1"), reporting("s2", None)])), StartRun)


def test_a_withdrawn_site_whose_report_is_old_is_not_adopted() -> None:
    """A forgotten rollback must not come back as an adoption."""
    silent = replace(told(site("s1"), None, "weld-1", None), report=ReportFacts(B.hash, 1, 1, NOW))
    assert only(decide(fleet(B, sites=[silent])), StartRun)


def test_adoption_waits_for_sites_that_were_not_heard_yet() -> None:
    """The first Lease after a restore may be the canary's."""
    fresh = {"created_at": NOW - minutes(1), "sites": [reporting("s1", A), site("s2", hardware=None)]}
    waiting = decide(fleet(A, **fresh))
    assert waiting.obstacle is not None
    assert (waiting.actions, waiting.obstacle.reason) == ((), "AwaitingReports")
    assert waiting.wake_at == NOW + minutes(3)
    assert only(decide(fleet(A, **{**fresh, "created_at": NOW - minutes(60)})), AdoptRun)


@pytest.mark.parametrize("reason", ["SequenceTooLow", "SequenceReused"])
def test_a_refused_sequence_is_raised(reason: str) -> None:
    """A hub that lost its memory: the same order goes out once more under a higher sequence, in a run and outside of one."""
    refused = on_a("s1", None, "Refused", reason=reason, variant="fp32")
    assert decide(fleet(A, runs=[STABLE], sites=[refused])).actions == (AssignSite("s1", A, "fp32", None),)
    amid = on_b("s1", state="Refused", reason=reason, variant="fp32")
    assert decide(fleet(B, runs=[STABLE, ROLLING], sites=[amid, on_a("s2")])).actions == (AssignSite("s1", B, "fp32", "weld-2"),)
    gone = told(site("s1"), None, "weld-2", "Refused", reason=reason)
    assert decide(fleet(B, runs=[run(2, B, outcome="RolledBack")], sites=[gone])).actions == (WithdrawSite("s1", "weld-2"),)
    unknown = told(site("s1"), C, None, "Refused", reason=reason)
    assert decide(fleet(B, runs=[run(2, B, outcome="RolledBack")], sites=[unknown])).actions == ()


# -- renewal ---------------------------------------------------------------------------------------------------------------------------


def expiring(facts: SiteFacts, left: timedelta) -> SiteFacts:
    assert facts.assignment is not None
    return replace(facts, assignment=replace(facts.assignment, expires_at=NOW + left))


def test_renewal_at_half_life() -> None:
    fresh = decide(fleet(A, runs=[STABLE], sites=[replace(expiring(on_a("s1"), HALF_LIFE + minutes(2)))]))
    assert (fresh.actions, fresh.wake_at) == ((), NOW + minutes(2))
    assert decide(fleet(A, runs=[STABLE], sites=[expiring(on_a("s1"), HALF_LIFE)])).actions == (RenewSite("s1"),)


def test_renewal_goes_on_where_nothing_else_does() -> None:
    """For a site that left the selector, in a suspended fleet, during a run; not for one that is deleted or withdrawn."""
    due = HALF_LIFE - minutes(1)
    sites = [
        expiring(replace(on_a("s1"), labels={}), due),
        expiring(replace(on_a("s2"), deleting=True), due),
        expiring(told(site("s3"), None, None, "Withdrawn"), due),
        expiring(told(site("s4"), None, None, None), due),
    ]
    spec = {"suspend": True, "siteSelector": {"matchLabels": {"line": "weld"}}}
    assert decide(fleet(A, runs=[STABLE], sites=sites, spec=spec)).actions == (RenewSite("s1"), RenewSite("s4"))
    rolling = [expiring(on_b("s1", since=NOW - minutes(4)), due), on_a("s2")]
    assert decide(fleet(B, runs=[STABLE, ROLLING], sites=rolling)).actions == (RenewSite("s1"),)


@pytest.mark.parametrize(
    "spec",
    [
        {"registries": [{"match": "registry.example", "mirror": "mirror.example"}]},
        {"proxy": {"https": "http://proxy.example:3128"}},
        {"storage": {"limit": "5Gi"}},
    ],
)
def test_renewal_at_once_when_the_order_says_what_is_not_true_of_its_site_any_more(spec: dict[str, Any]) -> None:
    new = site("s1", spec=spec)
    stale, plain = replace(on_a("s1"), spec=new.spec), on_a("s1")
    assert decide(fleet(A, runs=[STABLE], sites=[stale])).actions == (RenewSite("s1"),)
    assert stale.assignment is not None
    told_so = replace(stale, assignment=replace(stale.assignment, terms=terms_of(new.spec)))
    assert decide(fleet(A, runs=[STABLE], sites=[told_so])).actions == ()
    # Back to the default, and of others: what was told is not true any more, either.
    back = replace(told_so, spec=plain.spec)
    assert decide(fleet(A, runs=[STABLE], sites=[back, on_a("s2")])).actions == (RenewSite("s1"),)
    assert (terms_of(plain.spec), len(terms_of(new.spec))) == ("", 16)


def test_renewal_at_once_by_a_hub_that_has_another_key_now() -> None:
    def signed(name: str, key: str) -> SiteFacts:
        one = on_a(name)
        assert one.assignment is not None
        return replace(one, assignment=replace(one.assignment, signer=key))

    sites = [signed("s1", "sha256:old"), signed("s2", "sha256:new"), signed("s3", "")]
    facts = fleet(A, runs=[STABLE], sites=sites)
    assert decide(replace(facts, hub_key="sha256:new")).actions == (RenewSite("s1"),)
    assert decide(facts).actions == (), "whoever signs nothing compares nothing"


def test_a_site_that_is_ordered_anyway_needs_no_renewal() -> None:
    site_due = expiring(on_a("s1"), HALF_LIFE)
    rolling = run(2, B, plan=[("s1", 0)], phase="Planned")
    assert decide(fleet(B, runs=[STABLE, rolling], sites=[site_due])).actions == (AssignSite("s1", B, "fp32", "weld-2"),)


# -- time ------------------------------------------------------------------------------------------------------------------------------


def test_wake_at_is_the_next_moment_that_changes_something() -> None:
    assert decide(fleet(A, runs=[STABLE], sites=[on_a("s1")])).wake_at == NOW + minutes(3), "when the site counts as unreachable"
    held = told(site("s1", spec={"hold": {"until": NOW + minutes(1), "reason": "x"}}), A, "weld-1")
    assert decide(fleet(A, runs=[STABLE], sites=[held])).wake_at == NOW + minutes(1)
    assert decide(fleet(A)).wake_at is None


def test_a_release_that_nobody_put_their_name_to_starts_no_run_where_others_than_its_author_must_approve() -> None:
    under = policy({"name": "all", "percent": 100, "approval": {"required": 1, "notAuthor": True}})
    sites = [on_a("s1")]
    unknown = decide(fleet(B, runs=[STABLE], sites=sites, policy=under))
    assert not only(unknown, StartRun)
    assert unknown.obstacle is not None
    assert (unknown.obstacle.reason, unknown.obstacle.stalled) == ("AuthorUnknown", True)
    known = decide(fleet(B, runs=[STABLE], sites=sites, policy=under, model=model(B, author="ada")))
    assert [action.author for action in only(known, StartRun)] == ["ada"]


@pytest.mark.parametrize(
    ("reported", "floor", "target", "moves"),
    [
        pytest.param(C, 7, A, False, id="a-later-order-for-what-no-run-is-of"),
        pytest.param(C, 7, C, True, id="named-by-the-model-meanwhile"),
        pytest.param(B, 7, A, True, id="what-a-run-took-back"),
        pytest.param(C, 1, A, True, id="an-order-of-ours"),
    ],
)
def test_a_hub_that_was_restored_from_an_older_backup_moves_nothing_that_it_does_not_know(
    reported: Any, floor: int, target: Any, moves: bool
) -> None:
    over = run(2, B, outcome="RolledBack")
    ahead = replace(site("s1"), report=ReportFacts(reported.hash, floor, floor, NOW))
    if floor == 1:
        ahead = replace(ahead, assignment=on_a("s1").assignment)
    decision = decide(fleet(target, runs=[STABLE, over], sites=[ahead, on_a("s2")]))
    assert bool(decision.actions) is moves or (moves and decision.obstacle is None)
    assert (decision.obstacle is not None and decision.obstacle.reason == "AdoptionConflict") is not moves
    if not moves:
        assert decision.obstacle is not None
        assert decision.obstacle.paused
        assert f"{C.hash[:8]} at 1 site(s): s1" in decision.obstacle.message
