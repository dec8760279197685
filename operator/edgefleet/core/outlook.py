"""What would change a verdict on live traffic, and how long that would take at today's traffic. For people: nothing is decided by it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from edgefleet.api.policy import Analysis
from edgefleet.core.evidence import Tally, weigh_evidence
from edgefleet.core.gates import LiveGate
from edgefleet.core.health import MARKS_PER_HOUR
from edgefleet.core.rows import Row
from edgefleet.core.traffic import Control, Look, Watched

MINUTES_PER_MARK = 5
LONGEST_MINUTES = 7 * 24 * 60
MOST_BAD = 1 << 40


@dataclass(frozen=True, slots=True)
class Outlook:
    """For one gate, at the traffic of the last hour (`per_minute` answers, or predictions, at all its sites together).

    `would`: what the gate will say when the bound is reached. `more_bad`: so many more bad answers, spread as the traffic is, reach it;
    0 if it is reached. `minutes_if_twice`, `minutes_if_four_times`: how long until then, if from now on the revision is that many times
    as bad as allowed. None: not within a week, as there is no traffic or so few sites cannot prove so little.
    `young`: the first 5 minutes are not over. Reports have no finer marks, so `per_minute` may be far too low and the times too long.
    """

    gate: LiveGate
    would: Literal["Fail", "Hold"]
    per_minute: float
    more_bad: int | None
    minutes_if_twice: int | None
    minutes_if_four_times: int | None
    young: bool = False


def explain_gates(
    gates: Sequence[LiveGate],
    analysis: Analysis,
    *,
    watched: Iterable[Watched],
    controls: Iterable[Control],
    opened: Sequence[int],
    now: int,
    first_release: bool,
) -> tuple[Outlook, ...]:
    """One outlook for each gate that is applicable. Arguments as for judge_gates."""
    look = Look(gates, analysis, watched=watched, controls=controls, opened=opened, now=now, first_release=first_release)
    return tuple(_foresee(gate, look, rows) for gate in gates if (rows := look.read(gate)) is not None)


def _foresee(gate: LiveGate, look: Look, rows: Sequence[Row]) -> Outlook:
    would: Literal["Fail", "Hold"] = "Hold" if rows and all(row.unsure for row in rows) else "Fail"
    seen = [row.unsure or row for row in rows] if would == "Hold" else list(rows)
    tallies = [row.tallies(look.stakes) for row in seen]
    rates = [_rate(row.unsure or row, look.now) for row in rows]
    per_minute = sum(answers for answers, _ in rates)
    bursts = [row.burst for row in rows]

    def reached(more: Sequence[Tally]) -> bool:
        grown = [
            [(x + bad / burst, a + allowed / burst) for x, a in own]
            for own, (bad, allowed), burst in zip(tallies, more, bursts, strict=True)
        ]
        return weigh_evidence(grown, look.shape, look.bound).together >= look.bound

    def after(minutes: int, times: float) -> bool:
        return reached([(times * allowed * minutes, allowed * minutes) for _, allowed in rates])

    return Outlook(
        gate,
        would,
        per_minute,
        _smallest(lambda bad: reached([(bad * answers / per_minute, 0.0) for answers, _ in rates]), MOST_BAD) if per_minute else None,
        _smallest(lambda minutes: after(minutes, 2.0), LONGEST_MINUTES),
        _smallest(lambda minutes: after(minutes, 4.0), LONGEST_MINUTES),
        young={first for row in rows for first in row.begins} == {look.now},
    )


def _rate(row: Row, now: int) -> tuple[float, float]:
    """Answers a minute in the last hour, and how many of them may be bad."""
    begin = now - MARKS_PER_HOUR + 1
    index = next((index for index, first in enumerate(row.begins) if first >= begin), len(row.begins))
    if index == len(row.begins):
        return 0.0, 0.0
    minutes = (now - row.begins[index] + 1) * MINUTES_PER_MARK
    return (row.of[-1] - row.of[index]) / minutes, row.allow(index) / minutes


def _smallest(enough: Callable[[int], bool], most: int) -> int | None:
    """The smallest number that is enough; None if `most` is not."""
    if enough(0):
        return 0
    high = 1
    while not enough(high):
        if high >= most:
            return None
        high = min(2 * high, most)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
