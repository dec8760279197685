"""The tree of errors: each class has a reason of its own that a condition can carry, and the tree in the docstring is the real one."""

import re

import pytest

from edgefleet.oci import errors
from edgefleet.oci.errors import RegistryError


def classes() -> list[type[RegistryError]]:
    return [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, RegistryError)]


@pytest.mark.parametrize("found", classes(), ids=lambda found: found.__name__)
def test_reasons_fit_a_condition(found: type[RegistryError]) -> None:
    assert re.fullmatch(r"[A-Z][A-Za-z]{0,63}", found.reason)
    assert found("what happened").message == "what happened"


def test_reasons_are_distinct_but_for_the_two_groups() -> None:
    reasons = [found.reason for found in classes() if found.__name__ != "TransportError"]
    assert len(set(reasons)) == len(reasons)


def test_the_docstring_draws_the_tree() -> None:
    drawn = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^( {4,})([A-Z]\w+)", line)
        if match:
            depth = (len(match[1]) - 4) // 2
            above = [*above[:depth], match[2]]
            drawn[match[2]] = above[depth - 1] if depth else "Exception"
    assert drawn == {found.__name__: found.__bases__[0].__name__ for found in classes()}
