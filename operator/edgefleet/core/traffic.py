"""What live traffic says of a revision, gate by gate: bad events at the sites that run it, against what these sites may have.

The usual rate is the site's own, of the 7 days before the switch, drawn towards the fleet's by five imagined events so that a new site
has one too. A relative gate moves it by what the controls show in the same minutes: bad events over expected ones. Where fewer controls
than `controls.min` were heard, nobody can tell a worse revision from a bad hour, so what is seen there can hold a rollout and not turn it
back. An absolute gate needs no controls; where there are enough, it does not blame a revision for what the whole fleet suffers.

How sure it is, is weighed in evidence; which gates there are stands in gates; what follows is decided in live and rollout.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edgefleet.api.policy import Analysis, Metric
from edgefleet.api.quantities import parse_percent
from edgefleet.core.evidence import bound_alone, shape_of, weigh_evidence
from edgefleet.core.gates import AbsoluteGate, LiveGate, RelativeGate
from edgefleet.core.health import MARKS_PER_HOUR, Stream
from edgefleet.core.rows import Row, read_absolute, read_relative
from edgefleet.core.surroundings import COUNTED, Surroundings, usual_rate

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
        self._around: dict[tuple[Group, Metric, Edge], Surroundings] = {}  # for both gates on a metric
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

    def read(self, gate: LiveGate) -> list[Row] | None:
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
            usual = usual_rate(one.stream.before, gate.metric, past[edge])
            key = (one.group, gate.metric, edge)
            if key not in self._around:
                self._around[key] = self._look_around(*key, past[edge])
            near = self._around[key]
            if isinstance(gate, AbsoluteGate):
                rows.append(read_absolute(one.site, one.stream, gate, usual, near, self.minimum))
            else:
                rows.append(read_relative(one.site, one.stream, gate, usual, near, self.minimum))
        return rows

    def _pool(self, shown: Sequence[Watched], metric: Metric, edge: Edge) -> float | None:
        """The rate of all sites that count at this edge; one imagined event keeps it above zero. None if nobody has a past."""
        pasts = [one.stream.before for one in shown if _edge(one.stream, metric) == edge]
        pasts += [stream.usual for one in self.controls for stream in one.streams if _edge(stream, metric) == edge]
        of_name, bad_name, _ = COUNTED[metric]
        of = sum(getattr(past, of_name) for past in pasts if past)
        bad = sum(getattr(past, bad_name) for past in pasts if past)
        return (bad + 1) / (of + 1) if of else None

    def _look_around(self, group: Group, metric: Metric, edge: Edge, fleet_rate: float | None) -> Surroundings:
        near = [
            stream
            for one in self.controls
            if one.group == group
            for stream in sorted(one.streams, key=lambda stream: (stream.activation, stream.revision))
            if delivers(stream, metric) and _edge(stream, metric) == edge and not stream.skewed
        ]
        # Clocks may be half a mark off.
        return Surroundings.of(near, metric, fleet_rate, self.stakes[0] - 1, self.now + 1, self.minimum)


def _edge(stream: Stream, metric: Metric) -> Edge:
    """Where the line between good and bad was drawn at this site."""
    return stream.le_ms if metric == "latency" else stream.ge if metric == "confidence" else None


def delivers(stream: Stream, metric: Metric) -> bool:
    """Whether the site counts what gates on this metric judge."""
    return metric == "errors" or _edge(stream, metric) is not None
