"""Which gates a rollout has: what the model's SLO and the policy's analysis together ask of live traffic. No statistics here.

Each line of the SLO is an absolute gate. An entry of analysis.gates tunes the one of its name (`max`, `dryRun`), and with `maxIncrease`
adds a relative one beside it.
"""

from dataclasses import dataclass
from typing import Literal

from edgefleet.api.model import Slo
from edgefleet.api.policy import Analysis, Gate, Metric
from edgefleet.api.quantities import parse_percent

REASONS: dict[Metric, str] = {"errors": "ErrorRegression", "latency": "LatencyRegression", "confidence": "ConfidenceRegression"}
EDGES: dict[Metric, str] = {"latency": "how slow is too slow", "confidence": "how unsure is too unsure"}


@dataclass(frozen=True, slots=True)
class AbsoluteGate:
    """At most this share (0 to 1) of the answers may be bad, whatever the old revision did."""

    metric: Metric
    limit: float
    dry_run: bool = False
    kind: Literal["Absolute", "Relative"] = "Absolute"


@dataclass(frozen=True, slots=True)
class RelativeGate:
    """The share of bad answers may be `max_increase` (a fraction) above the usual one, or `min_increase` (a share) if that is more."""

    metric: Metric
    max_increase: float
    min_increase: float
    dry_run: bool = False
    kind: Literal["Absolute", "Relative"] = "Relative"


LiveGate = AbsoluteGate | RelativeGate


def plan_gates(slo: Slo, analysis: Analysis) -> tuple[LiveGate, ...]:
    """All gates, absolute before relative for each metric, in the fixed order errors, latency, confidence."""
    tuned = {gate.name: gate for gate in analysis.gates}
    gates: list[LiveGate] = []
    for metric in REASONS:
        if _lacks_edge(metric, slo):
            continue  # refused when the plan is made
        entry = tuned.get(metric, Gate(name=metric))
        limit = parse_percent(entry.max) if entry.max else _limit_of(slo, metric)
        if limit is not None:
            gates.append(AbsoluteGate(metric, limit, entry.dry_run))
        if entry.max_increase is not None:
            gates.append(RelativeGate(metric, parse_percent(entry.max_increase), parse_percent(entry.min_increase), entry.dry_run))
    return tuple(gates)


def find_undeliverable(slo: Slo, analysis: Analysis) -> tuple[str, ...]:
    """What no site could deliver: a gate at an edge that the model does not name. One sentence each, with both fields."""
    return tuple(
        f"analysis.gates[{gate.name}] of the policy needs spec.slo.{gate.name} of the EdgeModel: {EDGES[gate.name]}"
        for gate in analysis.gates
        if _lacks_edge(gate.name, slo)
    )


def _lacks_edge(metric: Metric, slo: Slo) -> bool:
    return (metric == "latency" and slo.latency is None) or (metric == "confidence" and slo.confidence is None)


def _limit_of(slo: Slo, metric: Metric) -> float | None:
    match metric:
        case "errors":
            return parse_percent(slo.error_rate) if slo.error_rate else None
        case "latency":
            return _complement(slo.latency.share) if slo.latency else None
        case "confidence":
            return _complement(slo.confidence.share) if slo.confidence else None


def _complement(share: str) -> float:
    # 1 - 0.99 is not the double nearest to 0.01.
    return round(1 - parse_percent(share), 5)
