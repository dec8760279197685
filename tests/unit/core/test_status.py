"""Conditions and counters as people and GitOps tools read them: kstatus, reasons, remedies, transition times."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from edgefleet.api.conditions import Condition, find_condition
from edgefleet.api.fleet import EdgeFleetStatus
from edgefleet.api.meta import format_time
from edgefleet.api.model import EdgeModelStatus, Release
from edgefleet.api.report import SiteReport
from edgefleet.api.rollout import Control
from edgefleet.api.site import EdgeSiteSpec, EdgeSiteStatus
from edgefleet.core.facts import FleetFacts, SiteFacts
from edgefleet.core.fleet import decide_fleet
from edgefleet.core.status import summarise_fleet, summarise_model, summarise_site
from tests.unit.core.facts_of import AMD64, NOW, A, B, digest_of, fleet, minutes, model, opened, policy, run, site, told, variant

STABLE = run(1, A, outcome="Promoted", message="all waves passed")
ROLLING = run(2, B, plan=[("s1", 0), ("s2", 1)], phase="Rolling", waves=opened(("canary", 5, None)))
LATER = NOW + minutes(7)


def on_a(name: str, state: Any = "Active", **more: Any) -> SiteFacts:
    return told(site(name), A, "weld-1", state, **more)


def on_b(name: str, state: Any = "Active", **more: Any) -> SiteFacts:
    return told(site(name), B, "weld-2", state, **{"sequence": 2, "since": NOW - minutes(4), **more})


def summarise(facts: FleetFacts, old: EdgeFleetStatus | None = None, now: Any = NOW) -> EdgeFleetStatus:
    return summarise_fleet(facts, decide_fleet(facts, now), old=old or EdgeFleetStatus(), now=now)


def get(status: Any, kind: str) -> Condition | None:
    return find_condition(status.conditions, kind)


def says(status: Any, kind: str) -> tuple[str, str] | None:
    found = get(status, kind)
    return (found.status, found.reason) if found else None


# -- EdgeFleet -------------------------------------------------------------------------------------------------------------------------

REMOTE = replace(on_a("s2"), last_heard=NOW - minutes(9))
BARRED = run(2, B, outcome="RolledBack", reason="GoldenBelowMinimum", message="score 12%")

FLEETS = [
    pytest.param(fleet(A, runs=[STABLE], sites=[on_a("s1")]), ("True", "SitesReady"), None, id="steady"),
    pytest.param(fleet(A, runs=[STABLE], sites=[on_a("s1"), REMOTE]), ("True", "SitesReady"), None, id="silence-is-no-fault"),
    pytest.param(fleet(A, runs=[STABLE], sites=[on_a("s1", "Progressing")]), ("False", "SitesProgressing"), None, id="joiner"),
    pytest.param(fleet(A, runs=[STABLE], sites=[site("s1")]), ("False", "SitesProgressing"), None, id="joiner-not-told"),
    pytest.param(fleet(A, runs=[STABLE], sites=[on_a("s1", "Blocked", reason="StoreFull")]), ("False", "SitesNotReady"), None, id="fault"),
    pytest.param(fleet(B, runs=[STABLE, ROLLING], sites=[on_b("s1"), on_a("s2")]), ("True", "RolloutUnderWay"), None, id="run"),
    pytest.param(fleet(B, runs=[STABLE, BARRED], sites=[on_a("s1")]), ("False", "RolledBack"), ("True", "RolledBack"), id="rolled-back"),
    pytest.param(fleet(A, runs=[STABLE], model=None), ("False", "ModelNotFound"), ("True", "ModelNotFound"), id="no-model"),
    pytest.param(fleet(A), ("False", "NoSiteMatched"), None, id="no-site"),
    pytest.param(fleet(None, sites=[site("s1")]), ("False", "ReleaseNotVerified"), None, id="first-look"),
    pytest.param(
        fleet(A, runs=[STABLE], sites=[on_a("s1")], model=model(A, verified=False, reason="SignatureMissing")),
        ("False", "SignatureMissing"),
        None,
        id="unsigned",
    ),
    pytest.param(fleet(B, runs=[STABLE], sites=[on_a("s1")], spec={"suspend": True}), ("True", "FleetSuspended"), None, id="suspended"),
]


@pytest.mark.parametrize(("facts", "ready", "stalled"), FLEETS)
def test_fleet_ready_and_stalled(facts: FleetFacts, ready: Any, stalled: Any) -> None:
    status = summarise(facts)
    assert says(status, "Ready") == ready
    assert says(status, "Stalled") == stalled
    assert (says(status, "Reconciling") is not None) is (ready[1] == "ReleaseNotVerified")
    assert all(one.observed_generation == facts.generation for one in status.conditions)


def test_a_fault_is_told_with_its_reason() -> None:
    status = summarise(fleet(A, runs=[STABLE], sites=[on_a("s1", "Blocked", reason="StoreFull", message="20Gi used")]))
    ready = get(status, "Ready")
    assert ready is not None
    assert "StoreFull: 20Gi used" in ready.message


def test_a_run_shows_what_it_waits_for_and_since_when() -> None:
    status = summarise(fleet(B, runs=[STABLE, ROLLING], sites=[on_b("s1"), on_a("s2")]))
    progressing = get(status, "Progressing")
    assert progressing is not None
    assert (progressing.status, progressing.reason) == ("True", "Soaking")
    assert "weld-2: Rolling canary" in progressing.message
    assert f"since {format_time(NOW)}" in progressing.message
    assert (status.rollout, status.stable_version, status.target_version) == ("weld-2", "1.0", "2.0")
    assert status.sites.inconclusive == 1


def test_a_passed_deadline_stalls_the_fleet() -> None:
    late = replace(
        ROLLING,
        status=ROLLING.status.model_copy(
            update={"progressed_at": "2026-03-01T01:00:00Z", "since": "2026-03-01T01:00:00Z", "waiting_for": "WaitingForSites"}
        ),
    )
    status = summarise(fleet(B, runs=[STABLE, late], sites=[on_b("s1", "Progressing"), on_a("s2")]))
    assert says(status, "Stalled") == ("True", "ProgressDeadlineExceeded")
    assert says(status, "Ready") == ("False", "ProgressDeadlineExceeded")


def test_a_missing_model_is_shown_during_a_run_too() -> None:
    status = summarise(fleet(None, runs=[STABLE, ROLLING], sites=[on_b("s1"), on_a("s2")], model=None))
    assert says(status, "Ready") == ("False", "ModelNotFound")
    assert says(status, "Progressing") == ("True", "Soaking")


@pytest.mark.parametrize(
    ("facts", "paused"),
    [
        pytest.param(fleet(B, runs=[STABLE, replace(ROLLING, control=Control(paused=True))], sites=[on_b("s1")]), "UserPaused", id="run"),
        pytest.param(fleet(B, runs=[STABLE], sites=[on_a("s1")], spec={"suspend": True}), "FleetSuspended", id="fleet"),
        pytest.param(fleet(A, runs=[STABLE], sites=[on_a("s1")]), None, id="neither"),
    ],
)
def test_paused(facts: FleetFacts, paused: str | None) -> None:
    assert says(summarise(facts), "Paused") == (("True", paused) if paused else None)


def test_the_fleet_says_why_it_rolled_back_while_git_still_names_it() -> None:
    sites = [told(site("s1"), A, "weld-2", sequence=3), on_a("s2")]
    status = summarise(fleet(B, runs=[STABLE, BARRED], sites=sites))
    rolled_back = get(status, "RolledBack")
    assert rolled_back is not None
    assert (rolled_back.reason, rolled_back.message) == ("GoldenBelowMinimum", "weld-2: score 12%")
    assert says(status, "Progressing") == ("False", "RolledBack")
    counts = status.sites
    assert (counts.desired, counts.updated, counts.ready, counts.rolled_back) == (2, 2, 2, 1)
    assert get(summarise(fleet(A, runs=[STABLE, BARRED], sites=sites)), "RolledBack") is None


def test_placement_names_who_is_left_out_and_why() -> None:
    refused = site("s9", spec={"region": "us"})
    spec = {"residency": {"allowedRegions": ["kz"]}}
    status = summarise(fleet(A, runs=[STABLE], sites=[on_a("s1"), refused], spec=spec))
    placed = get(status, "PlacementSatisfied")
    assert placed is not None
    assert (placed.status, placed.message) == ("True", "1 eligible site(s); left out: ResidencyDenied: s9")
    assert (status.sites.desired, status.sites.skipped) == (1, 1)
    nobody = summarise(fleet(A, sites=[refused], spec=spec))
    assert says(nobody, "PlacementSatisfied") == ("False", "ResidencyDenied")
    assert says(summarise(fleet(A)), "PlacementSatisfied") == ("False", "NoSiteMatched")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        pytest.param(model(A, reason="Verified"), ("True", "Verified"), id="verified"),
        pytest.param(model(A, verified=False, reason="SignatureMissing"), ("False", "SignatureMissing"), id="refused"),
        pytest.param(model(A, verified=False, reason="bad word"), ("False", "NotVerified"), id="a-bad-word"),
        pytest.param(model(None), None, id="not-looked-yet"),
        pytest.param(None, None, id="no-model"),
    ],
)
def test_source_verified_is_repeated(facts: Any, expected: Any) -> None:
    assert says(summarise(fleet(A, runs=[STABLE], sites=[on_a("s1")], model=facts)), "SourceVerified") == expected


def test_fleet_counters() -> None:
    sites = [
        on_b("s1"),
        on_b("s2", "Failed"),
        on_a("s3"),
        replace(on_a("s4"), last_heard=NOW - minutes(9)),
        site("s5"),
        site("s6", spec={"taints": [{"key": "x"}]}),
    ]
    rolling = run(
        2,
        B,
        plan=[(f"s{number}", 0 if number < 3 else 1) for number in range(1, 6)],
        phase="Rolling",
        waves=opened(("canary", 5, None)),
        under=policy(maxFailed={"firstWave": 1}),
    )
    counts = summarise(fleet(B, runs=[STABLE, rolling], sites=sites)).sites
    expected = {"desired": 5, "updated": 1, "ready": 2, "failed": 1, "inconclusive": 1, "unreachable": 1, "skipped": 1, "rolled_back": 0}
    assert counts.model_dump() == expected


def test_transition_times_are_kept_and_nothing_else_changes_with_time() -> None:
    facts = fleet(A, runs=[STABLE], sites=[on_a("s1"), on_a("s2")])
    first = summarise(facts)
    later = replace(facts, sites=tuple(replace(one, last_heard=LATER) for one in facts.sites))
    assert summarise(later, first, LATER) == first
    unsigned = summarise(replace(later, model=model(A, verified=False, reason="SignatureMissing")), first, LATER)
    ready, placed = get(unsigned, "Ready"), get(unsigned, "PlacementSatisfied")
    assert ready is not None
    assert placed is not None
    assert ready.last_transition_time == format_time(LATER)
    assert placed.last_transition_time == format_time(NOW)


def test_a_fleet_without_any_run_says_so() -> None:
    assert says(summarise(fleet(A)), "Progressing") == ("False", "NoRollout")


# -- EdgeModel -------------------------------------------------------------------------------------------------------------------------

RELEASE = Release(
    digest=digest_of("1.0"), version="1.0", seq=1, variants=(variant("fp32"),), signed_by=("ada",), verified_at="2026-03-01T11:00:00Z"
)
GOOD: dict[str, Any] = {"release": RELEASE, "revision": A.hash, "reason": "", "message": "", "passing": False}
REFUSED: dict[str, Any] = {"release": None, "revision": None, "reason": "SignatureMissing", "message": "unsigned", "passing": False}
CUT_OFF: dict[str, Any] = {"release": None, "revision": None, "reason": "RegistryUnreachable", "message": "timeout", "passing": True}


def model_status(*steps: dict[str, Any], generation: int = 1) -> EdgeModelStatus:
    status = EdgeModelStatus()
    for step in steps:
        status = summarise_model(
            old=status,
            generation=step.get("generation", generation),
            now=NOW,
            **{key: value for key, value in step.items() if key != "generation"},
        )
    return status


def test_a_verified_release() -> None:
    status = model_status(GOOD)
    assert says(status, "Ready") == says(status, "SourceVerified") == ("True", "Verified")
    assert (status.release, status.revision) == (RELEASE, A.hash)
    assert get(status, "Stalled") is None
    source = get(status, "SourceVerified")
    assert source is not None
    assert "signed by ada" in source.message


def test_a_refused_release_keeps_the_last_verified_one() -> None:
    status = model_status(GOOD, REFUSED)
    assert says(status, "SourceVerified") == says(status, "Ready") == ("False", "SignatureMissing")
    assert says(status, "Stalled") == ("True", "SignatureMissing")
    assert (status.release, status.revision) == (RELEASE, A.hash)


def test_a_registry_that_cannot_be_asked_changes_no_verdict() -> None:
    for before, verdict in ((GOOD, ("True", "Verified")), (REFUSED, ("False", "SignatureMissing"))):
        status = model_status(before, CUT_OFF)
        assert says(status, "SourceVerified") == verdict
        assert says(status, "FetchFailed") == ("True", "RegistryUnreachable")
        assert get(status, "Stalled") is None
    assert says(model_status(GOOD, CUT_OFF), "Ready") == ("True", "Verified")
    assert says(model_status(REFUSED, CUT_OFF), "Ready") == ("False", "RegistryUnreachable")


def test_a_changed_spec_is_not_verified_by_an_old_verdict() -> None:
    """The registry is away when spec.verify is tightened: the old verdict says nothing about the new rules."""
    status = model_status(GOOD, {**CUT_OFF, "generation": 2})
    assert says(status, "SourceVerified") == ("Unknown", "RegistryUnreachable")
    assert says(status, "Ready") == ("False", "RegistryUnreachable")


def test_a_second_verification_is_no_change() -> None:
    again = {**GOOD, "release": RELEASE.model_copy(update={"verified_at": "2026-03-01T12:00:00Z"})}
    assert model_status(GOOD, again) == model_status(GOOD)
    other = {**GOOD, "release": RELEASE.model_copy(update={"version": "1.1"})}
    status = model_status(GOOD, other)
    assert status.release is not None
    assert status.release.version == "1.1"


def test_a_bad_word_becomes_a_reason() -> None:
    assert says(model_status({**REFUSED, "reason": "not a reason"}), "Ready") == ("False", "Refused")
    assert says(model_status({**CUT_OFF, "reason": ""}), "FetchFailed") == ("True", "FetchFailed")


# -- EdgeSite --------------------------------------------------------------------------------------------------------------------------

REPORT = SiteReport(agent_version="0.1.0", hardware=AMD64)


def site_status(
    last_heard: Any, *, report: SiteReport | None = REPORT, old: EdgeSiteStatus | None = None, now: Any = NOW, **spec: Any
) -> tuple[EdgeSiteStatus, Any]:
    parsed = EdgeSiteSpec.model_validate({"region": "kz", "allowedNamespaces": {}, **spec})
    return summarise_site(
        old=old or EdgeSiteStatus(), spec=parsed, generation=3, report=report, last_heard=last_heard, renew_seconds=60, now=now
    )


def test_a_connected_site() -> None:
    status, wake_at = site_status(NOW - minutes(1))
    assert says(status, "Connected") == ("True", "Heartbeat")
    assert says(status, "Ready") == ("True", "Accepted")
    assert (status.hardware, status.agent_version, status.observed_generation) == (AMD64, "0.1.0", 3)
    assert wake_at == NOW + minutes(2)


def test_a_heartbeat_changes_nothing() -> None:
    first, _ = site_status(NOW)
    assert site_status(LATER, old=first, now=LATER)[0] == first


def test_silence_is_unknown_and_not_false() -> None:
    first, _ = site_status(NOW - minutes(1))
    status, wake_at = site_status(NOW - minutes(1), old=first, now=NOW + minutes(2))
    assert says(status, "Connected") == ("Unknown", "HeartbeatLost")
    assert says(status, "Ready") == ("True", "Accepted")
    assert wake_at is None
    assert status.hardware == AMD64


def test_a_site_that_was_never_heard() -> None:
    status, wake_at = site_status(None, report=None)
    assert says(status, "Connected") == ("Unknown", "NeverHeard")
    assert (status.hardware, wake_at) == (None, None)


def test_what_is_known_stays_when_a_report_cannot_be_read() -> None:
    first, _ = site_status(NOW)
    assert site_status(NOW, report=None, old=first)[0] == first


def test_what_keeps_fleets_away_is_said() -> None:
    held = {"until": NOW + minutes(1), "reason": "audit"}
    status, wake_at = site_status(NOW, taints=[{"key": "old"}], hold=held, allowedNamespaces=None)
    ready = get(status, "Ready")
    assert ready is not None
    assert "taint old; on hold until" in ready.message
    assert "no fleet may use it" in ready.message
    assert wake_at == NOW + minutes(1)
    over, _ = site_status(NOW, hold={"until": NOW - timedelta(1), "reason": "audit"})
    ready = get(over, "Ready")
    assert ready is not None
    assert ready.message == "accepted"
