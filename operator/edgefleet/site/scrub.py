"""Reads what lies in the store again, at the agent's start and then daily: disks rot, and a site's room is not safe.

Slowly, in one thread of low priority. A damaged blob leaves the store (store.py); the fleet that
needs it is told, and its worker brings it again. What a server has loaded goes on meanwhile; what it has not loaded yet is read by whoever
hands it to the server, whatever was read here.
"""

import asyncio
import functools
import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from edgefleet.site.fetching import Fetching
from edgefleet.site.prefetch import Stopped
from edgefleet.site.state import StateFile
from edgefleet.site.store import RECORD, Store

log = logging.getLogger(__name__)

PERIOD = timedelta(days=1)
BYTES_PER_SECOND = 64 << 20
NICENESS = 15


class Scrub:
    """`on_damage` is told the fleet of a revision that is not whole any more."""

    def __init__(
        self,
        store: Store,
        state: StateFile,
        on_damage: Callable[[str], None],
        *,
        period: timedelta = PERIOD,
        bytes_per_second: float = BYTES_PER_SECOND,
    ) -> None:
        self._store = store
        self._state = state
        self._on_damage = on_damage
        self._period = period
        self._rate = bytes_per_second
        self._thread: Fetching[list[str]] = Fetching()
        self.passed_at: datetime | None = None
        """When all that serves, and all that served before it, was last read."""

    async def run(self) -> None:
        """One pass after the other until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._period.total_seconds())

    async def look(self) -> None:
        """One pass: the revision that serves each fleet first, then those to go back to."""
        states = list(self._state.fleets.items())
        serving = [(fleet, state.active, True) for fleet, state in states if state.active]
        before = [(fleet, state.previous, False) for fleet, state in states if state.active and state.previous]
        unread = 0
        for fleet, revision, serves in serving + before:
            try:
                damaged = await self._thread.run("scrub", functools.partial(self._read, revision, serves))
            except OSError as error:
                log.warning("revision %s cannot be read: %s", revision[:8], error)
                unread += 1
                continue
            if damaged:
                log.error("fleet %s: StoreDamaged: %s of revision %s", fleet, ", ".join(damaged[:3]), revision[:8])
                self._on_damage(fleet)
        if not unread:
            self.passed_at = datetime.now(UTC)

    def _read(self, revision: str, serves: bool, stop: threading.Event) -> list[str]:
        record = self._store.find(revision)
        if record is None:
            # What served before a withdrawal may have been evicted since: that is no damage.
            return [RECORD] if serves or self._store.has_damaged_record(revision) else []
        return self._store.find_damage(record, _Pace(self._rate, stop))


class _Pace:
    """Keeps one thread to a rate, and ends it when nobody waits for it any more."""

    def __init__(self, rate: float, stop: threading.Event) -> None:
        self._rate, self._stop = rate, stop
        self._began, self._read = time.monotonic(), 0
        # The thread is this pass's own: nobody else becomes slower.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)

    def __call__(self, count: int) -> None:
        self._read += count
        ahead = self._read / self._rate - (time.monotonic() - self._began)
        if self._stop.wait(max(0.0, ahead)):
            raise Stopped
