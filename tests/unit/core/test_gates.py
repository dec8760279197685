"""Which gates are in force."""

import pytest

from edgefleet.api.model import ConfidenceSlo, LatencySlo, Slo
from edgefleet.api.policy import STANDARD_POLICY, Analysis
from edgefleet.api.policy import Gate as Entry
from edgefleet.core.gates import AbsoluteGate, LiveGate, RelativeGate, find_undeliverable, plan_gates

SLO = Slo(latency=LatencySlo(le="50ms", share="99%"), confidence=ConfidenceSlo(ge="0.5", share="97.5%"), error_rate="1%")
ERRORS, LATENCY, CONFIDENCE = AbsoluteGate("errors", 0.01), AbsoluteGate("latency", 0.01), AbsoluteGate("confidence", 0.025)


def analysis(*entries: Entry) -> Analysis:
    return Analysis(gates=entries)


@pytest.mark.parametrize(
    ("slo", "entries", "gates"),
    [
        (Slo(), (), ()),
        (SLO, (), (ERRORS, LATENCY, CONFIDENCE)),
        (SLO, (Entry(name="errors", max="5%"),), (AbsoluteGate("errors", 0.05), LATENCY, CONFIDENCE)),
        (Slo(error_rate="1%"), (Entry(name="errors", dry_run=True),), (AbsoluteGate("errors", 0.01, dry_run=True),)),
        (Slo(), (Entry(name="errors", max="2%"),), (AbsoluteGate("errors", 0.02),)),
        (Slo(), (Entry(name="errors"),), ()),
        (Slo(), (Entry(name="errors", max_increase="25%"),), (RelativeGate("errors", 0.25, 0.001),)),
        (
            Slo(error_rate="1%"),
            (Entry(name="errors", max_increase="200%", min_increase="1%", dry_run=True),),
            (AbsoluteGate("errors", 0.01, dry_run=True), RelativeGate("errors", 2.0, 0.01, dry_run=True)),
        ),
        # Without the SLO's edge nobody counts: the plan is refused, and no gate is made of it.
        (Slo(), (Entry(name="latency", max="2%"), Entry(name="confidence", max_increase="25%")), ()),
    ],
)
def test_gates_of_slo_and_policy(slo: Slo, entries: tuple[Entry, ...], gates: tuple[LiveGate, ...]) -> None:
    assert plan_gates(slo, analysis(*entries)) == gates


def test_the_standard_policy_judges_errors() -> None:
    assert [(gate.metric, gate.kind) for gate in plan_gates(Slo(), STANDARD_POLICY.analysis)] == [("errors", "Relative")]


def test_a_gate_without_its_input_is_named_with_both_sides() -> None:
    asked = analysis(Entry(name="latency", max="2%"), Entry(name="errors", max="2%"), Entry(name="confidence", max="2%"))
    latency, confidence = find_undeliverable(Slo(), asked)
    assert latency.startswith("analysis.gates[latency] of the policy needs spec.slo.latency of the EdgeModel: ")
    assert "spec.slo.confidence" in confidence
    assert find_undeliverable(SLO, asked) == ()
