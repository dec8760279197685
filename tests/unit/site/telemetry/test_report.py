"""What is told in the Lease."""

from hypothesis import given, settings
from hypothesis import strategies as st

from edgefleet.api.report import MAX_BACKLOG_BYTES, MAX_HEALTH_BYTES, HealthBaseline, HealthCounts, HealthReport
from edgefleet.core.health import merge_streams, read_stream
from edgefleet.site.telemetry.events import Edges, Events
from edgefleet.site.telemetry.history import FINE_MARKS, Activation, History
from edgefleet.site.telemetry.report import YOUNG_SECONDS, Told, is_urgent, is_young, plan_backlog, plan_health

A, B = "a" * 64, "b" * 64
START = 5_966_666
LARGE = 1 << 53
USUAL = Events(1000, 10, {5: 900, 70: 90})


def history_of(marks: range, events: Events = USUAL) -> tuple[History, Activation]:
    history = History(told=marks.start)
    activation = history.begin(A, "weld--aaaaaaaa", Edges(50), at=marks.start * 300, now=marks.start)
    for mark in marks:
        history.record(activation, events, life="1", second=mark * 300)
    return history, activation


def tell(history: History, activation: Activation, *, now: int, backlog: int = 0) -> tuple[Told, HealthReport]:
    told = plan_health(history, activation, sequence=7, skew=0, now=now, backlog=backlog)
    return told, HealthReport.model_validate_json(told.text)


def test_the_last_hour_is_told_and_the_sum_is_right() -> None:
    history, activation = history_of(range(START, START + 100))
    history.told = START + 99
    told, report = tell(history, activation, now=START + 99)
    assert told.whole
    assert len(told.text) <= MAX_HEALTH_BYTES
    (epoch,) = report.epochs
    assert len(epoch.records) >= 12
    assert [record[0] for record in epoch.records] == [*range(START + 100 - len(epoch.records), START + 100)]
    assert epoch.records[-1] == (START + 99, 100_000, 1000, 9000, 0, 0)
    assert read_stream(report).total == HealthCounts(100_000, 1000, 9000, 0, 0)
    assert (report.le_ms, report.ge, report.usual, report.before) == (50, None, HealthBaseline(100_000, 1000, 9000, 0, 0), None)


def test_after_a_cut_all_that_was_missed_is_told() -> None:
    history, activation = history_of(range(START, START + 3 * FINE_MARKS))
    now = START + 3 * FINE_MARKS - 1
    history.thin(now)
    told, _ = tell(history, activation, now=now)
    assert not told.whole
    backlog, report = tell(history, activation, now=now, backlog=MAX_BACKLOG_BYTES)
    assert backlog.whole
    assert len(backlog.text) <= MAX_BACKLOG_BYTES
    assert len(report.epochs[0].records) == sum(len(epoch.marks) for epoch in activation.epochs)
    assert read_stream(report).total == activation.total.measure(Edges(50))


def test_where_not_all_fits_hours_come_first() -> None:
    history, activation = history_of(range(START, START + FINE_MARKS))
    told, report = tell(history, activation, now=START + FINE_MARKS - 1, backlog=3000)
    marks = {record[0] for record in report.epochs[0].records}
    assert not told.whole
    assert {mark for mark in range(START, START + FINE_MARKS) if mark % 12 == 11} <= marks


def test_each_life_of_the_gateway_keeps_its_last_word() -> None:
    history, activation = history_of(range(START, START + 50))
    for life in range(2, 8):
        for mark in range(START + 50, START + 60):
            history.record(activation, Events(1), life=str(life), second=mark * 300)
    _, report = tell(history, activation, now=START + 60)
    assert read_stream(report).total.requests == activation.total.requests
    assert len(report.epochs) == 7


counts = st.integers(0, LARGE)
steps = st.builds(Events, counts, counts, st.dictionaries(st.integers(0, 60_000), counts, max_size=4), counts, st.just((LARGE,) * 10))


@settings(max_examples=50, deadline=None)
@given(
    lives=st.lists(st.lists(st.tuples(st.integers(0, 30), steps), min_size=1, max_size=20), min_size=1, max_size=34),
    told=st.integers(0, 1000),
    lost=st.integers(0, LARGE),
    skew=st.integers(-(1 << 40), 1 << 40),
    edges=st.sampled_from([Edges(), Edges(60_000), Edges(50, "0.5")]),
)
def test_a_report_never_exceeds_its_room_and_never_contradicts_another(
    lives: list[list[tuple[int, Events]]], told: int, lost: int, skew: int, edges: Edges
) -> None:
    history, mark = History(lost=lost, told=START + told), START
    old = history.begin(B, "weld--bbbbbbbb", edges, at=START * 300 - 300, now=START)
    history.record(old, Events(LARGE, LARGE, {60_000: LARGE}, LARGE, (LARGE,) * 10), life="0", second=START * 300)
    activation = history.begin(A, "weld--aaaaaaaa", edges, at=START * 300, now=START)
    activation.confident = True
    for life, marks in enumerate(lives):
        for step, events in marks:
            mark += step
            history.record(activation, events, life=str(life), second=mark * 300)
    history.thin(mark)
    short = plan_health(history, activation, sequence=1 << 53, skew=skew, now=mark)
    long = plan_health(history, activation, sequence=1 << 53, skew=skew, now=mark, backlog=MAX_BACKLOG_BYTES)
    assert len(short.text) <= MAX_HEALTH_BYTES
    assert len(long.text) <= MAX_BACKLOG_BYTES
    assert long.whole or not short.whole
    one, other = (read_stream(HealthReport.model_validate_json(text)) for text in (short.text, long.text))
    assert one.epochs, "even the newest record did not fit"
    merged = merge_streams(one, other)
    assert merged.epochs == other.epochs, "the short report says what the long one does not"
    if short.whole:
        missing = {m for records in other.epochs.values() for m in records} - {m for records in one.epochs.values() for m in records}
        assert all(m < history.told for m in missing)


def test_backlogs_of_many_fleets_fit_on_one_object() -> None:
    assert plan_backlog(1) == MAX_BACKLOG_BYTES
    assert all(fleets * plan_backlog(fleets) <= 200_000 for fleets in range(1, 100))


def test_early_reports_grow_rare() -> None:
    told, reports = 0, 0
    for bad in range(1, 1001):
        if is_urgent(bad, told):
            told, reports = bad, reports + 1
    assert is_urgent(1, 0)
    assert reports < 35


def test_a_revision_is_young_for_a_day() -> None:
    _, activation = history_of(range(START, START + 1))
    assert is_young(activation, activation.at + YOUNG_SECONDS - 1)
    assert not is_young(activation, activation.at + YOUNG_SECONDS)
