# NOTE (remove when read): written and integrated by the lead, as rollouts and the hub need it now; it replaced an uncommitted draft of
# the same name. Adapt and improve this version (names stay: Stream, spans, plan_gates, judge_gates, GateVerdict);
"""What live traffic says of a revision, gate by gate: bad events at the sites that run it, against what these sites may have.

The usual rate is the site's own, of the 7 days before the switch, drawn towards the fleet's by five imagined events so that a new site
has one too. A relative gate moves it by what the controls show in the same minutes: bad events over expected ones. Where fewer controls
than `controls.min` were heard, nobody can tell a worse revision from a bad hour, so what is seen there can hold a rollout and not turn it
back. How sure it is, is weighed in evidence; which gates there are stands in gates; what follows is decided in live and rollout.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from edgefleet.api.policy import Analysis, Metric
from edgefleet.api.quantities import parse_percent
from edgefleet.api.report import HealthBaseline, HealthCounts
from edgefleet.core.evidence import Tally, shape_of, weigh_evidence
from edgefleet.core.gates import AbsoluteGate, LiveGate, RelativeGate
from edgefleet.core.health import MARKS_PER_HOUR, Stream

PSEUDO_EVENTS = 5.0
TOLERANCE = 1.25
"""An absolute gate never blames a revision for what its predecessor did as well, and a quarter more."""

Group = tuple[str, ...]
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

    Fail: proved worse. Hold: it would be, had there been enough controls. NotApplicable: a relative gate on a first release.
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
    def worse(self) -> tuple[SiteTally, ...]:
        """The sites whose own bets alone are enough, where this gate may take a site back."""
        return tuple(one for one in self.sites if one.evidence >= self.bound) if self.outcome != "NotApplicable" else ()


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
    at_sites = sorted(watched, key=lambda one: one.site)
    beside = sorted(controls, key=lambda one: one.site)
    in_force = sum(not gate.dry_run for gate in gates if isinstance(gate, AbsoluteGate) or not first_release)
    bound = max(1, in_force) / parse_percent(analysis.false_rollback_budget)
    look = _Look(analysis, at_sites, beside, plan_stakes(opened, now), bound)
    return tuple(
        GateVerdict(gate, "NotApplicable", 0, 0, 0.0, 1.0, bound, 0, ())
        if isinstance(gate, RelativeGate) and first_release
        else look.judge(gate)
        for gate in gates
    )


def plan_stakes(opened: Sequence[int], now: int) -> tuple[int, ...]:
    """The marks at which money is staked: the first wave's opening, then each later one and each full hour, up to `now`."""
    if not opened:
        return (now,)
    first = min(opened)
    return tuple(sorted({*opened, *range(first, now + 1, MARKS_PER_HOUR)}))


