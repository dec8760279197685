"""The rules that are compared. Ours are the functions of edgefleet.core, called at each minute with what a hub would know then; the
others are written after the tools' documents and sources, and see the same minutes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from edgefleet.api.policy import Analysis
from edgefleet.api.report import HealthBaseline, HealthCounts
from edgefleet.core.gates import AbsoluteGate, LiveGate, RelativeGate
from edgefleet.core.health import Columns, Stream
from edgefleet.core.traffic import Control, GateVerdict, Watched, judge_gates
from tests.bench.canary.nature import MINUTES, Fleet

FIRST_MARK = 6_000_000
NEVER = MINUTES + 1
GROUP = ("all",)
OLD, NEW = "a" * 64, "b" * 64
RELATIVE = RelativeGate("errors", 0.25, 0.001)
ANALYSIS = Analysis(false_rollback_budget="2%")
ALONE = Analysis(false_rollback_budget="1%")
"""With two gates, and with one alone, the bound is 100: as with five gates and the default budget."""


@dataclass(frozen=True)
class Stop:
    """After how many minutes (NEVER: not within the time): a gate stopped the run, it would have taken one site back alone, and its wave
    passed with no person: every canary soaked and heard after it, enough requests, and nothing proved or held."""

    minute: int = NEVER
    alone: int = NEVER
    promoted: int = NEVER


class Site:
    """What one site counts in one run: by minute, and as the columns of the stream that a hub would have after some minutes."""

    def __init__(self, fleet: Fleet, run: int, site: int, offset: int, began: int = 0) -> None:
        self._offset, self._began = offset, began
        # `began`: the minute at which it was switched; a control has been there all the time.
        self._answers = [0, *accumulate(fleet.answers[run, site, began:].tolist())]
        self._bad = [0, *accumulate(fleet.bad[run, site, began:].tolist())]
        past = (int(fleet.past_answers[run, site]), int(fleet.past_bad[run, site]))
        self.past = HealthBaseline(*past, 0, 0, 0, float(fleet.past_burst[run, site]), 1.0, 1.0)
        self._lost = fleet.lost[run, site] if site < fleet.condition.sites else None
        self._first = FIRST_MARK + (offset + began) // 5
        ends = [min(end, len(self._answers) - 1) for end in range(5 - (offset + began) % 5, len(self._answers) + 4, 5)]
        self._of_mark = self._deltas(self._answers, ends)
        self._bad_of_mark = self._deltas(self._bad, ends)
        self._marks = tuple(range(self._first, self._first + len(ends)))
        self._ends = ends
        self._plain = min(self._of_mark, default=1) > 0 and (self._lost is None or not self._lost.any())

    def seen(self, minute: int) -> int:
        """Bad answers until a minute of the run."""
        return self._bad[max(0, minute - self._began)]

    def answered(self, minute: int) -> int:
        """Answers until a minute of the run."""
        return self._answers[max(0, minute - self._began)]

    def stream(self, revision: str, minute: int) -> Stream:
        """What the hub knows of it once it was heard until this minute of the run."""
        known = max(0, minute - self._began)
        if not known or not self._plain:
            return self.stream_of_records(revision, minute)
        last = self._last(known)
        begin = self._ends[last - 1] if last else 0
        of = (*self._of_mark[:last], self._answers[known] - self._answers[begin])
        bad = (*self._bad_of_mark[:last], self._bad[known] - self._bad[begin])
        marks = self._marks[: last + 1]
        sums = {} if revision == OLD else {"requests": _sums(of), "failed": _sums(bad)}
        stream = Stream(revision, self._first * 300, 1, {}, **self._past_as(revision))
        # A short cut: test_bench_streams_are_those_of_records holds it to the records.
        stream.__dict__["columns"] = Columns(marks, marks, {"requests": of, "failed": bad}, sums, True)
        return stream

    def stream_of_records(self, revision: str, minute: int) -> Stream:
        """The same, made of the records that the site sends."""
        known = max(0, minute - self._began)
        records = dict(self._records(known, self._last(known))) if known else {}
        return Stream(revision, self._first * 300, 1, {self._first * 300: records}, **self._past_as(revision))

    def _last(self, known: int) -> int:
        return (self._offset + self._began + known - 1) // 5 - (self._offset + self._began) // 5

    def _past_as(self, revision: str) -> Mapping[str, Any]:
        return {"usual": self.past} if revision == OLD else {"before": self.past}

    def _records(self, known: int, last: int) -> Iterator[tuple[int, HealthCounts]]:
        for index in range(last + 1):
            if index == last or self._lost is None or not self._lost[index]:
                end = min(self._ends[index], known)
                yield self._first + index, HealthCounts(self._answers[end], self._bad[end])

    @staticmethod
    def _deltas(sums: list[int], ends: list[int]) -> tuple[int, ...]:
        return tuple(sums[end] - sums[begin] for begin, end in zip([0, *ends[:-1]], ends, strict=True))


def _sums(column: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(accumulate(column, initial=0))


def judge_ours(fleet: Fleet, run: int, *, absolute: bool = True, soak: int = 30, min_requests: int = 500) -> tuple[Stop, ...]:
    """The relative gate of the standard policy, and an absolute one at twice the base rate, at each minute until both have stopped it."""
    condition = fleet.condition
    gates: list[LiveGate] = [RELATIVE, *([AbsoluteGate("errors", 2 * condition.base)] if absolute else [])]
    offset = run % 5
    sites = [Site(fleet, run, site, offset) for site in range(condition.sites + condition.controls)]
    canaries, others = sites[: condition.sites], sites[condition.sites :]
    stops = [Stop() for _ in gates]
    for minute in range(1, MINUTES + 1):
        heard = [int(fleet.heard[run, index, minute]) for index in range(condition.sites)]
        verdicts = judge_gates(
            gates,
            ANALYSIS if absolute else ALONE,
            watched=[
                Watched(f"w{index:03}", GROUP, one.stream(NEW, known))
                for index, (one, known) in enumerate(zip(canaries, heard, strict=True))
            ],
            controls=[Control(f"c{index:03}", GROUP, (one.stream(OLD, minute),)) for index, one in enumerate(others)],
            opened=[FIRST_MARK],
            now=FIRST_MARK + (offset + minute - 1) // 5,
            first_release=False,
        )
        answered = sum(one.answered(known) for one, known in zip(canaries, heard, strict=True))
        passes = min(heard) >= soak and answered >= min_requests
        stops = [_follow(stop, verdict, minute, passes) for stop, verdict in zip(stops, verdicts, strict=True)]
        if all(stop.minute < NEVER for stop in stops):
            break
    return tuple(stops)


def judge_waves(fleet: Fleet, run: int, sizes: tuple[int, ...], minutes_each: int) -> Stop:
    """The relative gate alone over waves of these sizes, opened so many minutes apart, evidence carried; the controls are not switched."""
    starts = [wave * minutes_each for wave, size in enumerate(sizes) for _ in range(size)]
    offset = run % 5
    canaries = [(start, Site(fleet, run, site, offset, start)) for site, start in enumerate(starts)]
    others = [Site(fleet, run, site, offset) for site in range(len(starts), len(starts) + fleet.condition.controls)]
    stop = Stop()
    for minute in range(1, MINUTES + 1):
        (verdict,) = judge_gates(
            [RELATIVE],
            ALONE,
            watched=[
                Watched(f"w{index:03}", GROUP, one.stream(NEW, minute)) for index, (start, one) in enumerate(canaries) if start < minute
            ],
            controls=[Control(f"c{index:03}", GROUP, (one.stream(OLD, minute),)) for index, one in enumerate(others)],
            opened=[FIRST_MARK + (offset + start) // 5 for start in sorted(set(starts)) if start < minute],
            now=FIRST_MARK + (offset + minute - 1) // 5,
            first_release=False,
        )
        stop = _follow(stop, verdict, minute, False)
        if stop.minute < NEVER:
            break
    return stop


def _follow(stop: Stop, verdict: GateVerdict, minute: int, passes: bool) -> Stop:
    if stop.minute < NEVER:
        return stop  # a Fail is final
    failed = minute if verdict.outcome == "Fail" else NEVER
    alone = min(stop.alone, minute if verdict.worse else NEVER)
    return Stop(failed, alone, min(stop.promoted, minute if passes and verdict.outcome == "Quiet" else NEVER))


def judge_peers(fleet: Fleet, began: NDArray[np.int64] | None = None) -> dict[str, NDArray[np.int64]]:
    """For each of the other rules, the minute at which each run was stopped. `began`: the minute at which each canary was switched."""
    canaries, whole = fleet.condition.sites, fleet.bad.shape[0]
    if began is not None:
        on_new = np.concatenate([began[:, None] <= np.arange(MINUTES), np.ones((fleet.condition.controls, MINUTES), dtype=bool)])
        fleet = replace(fleet, answers=fleet.answers * on_new, bad=fleet.bad * on_new)
    sums = [
        np.concatenate([np.zeros((whole, array.shape[1], 1), dtype=np.int64), array.cumsum(axis=2)], axis=2)
        for array in (fleet.answers, fleet.bad)
    ]
    known = [np.take_along_axis(array[:, :canaries], fleet.heard, axis=2).sum(axis=1) for array in sums]
    beside = [array[:, canaries:].sum(axis=1) for array in sums]
    live = fleet.heard[:, :, 1:] == np.arange(1, MINUTES + 1)
    minute_of, minute_bad = ((array[:, :canaries] * live).sum(axis=1) for array in (fleet.answers, fleet.bad))
    every = np.arange(1, MINUTES + 1)
    return {
        "fixed limit, 1-min (Argo)": _count_failures(minute_bad, minute_of, 2 * fleet.condition.base, 1, 4),
        "fixed limit, 5-min (Flagger)": _count_failures(minute_bad, minute_of, 2 * fleet.condition.base, 5, 5),
        "fixed 5 %, 1-min (Argo guide)": _count_failures(minute_bad, minute_of, 0.05, 1, 4),
        "Mann-Whitney hourly (Kayenta)": _mann_whitney(minute_bad, minute_of, np.diff(beside[1]), np.diff(beside[0])),
        "z-test once, at 4 h": _z_test(known, beside, np.array([MINUTES])),
        "z-test every minute": _z_test(known, beside, every),
    }


def _count_failures(bad: NDArray[np.int64], of: NDArray[np.int64], limit: float, minutes: int, failures: int) -> NDArray[np.int64]:
    """Stops at the n-th measurement above the limit, in a row or not."""
    groups = (bad.shape[0], MINUTES // minutes, minutes)
    bad, of = bad.reshape(groups).sum(axis=2), of.reshape(groups).sum(axis=2)
    failed = (bad > limit * of).cumsum(axis=1) >= failures
    return np.where(failed.any(axis=1), (failed.argmax(axis=1) + 1) * minutes, NEVER)


def _mann_whitney(
    bad: NDArray[np.int64], of: NDArray[np.int64], bad_beside: NDArray[np.int64], of_beside: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Each hour, the minutes of canary and baseline as points: the 98 % interval of the Hodges-Lehmann shift lies above a quarter of it."""
    z = norm.ppf(0.99)
    rank = max(0, round(60 * 60 / 2 - z * np.sqrt(60 * 60 * 121 / 12)))
    stops = np.full(bad.shape[0], NEVER)
    for hour in reversed(range(MINUTES // 60)):
        part = slice(60 * hour, 60 * hour + 60)
        canary, baseline = bad[:, part] / np.maximum(of[:, part], 1), bad_beside[:, part] / np.maximum(of_beside[:, part], 1)
        gaps = np.sort((canary[:, :, None] - baseline[:, None, :]).reshape(len(bad), -1), axis=1)
        shift = np.median(gaps, axis=1)
        stops = np.where((shift > 0) & (gaps[:, rank] > 0.25 * shift), 60 * hour + 60, stops)
    return stops


def _z_test(known: list[NDArray[np.int64]], beside: list[NDArray[np.int64]], looks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Two proportions, one-sided at 1 %."""
    of, bad, of_beside, bad_beside = (array[:, looks] for array in (*known, *beside))
    of, of_beside = np.maximum(of, 1), np.maximum(of_beside, 1)
    pooled = (bad + bad_beside) / (of + of_beside)
    error = np.sqrt(np.maximum(pooled * (1 - pooled), 1e-12) * (1 / of + 1 / of_beside))
    high = (bad / of - bad_beside / of_beside) / error > norm.ppf(0.99)
    return np.where(high.any(axis=1), looks[high.argmax(axis=1)], NEVER)
