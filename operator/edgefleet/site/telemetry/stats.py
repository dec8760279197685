"""What the gateway and the model server counted, and what happened between two looks at them. Pure.

Envoy counts per cluster, and a cluster is a revision (gateway_config). What a client saw is put together from these counters; each line
was tried on Envoy 1.40:

    answered, or given up by the gateway                rq_completed, once each, after any retry
    5xx of the server; 503 and 504 that Envoy made      rq_5xx
    the client left before its answer came              cx_destroy_local_with_active_rq, which also counts each rq_timeout
    the answer broke off in its middle                  cx_destroy_remote_with_active_rq or rq_timeout with neither a 503, a 504 nor a retry

So `completed` plus those who left are the requests, and 4xx are the client's own. An answer that broke off is found only where the server
did not answer 503 or 504 itself meanwhile: too few are counted then, never too many. The agent's own requests meet no cluster.
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
    """One cluster, cumulative as Envoy counts it."""

    completed: int = 0
    errors: int = 0
    unavailable: int = 0
    late: int = 0
    retried: int = 0
    timeouts: int = 0
    ended_here: int = 0
    ended_there: int = 0
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


def count_since(before: Counters | None, now: Counters) -> Events | None:
    """What happened between two looks, or since the cluster was made. None: a counter fell, so `before` is of another life."""
    past = before or Counters()
    steps = [new - old for new, old in zip(now[:-1], past[:-1], strict=True)]
    times = {ms: count - past.times.get(ms, 0) for ms, count in now.times.items()}
    if min(steps) < 0 or min(times.values(), default=0) < 0 or past.times.keys() - now.times.keys():
        return None
    completed, errors, unavailable, late, retried, timeouts, ended_here, ended_there = steps
    left = max(0, ended_here - timeouts)
    broken = max(0, ended_there + timeouts - unavailable - late - retried)
    times[NEVER_MS] = times.get(NEVER_MS, 0) + left + timeouts
    requests = completed + left
    return Events(requests, min(requests, errors + left + broken), {ms: count for ms, count in times.items() if count})


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
