"""What live traffic says of a revision, gate by gate: bad events at the sites that run it, against what these sites may have.

The usual rate is the site's own, of the 7 days before the switch, drawn towards the fleet's by five imagined events so that a new site
has one too. A relative gate moves it by what the controls show in the same minutes: bad events over expected ones. Where fewer controls
than `controls.min` were heard, nobody can tell a worse revision from a bad hour, so what is seen there can hold a rollout and not turn it
back. An absolute gate needs no controls; where there are enough, it does not blame a revision for what the whole fleet suffers.

How sure it is, is weighed in evidence; which gates there are stands in gates; what follows is decided in live and rollout.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress
from operator import mul
from typing import Literal

from edgefleet.api.policy import Analysis, Metric
from edgefleet.api.quantities import parse_percent
from edgefleet.api.report import HealthBaseline
from edgefleet.core.evidence import Tally, bound_alone, shape_of, weigh_evidence
from edgefleet.core.gates import AbsoluteGate, LiveGate, RelativeGate
from edgefleet.core.health import MARKS_PER_HOUR, Columns, Stream

PSEUDO_EVENTS = 5.0
TOLERANCE = 1.25
"""An absolute gate never blames a revision for what its predecessor did as well, and a quarter more."""
COUNTED: dict[Metric, tuple[str, str, str]] = {
    "errors": ("requests", "failed", "burst_failed"),
    "latency": ("requests", "slow", "burst_slow"),
    "confidence": ("predictions", "unsure", "burst_unsure"),
}
"""Of how many, the bad ones, and how bursty these are: fields of HealthCounts and HealthBaseline."""

Group = tuple[str, ...]
Edge = int | str | None
Outcome = Literal["Quiet", "Fail", "Hold", "NotApplicable"]


@dataclass(frozen=True, slots=True)
class Watched:
    """A site that runs the new revision; its stream is of that revision."""

    site: str
    group: Group
    stream: Stream


@dataclass(frozen=True, slots=True)
class Control:
    """A site that may be compared with; its streams are of other revisions."""

    site: str
    group: Group
    streams: tuple[Stream, ...]


@dataclass(frozen=True, slots=True)
class SiteTally:
    """One site under one gate: what was seen of how many, about what it may have, and what its own bets have become."""

    site: str
    requests: int
    seen: int
    allowed: float
    evidence: float


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """One gate. `bound` is where evidence is enough; `controls` the smallest number of controls heard for a site; `sites` by name.

    Fail: proved worse. Hold: it would be, had there been enough controls. NotApplicable: a relative gate without a past, as on a
    first release.
    """

    gate: LiveGate
    outcome: Outcome
    requests: int
    seen: int
    allowed: float
    evidence: float
    bound: float
    controls: int
    sites: tuple[SiteTally, ...]

    @property
    def bound_alone(self) -> float:
        """Where one site's own evidence is enough to take it back alone."""
        return bound_alone(self.bound, len(self.sites))

    @property
    def worse(self) -> tuple[SiteTally, ...]:
        """The sites whose own bets alone are enough, where this gate may take a site back."""
        return tuple(one for one in self.sites if one.evidence >= self.bound_alone) if self.outcome != "NotApplicable" else ()


def judge_gates(
    gates: Sequence[LiveGate],
    analysis: Analysis,
    *,
    watched: Iterable[Watched],
    controls: Iterable[Control],
    opened: Sequence[int],
    now: int,
    first_release: bool,
) -> tuple[GateVerdict, ...]:
    """One verdict for each gate. `opened` are the marks at which waves opened, `now` that of the look. The same facts give the same
    bits, in whatever order they come."""
    look = Look(gates, analysis, watched=watched, controls=controls, opened=opened, now=now, first_release=first_release)
    return tuple(map(look.judge, gates))


