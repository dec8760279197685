"""A record gives the same verdict again, bit for bit, whatever the order of its lines; and tells when it is not whole."""

import random

import pytest

from edgefleet.core.case import Outline, encode_record
from edgefleet.core.fleet import decide_fleet
from edgefleet.core.replay import RecordError, read_record, replay
from tests.unit.core.facts_of import NOW
from tests.unit.core.test_live import RELATIVE, B, controls, stream, world


def record(slow: int = 37) -> list[str]:
    """What the hub would store of a run that is judged by absolute and relative gates."""
    facts = world({"s0": (stream(B, slow),), **controls(slow=3)}, under=RELATIVE)
    rollout = decide_fleet(facts, NOW).rollout
    assert rollout is not None
    assert rollout.case is not None
    head, lines = encode_record(rollout.case, rollout.status.gates, facts.health)
    return [*head, *(line for own in lines.values() for line in own)]


@pytest.mark.parametrize("slow", [0, 5, 37, 400])
def test_the_verdict_is_the_same_bit_for_bit_in_any_order(slow: int) -> None:
    lines = record(slow)
    assert len(lines) > 5
    for seed in range(5):
        random.Random(seed).shuffle(lines)
        found = read_record(["", *lines, " "])
        again = replay(found)
        assert found.whole
        assert again.differences == ()
        assert again.gates == again.recorded
    assert any(gate.verdict == "Fail" for gate in again.gates) == (slow >= 37)


def test_a_verdict_that_was_changed_is_found() -> None:
    lines = [line.replace('"verdict":"Fail"', '"verdict":"Quiet"') for line in record()]
    again = replay(read_record(lines))
    assert "verdict was Quiet, is Fail" in " ".join(again.differences)


def test_a_report_that_is_missing_is_found_even_if_the_verdict_stands() -> None:
    lines = record(400)
    lost = next(line for line in lines if '"site":"s3"' in line)
    found = read_record([line for line in lines if line != lost])
    assert not found.whole


def test_a_gate_that_was_left_out_is_found() -> None:
    found = read_record(record())
    short = found.finding.model_copy(update={"gates": found.finding.gates[:1]})
    again = replay(type(found)(found.case, short, found.streams, found.whole))
    assert again.differences[0] == f"1 gates were recorded, {len(found.finding.gates)} are judged"


def test_an_exported_record_says_which_run_it_is_of() -> None:
    facts = world({"s0": (stream(B, 37),)})
    outline = Outline(run="weld-2", namespace="team", version="2", exported_at="2026-03-01T12:00:00Z", status=facts.runs[-1].status)
    found = read_record([outline.model_dump_json(by_alias=True), *record()])
    assert found.outline == outline
    assert replay(found).differences == ()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "there is no case"),
        (record()[:1], "there is no finding"),
        (["{"], "line 1 is no line of a record"),
        (["[]"], "line 1 is no line of a record"),
        ([*record(), '{"site": "s1"}'], "is no line of a record"),
        ([*record(0), record(400)[1]], "contradicts an earlier one"),
    ],
    ids=["empty", "half", "torn", "no object", "half a stream", "two findings"],
)
def test_what_is_no_record_is_named(lines: list[str], said: str) -> None:
    with pytest.raises(RecordError, match=said):
        read_record(lines)
