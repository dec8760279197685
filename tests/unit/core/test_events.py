"""Events: each transition is told once, whoever looks, and a flood is told in few words."""

from itertools import pairwise
from typing import Any

import pytest

from edgefleet.api.conditions import Condition
from edgefleet.api.fleet import EdgeFleetStatus, SiteCounts
from edgefleet.api.model import EdgeModelStatus, Release
from edgefleet.api.rollout import ModelRolloutStatus, WaveRecord
from edgefleet.api.site import EdgeSiteStatus
from edgefleet.core.actions import AssignSite, WithdrawSite
from edgefleet.core.events import Note, plan_fleet_events, plan_model_events, plan_quarantine_events, plan_run_events, plan_site_events
from tests.unit.core import facts_of

THEN, LATER = "2026-03-01T12:00:00Z", "2026-03-01T12:10:00Z"
PASSED = WaveRecord(name="canary", sites=1, opened_at=THEN, passed_at=LATER)


def conditions(*found: tuple[str, str, str]) -> tuple[Condition, ...]:
    return tuple(Condition(type=kind, status=status, reason=reason, message=f"{reason} it is") for kind, status, reason in found)  # type: ignore[arg-type]


def told(notes: tuple[Note, ...]) -> list[tuple[str, str]]:
    return [(note.type, note.reason) for note in notes]


def rolling(**more: Any) -> ModelRolloutStatus:
    canary = WaveRecord(name="canary", sites=1, opened_at=THEN)
    base = {"phase": "Rolling", "started_at": THEN, "since": THEN, "waiting_for": "Soaking", "wave": "canary", "waves": (canary,)}
    return ModelRolloutStatus(**{**base, **more})  # type: ignore[arg-type]


RUN_STEPS: list[tuple[str, ModelRolloutStatus, ModelRolloutStatus, list[tuple[str, str]]]] = [
    ("the first status", ModelRolloutStatus(), rolling(), [("Normal", "Planned"), ("Normal", "WaveOpened")]),
    ("only time and counts", rolling(), rolling(sites=SiteCounts(desired=4, updated=1)), []),
    ("a wave passed", rolling(), rolling(waves=(PASSED,)), [("Normal", "WavePassed")]),
    ("a person is asked", rolling(), rolling(waiting_for="AwaitingApproval"), [("Normal", "AwaitingApproval")]),
    ("an ordinary wait", rolling(), rolling(waiting_for="WaitingForSites"), []),
    ("the way back", rolling(), rolling(phase="Returning", reason="LatencyRegression"), [("Warning", "LatencyRegression")]),
    ("still on the way back", rolling(phase="Returning"), rolling(phase="Returning", sites=SiteCounts(rolled_back=1)), []),
    ("promoted", rolling(), rolling(phase="Ended", outcome="Promoted", reason="AllWavesPassed"), [("Normal", "Promoted")]),
    ("rolled back", rolling(phase="Returning"), rolling(phase="Ended", outcome="RolledBack"), [("Warning", "RolledBack")]),
    ("aborted", rolling(), rolling(phase="Ended", outcome="AbortedByUser"), [("Warning", "AbortedByUser")]),
    ("superseded", rolling(), rolling(phase="Ended", outcome="Superseded"), [("Normal", "Superseded")]),
    ("one site failed", rolling(), rolling(sites=SiteCounts(failed=1)), [("Warning", "SitesFailed")]),
    ("three after two", rolling(sites=SiteCounts(failed=2)), rolling(sites=SiteCounts(failed=3)), []),
    ("four after three", rolling(sites=SiteCounts(failed=3)), rolling(sites=SiteCounts(failed=4)), [("Warning", "SitesFailed")]),
    ("a skipped site is back", rolling(sites=SiteCounts(skipped=2)), rolling(sites=SiteCounts(skipped=1)), []),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), [step[1:] for step in RUN_STEPS], ids=[step[0] for step in RUN_STEPS])
def test_a_run_tells_its_transitions_and_nothing_else(
    old: ModelRolloutStatus, new: ModelRolloutStatus, expected: list[tuple[str, str]]
) -> None:
    notes = plan_run_events("plants-2", "2", old, new)
    assert told(notes) == expected
    assert len({note.key for note in notes}) == len(notes)
    assert all("plants-2" in note.message for note in notes)
    assert plan_run_events("plants-2", "2", new, new) == (), "what is recorded is not told again"


