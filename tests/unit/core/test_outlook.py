"""What would change a verdict: checked by doing it."""

import pytest

from edgefleet.core.outlook import Outlook, explain_gates
from tests.unit.core.test_traffic import ABSOLUTE, ANALYSIS, NOW, RELATIVE, controls, judge, watched

CALM = [6] * 12


def explain(*bad: list[int], beside: int = 5, gate: object = ABSOLUTE) -> Outlook:
    (outlook,) = explain_gates(
        [gate],  # type: ignore[list-item]
        ANALYSIS,
        watched=watched(*bad),
        controls=controls(beside, [3] * 12),
        opened=[NOW],
        now=NOW + 11,
        first_release=False,
    )
    return outlook


def test_so_many_more_bad_answers_reach_the_bound_and_one_fewer_does_not() -> None:
    outlook = explain(CALM, CALM)
    assert outlook.per_minute == pytest.approx(240)
    assert outlook.would == "Fail"
    assert outlook.more_bad
    half, rest = divmod(outlook.more_bad, 2)
    assert judge(ABSOLUTE, watched([*CALM[1:], 6 + half + rest], [*CALM[1:], 6 + half])).outcome == "Fail"
    assert judge(ABSOLUTE, watched([*CALM[1:], 6 + half - 2], [*CALM[1:], 6 + half - 2])).outcome == "Quiet"


def test_the_worse_the_sooner() -> None:
    outlook = explain(CALM, CALM, CALM)
    assert outlook.minutes_if_twice is not None
    assert outlook.minutes_if_four_times is not None
    assert 0 < outlook.minutes_if_four_times < outlook.minutes_if_twice
    marks = -(-outlook.minutes_if_four_times // 5)
    worse = [*CALM, *[24] * marks]
    assert judge(ABSOLUTE, watched(worse, worse, worse), marks=12 + marks).outcome == "Fail"


def test_one_site_cannot_prove_twice_as_bad() -> None:
    assert explain(CALM).minutes_if_twice is None


def test_a_bound_that_is_reached_needs_nothing_more() -> None:
    outlook = explain([60] * 12)
    assert (outlook.more_bad, outlook.minutes_if_twice) == (0, 0)


def test_without_traffic_nothing_changes() -> None:
    outlook = explain([])
    assert (outlook.per_minute, outlook.more_bad, outlook.minutes_if_four_times) == (0, None, None)


def test_without_controls_it_can_only_hold() -> None:
    assert explain(CALM, beside=4, gate=RELATIVE).would == "Hold"
    assert explain(CALM, gate=RELATIVE).would == "Fail"


def test_a_gate_that_does_not_apply_has_no_outlook() -> None:
    assert explain_gates([RELATIVE], ANALYSIS, watched=watched(CALM), controls=(), opened=[NOW], now=NOW, first_release=True) == ()


def test_in_its_first_five_minutes_a_rate_is_not_known() -> None:
    def young(marks: int) -> bool:
        (outlook,) = explain_gates(
            [ABSOLUTE], ANALYSIS, watched=watched([6] * marks), controls=(), opened=[NOW], now=NOW + marks - 1, first_release=False
        )
        return outlook.young

    assert young(1)
    assert not young(2)