def plan_stakes(opened: Sequence[int], now: int) -> tuple[int, ...]:
    """The marks from which money is staked, up to `now`: at the first wave's opening, with each later one, and each hour unless a wave
    was opened in the last half of it.

    After eight hours the hours grow with the run, four to a doubling: many small stakes would prove less, later. What happened in the
    5 minutes in which a wave was opened is not staked on again: its opening may have depended on it. No stake depends on what comes
    after it.
    """
    first = min(opened, default=now)
    later = {mark + 1 for mark in opened if first < mark < now}
    hours = range(1, (now - first) // MARKS_PER_HOUR + 1)
    kept = (first + hour * MARKS_PER_HOUR for hour in hours if hour % (1 << max(0, hour.bit_length() - 3)) == 0)
    apart = {mark for mark in kept if not any(mark - MARKS_PER_HOUR // 2 < opening <= mark + 1 for opening in later)}
    return (first, *sorted(later | apart))


def count_requests(streams: Mapping[str, Stream]) -> dict[str, int]:
    """How many requests each site has answered with the new revision."""
    return {site: stream.total.requests for site, stream in streams.items()}


class Look:
    """One look at a run: the sites in order of their names, and what the controls show. Made of what judge_gates is."""

    def __init__(
        self,
        gates: Sequence[LiveGate],
        analysis: Analysis,
        *,
        watched: Iterable[Watched],
        controls: Iterable[Control],
        opened: Sequence[int],
        now: int,
        first_release: bool,
    ) -> None:
        self.watched = sorted(watched, key=lambda one: one.site)
        self.controls = sorted(controls, key=lambda one: one.site)
        self.stakes = plan_stakes(opened, now)
        self.now = now
        self.minimum = analysis.controls.min
        self.shape = shape_of(float(analysis.site_spread))
        self.first_release = first_release
        self._around: dict[tuple[Group, Metric, Edge], _Surroundings] = {}  # for both gates on a metric
        in_force = sum(not gate.dry_run for gate in gates if isinstance(gate, AbsoluteGate) or not first_release)
        self.bound = max(1, in_force) / parse_percent(analysis.false_rollback_budget)

    def judge(self, gate: LiveGate) -> GateVerdict:
        """The verdict of one gate."""
        rows = self.read(gate)
        if rows is None:
            return GateVerdict(gate, "NotApplicable", 0, 0, 0.0, 1.0, self.bound, 0, ())
        evidence, own = weigh_evidence([row.tallies(self.stakes) for row in rows], self.shape, self.bound)
        outcome: Outcome = "Fail" if evidence >= self.bound else "Quiet"
        if outcome == "Quiet" and any(row.unsure for row in rows):
            everything, _ = weigh_evidence([(row.unsure or row).tallies(self.stakes) for row in rows], self.shape, self.bound)
            if everything >= self.bound:
                evidence, outcome = everything, "Hold"
        sites = tuple(
            SiteTally(row.site, whole.requests, whole.seen, whole.allow(0), alone)
            for row, alone in zip(rows, own, strict=True)
            for whole in [row.unsure or row]
        )
        return GateVerdict(
            gate,
            outcome,
            sum(one.requests for one in sites),
            sum(one.seen for one in sites),
            math.fsum(one.allowed for one in sites),
            evidence,
            self.bound,
            min((row.controls for row in rows), default=0),
            sites,
        )

    def read(self, gate: LiveGate) -> list["Row"] | None:
        """What each site that delivers has shown under one gate; None if there is nothing to compare with."""
        shown = [one for one in self.watched if delivers(one.stream, gate.metric)]
        if isinstance(gate, RelativeGate) and self.first_release:
            return None
        past = {edge: self._pool(shown, gate.metric, edge) for edge in {_edge(one.stream, gate.metric) for one in shown}}
        if isinstance(gate, RelativeGate) and None in past.values():
            return None
        rows = []
        for one in shown:
            edge = _edge(one.stream, gate.metric)
            usual = _usual(one.stream.before, gate.metric, past[edge])
            key = (one.group, gate.metric, edge)
            if key not in self._around:
                self._around[key] = self._look_around(*key, past[edge])
            near = self._around[key]
            if isinstance(gate, AbsoluteGate):
                rows.append(_read_absolute(one, gate, usual, near, self.minimum))
            else:
                rows.append(_read_relative(one, gate, usual, near, self.minimum))
        return rows

    def _pool(self, shown: Sequence[Watched], metric: Metric, edge: Edge) -> float | None:
        """The rate of all sites that count at this edge; one imagined event keeps it above zero. None if nobody has a past."""
        pasts = [one.stream.before for one in shown if _edge(one.stream, metric) == edge]
        pasts += [stream.usual for one in self.controls for stream in one.streams if _edge(stream, metric) == edge]
        of_name, bad_name, _ = COUNTED[metric]
        of = sum(getattr(past, of_name) for past in pasts if past)
        bad = sum(getattr(past, bad_name) for past in pasts if past)
        return (bad + 1) / (of + 1) if of else None

    def _look_around(self, group: Group, metric: Metric, edge: Edge, fleet_rate: float | None) -> "_Surroundings":
        near = [
            stream
            for one in self.controls
            if one.group == group
            for stream in sorted(one.streams, key=lambda stream: (stream.activation, stream.revision))
            if delivers(stream, metric) and _edge(stream, metric) == edge and not stream.skewed
        ]
        # Clocks may be half a mark off.
        return _Surroundings.of(near, metric, fleet_rate, self.stakes[0] - 1, self.now + 1, self.minimum)


@dataclass(frozen=True, slots=True)
class Row:
    """One site under one gate. `begins` says when each span began; the sums have one entry more: entry i is the sum of the first i spans.

    `moved` sums the answers of each span times the shift that the controls showed in it. What is allowed of a sum is the larger of
    `share` of the moved answers, and `usual` of these plus `least` of the answers: of an absolute gate 1.25 times the usual rate, and
    the limit; of a relative one the usual rate and `max_increase`, and the usual rate plus `min_increase`. `unsure`: the same site with
    everything in it, if not all of its spans had enough controls.
    """

    site: str
    burst: float
    begins: Sequence[int]
    of: Sequence[int]
    bad: Sequence[int]
    moved: Sequence[float]
    share: float
    usual: float = 0.0
    least: float = 0.0
    controls: int = 0
    unsure: "Row | None" = None

    @property
    def requests(self) -> int:
        """How many answers, or predictions."""
        return self.of[-1]

    @property
    def seen(self) -> int:
        """How many of them were bad."""
        return self.bad[-1]

    def allow(self, index: int) -> float:
        """How many bad events are allowed from a span on."""
        moved = self.moved[-1] - self.moved[index]
        return max(self.share * moved, self.usual * moved + self.least * (self.of[-1] - self.of[index]))

    def tallies(self, stakes: Sequence[int]) -> list[Tally]:
        """What happened since each stake. The first counts everything, also what a wrong clock dates before the wave opened."""
        begins, of, bad, moved = self.begins, self.of, self.bad, self.moved
        share, usual, least, burst = self.share, self.usual, self.least, self.burst
        latest = begins[-1] if begins else 0
        known, tallies = -1, []
        for stake in stakes:
            index = 0 if known < 0 else len(begins) if stake > latest else bisect_left(begins, stake, known)
            if index != known:
                # The same as allow(), without a call for each of a thousand sites.
                rest = moved[-1] - moved[index]
                plain, steps = share * rest, usual * rest + least * (of[-1] - of[index])
                allowed = plain if plain > steps else steps
                known, tally = index, ((bad[-1] - bad[index]) / burst, allowed / burst)
            tallies.append(tally)
        return tallies


@dataclass(frozen=True, slots=True)
class _Surroundings:
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
    def of(cls, near: Sequence[Stream], metric: Metric, fleet_rate: float | None, first: int, last: int, minimum: int) -> "_Surroundings":
        """From the streams of the controls, in a fixed order. Events of a span that is wider than a mark are spread over it; of one wider
        than an hour nobody knows what belongs where."""
        of_name, bad_name, _ = COUNTED[metric]
        size = max(last - first + 1, 1)
        bad, expected, heard = [0.0] * size, [0.0] * size, [0] * size
        for stream in near:
            if stream.usual is None or not getattr(stream.usual, of_name):
                continue
            rate = _usual(stream.usual, metric, fleet_rate)
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


def _read_absolute(one: Watched, gate: AbsoluteGate, usual: float, around: _Surroundings, minimum: int) -> Row:
    """The limit stands without controls. With enough of them, what the whole fleet suffers is not blamed on the revision; that the fleet
    has a good hour takes nothing from it."""
    of_name, bad_name, _ = COUNTED[gate.metric]
    columns, burst = one.stream.columns, _burst(one.stream, gate.metric)
    of: Sequence[float] = columns.sums[of_name]
    moved, heard = of, 0
    if usual and not one.stream.skewed:
        _, raised, heard_in = around.move_all(columns)
        heard = max(heard_in, default=0)
        if heard >= minimum:
            moved = tuple(accumulate(map(mul, columns.counts[of_name], raised), initial=0.0))
    return Row(
        one.site, burst, columns.first, columns.sums[of_name], columns.sums[bad_name], moved, TOLERANCE * usual, 0.0, gate.limit, heard
    )


def _read_relative(one: Watched, gate: RelativeGate, usual: float, around: _Surroundings, minimum: int) -> Row:
    of_name, bad_name, _ = COUNTED[gate.metric]
    columns = one.stream.columns
    burst = _burst(one.stream, gate.metric)
    shares = (usual * (1 + gate.max_increase), usual, gate.min_increase)
    # Nobody knows what the controls showed in the same minutes if the site's minutes are wrong.
    nobody: tuple[list[float], list[float], list[int]] = (len(columns.first) * [1.0], [], len(columns.first) * [0])
    shifts, _, heard_in = nobody if one.stream.skewed else around.move_all(columns)
    of, bad, heard = columns.counts[of_name], columns.counts[bad_name], max(heard_in, default=0)
    if min(heard_in, default=minimum) >= minimum:
        moved = tuple(accumulate(map(mul, of, shifts), initial=0.0))
        return Row(one.site, burst, columns.first, columns.sums[of_name], columns.sums[bad_name], moved, *shares, heard)
    sure = [count >= minimum for count in heard_in]
    shifts = [shift if known else 1.0 for shift, known in zip(shifts, sure, strict=True)]
    everything = tuple(accumulate(map(mul, of, shifts), initial=0.0))
    unsure = Row(one.site, burst, columns.first, columns.sums[of_name], columns.sums[bad_name], everything, *shares, heard)
    return Row(
        one.site,
        burst,
        tuple(compress(columns.first, sure)),
        tuple(accumulate(compress(of, sure), initial=0)),
        tuple(accumulate(compress(bad, sure), initial=0)),
        tuple(accumulate(map(mul, compress(of, sure), compress(shifts, sure)), initial=0.0)),
        *shares,
        heard,
        unsure,
    )


def _raise(shift: float, heard: int, minimum: int) -> float:
    return shift if shift > 1 and heard >= minimum else 1.0


def _usual(baseline: HealthBaseline | None, metric: Metric, fleet_rate: float | None) -> float:
    """A site's own rate, drawn towards the fleet's; 0 if nobody has a past."""
    if fleet_rate is None:
        return 0.0
    of_name, bad_name, _ = COUNTED[metric]
    bad, of = (getattr(baseline, bad_name), getattr(baseline, of_name)) if baseline else (0, 0)
    return float((bad + PSEUDO_EVENTS) / (of + PSEUDO_EVENTS / fleet_rate))


def _burst(stream: Stream, metric: Metric) -> float:
    return max(1.0, getattr(stream.before, COUNTED[metric][2])) if stream.before else 1.0


def _edge(stream: Stream, metric: Metric) -> Edge:
    """Where the line between good and bad was drawn at this site."""
    return stream.le_ms if metric == "latency" else stream.ge if metric == "confidence" else None


def delivers(stream: Stream, metric: Metric) -> bool:
    """Whether the site counts what gates on this metric judge."""
    return metric == "errors" or _edge(stream, metric) is not None
