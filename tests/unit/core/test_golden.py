"""Scores: what counts as right, and that silence is wrong."""

from typing import Any

import pytest

from edgefleet.core.golden import GoldenLine, GoldenScore, score

LINE = GoldenLine((), "y", 2)


def answer(data: Any, name: str = "y") -> dict[str, Any]:
    return {"outputs": [{"name": "other", "data": [2]}, {"name": name, "data": data}]}


@pytest.mark.parametrize(
    ("given", "right", "unanswered"),
    [
        pytest.param(answer([0.1, 0.2, 0.7]), 1, 0, id="argmax"),
        pytest.param(answer([[0.1, 0.2, 0.7]]), 1, 0, id="argmax of a batch of one"),
        pytest.param(answer([-3.0, -2.0, -1.0]), 1, 0, id="argmax of negatives"),
        pytest.param(answer([0, 5, 9]), 1, 0, id="argmax of integers"),
        pytest.param(answer([0.7, 0.2, 0.1]), 0, 0, id="another class"),
        pytest.param(answer([2]), 1, 0, id="integer"),
        pytest.param(answer([[2]]), 1, 0, id="integer in a batch"),
        pytest.param(answer([3]), 0, 0, id="another integer"),
        pytest.param(answer([2.0]), 0, 1, id="one float is no choice"),
        pytest.param(answer([True]), 0, 1, id="a truth value is no class"),
        pytest.param(answer([0.1, float("nan"), 0.7]), 0, 1, id="NaN"),
        pytest.param(answer([]), 0, 1, id="no values"),
        pytest.param(answer(["2"]), 0, 1, id="text"),
        pytest.param(answer(None), 0, 1, id="no data"),
        pytest.param(answer([2], "z"), 0, 1, id="another output"),
        pytest.param({}, 0, 1, id="no outputs"),
        pytest.param({"outputs": ["y"]}, 0, 1, id="outputs are no tensors"),
        pytest.param({"error": "no such model"}, 0, 1, id="an error"),
        pytest.param(None, 0, 1, id="unanswered"),
    ],
)
def test_one_line(given: dict[str, Any] | None, right: int, unanswered: int) -> None:
    assert score([given], [LINE]) == GoldenScore(right, 1, unanswered)


def test_unanswered_lines_are_wrong() -> None:
    found = score([answer([2]), None, None, answer([2])], [LINE] * 4)
    assert found == GoldenScore(2, 4, 2)
    assert found.meets("50%")
    assert not found.meets("51%")


@pytest.mark.parametrize(("right", "total", "meets"), [(90, 100, True), (899, 1000, False), (9, 10, True), (0, 0, False), (1, 1, True)])
def test_the_minimum_is_not_rounded(right: int, total: int, meets: bool) -> None:
    assert GoldenScore(right, total, 0).meets("90%") is meets


def test_an_empty_set_does_not_meet_nothing() -> None:
    assert not GoldenScore(0, 0, 0).meets("0%")


def test_answers_and_lines_must_be_of_one_length() -> None:
    with pytest.raises(ValueError, match="1 answers to 2 lines"):
        score([None], [LINE, LINE])
