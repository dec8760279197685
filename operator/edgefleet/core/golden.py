"""How many labelled examples a model answers right. Asking it, and what share is enough, are others' matters.

A line counts as right when the named output's largest value stands at the label's place, or, for an output of one integer, when
that is the label. An unanswered line is wrong: a model that is silent on hard examples must not look better for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from edgefleet.api.quantities import parse_share


@dataclass(frozen=True)
class GoldenLine:
    """One example: `inputs` are tensors of the Open Inference Protocol v2, `output` the name of the output that is judged."""

    inputs: tuple[Mapping[str, Any], ...]
    output: str
    label: int


@dataclass(frozen=True)
class GoldenScore:
    """`right` of `total` lines, of which `unanswered` got no usable answer."""

    right: int
    total: int
    unanswered: int

    def meets(self, minimum: str) -> bool:
        """Whether at least this share (`90%`) is right. An empty set meets nothing."""
        return self.total > 0 and self.right * 100 >= parse_share(minimum) * self.total

    def __str__(self) -> str:
        return f"{self.right}/{self.total}"


def score(answers: Sequence[Mapping[str, Any] | None], lines: Sequence[GoldenLine]) -> GoldenScore:
    """Count right answers. `answers[i]` is the server's response to `lines[i]`, or None.

    Raises ValueError when the two are not of one length.
    """
    if len(answers) != len(lines):
        raise ValueError(f"{len(answers)} answers to {len(lines)} lines")
    classes = [None if answer is None else _answered_class(answer, line.output) for answer, line in zip(answers, lines, strict=True)]
    right = sum(found == line.label for found, line in zip(classes, lines, strict=True))
    return GoldenScore(right, len(lines), classes.count(None))


def _answered_class(answer: Mapping[str, Any], output: str) -> int | None:
    outputs = answer.get("outputs")
    if not isinstance(outputs, list):
        return None
    tensor = next((found for found in outputs if isinstance(found, dict) and found.get("name") == output), None)
    if tensor is None:
        return None
    values = _flatten(tensor.get("data"))
    if not values:
        return None
    if len(values) == 1:
        # The largest of one value is always the first: a lone float is no choice between classes.
        return values[0] if isinstance(values[0], int) else None
    if any(isnan(value) for value in values):
        return None
    return values.index(max(values))


def _flatten(data: Any) -> list[int | float] | None:
    if type(data) in (int, float):
        return [data]
    if not isinstance(data, list):
        return None
    flat: list[int | float] = []
    for entry in data:
        part = _flatten(entry)
        if part is None:
            return None
        flat += part
    return flat
