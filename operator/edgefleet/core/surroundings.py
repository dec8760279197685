"""What sites that did not change showed in the same minutes: by how much the whole fleet was worse, or better, than usual.

The usual rate of a site is its own, drawn towards the fleet's by a few imagined events, so that a new site has one too. What a revision may
have after that is decided in rows, and by whom it is judged in traffic.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from edgefleet.api.policy import Metric
from edgefleet.api.report import HealthBaseline
from edgefleet.core.health import MARKS_PER_HOUR, Columns, Stream

PSEUDO_EVENTS = 5.0
COUNTED: dict[Metric, tuple[str, str, str]] = {
    "errors": ("requests", "failed", "burst_failed"),
    "latency": ("requests", "slow", "burst_slow"),
    "confidence": ("predictions", "unsure", "burst_unsure"),
}
"""Of how many, the bad ones, and how bursty these are: fields of HealthCounts and HealthBaseline."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the controls of one group showed, by mark from `first` on. `bad` and `expected` are running sums with one entry more, `shift` is
    that of each single mark, `raised` the same where it raises what an absolute gate allows; `heard` says how many controls had traffic."""

    first: int
    bad: Sequence[float]
    expected: Sequence[float]
    shift: Sequence[float]
    raised: Sequence[float]
    heard: Sequence[int]
    minimum: int

    @classmethod
    def of(cls, near: Sequence[Stream], metric: Metric, fleet_rate: float | None, first: int, last: int, minimum: int) -> "Surroundings":
        """From the streams of the controls, in a fixed order. Events of a span that is wider than a mark are spread over it; of one wider
        than an hour nobody knows what belongs where."""
        of_name, bad_name, _ = COUNTED[metric]
        size = max(last - first + 1, 1)
        bad, expected, heard = [0.0] * size, [0.0] * size, [0] * size
        for stream in near:
            if stream.usual is None or not getattr(stream.usual, of_name):
                continue
            rate = usual_rate(stream.usual, metric, fleet_rate)
            columns = stream.columns
            start = bisect_left(columns.first, first)
            spans = zip(
                columns.first[start:], columns.last[start:], columns.counts[of_name][start:], columns.counts[bad_name][start:], strict=True
            )
            for begin, end, of, count in spans:
                if begin == end:
                    if of and end <= last:
                        place = end - first
                        bad[place] += count
                        expected[place] += rate * of
                        heard[place] += 1
                elif of and end - begin < MARKS_PER_HOUR:
                    width = end - begin + 1
                    for place in range(begin - first, min(end, last) - first + 1):
                        bad[place] += count / width
                        expected[place] += rate * of / width
                        heard[place] += 1
        shift = [(count + 1) / (of + 1) for count, of in zip(bad, expected, strict=True)]
        raised = [_raise(moved, count, minimum) for moved, count in zip(shift, heard, strict=True)]
        return cls(first, tuple(accumulate(bad, initial=0.0)), tuple(accumulate(expected, initial=0.0)), shift, raised, heard, minimum)

    def move_all(self, columns: Columns) -> tuple[Sequence[float], Sequence[float], Sequence[int]]:
        """The shift over each span, the same where it raises what is allowed, and the number of controls heard."""
        low = columns.first[0] - self.first if columns.first else 0
        if columns.gapless and low >= 0 and low + len(columns.first) <= len(self.heard):
            part = slice(low, low + len(columns.first))
            return self.shift[part], self.raised[part], self.heard[part]
        moves = list(map(self.move, columns.first, columns.last))
        raised = [_raise(shift, count, self.minimum) for shift, count in moves]
        return [shift for shift, _ in moves], raised, [count for _, count in moves]

    def move(self, begin: int, end: int) -> tuple[float, int]:
        """The shift over these marks (bad over expected events, each with one imagined), and the smallest number of controls heard."""
        low, high = begin - self.first, end - self.first
        if low < 0 or high >= len(self.heard):
            return 1.0, 0
        if low == high:
            return self.shift[low], self.heard[low]
        bad, expected = self.bad[high + 1] - self.bad[low], self.expected[high + 1] - self.expected[low]
        return (bad + 1) / (expected + 1), min(self.heard[low : high + 1])


def usual_rate(baseline: HealthBaseline | None, metric: Metric, fleet_rate: float | None) -> float:
    """A site's own rate, drawn towards the fleet's; 0 if nobody has a past."""
    if fleet_rate is None:
        return 0.0
    of_name, bad_name, _ = COUNTED[metric]
    bad, of = (getattr(baseline, bad_name), getattr(baseline, of_name)) if baseline else (0, 0)
    return float((bad + PSEUDO_EVENTS) / (of + PSEUDO_EVENTS / fleet_rate))


def _raise(shift: float, heard: int, minimum: int) -> float:
    return shift if shift > 1 and heard >= minimum else 1.0
