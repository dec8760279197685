"""What happened in a span of time, finer than any SLO's edge, so that an edge that comes later can be counted at as well. Pure.

Envoy keeps its time histogram in bins of two significant digits of whole milliseconds: each millisecond up to 99, then 100-109, ...,
990-999, 1000-1099, and so on. Every edge with two significant digits is therefore exact in every Envoy that runs, and none needs another
bootstrap. An edge with more (125ms) is counted at the next bin (130ms), and that is what reports say.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from edgefleet.api.model import Slo
from edgefleet.api.quantities import parse_duration
from edgefleet.api.report import HealthCounts

NEVER_MS = 60_000
"""The bin of requests that got no answer: the gateway gave up, or the client left. No SLO allows as much."""
CONFIDENCE_BINS = 10


class Events(NamedTuple):
    """`times`: how many answers took so long, by the lower bound of their bin in ms; `sureness`: predictions in ten bins of confidence,
    (0, 0.1] first; empty if the model server does not say."""

    requests: int = 0
    failed: int = 0
    times: Mapping[int, int] = {}
    predictions: int = 0
    sureness: tuple[int, ...] = ()

    def measure(self, edges: "Edges") -> HealthCounts:
        """These events at a revision's edges."""
        slow = sum(count for ms, count in self.times.items() if ms >= edges.le_ms) if edges.le_ms is not None else 0
        unsure = sum(self.sureness[: round(float(edges.ge) * CONFIDENCE_BINS)]) if edges.ge is not None else 0
        return HealthCounts(self.requests, self.failed, slow, self.predictions, unsure)


NOTHING = Events()


class Edges(NamedTuple):
    """Where good ends: answers that took `le_ms` or longer are slow, predictions of less than `ge` unsure. None: not asked for."""

    le_ms: int | None = None
    ge: str | None = None


def plan_edges(slo: Slo) -> Edges:
    """The edges that are really counted at for an SLO."""
    le_ms = round_edge(round(parse_duration(slo.latency.le).total_seconds() * 1000)) if slo.latency else None
    return Edges(le_ms, slo.confidence.ge if slo.confidence else None)


def round_edge(ms: int) -> int:
    """The next time with two significant digits; up to three digits more are lost at most: 125 -> 130, 1240 -> 1300."""
    step: int = 10 ** max(0, len(str(ms)) - 2)
    return -(-ms // step) * step


def add(all_events: Iterable[Events]) -> Events:
    """All of them together."""
    requests = failed = predictions = 0
    times: Counter[int] = Counter()
    sureness: list[int] = []
    for one in all_events:
        requests, failed, predictions = requests + one.requests, failed + one.failed, predictions + one.predictions
        times.update(one.times)
        if one.sureness:
            sureness = [*map(sum, zip(sureness or (0,) * CONFIDENCE_BINS, one.sureness, strict=True))]
    return Events(requests, failed, dict(times), predictions, tuple(sureness))
