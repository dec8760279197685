"""Fleets as they might be: answers and bad answers of each minute, seeded. The levels of noise are assumptions, not field data.

lasting differences  log-sd 0.7 between sites
day effect           log-sd 0.2
wander               log-sd 0.3 within the day, forgotten in 30 minutes
daily wave           load +-60 %, rate +-40 %, at any hour of it
shock                five times the rate for 30 minutes, everywhere
late                 each canary is cut off a third of the time, about 8 minutes at once, and delivers afterwards; 1 report in 10 is lost
bursts               bad answers come in threes (variance / mean 3)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

MINUTES = 240
PAST_MARKS = 7 * 24 * 12
DAY_MARKS = 24 * 12
FORGET_MINUTES = 30.0

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Condition:
    """One kind of fleet and release. `times`: how many times worse the release is, from minute `since` on, at the first `worse` canaries
    (None: all)."""

    name: str
    sites: int = 3
    controls: int = 50
    per_second: float = 2.0
    base: float = 0.005
    mix: float = 0.7
    day: float = 0.2
    wander: float = 0.3
    wave: bool = True
    shock: bool = False
    late: bool = False
    burst: int = 1
    past_marks: int = PAST_MARKS
    times: float = 1.0
    since: int = 0
    worse: int | None = None


@dataclass(frozen=True)
class Fleet:
    """Arrays over [run, site, minute]; canaries come first. Of the past, sums and bursts over [run, site].

    `heard[run, canary, minute]`: how many minutes of a canary the hub knows after so many have passed; `lost[run, canary, mark]`: whether
    there is no record of that mark.
    """

    condition: Condition
    answers: Counts
    bad: Counts
    past_answers: Counts
    past_bad: Counts
    past_burst: NDArray[np.float64]
    heard: Counts
    lost: NDArray[np.bool_]


def draw_fleets(condition: Condition, runs: int, seed: int) -> Fleet:
    """So many fleets of this condition."""
    chance = np.random.default_rng(seed)
    shape = (runs, condition.sites + condition.controls)
    lasting = _lognormal(chance, condition.mix, shape)
    past_answers, past_bad, past_burst, today = _draw_past(chance, condition, lasting)
    rate = condition.base * lasting * today
    rate = rate[:, :, None] * _wander(chance, condition, (*shape, MINUTES), 1.0)
    load = np.full((runs, 1, MINUTES), condition.per_second * 60)
    if condition.wave:
        angle = chance.uniform(0, 2 * np.pi, (runs, 1, 1)) + np.arange(MINUTES) * 2 * np.pi / 1440
        load, rate = load * (1 + 0.6 * np.sin(angle)), rate * (1 + 0.4 * np.sin(angle + 1.0))
    if condition.shock:
        start = chance.integers(0, MINUTES - 30, (runs, 1, 1))
        minute = np.arange(MINUTES)
        rate = np.where((minute >= start) & (minute < start + 30), 5 * rate, rate)
    worse = condition.sites if condition.worse is None else condition.worse
    rate[:, :worse, condition.since :] *= condition.times
    answers = chance.poisson(np.broadcast_to(load, rate.shape))
    bad = _draw_bad(chance, condition, answers, rate)
    heard, lost = _draw_link(chance, condition, runs)
    return Fleet(condition, answers, bad, past_answers, past_bad, past_burst, heard, lost)


def _draw_past(
    chance: np.random.Generator, condition: Condition, lasting: NDArray[np.float64]
) -> tuple[Counts, Counts, NDArray[np.float64], NDArray[np.float64]]:
    """Sums and bursts of the past, and the day effect of the run's own day. A short past is of the same day, a long one of earlier days."""
    marks = condition.past_marks
    today = _lognormal(chance, condition.day, lasting.shape)
    if marks < DAY_MARKS:
        days = np.repeat(today[:, :, None], marks, axis=2)
    else:
        days = np.repeat(_lognormal(chance, condition.day, (*lasting.shape, marks // DAY_MARKS)), DAY_MARKS, axis=2)
    rate = condition.base * lasting[:, :, None] * days * _wander(chance, condition, (*lasting.shape, marks), 5.0)
    load = np.full(marks, condition.per_second * 300)
    if condition.wave:
        angle = np.arange(marks) * 2 * np.pi / DAY_MARKS
        load, rate = load * (1 + 0.6 * np.sin(angle)), rate * (1 + 0.4 * np.sin(angle + 1.0))
    answers = chance.poisson(np.broadcast_to(load, rate.shape))
    bad = _draw_bad(chance, condition, answers, rate)
    return answers.sum(axis=2), bad.sum(axis=2), _measure_burst(answers[:, :, -DAY_MARKS:], bad[:, :, -DAY_MARKS:]), today


def _measure_burst(answers: Counts, bad: Counts) -> NDArray[np.float64]:
    """As sites measure it (edgefleet.site.telemetry.baseline): chi-square over its degrees of freedom, on the marks of the last day."""
    share = bad.sum(axis=2, keepdims=True) / np.maximum(answers.sum(axis=2, keepdims=True), 1)
    expected = np.maximum(answers * share, 1e-12)
    spread = np.where(answers > 0, (bad - expected) ** 2 / expected, 0.0).sum(axis=2) / (answers.shape[2] - 1)
    return np.round(np.clip(np.where(share[:, :, 0] > 0, spread, 1.0), 1.0, 1000.0), 2)


def _draw_bad(chance: np.random.Generator, condition: Condition, answers: Counts, rate: NDArray[np.float64]) -> Counts:
    expected = answers * np.minimum(rate, 0.5)
    return np.minimum(condition.burst * chance.poisson(expected / condition.burst), answers)


def _draw_link(chance: np.random.Generator, condition: Condition, runs: int) -> tuple[Counts, NDArray[np.bool_]]:
    shape = (runs, condition.sites)
    now = np.broadcast_to(np.arange(MINUTES + 1), (*shape, MINUTES + 1)).copy()
    lost = np.zeros((*shape, MINUTES // 5 + 2), dtype=bool)
    if condition.late:
        up = np.ones(shape, dtype=bool)  # it was there to be switched
        arrives = np.zeros((*shape, MINUTES + 1), dtype=bool)
        for minute in range(MINUTES + 1):
            arrives[:, :, minute] = up & (chance.random(shape) >= 0.1)
            turn = chance.random(shape)
            up = np.where(up, turn >= 1 / 16, turn < 1 / 8)
        now = np.maximum.accumulate(np.where(arrives, now, 0), axis=2)
        lost = chance.random(lost.shape) < 0.1
    return now, lost


def _lognormal(chance: np.random.Generator, sd: float, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.exp(sd * chance.standard_normal(shape) - sd * sd / 2)


def _wander(chance: np.random.Generator, condition: Condition, shape: tuple[int, ...], step: float) -> NDArray[np.float64]:
    """exp of an Ornstein-Uhlenbeck process, mean 1, in steps of so many minutes."""
    sd = condition.wander
    if not sd:
        return np.ones(shape)
    keep = np.exp(-step / FORGET_MINUTES)
    noise = chance.standard_normal(shape) * sd * np.sqrt(1 - keep * keep)
    noise[..., 0] = chance.standard_normal(shape[:-1]) * sd
    return np.exp(lfilter([1.0], [1.0, -keep], noise, axis=-1) - sd * sd / 2)


CLEAN = {"mix": 0.0, "day": 0.0, "wander": 0.0, "wave": False}
HEALTHY = (
    Condition("clean", **CLEAN),  # type: ignore[arg-type]
    Condition("site mix", day=0, wander=0, wave=False),
    Condition("fleet shock", day=0, wander=0, wave=False, shock=True),
    Condition("daily wave", mix=0, day=0, wander=0),
    Condition("site noise"),
    Condition("late reports", late=True),
    Condition("1 h history", past_marks=12),
    Condition("1 site", sites=1),
    Condition("10 sites", sites=10),
    Condition("0.2 req/s", per_second=0.2),
    Condition("slow bursts", base=0.01, burst=3),
    Condition("bursts 0.2/s", base=0.01, burst=3, per_second=0.2),
    Condition("5 controls", controls=5),
)
"""Releases that must not be taken back. From "site noise" on, all noise is on."""
WORSE = (
    Condition("0.5 -> 1 %", times=2),
    Condition("0.5 -> 2 %", times=4),
    Condition("0.5 -> 10 %", times=20),
    Condition("slow 1 -> 3 %", base=0.01, burst=3, times=3),
    Condition("2 % from hour 2", times=4, since=120),
    Condition("1 of 10 sites 10 %", sites=10, times=20, worse=1),
    Condition("2 %, late reports", times=4, late=True),
    Condition("1 site, 0.2/s, 10 %", sites=1, per_second=0.2, times=20),
)
"""Releases that must be."""
