"""What is usual, and how bursty."""

import random

import pytest

from edgefleet.api.report import HealthBaseline, HealthCounts
from edgefleet.site.telemetry.baseline import LEAST_MARKS, measure_burst, plan_baseline


def test_sums_are_over_all_and_bursts_over_fine_marks() -> None:
    bursty = [(mark, HealthCounts(600, 0, 60 if mark % 4 == 0 else 0, 0, 0)) for mark in range(100, 140)]
    old = [(mark, HealthCounts(1000, 1000, 1000, 5, 5)) for mark in range(20)]
    found = plan_baseline([*old, *bursty], fine_since=99)
    assert found[:5] == (44_000, 20_000, 20_600, 100, 100)
    assert found.burst_slow > 40
    assert (found.burst_failed, found.burst_unsure) == (1.0, 1.0)
    assert plan_baseline([], fine_since=0) == HealthBaseline(0, 0, 0, 0, 0)


def test_of_few_marks_nothing_is_said() -> None:
    marks = [(100, 100)] + [(0, 100)] * (LEAST_MARKS - 2)
    assert measure_burst(marks) == 1.0
    assert measure_burst([*marks, (0, 100)]) > 1.0
    assert measure_burst([*marks, *[(0, 0)] * 50]) == 1.0
    assert measure_burst([(0, 100)] * 50) == 1.0


def test_with_equal_traffic_it_is_variance_over_mean() -> None:
    counts = [3, 9, 0, 4, 4, 1, 7, 0, 2, 12, 5, 1]
    mean = sum(counts) / len(counts)
    variance = sum((count - mean) ** 2 for count in counts) / (len(counts) - 1)
    assert measure_burst([(count, 1000) for count in counts]) == round(variance / mean, 2)


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1])
def test_a_busy_noon_is_no_burst(rate: float) -> None:
    draw = random.Random(7)
    found = []
    for _ in range(20):
        requests = [600 if 120 <= mark < 160 else 30 for mark in range(288)]
        found.append(measure_burst([(sum(draw.random() < rate for _ in range(count)), count) for count in requests]))
    assert sum(found) / len(found) < 1.2
