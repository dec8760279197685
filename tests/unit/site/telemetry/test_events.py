"""Counting at an edge."""

import pytest

from edgefleet.api.model import ConfidenceSlo, LatencySlo, Slo
from edgefleet.api.report import HealthCounts
from edgefleet.site.telemetry.events import NEVER_MS, NOTHING, Edges, Events, add, plan_edges, round_edge


@pytest.mark.parametrize(
    ("le", "edge"), [("1ms", 1), ("50ms", 50), ("99ms", 99), ("100ms", 100), ("125ms", 130), ("990ms", 990), ("1s", 1000), ("60s", 60_000)]
)
def test_an_edge_is_exact_with_two_digits_and_else_the_next(le: str, edge: int) -> None:
    assert plan_edges(Slo(latency=LatencySlo(le=le, share="99%"))) == Edges(edge)
    assert round_edge(edge) == edge


def test_a_model_without_an_slo_is_asked_for_failures_alone() -> None:
    events = Events(10, 1, {5: 9, NEVER_MS: 1}, 3, (1,) * 10)
    assert events.measure(plan_edges(Slo())) == HealthCounts(10, 1, 0, 3, 0)


def test_slow_is_from_the_edge_on_and_unsure_below_it() -> None:
    events = Events(100, 0, {49: 1, 50: 10, 99: 100, NEVER_MS: 1000}, 55, tuple(range(1, 11)))
    assert events.measure(Edges(50)).slow == 1110
    assert events.measure(Edges(51)).slow == 1100
    assert events.measure(plan_edges(Slo(confidence=ConfidenceSlo(ge="0.3", share="90%")))).unsure == 1 + 2 + 3
    assert events.measure(Edges(ge="0.9")).unsure == 45


def test_adding_up() -> None:
    one, other = Events(1, 1, {5: 1}, 1, (1,) * 10), Events(2, 0, {5: 1, 7: 1})
    assert add(()) == NOTHING
    assert add((one, other)) == add((other, one)) == Events(3, 1, {5: 2, 7: 1}, 1, (1,) * 10)
