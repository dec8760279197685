"""What happened when: one list of events, written by many threads, read by the screen and printed at the end."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["act", "command", "fleet", "check", "stage"]
"""act: a new act begins. command: what the person typed. fleet: what the system did. check: an assertion that held.
stage: what the demo itself does in place of the world (starts servers, spoils a blob)."""


@dataclass(frozen=True)
class Event:
    """`at` is in seconds since the story began."""

    at: float
    kind: Kind
    text: str


class Story:
    """The events so far, and whoever wants to hear of each new one."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._listeners: list[Callable[[Event], None]] = []

    @property
    def elapsed(self) -> float:
        """Seconds since the story began."""
        return time.monotonic() - self._began

    @property
    def events(self) -> tuple[Event, ...]:
        """All events, oldest first."""
        with self._lock:
            return tuple(self._events)

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` for each event from now on, one at a time."""
        self._listeners.append(listener)

    def tell(self, kind: Kind, text: str) -> None:
        """Add an event of now."""
        with self._lock:
            event = Event(self.elapsed, kind, text)
            self._events.append(event)
            for listener in self._listeners:
                listener(event)