@dataclass(frozen=True, slots=True)
class _Look:
    analysis: Analysis
    watched: Sequence[Watched]
    controls: Sequence[Control]
    stakes: tuple[int, ...]
    bound: float

    def judge(self, gate: LiveGate) -> GateVerdict:
        metric = gate.metric
        shown = [one for one in self.watched if _delivers(one.stream, metric)]
        fleet_rate = _pool(
            [baseline for one in shown if (baseline := one.stream.before)]
            + [baseline for one in self.controls for stream in one.streams if (baseline := stream.usual) and _delivers(stream, metric)],
            metric,
        )
        surroundings = self._look_around(metric, shown, fleet_rate) if isinstance(gate, RelativeGate) else {}
        rows = [_Row.of(one, gate, fleet_rate, surroundings.get((one.group, _edge(one.stream, metric)))) for one in shown]
        shape = shape_of(float(self.analysis.site_spread))
        sure, own = weigh_evidence([[row.tally(stake, sure=True) for row in rows] for stake in self._stakes()], shape)
        evidence, outcome = sure, "Fail" if sure >= self.bound else "Quiet"
        if outcome == "Quiet" and isinstance(gate, RelativeGate):
            all_of_it, _ = weigh_evidence([[row.tally(stake, sure=False) for row in rows] for stake in self._stakes()], shape)
            if all_of_it >= self.bound:
                evidence, outcome = all_of_it, "Hold"
        sites = tuple(
            SiteTally(row.site, row.requests, row.seen, math.fsum(row.allowed), alone) for row, alone in zip(rows, own, strict=True)
        )
        return GateVerdict(
            gate,
            outcome,  # type: ignore[arg-type]
            sum(one.requests for one in sites),
            sum(one.seen for one in sites),
            math.fsum(one.allowed for one in sites),
            evidence,
            self.bound,
            min((row.controls for row in rows), default=0),
            sites,
        )

    def _stakes(self) -> Sequence[int | None]:
        """None is the first: it counts everything, also what a wrong clock dates before the wave opened."""
        return (None, *self.stakes[1:])

    def _look_around(
        self, metric: Metric, shown: Sequence[Watched], fleet_rate: float | None
    ) -> dict[tuple[Group, object], "_Surroundings"]:
        found = {}
        minimum = self.analysis.controls.min
        for key in {(one.group, _edge(one.stream, metric)) for one in shown}:
            group, edge = key
            near = [
                (control.site, stream)
                for control in self.controls
                if control.group == group
                for stream in control.streams
                if _delivers(stream, metric) and _edge(stream, metric) == edge and not stream.skewed
            ]
            found[key] = _Surroundings.of(near, metric, fleet_rate, minimum)
        return found


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What the controls of one group showed: sums up to each mark, from `first` on, of bad and expected events; and how many were heard
    in each mark."""

    first: int
    bad: tuple[float, ...]
    expected: tuple[float, ...]
    heard: tuple[int, ...]
    minimum: int

    @classmethod
    def of(cls, near: Sequence[tuple[str, Stream]], metric: Metric, fleet_rate: float | None, minimum: int) -> "_Surroundings":
        bad: defaultdict[int, float] = defaultdict(float)
        expected: defaultdict[int, float] = defaultdict(float)
        heard: defaultdict[int, set[str]] = defaultdict(set)
        for site, stream in near:
            rate = _usual(stream.usual, metric, fleet_rate)
            for span in stream.spans:
                count, of = _read(span.counts, metric)
                if rate is None or not of:
                    continue
                bad[span.last] += count
                expected[span.last] += of * rate
                # A control that was cut off for long says nothing of single minutes.
                for mark in range(max(span.first, span.last - MARKS_PER_HOUR), span.last + 1):
                    heard[mark].add(site)
        if not heard:
            return cls(0, (), (), (), minimum)
        first, last = min(heard), max(heard)
        marks = range(first, last + 1)
        return cls(
            first,
            tuple(accumulate(bad.get(mark, 0.0) for mark in marks)),
            tuple(accumulate(expected.get(mark, 0.0) for mark in marks)),
            tuple(len(heard.get(mark, ())) for mark in marks),
            minimum,
        )

    def count(self, first: int, last: int) -> int:
        """How many controls were heard in these marks."""
        return max(self.heard[max(0, first - self.first) : max(0, last + 1 - self.first)], default=0)

    def shift(self, first: int, last: int) -> float:
        """Bad over expected events in these marks, each with one imagined event."""
        low, high = first - self.first - 1, min(last - self.first, len(self.bad) - 1)
        if high < 0:
            return 1.0
        bad, expected = self.bad[high], self.expected[high]
        if low >= 0:
            below = min(low, len(self.bad) - 1)
            bad, expected = bad - self.bad[below], expected - self.expected[below]
        return (bad + 1) / (expected + 1)


@dataclass(frozen=True, slots=True)
class _Row:
    """One site under one gate: for each span when it began, what was seen, what is allowed, and whether enough controls were heard."""

    site: str
    requests: int
    seen: int
    burst: float
    controls: int
    begins: tuple[int, ...]
    bad: tuple[int, ...]
    allowed: tuple[float, ...]
    sure: tuple[bool, ...]

    @classmethod
    def of(cls, one: Watched, gate: LiveGate, fleet_rate: float | None, around: _Surroundings | None) -> "_Row":
        usual = _usual(one.stream.before, gate.metric, fleet_rate) or 0.0
        begins, bad, allowed, sure = [], [], [], []
        requests = seen = 0
        heard = [0]
        for span in one.stream.spans:
            count, of = _read(span.counts, gate.metric)
            if not of:
                continue
            requests, seen = requests + of, seen + count
            begins.append(span.first)
            bad.append(count)
            if isinstance(gate, AbsoluteGate) or around is None:
                rate, known = _allow(gate, usual), isinstance(gate, AbsoluteGate)
            else:
                known = not one.stream.skewed and around.count(span.first, span.last) >= around.minimum
                rate = _allow(gate, usual * (around.shift(span.first, span.last) if known else 1.0))
                heard.append(around.count(span.first, span.last))
            allowed.append(of * rate)
            sure.append(known)
        burst = max(1.0, _burst(one.stream.before, gate.metric))
        return cls(one.site, requests, seen, burst, max(heard), tuple(begins), tuple(bad), tuple(allowed), tuple(sure))

    def tally(self, stake: int | None, *, sure: bool) -> Tally:
        """What happened since a stake; `sure`: only where enough controls were heard."""
        chosen = [index for index, begin in enumerate(self.begins) if (stake is None or begin >= stake) and (self.sure[index] or not sure)]
        seen = sum(self.bad[index] for index in chosen)
        return Tally(seen / self.burst, math.fsum(self.allowed[index] for index in chosen) / self.burst)


def _allow(gate: LiveGate, usual: float) -> float:
    match gate:
        case AbsoluteGate():
            return max(gate.limit, TOLERANCE * usual)
        case RelativeGate():
            return max(usual * (1 + gate.max_increase), usual + gate.min_increase)


def _read(counts: HealthCounts, metric: Metric) -> tuple[int, int]:
    """(bad events, of how many)"""
    match metric:
        case "errors":
            return counts.failed, counts.requests
        case "latency":
            return counts.slow, counts.requests
        case "confidence":
            return counts.unsure, counts.predictions


def _read_baseline(baseline: HealthBaseline, metric: Metric) -> tuple[int, int]:
    return _read(HealthCounts(*baseline[:5]), metric)


def _burst(baseline: HealthBaseline | None, metric: Metric) -> float:
    if baseline is None:
        return 1.0
    return {"errors": baseline.burst_failed, "latency": baseline.burst_slow, "confidence": baseline.burst_unsure}[metric]


def _edge(stream: Stream, metric: Metric) -> object:
    """Where the line between good and bad was drawn at this site."""
    return {"errors": 0, "latency": stream.le_ms, "confidence": stream.ge}[metric]


def _delivers(stream: Stream, metric: Metric) -> bool:
    return _edge(stream, metric) is not None


def _pool(baselines: Sequence[HealthBaseline], metric: Metric) -> float | None:
    """The fleet's rate; one imagined event keeps it above zero. None if nobody has a past."""
    bad, of = (sum(part) for part in zip((0, 0), *(_read_baseline(one, metric) for one in baselines), strict=True))
    return (bad + 1) / (of + 1) if of else None


def _usual(baseline: HealthBaseline | None, metric: Metric, fleet_rate: float | None) -> float | None:
    """A site's own rate, drawn towards the fleet's."""
    if fleet_rate is None:
        return None
    bad, of = _read_baseline(baseline, metric) if baseline else (0, 0)
    return (bad + PSEUDO_EVENTS) / (of + PSEUDO_EVENTS / fleet_rate)


def count_requests(streams: Mapping[str, Stream]) -> dict[str, int]:
    """How many requests each site has answered with the new revision."""
    return {site: stream.total.requests for site, stream in streams.items()}
