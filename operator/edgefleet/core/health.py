"""What sites reported of live traffic, merged. A merged stream is a function of the set of records that arrived: order, delay and
repetition change nothing, and a lost record costs only when its events happened.

Counters are cumulative, so merging takes the larger of two values for the same mark. A site that counts backwards is in error; its
counter is read as standing still. What follows from the counts is decided in traffic.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from edgefleet.api.report import MARK_SECONDS, HealthBaseline, HealthCounts, HealthReport

SKEW_LIMIT_SECONDS = 150
"""Half a mark: with more, an event may be two marks away from where the controls show it."""
MARKS_PER_HOUR = 3600 // MARK_SECONDS
FINE_MARKS = 24 * MARKS_PER_HOUR
"""How long 5-minute records are kept; after that, one an hour."""
MAX_RECORDS = 2048
"""Of one stream: a day of 5-minute records and a month of hourly ones are about a thousand, more is a site's mistake."""
MAX_EPOCHS = 64
"""As many as a HealthReport may hold: a merged stream must be one that can be written down."""
MAX_COUNT = 1 << 53
MAX_BURST = 1000.0
NOTHING = HealthCounts()

Records = Mapping[int, HealthCounts]


class Span(NamedTuple):
    """What happened from the beginning of the 5-minute span `first` to the end of `last` (marks: UTC seconds // 300)."""

    first: int
    last: int
    counts: HealthCounts


class Columns(NamedTuple):
    """A stream's spans by column, in the order of their first marks; counts by name, as HealthCounts has them. `sums`: entry i is the
    sum of the first i spans. `gapless`: each span is one mark, and the next one's follows it."""

    first: tuple[int, ...]
    last: tuple[int, ...]
    counts: Mapping[str, tuple[int, ...]]
    sums: Mapping[str, tuple[int, ...]]
    gapless: bool


@dataclass(frozen=True)
class Stream:
    """One site's one activation of one revision. `epochs` maps an epoch's start to its records, and those a mark to cumulative counts;
    the other fields as in HealthReport."""

    revision: str
    activation: int
    sequence: int
    epochs: Mapping[int, Records]
    le_ms: int | None = None
    ge: str | None = None
    skew: int = 0
    lost: int = 0
    usual: HealthBaseline | None = None
    before: HealthBaseline | None = None

    @property
    def skewed(self) -> bool:
        """Whether the site's clock is so far off that its records cannot be placed beside those of others."""
        return abs(self.skew) > SKEW_LIMIT_SECONDS

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """What happened between one record and the next, over all epochs, without empty spans, in the order of their first marks."""
        return tuple(sorted(span for start, records in self.epochs.items() for span in self._split(start, records)))

    @cached_property
    def columns(self) -> Columns:
        """The spans by column, kept: most streams that a look reads have not changed since the last."""
        first, last, rows = zip(*self.spans, strict=True) if self.spans else ((), (), ())
        columns = zip(*rows, strict=True) if rows else ((),) * len(NOTHING)
        counts = dict(zip(HealthCounts._fields, columns, strict=True))
        sums = {name: tuple(accumulate(column, initial=0)) for name, column in counts.items()}
        return Columns(first, last, counts, sums, first == last == tuple(range(first[0], first[0] + len(first))) if first else True)

    @property
    def total(self) -> HealthCounts:
        """All that happened since the activation."""
        return HealthCounts(*(self.columns.sums[name][-1] for name in HealthCounts._fields))

    def _split(self, start: int, records: Records) -> Iterator[Span]:
        # A gateway may have lived before: nothing of this revision was counted before its activation.
        first, before = max(start, self.activation) // MARK_SECONDS, NOTHING
        for mark in sorted(records):
            now = _larger(before, records[mark])
            if now != before:
                yield Span(min(first, mark), mark, HealthCounts(*(new - old for new, old in zip(now, before, strict=True))))
            before, first = now, mark + 1