FLEET_STEPS: list[tuple[str, list[tuple[str, str, str]], list[tuple[str, str, str]], list[tuple[str, str]]]] = [
    ("a rule pauses", [], [("Paused", "True", "MaxFailedExceeded")], [("Warning", "MaxFailedExceeded")]),
    ("a person pauses", [], [("Paused", "True", "UserPaused")], [("Normal", "UserPaused")]),
    ("resumed", [("Paused", "True", "UserPaused")], [], [("Normal", "Resumed")]),
    ("stalled for another reason", [("Stalled", "True", "RolledBack")], [("Stalled", "True", "NoModel")], [("Warning", "NoModel")]),
    ("settled", [("Ready", "True", "RolloutUnderWay")], [("Ready", "True", "SitesReady")], [("Normal", "SitesReady")]),
    ("a site has trouble", [("Ready", "True", "SitesReady")], [("Ready", "False", "SitesNotReady")], [("Warning", "SitesNotReady")]),
    ("a rollout begins", [("Ready", "True", "SitesReady")], [("Ready", "True", "RolloutUnderWay")], []),
    ("no site", [], [("PlacementSatisfied", "False", "ResidencyDenied")], [("Warning", "ResidencyDenied")]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), [step[1:] for step in FLEET_STEPS], ids=[step[0] for step in FLEET_STEPS])
def test_a_fleet_tells_what_its_conditions_turn_to(
    old: list[tuple[str, str, str]], new: list[tuple[str, str, str]], expected: list[tuple[str, str]]
) -> None:
    before, after = EdgeFleetStatus(conditions=conditions(*old)), EdgeFleetStatus(conditions=conditions(*new))
    assert told(plan_fleet_events(before, after)) == expected
    assert plan_fleet_events(after, after) == ()


def test_ten_thousand_silent_sites_are_few_notes() -> None:
    counts = [EdgeFleetStatus(sites=SiteCounts(unreachable=count)) for count in range(10_001)]
    notes = [note for old, new in pairwise(counts) for note in plan_fleet_events(old, new)]
    assert len(notes) == 14
    assert notes[-1].message.startswith("8192 site(s) cannot be reached")


def test_sites_that_go_back_alone_are_named() -> None:
    orders = [AssignSite("berlin", facts_of.A, "fp32", "plants-2", quarantine="LatencyRegression"), WithdrawSite("oslo")]
    (note,) = plan_quarantine_events("plants-2", orders)
    assert (note.type, note.reason) == ("Warning", "LatencyRegression")
    assert "berlin" in note.message
    assert "oslo" not in note.message
    assert plan_quarantine_events("plants-2", orders[1:]) == ()


def release(version: str) -> Release:
    digest = facts_of.digest_of(version)
    return Release(digest=digest, version=version, seq=1, variants=(), signed_by=("weld",), verified_at=THEN)


def model(version: str, *found: Condition) -> EdgeModelStatus:
    return EdgeModelStatus(release=release(version), conditions=found)


def verified(version: str) -> Condition:
    return Condition(type="SourceVerified", status="True", reason="Verified", message=f"release {version} is signed")


def test_a_model_tells_each_release_and_each_refusal_once() -> None:
    first, second = model("1", verified("1")), model("2", verified("2"))
    assert told(plan_model_events(EdgeModelStatus(), first)) == [("Normal", "Verified")]
    assert told(plan_model_events(first, second)) == [("Normal", "Verified")]
    refused = Condition(type="SourceVerified", status="False", reason="SignatureMissing", message="2 is not signed")
    other = refused.model_copy(update={"message": "3 is not signed"})
    assert told(plan_model_events(first, model("1", refused))) == [("Warning", "SignatureMissing")]
    assert told(plan_model_events(model("1", refused), model("1", other))) == [("Warning", "SignatureMissing")]
    assert plan_model_events(model("1", other), model("1", other)) == ()


def test_a_registry_that_is_away_is_told_once_however_its_words_change() -> None:
    away, still = (
        Condition(type="FetchFailed", status="True", reason="RegistryUnreachable", message=text) for text in ("port 1", "port 2")
    )
    up, down, down_still = model("1", verified("1")), model("1", verified("1"), away), model("1", verified("1"), still)
    assert told(plan_model_events(up, down)) == [("Warning", "RegistryUnreachable")]
    assert plan_model_events(down, down_still) == ()
    assert told(plan_model_events(down_still, up)) == [("Normal", "FetchSucceeded")]


def test_a_site_is_heard_lost_and_heard_again() -> None:
    never, heard, lost = (
        EdgeSiteStatus(conditions=conditions(("Connected", status, reason)))
        for status, reason in (("Unknown", "NeverHeard"), ("True", "Heartbeat"), ("Unknown", "HeartbeatLost"))
    )
    assert plan_site_events(EdgeSiteStatus(), never) == ()
    (first,) = plan_site_events(never, heard)
    (again,) = plan_site_events(lost, heard)
    assert told(plan_site_events(heard, lost)) == [("Warning", "HeartbeatLost")]
    assert "first time" in first.message
    assert "again" in again.message
