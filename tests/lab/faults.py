"""What can go wrong between a process and an API server, as data: at which write or watch event, and what happens there.

A write is found by who makes it, from which line of code, and as the how-manieth from there; a restart does not begin the count anew.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

When = Literal["before", "after"]
SILENT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class WriteFault:
    """At the `nth` write of `actor` from `caller` to `server`, `before` it is forwarded or `after` it was done:

    kill    the process gets SIGKILL
    answer  it is told `code`, whatever became of the write
    hang    it is told nothing
    """

    actor: str
    server: str
    caller: str
    nth: int
    what: Literal["kill", "answer", "hang"]
    when: When
    code: int = 0

    def __str__(self) -> str:
        what = f"{self.what} {self.code}" if self.code else self.what
        return f"{what} {self.when} {self.actor}/{self.server} {self.caller} #{self.nth}"


@dataclass(frozen=True, slots=True)
class WatchFault:
    """At the `nth` event of `resource` that `server` sends to `actor`:

    cut      the connection ends
    expire   the watch ends with 410, so that the client lists again
    merge    for 2 s events are held back; then the newest of each object comes
    swallow  for 2 s events are lost; then the watch ends with 410, as after a gap in what a real server remembers
    silent   half-open: open watches never say anything again, and for 2 s new requests are accepted and not answered
    """

    actor: str
    server: str
    resource: str
    nth: int
    what: Literal["cut", "expire", "merge", "swallow", "silent"]

    def __str__(self) -> str:
        return f"{self.what} at {self.actor}/{self.server} watch of {self.resource} #{self.nth}"


Fault = WriteFault | WatchFault


class FaultPlan:
    """Counts what passes and says what happens to it. `met` are the faults that came about."""

    def __init__(self, *faults: Fault) -> None:
        self._faults = faults
        self._seen: Counter[tuple[str, str, str]] = Counter()
        self.met: list[Fault] = []

    @property
    def unmet(self) -> list[Fault]:
        """The faults for which the moment never came."""
        return [fault for fault in self._faults if fault not in self.met]

    def at_write(self, actor: str, server: str, caller: str) -> WriteFault | None:
        """The fault for this write, if there is one."""
        nth = self._count(actor, server, caller)
        for fault in self._faults:
            if isinstance(fault, WriteFault) and (fault.actor, fault.server, fault.caller, fault.nth) == (actor, server, caller, nth):
                self.met.append(fault)
                return fault
        return None

    def at_event(self, actor: str, server: str, resource: str) -> WatchFault | None:
        """The fault that begins with this watch event, if there is one."""
        nth = self._count(actor, server, f"watch {resource}")
        for fault in self._faults:
            if isinstance(fault, WatchFault) and (fault.actor, fault.server, fault.resource, fault.nth) == (actor, server, resource, nth):
                self.met.append(fault)
                return fault
        return None

    def _count(self, *what: str) -> int:
        self._seen[what] += 1  # type: ignore[index]
        return self._seen[what]  # type: ignore[index]
