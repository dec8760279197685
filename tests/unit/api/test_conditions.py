"""How conditions follow one another."""

from edgefleet.api.conditions import Condition, find_condition, merge_conditions

READY = Condition(type="Ready", status="True", reason="Fine", message="m")


def test_a_transition_time_changes_with_the_status_alone() -> None:
    first = merge_conditions((), (READY,), now="T1", generation=1)
    told_differently = READY.model_copy(update={"reason": "Better", "message": "n"})
    second = merge_conditions(first, (told_differently,), now="T2", generation=2)
    assert (second[0].last_transition_time, second[0].reason, second[0].observed_generation) == ("T1", "Better", 2)
    third = merge_conditions(second, (READY.model_copy(update={"status": "False"}),), now="T3", generation=2)
    assert third[0].last_transition_time == "T3"


def test_what_is_not_said_any_more_is_gone() -> None:
    first = merge_conditions((), (READY, Condition(type="Stalled", status="True")), now="T1", generation=1)
    second = merge_conditions(first, (READY,), now="T2", generation=1)
    assert find_condition(second, "Stalled") is None
    assert find_condition(second, "Ready") == first[0]


def test_a_message_is_cut_to_the_bound_of_the_schema() -> None:
    long = READY.model_copy(update={"message": "x" * 2000})
    assert len(merge_conditions((), (long,), now="T1", generation=1)[0].message) == 1024
