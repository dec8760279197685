"""What sites reported, merged: the same set of records gives the same stream, whatever their order, delay and repetition."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefleet.api.report import HealthBaseline, HealthCounts, HealthEpoch, HealthReport
from edgefleet.core.case import decode_line, encode_stream
from edgefleet.core.health import FINE_MARKS, MAX_EPOCHS, MAX_RECORDS, Span, Stream, merge_streams, read_stream, thin
from tests.unit.core.facts_of import A

START = 1_800_000_000
MARK = START // 300


def report(*records: tuple[int, ...], start: int = START, **fields: object) -> HealthReport:
    """A report with one epoch; each record: mark after MARK, then counts."""
    rows = [[MARK + mark, *counts, *[0] * (5 - len(counts))] for mark, *counts in records]
    body = {"revision": A.hash, "sequence": 7, "activation": START, "epochs": [{"start": start, "records": rows}], **fields}
    return HealthReport.model_validate(body)


def test_spans_are_what_was_counted_between_records() -> None:
    stream = read_stream(report((0, 10, 1), (1, 30, 2, 5), (3, 31, 2, 5)))
    assert stream.spans == (
        Span(MARK, MARK, HealthCounts(10, 1)),
        Span(MARK + 1, MARK + 1, HealthCounts(20, 1, 5)),
        Span(MARK + 2, MARK + 3, HealthCounts(1)),
    )
    assert stream.total == HealthCounts(31, 2, 5, 0, 0)
    assert stream.columns.sums["requests"] == (0, 10, 30, 31)
    assert not stream.columns.gapless
    assert read_stream(report((0, 10), (1, 30))).columns.gapless


def test_a_missing_record_costs_only_when_it_happened() -> None:
    whole, gap = read_stream(report((0, 10), (1, 30), (2, 60))), read_stream(report((0, 10), (2, 60)))
    assert gap.total == whole.total
    assert gap.spans[-1] == Span(MARK + 1, MARK + 2, HealthCounts(50))


def test_epochs_add_up() -> None:
    before = read_stream(report((0, 10), (1, 30)))
    after = read_stream(report((1, 5), (2, 9), start=START + 400))
    both = merge_streams(before, after)
    assert both.total.requests == 39
    assert [span.counts.requests for span in both.spans] == [10, 5, 20, 4]


def test_counts_that_fall_are_the_sites_mistake() -> None:
    stream = read_stream(report((0, 10, 5), (1, 4, 9), (2, 12, 9)))
    assert stream.total == HealthCounts(12, 9, 0, 0, 0)
    assert all(count >= 0 for span in stream.spans for count in span.counts)


def test_impossible_numbers_are_bounded() -> None:
    baseline = [-1, 5, 0, 0, 10**40, float("nan"), float("inf"), -3.0]
    stream = read_stream(report((0, -5, 10**30), skew=-10_000, usual=baseline, lost=-1))
    assert stream.total == HealthCounts(0, 1 << 53, 0, 0, 0)
    assert stream.usual == HealthBaseline(0, 5, 0, 0, 1 << 53, 1.0, 1.0, 1.0)
    assert stream.skewed
    assert stream.lost == 0


def test_only_the_newest_of_endless_records_are_kept() -> None:
    many = [read_stream(report(*((mark, mark) for mark in range(low, low + 2000)))) for low in range(0, 8000, 2000)]
    forward, backward = many[0], many[-1]
    for one in many:
        forward = merge_streams(forward, one)
    for one in reversed(many):
        backward = merge_streams(one, backward)
    assert forward == backward
    assert sum(map(len, forward.epochs.values())) == MAX_RECORDS
    assert forward.total.requests == 7999


def test_a_stream_of_endless_epochs_can_still_be_written_down() -> None:
    one = _merge([report((START // 300 + n, 1, 0, 0, 0, 0), start=START + n) for n in range(200)])
    assert sorted(one.epochs) == list(range(START + 200 - MAX_EPOCHS, START + 200))
    assert decode_line(encode_stream("berlin", one)) == ("berlin", one)


def test_streams_of_two_activations_do_not_mix() -> None:
    with pytest.raises(ValueError, match="streams of two activations"):
        merge_streams(Stream("a", 1, 7, {}), Stream("a", 2, 7, {}))


def test_thin_loses_no_count() -> None:
    stream = read_stream(report(*((mark, mark * 10) for mark in range(600))))
    thinned = thin(stream, MARK + 600)
    assert thinned.total == stream.total
    kept = thinned.epochs[START]
    assert [mark for mark in kept if mark > MARK + 600 - FINE_MARKS] == list(range(MARK + 601 - FINE_MARKS, MARK + 600))
    assert all(mark % 12 == 11 for mark in kept if mark <= MARK + 600 - FINE_MARKS)
    assert thin(thinned, MARK + 600) is thinned
    assert thin(merge_streams(stream, thinned), MARK + 600) == thinned


def test_thin_keeps_the_last_record_of_an_epoch() -> None:
    stream = read_stream(report((0, 10), (1, 30)))
    assert thin(stream, MARK + 10_000).total.requests == 30


counts = st.tuples(*[st.integers(-2, 50)] * 5)
baselines = st.none() | st.tuples(*[st.integers(0, 9)] * 5, *[st.floats(0, 3, allow_nan=False)] * 3)


@st.composite
def reports(draw: st.DrawFn) -> HealthReport:
    """Any report on the one activation, honest or not."""
    epochs = draw(st.lists(st.tuples(st.integers(0, 3), st.lists(st.tuples(st.integers(-1, 8), counts), max_size=5)), max_size=3))
    return HealthReport(
        revision=A.hash,
        sequence=draw(st.integers(0, 3)),
        activation=START,
        le_ms=draw(st.none() | st.integers(1, 3)),
        ge=draw(st.none() | st.sampled_from(["0.1", "0.5"])),
        skew=draw(st.sampled_from([0, 151])),
        lost=draw(st.integers(0, 2)),
        usual=draw(baselines.map(lambda one: one and HealthBaseline(*one))),
        before=draw(baselines.map(lambda one: one and HealthBaseline(*one))),
        epochs=tuple(HealthEpoch(start=START + 300 * at, records=tuple((MARK + m, *c) for m, c in rows)) for at, rows in epochs),
    )


@given(st.lists(reports(), min_size=1, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_the_same_set_of_records_is_the_same_stream(said: list[HealthReport], chance: random.Random) -> None:
    """Shuffled, repeated, delayed (merged in any grouping): one stream, one sequence of spans, never a negative count."""
    first = _merge(said)
    again = [*said, *chance.choices(said, k=3)]
    chance.shuffle(again)
    cut = chance.randrange(len(again))
    second = merge_streams(_merge(again[cut:]), _merge(again[:cut])) if cut else _merge(again)
    assert first == second
    assert first.spans == second.spans
    assert all(count >= 0 for span in first.spans for count in span.counts)
    assert all(span.first <= span.last for span in first.spans)


def _merge(said: list[HealthReport]) -> Stream:
    merged = read_stream(said[0])
    for one in said:
        merged = merge_streams(merged, read_stream(one))
    return merged
