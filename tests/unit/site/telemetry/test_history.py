"""Activations, epochs and marks of one fleet."""

from edgefleet.api.report import HealthBaseline
from edgefleet.site.telemetry.events import NOTHING, Edges, Events, add
from edgefleet.site.telemetry.history import FEWEST_ACTIVATIONS, FINE_MARKS, KEPT_MARKS, MARKS_PER_HOUR, MAX_EPOCHS, Activation, History

DAY = FINE_MARKS
A, B, C = "a" * 64, "b" * 64, "c" * 64
ONE = Events(10, 1, {5: 8, 60: 2})
AT_50 = Edges(50)


def begin(history: History, revision: str, mark: int, edges: Edges = AT_50) -> Activation:
    return history.begin(revision, f"weld--{revision[:8]}", edges, at=mark * 300, now=mark)


def record(history: History, mark: int, events: Events = ONE, life: str = "1") -> None:
    assert history.latest is not None
    history.record(history.latest, events, life=life, second=mark * 300 + 1)


def test_what_ran_before_is_frozen_at_the_switch_at_the_new_edges() -> None:
    history = History()
    assert begin(history, A, 1000).before is None
    for mark in range(1000, 1010):
        record(history, mark)
    second = begin(history, B, 1010, Edges(5))
    assert second.before == HealthBaseline(100, 10, 100, 0, 0)
    record(history, 1010)
    assert begin(history, C, 1011, Edges(100)).before == HealthBaseline(110, 11, 0, 0, 0)
    assert second.before == HealthBaseline(100, 10, 100, 0, 0)


def test_what_was_taken_back_is_no_example() -> None:
    history = History()
    begin(history, A, 1000)
    record(history, 1000)
    begin(history, B, 1001)
    record(history, 1001, Events(1000, 1000))
    assert history.may_go_back_to(A)
    assert not history.may_go_back_to(B)
    assert begin(history, A, 1002).before == HealthBaseline(10, 1, 2, 0, 0)
    assert not history.may_go_back_to(B)
    assert not history.may_go_back_to(C)
    record(history, 1002)
    assert begin(history, C, 1003).before == HealthBaseline(20, 2, 4, 0, 0)
    assert history.may_go_back_to(A)


def test_a_baseline_ends_after_seven_days() -> None:
    history = History()
    begin(history, A, 10_000)
    record(history, 10_000)
    record(history, 10_001)
    assert begin(history, B, 10_000 + KEPT_MARKS).before == HealthBaseline(10, 1, 2, 0, 0)


def test_marks_become_hours_and_then_a_sum() -> None:
    history, start = History(), 12_000
    activation = begin(history, A, start)
    for mark in range(start, start + 10 * DAY, 5):
        record(history, mark)
        history.told = mark
        history.thin(mark)
    (epoch,) = activation.epochs
    now = start + 10 * DAY - 5
    assert len(epoch.marks) <= FINE_MARKS / 5 + 6 * 24 + 4
    assert all(mark > now - FINE_MARKS - MARKS_PER_HOUR or mark % MARKS_PER_HOUR == MARKS_PER_HOUR - 1 for mark in epoch.marks)
    assert min(epoch.marks) > now - KEPT_MARKS
    assert activation.total == add([ONE] * (10 * DAY // 5))
    assert history.lost == 0


def test_what_the_hub_has_not_had_is_lost_when_it_is_folded() -> None:
    history = History(told=1000)
    begin(history, A, 1000)
    for mark in (1000, 1012, 1024, 20_000):
        record(history, mark)
    history.thin(20_000)
    assert history.lost == 3
    assert history.latest is not None
    assert history.latest.total.requests == 40


def test_the_last_record_of_what_serves_stays_whatever_its_age() -> None:
    history = History()
    activation = begin(history, A, 1000)
    record(history, 1000)
    history.thin(1000 + 2 * KEPT_MARKS)
    assert activation.epochs[0].marks == {1007: ONE}
    assert history.usual([activation], Edges(50), 1000 + 2 * KEPT_MARKS).requests == 0


def test_another_life_of_the_gateway_is_another_epoch_even_in_the_same_second() -> None:
    history = History()
    activation = begin(history, A, 1000)
    for life in ("1", "2", "3", "3"):
        record(history, 1000, life=life)
    starts = [epoch.start for epoch in activation.epochs]
    assert starts == [300_000, 300_001, 300_002]
    assert activation.total.requests == 40


def test_a_clock_that_is_set_back_does_not_move_marks_back() -> None:
    history = History()
    activation = begin(history, A, 1000)
    record(history, 1005)
    record(history, 900)
    assert activation.epochs[0].marks == {1005: add((ONE, ONE))}


def test_a_gateway_that_dies_all_the_time_costs_no_room() -> None:
    history = History()
    activation = begin(history, A, 1000)
    for life in range(100):
        record(history, 1000, life=str(life))
    history.thin(1000)
    assert len(activation.epochs) == MAX_EPOCHS
    assert history.lost == 100 - MAX_EPOCHS


def test_the_last_few_revisions_are_known_even_if_nobody_asked_them() -> None:
    history = History()
    for number in range(10):
        begin(history, f"{number}" * 64, 1000 + number)
    history.thin(1000 + 2 * KEPT_MARKS)
    assert [one.revision[0] for one in history.activations] == ["6", "7", "8", "9"]
    assert len(history.activations) == FEWEST_ACTIVATIONS
    assert history.may_go_back_to("8" * 64)


def test_folding_for_room_loses_no_event() -> None:
    history = History()
    activation = begin(history, A, 1000)
    for mark in range(1000, 1100):
        record(history, mark)
    total = activation.total
    while history.shrink():
        assert activation.total == total
    assert len(activation.epochs[0].marks) == 1
    assert add([*activation.epochs[0].marks.values(), activation.epochs[0].base]) == total != NOTHING
