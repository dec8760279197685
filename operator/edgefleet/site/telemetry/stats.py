"""What the gateway and the model server counted, and what happened between two looks at them. Pure.

Envoy counts per cluster, and a cluster is a revision (gateway_config). What a client saw is put together from these counters; each line
was tried on Envoy 1.40:

    answered by the server or by Envoy (503, 504), after any retry     rq_completed; 5xx of both also rq_5xx
    answered to its end, to a request that had come to its end         rq_time
    no connection, or reset before the answer                          a 503; a reset also cx_destroy_remote_with_active_rq
    too late                                                           a 504, rq_timeout and cx_destroy_local_with_active_rq
    answered before the request had come to its end                    cx_destroy_local_with_active_rq, but not rq_time
    broke off in the middle of the answer                              a 2xx and cx_destroy_remote_with_active_rq
    the client left before the answer                                  cx_destroy_local_with_active_rq, and nothing else

The requests are those completed and those whose client left; 5xx, broken answers and clients that left failed; 4xx are the client's own.
Broken answers are found as far as 503 of the server itself do not hide them, and clients that left as far as refused connections do not:
there may be too few of both, in a bad hour of other failures, and never too many. The agent's own requests meet no cluster.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from edgefleet.site.telemetry.events import CONFIDENCE_BINS, NEVER_MS, Events

_COUNTERS = {
    "rq_completed": "completed",
    "rq_5xx": "errors",
    "rq_503": "unavailable",
    "rq_504": "late",
    "rq_retry": "retried",
    "rq_timeout": "timeouts",
    "cx_destroy_local_with_active_rq": "ended_here",
    "cx_destroy_remote_with_active_rq": "ended_there",
}
STATS_QUERY = {
    "format": "json",
    "histogram_buckets": "detailed",
    "filter": rf"^cluster\.[^.]+\.upstream_({'|'.join((*_COUNTERS, 'rq_time'))})$",
}
_NAME = re.compile(r"cluster\.([^.]+)\.upstream_(\w+)")
_SAMPLE = re.compile(r"edgefleet_confidence_(bucket|count)\{(.*)\}\s+(\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Counters(NamedTuple):
    """One cluster, cumulative as Envoy counts it. `broken` and `left` follow from the others, see `assess`."""

    completed: int = 0
    errors: int = 0
    unavailable: int = 0
    late: int = 0
    retried: int = 0
    timeouts: int = 0
    ended_here: int = 0
    ended_there: int = 0
    broken: int = 0
    left: int = 0
    times: Mapping[int, int] = {}


Confidence = tuple[int, ...]
"""Cumulative: predictions of at most 0.1, 0.2, ..., 1.0, and of all."""


def read_counters(stats: Mapping[str, Any]) -> dict[str, Counters]:
    """The clusters in an answer of Envoy's admin interface to STATS_QUERY, by name. Raises ValueError."""
    found: dict[str, dict[str, Any]] = {}
    try:
        for entry in stats["stats"]:
            for histogram in entry.get("histograms", {}).get("details", ()):
                name, _ = _split(histogram["name"])
                times = {int(one["lower_bound"]): int(one["count"]) for one in histogram["totals"]}
                found.setdefault(name, {})["times"] = times
            if "name" in entry:
                name, counter = _split(entry["name"])
                if counter in _COUNTERS:
                    found.setdefault(name, {})[_COUNTERS[counter]] = int(entry["value"])
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not the statistics of an Envoy: {error!r}") from error
    return {name: Counters(**counters) for name, counters in found.items()}


def _split(stat: str) -> tuple[str, str]:
    match = _NAME.fullmatch(stat)
    if match is None:
        raise ValueError(f"Envoy answers with a statistic that was not asked for: {stat!r}")
    return match[1], match[2]


def read_confidence(text: str) -> dict[str, Confidence]:
    """The histograms `edgefleet_confidence` in a Prometheus page, by served name; one without the ten buckets is left out."""
    buckets: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match is None:
            continue
        labels = dict(_LABEL.findall(match[2]))
        name, edge = labels.get("model_name"), labels.get("le", "all") if match[1] == "bucket" else "all"
        if name is None or edge == "+Inf":
            continue
        held = buckets.setdefault(name, {})
        try:
            held[edge] = held.get(edge, 0) + int(float(match[3]))
        except (ValueError, OverflowError):
            continue
    edges = [*(f"{tenth / 10}" for tenth in range(1, CONFIDENCE_BINS + 1)), "all"]
    return {name: tuple(held[edge] for edge in edges) for name, held in buckets.items() if set(edges) <= held.keys()}


def assess(before: Counters | None, now: Counters) -> Counters | None:
    """`now` with its answers that broke off and its clients that left, never fewer than before. Counters are not read all at once, and
    times are shown a second late, so what follows from them may be too little for a while. None: a counter fell, so `before` is of
    another life."""
    past = before or Counters()
    if any(new < old for new, old in zip(now[:8], past[:8], strict=True)):
        return None
    if any(now.times.get(ms, 0) < count for ms, count in past.times.items()):
        return None
    broken = now.ended_there + now.timeouts - now.unavailable - now.late - now.retried
    untimed = now.completed - sum(now.times.values())
    left = now.ended_here - untimed + max(0, now.ended_there - now.retried)
    return now._replace(broken=max(past.broken, broken), left=max(past.left, min(left, now.ended_here)))


def count_since(before: Counters | None, now: Counters) -> Events:
    """What happened between two assessed looks, or since the cluster was made."""
    past = before or Counters()
    left, timeouts = now.left - past.left, now.timeouts - past.timeouts
    times = {ms: count - past.times.get(ms, 0) for ms, count in now.times.items()}
    times[NEVER_MS] = times.get(NEVER_MS, 0) + left + timeouts
    requests = now.completed - past.completed + left
    failed = now.errors - past.errors + now.broken - past.broken + left
    return Events(requests, min(requests, failed), {ms: count for ms, count in times.items() if count})


def predicted_since(before: Confidence | None, now: Confidence) -> Events:
    """The same for confidence. The first look counts nothing: what was predicted until then was the golden set. After a fall the server
    was started anew, and all that it counts has happened since."""
    if before is None:
        return Events()
    steps = tuple(new - old for new, old in zip(now, before, strict=True))
    if min(steps) < 0:
        steps = now
    bins = tuple(high - low for high, low in zip(steps[:CONFIDENCE_BINS], (0, *steps), strict=False))
    return Events(predictions=steps[-1], sureness=bins) if steps[-1] > 0 and min(bins) >= 0 else Events()