def read_stream(report: HealthReport) -> Stream:
    """A report as a stream of its own. Counts that cannot be are brought into 0 to 2^53, bursts into 1 to 1000."""
    epochs: dict[int, dict[int, HealthCounts]] = {}
    for epoch in report.epochs:
        records = epochs.setdefault(epoch.start, {})
        for mark, *counts in epoch.records:
            records[_bound(mark)] = _larger(records.get(_bound(mark), NOTHING), HealthCounts(*map(_bound, counts)))
    return Stream(
        revision=report.revision,
        activation=report.activation,
        sequence=report.sequence,
        epochs=_newest(epochs),
        le_ms=report.le_ms,
        ge=report.ge,
        skew=report.skew,
        lost=_bound(report.lost),
        usual=_read_baseline(report.usual),
        before=_read_baseline(report.before),
    )


def merge_streams(one: Stream, other: Stream) -> Stream:
    """Both together; they are of the same site. Commutative, associative and idempotent. Raises ValueError for two activations."""
    if (one.revision, one.activation) != (other.revision, other.activation):
        raise ValueError(f"streams of two activations: {one.revision} at {one.activation}, {other.revision} at {other.activation}")
    epochs: dict[int, dict[int, HealthCounts]] = {start: dict(records) for start, records in one.epochs.items()}
    for start, records in other.epochs.items():
        held = epochs.setdefault(start, {})
        for mark, counts in records.items():
            held[mark] = _larger(held.get(mark, NOTHING), counts)
    return Stream(
        revision=one.revision,
        activation=one.activation,
        sequence=max(one.sequence, other.sequence),
        epochs=_newest(epochs),
        le_ms=max(one.le_ms or 0, other.le_ms or 0) or None,
        ge=max(one.ge or "", other.ge or "") or None,
        # A clock that was off once has misplaced events.
        skew=max(one.skew, other.skew, key=lambda skew: (abs(skew), skew)),
        lost=max(one.lost, other.lost),
        usual=_newer(one.usual, other.usual),
        before=_newer(one.before, other.before),
    )


def thin(stream: Stream, now: int) -> Stream:
    """Without the records older than 24 h that are not the last of their hour or of their epoch. `now` is a mark."""
    epochs = {}
    for start, records in stream.epochs.items():
        latest = max(records, default=0)
        epochs[start] = {
            mark: counts
            for mark, counts in records.items()
            if mark > now - FINE_MARKS or mark == latest or mark % MARKS_PER_HOUR == MARKS_PER_HOUR - 1
        }
    if _count(epochs) == _count(stream.epochs):
        return stream
    return replace(stream, epochs=epochs)


def _newest(epochs: dict[int, dict[int, HealthCounts]]) -> dict[int, dict[int, HealthCounts]]:
    """The newest epochs and records, should a site send them without end. The newest of a union are the newest of the newest of each, so
    merging stays a function of the set."""
    if len(epochs) > MAX_EPOCHS:
        epochs = {start: epochs[start] for start in sorted(epochs)[-MAX_EPOCHS:]}
    if _count(epochs) <= MAX_RECORDS:
        return epochs
    kept: dict[int, dict[int, HealthCounts]] = {}
    for start, mark in sorted((start, mark) for start, records in epochs.items() for mark in records)[-MAX_RECORDS:]:
        kept.setdefault(start, {})[mark] = epochs[start][mark]
    return kept


def _count(epochs: Mapping[int, Records]) -> int:
    return sum(map(len, epochs.values()))


def _read_baseline(baseline: HealthBaseline | None) -> HealthBaseline | None:
    if baseline is None:
        return None
    bursts = (min(max(burst, 1.0), MAX_BURST) if math.isfinite(burst) else 1.0 for burst in baseline[5:])
    return HealthBaseline(*map(_bound, baseline[:5]), *bursts)


def _bound(count: int) -> int:
    return min(max(count, 0), MAX_COUNT)


def _larger(one: HealthCounts, other: HealthCounts) -> HealthCounts:
    return HealthCounts(*map(max, one, other))


def _newer(one: HealthBaseline | None, other: HealthBaseline | None) -> HealthBaseline | None:
    """The one that saw more; of two that saw as much, the larger: any rule will do that does not ask which came first."""
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)
