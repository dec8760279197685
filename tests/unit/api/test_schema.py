"""The CRDs on disk are those of the code, every string and list is bounded, and values are read as people write them."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.meta import LabelSelector
from edgefleet.api.quantities import parse_duration, parse_share, parse_size
from edgefleet.api.report import fleet_annotation, fleet_of_annotation
from edgefleet.api.schema import KINDS, custom_resource_definition
from edgefleet.cli.crds import crds

CRDS = Path(__file__).parents[3] / "crds"


def test_crds_on_disk_are_generated(tmp_path: Path) -> None:
    crds(tmp_path)
    generated = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert {path.name: path.read_text() for path in CRDS.glob("*.yaml")} == generated, "run `make crds` and commit"


@pytest.mark.parametrize("entry", KINDS, ids=lambda entry: entry.plural)
def test_everything_in_a_schema_is_bounded(entry: Any) -> None:
    schema = custom_resource_definition(entry)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    unbounded: list[str] = []

    def walk(node: dict[str, Any], path: str) -> None:
        kind = node.get("type")
        if kind == "string" and "maxLength" not in node and "enum" not in node and node.get("format") != "date-time":
            unbounded.append(path)
        if kind == "array" and "maxItems" not in node:
            unbounded.append(path)
        if kind == "object" and "additionalProperties" in node and "maxProperties" not in node:
            unbounded.append(path)
        for name, child in node.get("properties", {}).items():
            walk(child, f"{path}.{name}")
        for name in ("items", "additionalProperties"):
            if name in node:
                walk(node[name], f"{path}[]")

    walk(schema["spec"], "spec")
    walk(schema.get("status", {}), "status")
    assert unbounded == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30s", timedelta(seconds=30)), ("1h30m", timedelta(minutes=90)), ("250ms", timedelta(milliseconds=250))],
)
def test_durations(text: str, expected: timedelta) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "5", "1d", "-1s", "1h 30m", "s"])
def test_what_is_no_duration_says_so(text: str) -> None:
    with pytest.raises(ValueError, match="write for example 30s"):
        parse_duration(text)


def test_shares_and_sizes() -> None:
    assert parse_share("5%") == 5
    assert parse_size("20Gi") == 20 * 1024**3
    with pytest.raises(ValueError, match="not a share"):
        parse_share("101%")
    with pytest.raises(ValueError, match="not a size"):
        parse_size("20GB")


@pytest.mark.parametrize(
    ("line", "labels", "matches"),
    [
        ({"key": "a", "operator": "In", "values": ["1"]}, {"a": "1"}, True),
        ({"key": "a", "operator": "In", "values": ["1"]}, {}, False),
        ({"key": "a", "operator": "NotIn", "values": ["1"]}, {}, True),
        ({"key": "a", "operator": "Exists"}, {"a": ""}, True),
        ({"key": "a", "operator": "DoesNotExist"}, {"a": ""}, False),
    ],
)
def test_selectors_match_as_kubernetes_does(line: dict[str, Any], labels: dict[str, str], matches: bool) -> None:
    assert LabelSelector.model_validate({"matchExpressions": [line]}).matches(labels) is matches


def test_a_report_annotation_names_its_fleet() -> None:
    key = fleet_annotation("vision/plants")
    assert key == "plants.vision.fleet.edgefleet.io/report"
    assert fleet_of_annotation(key) == "vision/plants"
    assert fleet_of_annotation("edgefleet.io/site") is None
    assert fleet_of_annotation("fleet.edgefleet.io/report") is None
