"""What the runs add up to, and what an assignment remembers."""

from typing import Any

import pytest

from edgefleet.api.rollout import Control
from edgefleet.core.memory import count_names, exposed_to, plan_forgetting, recall, taken_back_by
from tests.unit.core.facts_of import A, B, C, fleet, model, run, site, told

STABLE = run(1, A, outcome="Promoted")


@pytest.mark.parametrize(
    ("runs", "stable", "active"),
    [
        pytest.param([], None, None, id="no-run"),
        pytest.param([run(1, A)], None, "weld-1", id="first-run"),
        pytest.param([STABLE], A, None, id="promoted"),
        pytest.param([run(2, B, outcome="Promoted"), STABLE], B, None, id="newest-by-number"),
        pytest.param([STABLE, run(2, B, outcome="RolledBack")], A, None, id="rolled-back"),
        pytest.param([STABLE, run(2, B, outcome="Superseded"), run(3, C)], A, "weld-3", id="superseded"),
        pytest.param([STABLE, run(2, B, outcome="Promoted"), run(3, B, outcome="AbortedByUser")], A, None, id="barred-later"),
    ],
)
def test_recall(runs: Any, stable: Any, active: str | None) -> None:
    memory = recall(fleet(B, runs=runs))
    assert memory.stable == stable
    assert (memory.active.name if memory.active else None) == active


def test_a_retried_run_bars_nothing_and_sends_nobody_back() -> None:
    retried = run(2, B, outcome="RolledBack", control=Control(retry=True))
    memory = recall(fleet(B, runs=[STABLE, retried]))
    assert memory.barred == {}
    held = told(site("s"), B, "weld-2").assignment
    assert held is not None
    assert not memory.was_taken_back(held)
    again = recall(fleet(B, runs=[STABLE, retried, run(3, B, outcome="RolledBack")]))
    assert {revised: one.name for revised, one in again.barred.items()} == {B.hash: "weld-3"}, "the new run bars it anew"


def test_a_retried_run_is_forgotten_like_any_other() -> None:
    old = [run(number, B, outcome="RolledBack", control=Control(retry=number < 6)) for number in range(2, 7)]
    assert plan_forgetting(fleet(B, runs=[STABLE, *old])) == ("weld-2",)


def test_revocation_is_by_digest() -> None:
    same_bytes = B.model_copy(update={"hash": C.hash})
    runs = [STABLE, run(2, B, outcome="Promoted"), run(3, same_bytes, outcome="Promoted")]
    memory = recall(fleet(B, runs=runs, model=model(B, revoked=frozenset({B.digest}))))
    assert memory.stable == A
    assert memory.revoked == {B.hash, C.hash}
    assert not memory.no_safe_target
    assert recall(fleet(B, runs=runs, model=None)).stable == same_bytes


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        pytest.param(told(site("s"), A, "weld-1"), False, id="stable"),
        pytest.param(told(site("s"), None, "weld-2"), False, id="withdrawn"),
        pytest.param(told(site("s"), B, "weld-2"), True, id="barred"),
        pytest.param(told(site("s"), B, None), True, id="barred-whoever-sent-it"),
        pytest.param(told(site("s"), C, "weld-3"), True, id="target-changed"),
        pytest.param(told(site("s"), C, "weld-4"), False, id="superseded"),
        pytest.param(told(site("s"), C, "weld-2"), False, id="another-runs-label"),
        pytest.param(told(site("s"), C, None), False, id="no-run"),
    ],
)
def test_was_taken_back(facts: Any, expected: bool) -> None:
    runs = [STABLE, run(2, B, outcome="RolledBack"), run(3, C, outcome="TargetChanged"), run(4, C, outcome="Superseded")]
    assert facts.assignment is not None
    assert recall(fleet(C, runs=runs)).was_taken_back(facts.assignment) is expected


def test_an_assignment_remembers_exposure_and_return() -> None:
    this = run(2, B)
    there, back, gone = told(site("s"), B, "weld-2"), told(site("s"), A, "weld-2"), told(site("s"), None, "weld-2")
    other = told(site("s"), A, "weld-1")
    assert [exposed_to(one, B.hash) for one in (there, back, gone, other, site("s"))] == [True, False, False, False, False]
    assert [taken_back_by(one, this) for one in (there, back, gone, other, site("s"))] == [False, True, True, False, False]


def test_at_most_ten_names() -> None:
    assert count_names(["b", "a"]) == "a, b"
    assert count_names(f"s{number:02}" for number in range(12)).endswith("s09 and 2 more")
    assert count_names([]) == ""
