"""One fleet's past at this site: what served when, and what happened in each 5-minute mark of it. Pure.

A mark is UTC seconds // 300 by the site's clock. Marks are kept for 24 h, then one an hour, and after 7 days only their sum, so that the
cumulative counts of a report never fall. How far the gateway's counters were read is kept in ledger.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from edgefleet.api.report import MARK_SECONDS, HealthBaseline
from edgefleet.site.telemetry.baseline import plan_baseline
from edgefleet.site.telemetry.events import NOTHING, Edges, Events, add

MARKS_PER_HOUR = 3600 // MARK_SECONDS
FINE_MARKS = 24 * MARKS_PER_HOUR
KEPT_MARKS = 7 * FINE_MARKS
MAX_EPOCHS = 32
"""Of one activation: a gateway that dies more often than that within it loses its oldest lives."""
FEWEST_ACTIVATIONS = 4
MOST_ACTIVATIONS = 32


@dataclass(slots=True)
class Epoch:
    """One life of the gateway. `base`: what happened before the marks that are kept."""

    start: int
    life: str
    base: Events = NOTHING
    marks: dict[int, Events] = field(default_factory=dict)


@dataclass(slots=True)
class Activation:
    """From one switch to the next. `taken_back`: the site went back to what had run before it, so it is no example for others.
    `confident`: the model server tells its confidence. `before`: frozen at the switch, at these `edges`."""

    revision: str
    at: int
    served_name: str
    edges: Edges
    before: HealthBaseline | None = None
    taken_back: bool = False
    confident: bool = False
    epochs: list[Epoch] = field(default_factory=list)

    @property
    def delivered(self) -> Edges:
        """The edges that are really counted at."""
        return self.edges if self.confident else self.edges._replace(ge=None)

    @property
    def total(self) -> Events:
        """All that happened since the switch."""
        return add(events for epoch in self.epochs for events in (epoch.base, *epoch.marks.values()))

    def marks_since(self, mark: int) -> Iterator[tuple[int, Events]]:
        """What is kept of later marks, in no order."""
        return ((at, events) for epoch in self.epochs for at, events in epoch.marks.items() if at > mark)


@dataclass(slots=True)
class History:
    """`lost`: marks that were folded or dropped before the hub had them. `told`: the last mark that the hub has had."""

    activations: list[Activation] = field(default_factory=list)
    lost: int = 0
    told: int = 0

    @property
    def latest(self) -> Activation | None:
        """What was switched in last."""
        return self.activations[-1] if self.activations else None

    def find(self, served_name: str) -> Activation | None:
        """The last activation that was served under a name."""
        return next((one for one in reversed(self.activations) if one.served_name == served_name), None)

    def may_go_back_to(self, revision: str) -> bool:
        """Whether a revision has run here, and was not taken back since."""
        found = [one for one in self.activations[:-1] if one.revision == revision]
        return bool(found) and not found[-1].taken_back

    def begin(self, revision: str, served_name: str, edges: Edges, *, at: int, now: int) -> Activation:
        """A revision was switched in at second `at`; what ran here in the 7 days before is its `before`."""
        known = [index for index, one in enumerate(self.activations) if one.revision == revision]
        for one in self.activations[known[-1] + 1 :] if known else ():
            one.taken_back = True
        good = [one for one in self.activations if not one.taken_back]
        before = self.usual(good, edges, now) if self.activations else None
        self.activations.append(Activation(revision, at, served_name, edges, before))
        return self.activations[-1]

    def usual(self, activations: Iterable[Activation], edges: Edges, now: int) -> HealthBaseline:
        """The last 7 days of these activations."""
        since = now - KEPT_MARKS
        marks = [(mark, events.measure(edges)) for one in activations for mark, events in one.marks_since(since)]
        return plan_baseline(marks, fine_since=now - FINE_MARKS)

    def record(self, activation: Activation, events: Events, *, life: str, second: int) -> None:
        """Something happened, up to this second of the site's clock. Marks never go back, whatever the clock does."""
        epoch = next((one for one in activation.epochs if one.life == life), None)
        if epoch is None:
            start = max(activation.epochs[-1].start + 1, second) if activation.epochs else activation.at
            epoch = Epoch(start, life)
            activation.epochs.append(epoch)
        mark = max(second // MARK_SECONDS, max(epoch.marks, default=0))
        epoch.marks[mark] = add((epoch.marks.get(mark, NOTHING), events))

    def thin(self, now: int) -> None:
        """Keep what is to be kept at mark `now`."""
        for one in self.activations:
            for epoch in one.epochs:
                _thin(epoch, now)
            if one is self.latest:
                self.lost += sum(self._untold(epoch.marks) for epoch in one.epochs[:-MAX_EPOCHS])
            del one.epochs[:-MAX_EPOCHS]
        self._fold(now - KEPT_MARKS)
        # A few are kept without any traffic: what may be gone back to is read from them.
        old = self.activations[:-FEWEST_ACTIVATIONS]
        kept = [one for one in old if any(epoch.marks for epoch in one.epochs)]
        self.activations = [*kept, *self.activations[-FEWEST_ACTIVATIONS:]][-MOST_ACTIVATIONS:]

    def shrink(self) -> bool:
        """There is no room: fold the older half of the marks. False if there is nothing left to fold."""
        marks = sorted(mark for one in self.activations for mark, _ in one.marks_since(-1))
        if len(marks) < 2:
            return False
        self._fold(marks[len(marks) // 2])
        return True

    def _fold(self, upto: int) -> None:
        """Keep only the sum of the marks until `upto`; of what serves, also the last of each epoch, which a report is made of."""
        for one in self.activations:
            for epoch in one.epochs:
                last = max(epoch.marks, default=0) if one is self.latest else None
                old = [mark for mark in epoch.marks if mark <= upto and mark != last]
                if one is self.latest:
                    self.lost += self._untold(old)
                epoch.base = add((epoch.base, *(epoch.marks.pop(mark) for mark in old)))

    def _untold(self, marks: Iterable[int]) -> int:
        return sum(mark > self.told for mark in marks)


def _thin(epoch: Epoch, now: int) -> None:
    for mark in list(epoch.marks):
        hour = mark - mark % MARKS_PER_HOUR + MARKS_PER_HOUR - 1
        if mark != hour <= now - FINE_MARKS:
            epoch.marks[hour] = add((epoch.marks.pop(mark), epoch.marks.get(hour, NOTHING)))
