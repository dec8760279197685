"""What `edgefleet check` concludes: a table, and that nothing but OK comes without a remedy."""

import copy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgefleet.api.schema import KINDS, custom_resource_definition
from edgefleet.core.preflight import (
    OLDEST_KUBERNETES,
    Line,
    find_difference,
    judge_agents,
    judge_clock,
    judge_kind,
    judge_lease,
    judge_policy,
    judge_server,
    judge_sites,
    judge_store,
    judge_trust,
)
from edgefleet.core.skew import Skew
from tests.lab import binaries

NOW = datetime(2026, 11, 28, 6, tzinfo=UTC)
DAY = timedelta(days=1)
CHARTS = Path(__file__).parents[3] / "charts"

CASES: list[tuple[Line, str, str]] = [
    (judge_server("s", "v1.36.3"), "OK", "Kubernetes v1.36.3"),
    (judge_server("s", "v1.34.0+k3s1"), "OK", "k3s1"),
    (judge_server("s", "v1.33.9"), "FAIL", "1.33.9"),
    (judge_server("s", "v1.9.0"), "FAIL", "1.9"),
    (judge_server("s", "mystery"), "WARN", "cannot be read"),
    (judge_clock("c", 0.4, "x"), "OK", "within 1 s of x"),
    (judge_clock("c", -4.0, "x"), "OK", "4 s behind x"),
    (judge_clock("c", 30.0, "x"), "WARN", "30 s ahead of x"),
    (judge_clock("c", -60.0, "x"), "FAIL", "60 s behind x"),
    (judge_trust("t", None, NOW, missing="make one"), "FAIL", "no trust bundle"),
    (judge_trust("t", NOW, NOW, missing=""), "FAIL", "it ended 2026-11-28"),
    (judge_trust("t", NOW + 13 * DAY, NOW, missing=""), "WARN", "good until 2026-12-11"),
    (judge_trust("t", NOW + 14 * DAY, NOW, missing=""), "OK", "good until 2026-12-12"),
    (judge_lease("l", None, 30, NOW, who="the hub", remedy="start it"), "FAIL", "never"),
    (judge_lease("l", NOW - timedelta(seconds=31), 30, NOW, who="the hub", remedy="start it"), "FAIL", "since 2026-11-28T05:59:29Z"),
    (judge_lease("l", NOW - timedelta(seconds=30), 30, NOW, who="the hub", remedy="start it"), "OK", "30 s ago"),
    (judge_lease("l", NOW + timedelta(seconds=3), 30, NOW, who="the hub", remedy="start it"), "OK", "0 s ago"),
    (judge_agents({}, "1.4.0"), "OK", "0 agent(s)"),
    (judge_agents({Skew.SAME: 3, Skew.BEHIND: 2}, "1.4.0"), "OK", "5 agent(s) that 1.4.0 speaks with, 2 of them of an older"),
    (judge_agents({Skew.SAME: 3, Skew.TOO_OLD: 2, Skew.NEWER: 1}, "1.4.0"), "WARN", "3 of 6 agent(s) do not fit version 1.4.0: 2 too"),
    (judge_sites({}, 3), "OK", "none silent"),
    (judge_sites({"kz": 2, "de": 1}, 9), "WARN", "3 of 9 site(s) cannot be reached, by region: de 1, kz 2"),
    (judge_store(1 << 20, 1 << 30), "OK", "1.0 MiB of models, 1.0 GiB left"),
    (judge_store(0, (1 << 30) - 1), "WARN", "left on the disk"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "level", "said"), CASES)
def test_what_is_concluded(line: Line, level: str, said: str) -> None:
    assert (line.level, bool(line.remedy)) == (level, level != "OK")
    assert said in line.found


@pytest.mark.parametrize("chart", ["edgefleet", "edgefleet-agent"])
def test_the_oldest_kubernetes_is_that_of_the_charts_and_the_one_that_is_tried(chart: str) -> None:
    wanted = ".".join(map(str, OLDEST_KUBERNETES))
    assert yaml.safe_load((CHARTS / chart / "Chart.yaml").read_text())["kubeVersion"] == f">={wanted}.0-0"
    assert wanted == binaries.OLDEST
    assert f"require k8s.io/kubernetes v{wanted}." in (binaries.OLDER_MODULE / "go.mod").read_text()


@pytest.mark.parametrize(
    ("found", "wanted", "said"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, ""),
        ({"a": 1}, {"a": 1, "b": {}}, ""),
        ({"a": 1}, {"a": 2}, "s.a is '1', not '2'"),
        ({}, {"a": 2}, "s.a is missing"),
        ({"a": [1, 2]}, {"a": [1]}, "s.a has 2 entries, not 1"),
        ({"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": 1}, {"b": 3}]}, "s.a[1].b is '2', not '3'"),
        (None, {"a": 1}, "s is missing"),
        ({"a": "x"}, {"a": ["x"]}, "s.a has no entries, not 1"),
    ],
)
def test_where_two_differ_first(found: Any, wanted: Any, said: str) -> None:
    assert find_difference(found, wanted, "s") == said


def established(body: dict[str, Any]) -> dict[str, Any]:
    return {**copy.deepcopy(body), "status": {"conditions": [{"type": "Established", "status": "True"}]}}


def test_a_kind_may_know_more_and_not_less() -> None:
    wanted = custom_resource_definition(KINDS[0])
    served = established(wanted)
    assert judge_kind("k", served, wanted) is None
    schema = served["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    schema["later"] = {"type": "string"}
    assert judge_kind("k", served, wanted) is None
    removed = next(iter(set(schema) - {"later"}))
    del schema[removed]
    line = judge_kind("k", served, wanted)
    assert line is not None
    assert f"{removed} is missing" in line.found
    assert judge_kind("k", None, wanted) is not None
    assert judge_kind("k", copy.deepcopy(wanted), wanted) is not None, "not established"


def test_a_policy_may_not_know_more_either() -> None:
    wanted = {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [{"resources": ["x"], "scope": "*"}]},
        "validations": [{"expression": "a"}],
    }
    served = copy.deepcopy(wanted)
    served["matchConstraints"] |= {"matchPolicy": "Equivalent", "namespaceSelector": {}, "objectSelector": {}}  # type: ignore[operator]
    assert judge_policy("p", served, wanted) is None
    narrowed = copy.deepcopy(served)
    narrowed["matchConstraints"]["namespaceSelector"] = {"matchLabels": {"a": "b"}}  # type: ignore[index]
    line = judge_policy("p", narrowed, wanted)
    assert line is not None
    assert "namespaceSelector" in line.found
    assert judge_policy("p", {**served, "matchConditions": [{"name": "n"}]}, wanted) is not None
    assert judge_policy("p", {**served, "failurePolicy": "Ignore"}, wanted) is not None
    assert judge_policy("p", None, wanted) is not None
