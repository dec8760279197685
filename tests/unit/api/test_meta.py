"""Selectors, times and names that every kind shares."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import ValidationError

from edgefleet.api.fleet import EdgeFleet
from edgefleet.api.meta import LabelSelector, format_time, parse_time, site_namespace

LABELS = {"line": "weld", "tier": "test"}


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        pytest.param({}, True, id="empty-matches-all"),
        pytest.param({"matchLabels": {"line": "weld"}}, True, id="label"),
        pytest.param({"matchLabels": {"line": "paint"}}, False, id="other-value"),
        pytest.param({"matchLabels": {"region": "kz"}}, False, id="label-missing"),
        pytest.param({"matchExpressions": [{"key": "line", "operator": "In", "values": ["weld", "x"]}]}, True, id="in"),
        pytest.param({"matchExpressions": [{"key": "line", "operator": "In", "values": ["x"]}]}, False, id="not-in-list"),
        pytest.param({"matchExpressions": [{"key": "line", "operator": "NotIn", "values": ["x"]}]}, True, id="notin"),
        pytest.param({"matchExpressions": [{"key": "gone", "operator": "NotIn", "values": ["x"]}]}, True, id="notin-missing"),
        pytest.param({"matchExpressions": [{"key": "line", "operator": "Exists"}]}, True, id="exists"),
        pytest.param({"matchExpressions": [{"key": "gone", "operator": "Exists"}]}, False, id="exists-not"),
        pytest.param({"matchExpressions": [{"key": "gone", "operator": "DoesNotExist"}]}, True, id="absent"),
        pytest.param(
            {"matchLabels": {"line": "weld"}, "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["test"]}]},
            False,
            id="all-lines-must-hold",
        ),
    ],
)
def test_selector(selector: dict[str, Any], expected: bool) -> None:
    assert LabelSelector.model_validate(selector).matches(LABELS) is expected


def test_times_are_utc_to_the_second() -> None:
    moment = datetime(2026, 3, 1, 17, 0, 0, 999_999, tzinfo=timezone(timedelta(hours=5)))
    assert format_time(moment) == "2026-03-01T12:00:00Z"
    assert parse_time("2026-03-01T12:00:00Z") == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert parse_time("2026-03-01T12:00:00.250000Z").microsecond == 250_000


def test_a_kind_reads_what_the_api_server_sends_and_writes_camel_case() -> None:
    body = {
        "apiVersion": "edgefleet.io/v1alpha1",
        "kind": "EdgeFleet",
        "metadata": {"name": "weld", "namespace": "plants", "generation": 3, "managedFields": [{}]},
        "spec": {"siteSelector": {"matchLabels": {"line": "weld"}}, "modelRef": {"name": "weld-qc"}, "newerField": 1},
    }
    fleet = EdgeFleet.parse(body)
    assert (fleet.metadata.generation, fleet.spec.on_delete, fleet.spec.suspend) == (3, "Retain", False)
    written = fleet.spec.to_json_dict()
    assert written["siteSelector"]["matchLabels"] == {"line": "weld"}
    assert "newerField" not in written
    assert "residency" not in written
    with pytest.raises(ValidationError):
        EdgeFleet.parse({"spec": {"siteSelector": {}}})


def test_site_namespace() -> None:
    assert site_namespace("plant-7") == "edgesite-plant-7"
