"""The Lease's annotations: their keys and their size."""

from datetime import UTC, datetime

import pytest

from edgefleet.api.assignment import Order, assignment_name
from edgefleet.api.policy import STANDARD_POLICY
from edgefleet.api.report import MAX_REPORT_BYTES, FleetReport, fleet_annotation, fleet_of_annotation, fleet_of_health, health_annotation
from edgefleet.api.rollout import ModelRolloutStatus


@pytest.mark.parametrize("fleet", ["plants/weld", "team-a/fleet-1"])
def test_an_annotation_key_names_the_fleet(fleet: str) -> None:
    assert fleet_of_annotation(fleet_annotation(fleet)) == fleet
    assert fleet_of_health(health_annotation(fleet)) == fleet
    assert fleet_of_annotation(health_annotation(fleet)) is fleet_of_health(fleet_annotation(fleet)) is None


@pytest.mark.parametrize(
    "key",
    [
        "edgefleet.io/site",
        "weld.plants.fleet.edgefleet.io/other",
        "weld.fleet.edgefleet.io/report",
        "a.weld.plants.fleet.edgefleet.io/report",
        "weld.plants.fleet.example.com/report",
        "report",
    ],
)
def test_other_keys_are_not_ours(key: str) -> None:
    assert fleet_of_annotation(key) is None


def test_the_longest_key_and_report_fit() -> None:
    """Kubernetes allows 253 characters before the slash."""
    key = fleet_annotation(f"{'n' * 63}/{'f' * 40}")
    assert len(key.partition("/")[0]) <= 253
    report = FleetReport(revision="f" * 64, sequence=1 << 53, floor=1 << 53, active_since=datetime.now(UTC))
    text = report.model_dump_json(by_alias=True)
    assert len(text) <= MAX_REPORT_BYTES
    assert text.startswith('{"formatVersion":1')


def test_an_order_speaks_its_version_first() -> None:
    order = Order(
        site="s1",
        fleet="plants/weld",
        sequence=1,
        action="Withdraw",
        model="weld-qc",
        issued_at=datetime(2026, 3, 1, tzinfo=UTC),
        expires_at=datetime(2026, 3, 15, tzinfo=UTC),
    )
    assert order.model_dump_json(by_alias=True).startswith('{"formatVersion":1')
    assert assignment_name("plants", "weld") == "plants.weld"


def test_the_standard_policy_starts_small_and_ends_with_all() -> None:
    first, last = STANDARD_POLICY.waves[0], STANDARD_POLICY.waves[-1]
    assert (first.sites, first.per_variant, last.percent) == (1, True, 100)
    assert STANDARD_POLICY.max_failed.first_wave == 0
    assert ModelRolloutStatus().phase == "Planned"
