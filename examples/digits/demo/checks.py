"""What an act asserts: a fact that must be seen within a time, or hold now. A failure says what was found and where to look."""

from collections.abc import Callable
from typing import NoReturn

from examples.digits.demo.observer import Observer, Snapshot
from examples.digits.demo.story import Story


class CheckFailedError(Exception):
    """An act did not go as promised."""


class Checks:
    """Assertions of the act under way; each that held is told, and counted in `held`."""

    def __init__(self, story: Story, observer: Observer) -> None:
        self._story, self._observer = story, observer
        self.act = ""
        self.held: dict[str, int] = {}

    def awaits(self, what: str, fact: Callable[[Snapshot], object], limit: float, found: Callable[[Snapshot], str]) -> Snapshot:
        """Wait for `fact` at most `limit` seconds; returns the snapshot in which it was seen.

        `found` describes a snapshot in which the fact does not hold.
        """
        if not self._observer.wait_until(fact, limit):
            trouble = f"\n  the hub's API: {self._observer.trouble}" if self._observer.trouble else ""
            self._fail(f"{what} (waited {limit:.0f} s)", found(self._observer.latest) + trouble)
        self._hold(what)
        return self._observer.latest

    def holds(self, what: str, fact: bool, found: str) -> None:
        """`fact` must hold now."""
        if not fact:
            self._fail(what, found)
        self._hold(what)

    def _hold(self, what: str) -> None:
        self.held[self.act] = self.held.get(self.act, 0) + 1
        self._story.tell("check", what)

    def _fail(self, what: str, found: str) -> NoReturn:
        raise CheckFailedError(f"{self.act}\n  expected: {what}\n  found: {found}")


def describe_fleet(seen: Snapshot, fleet: str) -> str:
    """All that a person would look at first, as text for a failed check."""
    lines = []
    if fleet in seen.models:
        lines += [f"model {fleet}: {_conditions(seen.models[fleet].status.conditions)}"]
    if fleet in seen.fleets:
        status = seen.fleets[fleet].status
        lines += [f"fleet {fleet}: {status.sites.model_dump()} {_conditions(status.conditions)}"]
    else:
        lines += [f"fleet {fleet}: does not exist"]
    for run in seen.runs_of(fleet)[-2:]:
        state = run.status
        lines += [
            f"run {run.metadata.name} {run.spec.revision.version}: {state.phase} {state.outcome or ''} {state.reason} "
            f"{state.message} waiting for: {state.waiting_for or '-'} wave: {state.wave}"
        ]
    for site, assignment in sorted(seen.assigned(fleet).items()):
        said = assignment.status
        serves = f"{said.active.version} {said.active.variant}" if said.active else "nothing"
        lines += [
            f"site {site}: assigned {assignment.spec.version} #{assignment.spec.sequence}, said #{said.sequence} {said.state} "
            f"{said.reason} {said.message}; serves {serves}"
        ]
    return "\n    ".join(lines)


def _conditions(conditions: tuple[object, ...]) -> str:
    return "; ".join(
        f"{getattr(each, 'type', '')}={getattr(each, 'status', '')} {getattr(each, 'reason', '')} {getattr(each, 'message', '')}".rstrip()
        for each in conditions
    )
