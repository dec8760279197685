"""Counters of Envoy 1.40 as events that a client saw. The steps in the table were seen on a real Envoy, one request each."""

from typing import Any

import pytest

from edgefleet.site.telemetry.events import NEVER_MS, NOTHING, Events
from edgefleet.site.telemetry.stats import Counters, assess, count_since, predicted_since, read_confidence, read_counters

PAST = assess(
    None, Counters(completed=10, errors=2, unavailable=1, late=1, retried=3, timeouts=1, ended_here=1, ended_there=4, times={5: 8})
)
assert PAST is not None
BEFORE = PAST


def after(times: dict[int, int] | None = None, **steps: int) -> Counters:
    moved = {name: getattr(BEFORE, name) + step for name, step in steps.items()}
    return BEFORE._replace(
        **moved, times={ms: BEFORE.times.get(ms, 0) + (times or {}).get(ms, 0) for ms in {*BEFORE.times, *(times or {})}}
    )


def step(now: Counters, before: Counters | None = BEFORE) -> Events:
    assessed = assess(before, now)
    assert assessed is not None
    return count_since(before, assessed)


@pytest.mark.parametrize(
    ("now", "seen"),
    [
        (after(), NOTHING),
        (after(completed=1, times={5: 1}), Events(1, 0, {5: 1})),
        (after(completed=1, errors=1, times={0: 1}), Events(1, 1, {0: 1})),
        (after(completed=1, errors=1, unavailable=1, times={0: 1}), Events(1, 1, {0: 1})),
        (after(completed=1, errors=1, unavailable=1, ended_there=1), Events(1, 1)),
        (after(completed=1, errors=1, unavailable=1, retried=1), Events(1, 1)),
        (after(completed=1, retried=1, ended_there=1, times={5: 1}), Events(1, 0, {5: 1})),
        (after(completed=1, ended_there=1), Events(1, 1)),
        (after(completed=1, errors=1, late=1, timeouts=1, ended_here=1), Events(1, 1, {NEVER_MS: 1})),
        (after(completed=1, timeouts=1, ended_here=1), Events(1, 1, {NEVER_MS: 1})),
        (after(completed=1, ended_here=1), Events(1, 0)),
        (after(ended_here=1), Events(1, 1, {NEVER_MS: 1})),
    ],
    ids=[
        "nothing",
        "an answer, or a client's own fault",
        "the server's 500",
        "the server's 503",
        "reset before the answer",
        "no connection, tried twice",
        "reset and answered at the second try",
        "broken off in the middle",
        "too late",
        "stuck in the middle",
        "answered before all was asked",
        "the client left",
    ],
)
def test_each_outcome_is_counted_once_as_its_client_saw_it(now: Counters, seen: Events) -> None:
    assert step(now) == seen


def test_times_that_are_shown_late_make_nobody_leave() -> None:
    late = assess(BEFORE, after(completed=9, ended_here=1))
    assert late is not None
    assert count_since(BEFORE, late) == Events(9, 0)
    shown = assess(late, after({5: 9}, completed=9, ended_here=1))
    assert shown is not None
    assert count_since(late, shown) == Events(1, 1, {5: 9, NEVER_MS: 1})
    again = assess(shown, after({5: 9}, completed=19, ended_here=1))
    assert again is not None
    assert count_since(shown, again) == Events(10, 0)


def test_more_failures_than_requests_are_never_counted() -> None:
    seen = step(Counters(completed=1, errors=1, ended_there=1), None)
    assert (seen.requests, seen.failed) == (1, 1)


@pytest.mark.parametrize("fallen", [BEFORE._replace(completed=9), BEFORE._replace(times={5: 7}), BEFORE._replace(times={6: 9})])
def test_a_counter_that_fell_is_of_another_life(fallen: Counters) -> None:
    assert assess(BEFORE, fallen) is None
    assert assess(None, fallen) is not None


def stats(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"stats": [*entries]}


def test_envoys_answer_is_read_by_cluster() -> None:
    bins = [{"lower_bound": 0, "width": 0, "count": 2}, {"lower_bound": 120, "width": 10, "count": 3}]
    histograms = {"details": [{"name": "cluster.weld--aaaaaaaa.upstream_rq_time", "totals": bins}]}
    found = read_counters(
        stats(
            {"name": "cluster.weld--aaaaaaaa.upstream_rq_completed", "value": 5},
            {"name": "cluster.paint--bbbbbbbb.upstream_cx_destroy_local_with_active_rq", "value": 1},
            {"histograms": histograms},
        )
    )
    assert found == {
        "weld--aaaaaaaa": Counters(completed=5, times={0: 2, 120: 3}),
        "paint--bbbbbbbb": Counters(ended_here=1),
    }


@pytest.mark.parametrize("answer", [{}, {"stats": [3]}, {"stats": [{"name": "server.uptime", "value": 1}]}])
def test_another_answer_is_refused(answer: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="statistic"):
        read_counters(answer)


def page(name: str, *bins: int) -> str:
    lines, total = [], 0
    for tenth, count in enumerate(bins, 1):
        total += count
        lines.append(f'edgefleet_confidence_bucket{{le="{tenth / 10}",model_name="{name}"}} {total}.0')
    lines.append(f'edgefleet_confidence_bucket{{le="+Inf",model_name="{name}"}} {total}.0')
    return "\n".join([*lines, f'edgefleet_confidence_count{{model_name="{name}"}} {total}.0'])


def test_confidence_is_read_by_served_name() -> None:
    text = "\n".join(
        [
            "# TYPE edgefleet_confidence histogram",
            page("a", *range(10)),
            page("b", 1, 2),
            'edgefleet_confidence_bucket{le="0.1",model_name="c"} NaN',
            'python_info{version="3"} 1.0',
        ]
    )
    assert read_confidence(text) == {"a": (0, 1, 3, 6, 10, 15, 21, 28, 36, 45, 45)}


def test_series_of_one_name_are_summed() -> None:
    text = page("a", *[1] * 10).replace("model_name", 'model_version="1",model_name')
    assert read_confidence(text + "\n" + page("a", *[2] * 10))["a"] == (*range(3, 31, 3), 30)


def test_the_golden_set_is_not_counted_and_a_new_server_is() -> None:
    first, later = (*range(1, 11), 10), (*range(2, 21, 2), 20)
    assert predicted_since(None, first) == NOTHING
    assert predicted_since(first, later) == Events(predictions=10, sureness=(1,) * 10)
    assert predicted_since(later, first) == Events(predictions=10, sureness=(1,) * 10)
    assert predicted_since(first, first) == NOTHING
