"""The one screen: what needs a person and what does not, and the command that comes next."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from edgefleet.api.fleet import EdgeFleet
from edgefleet.api.model import EdgeModel
from edgefleet.api.rollout import ModelRollout
from edgefleet.core.overview import Level, look_at_fleet, look_at_model, without_echoes
from tests.unit.core import facts_of

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
AGO = "2026-03-01T10:00:00Z"
READY = {"type": "Ready", "status": "True", "reason": "SitesReady", "message": "all of 4"}
UNDER_WAY = {"type": "Ready", "status": "True", "reason": "RolloutUnderWay"}


def fleet(*conditions: dict[str, Any], generation: int = 1, observed: int = 1, created: datetime = NOW) -> EdgeFleet:
    found = [{"lastTransitionTime": AGO, **one} for one in conditions]
    meta = {"name": "plants", "namespace": "team", "generation": generation, "creationTimestamp": created.isoformat()}
    spec = {"siteSelector": {}, "modelRef": {"name": "weld"}}
    return EdgeFleet.parse({"metadata": meta, "spec": spec, "status": {"observedGeneration": observed, "conditions": found}})


def rollout(**status: Any) -> ModelRollout:
    spec = {
        "fleet": "plants",
        "number": 2,
        "revision": facts_of.B.to_json_dict(),
        "policy": facts_of.policy().to_json_dict(),
        "plan": {"hash": "a" * 64, "sites": 4, "chunks": 1},
    }
    return ModelRollout.parse({"metadata": {"name": "plants-2", "namespace": "team"}, "spec": spec, "status": status})


def on(kind: str, reason: str, status: str = "True") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": f"{reason} it is"}


WAVES = [{"name": "canary", "openedAt": AGO, "passedAt": AGO}, {"name": "all"}]
BY_GATE = rollout(outcome="RolledBack", reason="LatencyRegression")
BY_CHECK = rollout(outcome="RolledBack", reason="GoldenSetFailed")
ASKED = on("Progressing", "AwaitingApproval")
TOO_MANY = on("Paused", "MaxFailedExceeded")
HELD = on("Progressing", "RegressionUnconfirmed")
CASES: list[tuple[str, tuple[dict[str, Any], ...], ModelRollout | None, Level, str, str]] = [
    ("well", (READY,), None, Level.FINE, "SitesReady", ""),
    ("rolling", (UNDER_WAY, on("Progressing", "Soaking")), rollout(), Level.MOVES, "Soaking", ""),
    ("asked", (UNDER_WAY, ASKED), rollout(waves=WAVES), Level.WAITS, "AwaitingApproval", "rollout approve plants-2 all"),
    ("held", (UNDER_WAY, HELD), rollout(), Level.WAITS, "RegressionUnconfirmed", "rollout explain plants-2"),
    ("paused", (UNDER_WAY, on("Paused", "UserPaused")), rollout(), Level.WAITS, "UserPaused", "rollout resume plants-2"),
    ("too many failed", (UNDER_WAY, TOO_MANY), rollout(), Level.WAITS, "MaxFailedExceeded", "rollout abort plants-2"),
    ("suspended", (READY, on("Paused", "FleetSuspended")), None, Level.WAITS, "FleetSuspended", ""),
    (
        "back by a gate",
        (on("Ready", "RolledBack", "False"), on("Stalled", "RolledBack")),
        BY_GATE,
        Level.WRONG,
        "RolledBack",
        "rollout explain plants-2",
    ),
    ("back by a check", (on("Stalled", "RolledBack"),), BY_CHECK, Level.WRONG, "RolledBack", "rollout show plants-2"),
    ("no model", (on("Stalled", "ModelNotFound"),), None, Level.WRONG, "ModelNotFound", ""),
    ("a site fails", (on("Ready", "SitesNotReady", "False"),), None, Level.WRONG, "SitesNotReady", "fleet sites plants"),
    ("sites on their way", (on("Ready", "SitesProgressing", "False"),), None, Level.MOVES, "SitesProgressing", ""),
    (
        "first look",
        (on("Ready", "ReleaseNotVerified", "False"), on("Reconciling", "ReleaseNotVerified")),
        None,
        Level.MOVES,
        "ReleaseNotVerified",
        "",
    ),
    ("refused", (on("Ready", "SignatureMissing", "False"),), None, Level.WRONG, "SignatureMissing", ""),
    ("nowhere", (READY, on("PlacementSatisfied", "ResidencyDenied", "False")), None, Level.WRONG, "ResidencyDenied", "fleet sites plants"),
]


@pytest.mark.parametrize(("conditions", "run", "level", "state", "then"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_a_fleet_needs(conditions: tuple[dict[str, Any], ...], run: ModelRollout | None, level: Level, state: str, then: str) -> None:
    found = look_at_fleet(fleet(*conditions), run, NOW)
    assert (found.level, found.state, found.next) == (level, state, then and f"edgefleet {then} -n team")
    assert found.since == datetime(2026, 3, 1, 10, 0, tzinfo=UTC)


def test_a_fleet_that_no_hub_looks_at_is_trouble_after_a_moment() -> None:
    assert look_at_fleet(fleet(), None, NOW).level is Level.MOVES
    old = look_at_fleet(fleet(created=NOW - timedelta(minutes=1)), None, NOW)
    assert (old.level, old.state) == (Level.WRONG, "NotSeen")
    assert look_at_fleet(fleet(READY, generation=2), None, NOW).level is Level.MOVES


def model(*conditions: dict[str, Any]) -> EdgeModel:
    spec = {
        "source": {"repository": "registry.example/weld", "tag": "1"},
        "verify": {"keys": {"secretRef": "k"}},
        "serving": [{"repository": {}}],
    }
    found = [{"lastTransitionTime": AGO, **one} for one in conditions]
    return EdgeModel.parse(
        {
            "metadata": {"name": "weld", "namespace": "team", "generation": 1},
            "spec": spec,
            "status": {"observedGeneration": 1, "conditions": found},
        }
    )


def test_a_model_whose_source_is_refused_or_away_is_wrong() -> None:
    fine = look_at_model(model(on("Ready", "Verified"), on("SourceVerified", "Verified")), NOW)
    refused = look_at_model(model(on("Ready", "SignatureMissing", "False"), on("SourceVerified", "SignatureMissing", "False")), NOW)
    away = look_at_model(model(on("Ready", "Verified"), on("SourceVerified", "Verified"), on("FetchFailed", "RateLimited")), NOW)
    assert [one.level for one in (fine, refused, away)] == [Level.FINE, Level.WRONG, Level.WRONG]
    assert [one.state for one in (refused, away)] == ["SignatureMissing", "RateLimited"]


def test_what_a_fleet_says_is_not_said_again_of_its_model() -> None:
    refused = look_at_model(model(on("SourceVerified", "SignatureMissing", "False")), NOW)
    same = look_at_fleet(fleet(on("Ready", "SignatureMissing", "False")), None, NOW)
    other = look_at_fleet(fleet(READY), None, NOW)
    assert without_echoes([(same, "weld")], [refused]) == ()
    assert without_echoes([(other, "weld")], [refused]) == (refused,)
    assert without_echoes([(same, "paint")], [refused]) == (refused,)
