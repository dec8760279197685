"""What gates find: seen, allowed, evidence, and when nobody can tell."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefleet.api.model import Slo
from edgefleet.api.policy import Analysis
from edgefleet.api.report import HealthBaseline, HealthCounts, HealthEpoch, HealthReport
from edgefleet.core.gates import AbsoluteGate, LiveGate, RelativeGate
from edgefleet.core.health import MARKS_PER_HOUR, Stream, merge_streams, read_stream
from edgefleet.core.traffic import Control, GateVerdict, Watched, count_requests, judge_gates, plan_stakes

NOW = 6_000_000
OLD, NEW = "a" * 64, "b" * 64
ABSOLUTE, RELATIVE = AbsoluteGate("errors", 0.01), RelativeGate("errors", 0.25, 0.001)
ANALYSIS = Analysis()
SLO = Slo(error_rate="1%")
PAST = HealthBaseline(1_000_000, 5_000, 10_000, 1_000_000, 20_000)
GROUP = ("eu",)


def stream(revision: str, bad: Sequence[int], *, requests: int = 600, metric: str = "failed", **fields: object) -> Stream:
    """One mark for each number, from NOW on: so many bad answers of `requests`."""
    of = "predictions" if metric == "unsure" else "requests"
    sums = enumerate(accumulate(bad))
    records = {NOW + index: HealthCounts(**{of: (index + 1) * requests, metric: total}) for index, total in sums}
    told: dict[str, object] = {"le_ms": 50, "ge": "0.5", "usual": PAST, "before": PAST, **fields}
    return Stream(revision, NOW * 300, 1, {NOW * 300: records}, **told)  # type: ignore[arg-type]


def watched(*bad: Sequence[int], **fields: object) -> list[Watched]:
    return [Watched(f"w{index}", GROUP, stream(NEW, one, **fields)) for index, one in enumerate(bad)]  # type: ignore[arg-type]


def controls(count: int, bad: Sequence[int], group: tuple[str, ...] = GROUP, **fields: object) -> list[Control]:
    return [Control(f"c{index}", group, (stream(OLD, bad, **fields),)) for index in range(count)]  # type: ignore[arg-type]


def judge(gate: LiveGate, at: Sequence[Watched], beside: Sequence[Control] = (), *, marks: int = 12, **fields: object) -> GateVerdict:
    told: dict[str, object] = {"opened": [NOW], "now": NOW + marks - 1, "first_release": False, **fields}
    return judge_gates([gate], ANALYSIS, watched=at, controls=beside, **told)[0]  # type: ignore[arg-type]


def test_an_absolute_gate_counts_against_the_limit() -> None:
    quiet = judge(ABSOLUTE, watched([3] * 12, [3] * 12))
    assert (quiet.outcome, quiet.requests, quiet.seen) == ("Quiet", 14_400, 72)
    assert quiet.allowed == pytest.approx(144)
    assert quiet.bound == 20
    fail = judge(ABSOLUTE, watched([30] * 12, [30] * 12))
    assert fail.outcome == "Fail"
    assert [one.site for one in fail.worse] == ["w0", "w1"]


def test_an_absolute_gate_does_not_blame_what_was_so_before() -> None:
    dirty = PAST._replace(failed=40_000)
    verdict = judge(ABSOLUTE, watched([24] * 12, before=dirty))
    assert verdict.allowed == pytest.approx(1.25 * 0.04 * 7200, rel=0.01)
    assert verdict.outcome == "Quiet"


def test_an_absolute_gate_does_not_blame_what_the_whole_fleet_suffers() -> None:
    outage = [3] * 6 + [24] * 6
    assert judge(ABSOLUTE, watched(outage, outage)).outcome == "Fail"
    assert judge(ABSOLUTE, watched(outage, outage), controls(4, outage)).outcome == "Fail"
    spared = judge(ABSOLUTE, watched(outage, outage), controls(5, outage))
    assert (spared.outcome, spared.controls) == ("Quiet", 5)
    assert judge(ABSOLUTE, watched(outage, outage), controls(5, [3] * 12)).outcome == "Fail"


def test_a_good_hour_of_the_fleet_takes_nothing_from_an_absolute_gate() -> None:
    alone, among = judge(ABSOLUTE, watched([6] * 12)), judge(ABSOLUTE, watched([6] * 12), controls(9, [0] * 12))
    assert alone.allowed == pytest.approx(among.allowed)


def test_a_relative_gate_counts_against_the_sites_own_past() -> None:
    verdict = judge(RELATIVE, watched([12] * 12, [12] * 12, [12] * 12), controls(5, [3] * 12))
    assert verdict.outcome == "Fail"
    assert verdict.controls == 5
    assert verdict.allowed == pytest.approx(3 * 7200 * 0.00625, rel=0.03)


def test_least_increase_is_in_points() -> None:
    clean = PAST._replace(failed=100)
    verdict = judge(RELATIVE, watched([0] * 12, before=clean), controls(5, [0] * 12, usual=clean))
    assert verdict.allowed == pytest.approx(7200 * 0.0011, rel=0.1)


def test_what_the_controls_show_too_is_not_the_revisions_fault() -> None:
    """Five times the usual rate, everywhere, from the seventh mark on."""
    shock = [3] * 6 + [15] * 6
    assert judge(RELATIVE, watched(shock, shock, shock), controls(20, [3] * 12)).outcome == "Fail"
    assert judge(RELATIVE, watched(shock, shock, shock), controls(20, shock)).outcome == "Quiet"


def test_controls_of_another_group_say_nothing() -> None:
    verdict = judge(RELATIVE, watched([60] * 12), controls(20, [3] * 12, group=("us",)))
    assert (verdict.outcome, verdict.controls) == ("Hold", 0)


def test_too_few_controls_hold_and_never_fail() -> None:
    verdict = judge(RELATIVE, watched([60] * 12), controls(4, [3] * 12))
    assert (verdict.outcome, verdict.controls, verdict.worse) == ("Hold", 4, ())
    assert verdict.evidence >= verdict.bound
    assert (verdict.seen, verdict.requests) == (720, 7200)
    assert judge(RELATIVE, watched([3] * 12), controls(4, [3] * 12)).outcome == "Quiet"


def test_what_was_seen_while_controls_were_heard_counts_after_they_are_gone() -> None:
    """In the last wave every site is switched: what it shows can hold the run, what was proved before stays proved."""
    early = judge(RELATIVE, watched([30] * 6 + [3] * 6), controls(5, [3] * 6))
    late = judge(RELATIVE, watched([3] * 6 + [40] * 6), controls(5, [3] * 6))
    assert early.outcome == "Fail"
    assert late.outcome == "Hold"


def test_a_first_release_has_no_past_to_compare_with() -> None:
    verdict = judge(RELATIVE, watched([60] * 12, before=None), controls(9, [3] * 12), first_release=True)
    assert verdict.outcome == "NotApplicable"
    assert judge(ABSOLUTE, watched([60] * 12, before=None), first_release=True).outcome == "Fail"


def test_nobody_has_a_past() -> None:
    assert judge(RELATIVE, watched([60] * 12, before=None), controls(9, [3] * 12, usual=None)).outcome == "NotApplicable"


def test_a_new_site_is_as_the_fleet_is() -> None:
    new = judge(RELATIVE, watched([3] * 12, before=None), controls(9, [3] * 12))
    assert new.allowed == pytest.approx(7200 * 0.00625, rel=0.03)


@pytest.mark.parametrize(("metric", "bad", "lacking"), [("latency", "slow", {"le_ms": None}), ("confidence", "unsure", {"ge": None})])
def test_other_metrics(metric: str, bad: str, lacking: dict[str, object]) -> None:
    gate = AbsoluteGate(metric, 0.01)  # type: ignore[arg-type]
    relative = RelativeGate(metric, 0.25, 0.001)  # type: ignore[arg-type]
    at, beside = watched([60] * 12, metric=bad), controls(9, [6] * 12, metric=bad)
    assert judge(gate, at).outcome == "Fail"
    assert judge(relative, at, beside).outcome == "Fail"
    silent = judge(gate, watched([60] * 12, metric=bad, **lacking))
    assert (silent.outcome, silent.sites) == ("Quiet", ())
    assert judge(relative, at, controls(9, [6] * 12, metric=bad, **lacking)).outcome == "Hold"


def test_controls_count_at_the_same_edge_only() -> None:
    gate = RelativeGate("latency", 0.25, 0.001)
    verdict = judge(gate, watched([60] * 12, metric="slow"), controls(9, [6] * 12, metric="slow", le_ms=40))
    assert (verdict.outcome, verdict.controls) == ("Hold", 0)


def test_bursts_count_less() -> None:
    bursty = PAST._replace(burst_failed=6.0)
    plain, calm = judge(ABSOLUTE, watched([12] * 12)), judge(ABSOLUTE, watched([12] * 12, before=bursty))
    assert plain.evidence > calm.evidence
    assert (plain.seen, plain.allowed) == (calm.seen, calm.allowed)


def test_wrong_clocks_are_not_placed_beside_others() -> None:
    off = judge(RELATIVE, watched([60] * 12, skew=400), controls(9, [3] * 12))
    assert (off.outcome, off.controls) == ("Hold", 0)
    assert judge(RELATIVE, watched([60] * 12), controls(9, [3] * 12, skew=400)).outcome == "Hold"


def test_dry_runs_take_no_part_of_the_budget() -> None:
    dry = replace(ABSOLUTE, dry_run=True)
    verdicts = judge_gates(
        [ABSOLUTE, dry, RELATIVE], ANALYSIS, watched=watched([60] * 12), controls=[], opened=[NOW], now=NOW + 12, first_release=False
    )
    assert [one.bound for one in verdicts] == [40, 40, 40]
    assert verdicts[1].outcome == "Fail"


def test_stakes() -> None:
    assert plan_stakes([], NOW) == (NOW,)
    assert plan_stakes([NOW], NOW + 30) == (NOW, NOW + 12, NOW + 24)
    assert plan_stakes([NOW, NOW + 12, NOW + 40], NOW + 41) == (NOW, NOW + 13, NOW + 24, NOW + 36, NOW + 41)
    month = plan_stakes([NOW], NOW + 30 * 24 * MARKS_PER_HOUR)
    assert len(month) < 40
    assert [(mark - NOW) // 12 for mark in month[:14]] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20]


@given(st.lists(st.integers(0, 400), min_size=1, max_size=6), st.integers(0, 400), st.integers(1, 400))
def test_no_stake_depends_on_what_comes_after(opened: list[int], now: int, more: int) -> None:
    known = [NOW + one for one in opened if one <= now]
    before = plan_stakes([NOW, *known], NOW + now)
    after = plan_stakes([NOW, *known, NOW + now + more], NOW + now + more)
    assert [one for one in after if one < NOW + now] == [one for one in before if one < NOW + now]


def test_requests_by_site() -> None:
    assert count_requests({"w": stream(NEW, [1, 2])}) == {"w": 1200}


@given(st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_verdict_is_a_function_of_the_set_of_records(chance: random.Random) -> None:
    """Records shuffled, repeated, delayed, in reports of any size, sites in any order: the same bits."""
    sites = [*watched([9] * 24, [2] * 24, [5] * 24), *controls(7, [3, 4] * 12)]
    gates = [ABSOLUTE, RELATIVE]
    verdicts = []
    for _ in range(2):
        chance.shuffle(sites)
        heard = [replace(one, stream=_deliver(one.stream, chance)) for one in sites if isinstance(one, Watched)]
        beside = [replace(one, streams=(_deliver(one.streams[0], chance),)) for one in sites if isinstance(one, Control)]
        opened = chance.sample([NOW, NOW + 9], 2)
        verdicts.append(judge_gates(gates, ANALYSIS, watched=heard, controls=beside, opened=opened, now=NOW + 24, first_release=False))
    assert verdicts[0] == verdicts[1]
    assert [one.outcome for one in verdicts[0]] == ["Quiet", "Quiet"]


def _deliver(whole: Stream, chance: random.Random) -> Stream:
    """The stream as a hub gets it: in reports of a few records each, in any order, some twice."""
    ((start, records),) = whole.epochs.items()
    rows = [(mark, *counts) for mark, counts in records.items()]
    said = [rows[at : at + 5] for at in range(0, len(rows), chance.randint(1, 5))]
    said += chance.choices(said, k=3)
    chance.shuffle(said)
    body = {
        "revision": whole.revision,
        "sequence": 1,
        "activation": whole.activation,
        "le_ms": 50,
        "ge": "0.5",
        "usual": PAST,
        "before": PAST,
    }
    merged: Stream | None = None
    for part in said:
        one = read_stream(HealthReport(**body, epochs=(HealthEpoch(start=start, records=tuple(part)),)))  # type: ignore[arg-type]
        merged = one if merged is None else merge_streams(merged, one)
    assert merged is not None
    return merged
