"""When to do it: a keyed queue with one pass per key at a time, delays, and backoff after errors.

A key that is added while its pass runs is run once more afterwards: level-triggered work never misses the last change. Retrying costs
no API write, which is why kopf's own retries (a PATCH each) are not used.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from edgefleet.kube.backoff import Backoff

K = TypeVar("K", bound=Hashable)
Pass = Callable[[K], Awaitable[timedelta | None]]
"""One pass over a key: returns after how long it wants to be run again although nothing changed, or None."""

log = logging.getLogger(__name__)


class PassQueue(Generic[K]):
    """Runs `work(key)` for keys that were added, at most `concurrency` at once, and not more often per key than `spacing`.

    `errors` counts passes that failed; `on_pass`, if set, is told how many seconds each took, once it has a place.
    """

    def __init__(self, name: str, work: Pass[K], *, concurrency: int = 8, spacing: timedelta = timedelta(milliseconds=50)) -> None:
        self.name = name
        self.errors = 0
        self.on_pass: Callable[[float], None] | None = None
        self._work = work
        self._slots = asyncio.Semaphore(concurrency)
        self._spacing = spacing.total_seconds()
        self._dirty: dict[K, asyncio.Event] = {}
        self._later: dict[K, tuple[float, asyncio.TimerHandle]] = {}
        self._group: asyncio.TaskGroup | None = None

    @property
    def depth(self) -> int:
        """How many keys wait for a pass."""
        return sum(event.is_set() for event in self._dirty.values())

    def add(self, key: K) -> None:
        """Ask for a pass soon. Cheap; safe to call as often as events arrive, from the loop's thread."""
        event = self._dirty.get(key)
        if event is None:
            event = self._dirty[key] = asyncio.Event()
            if self._group is not None:
                self._group.create_task(self._serve(key, event), name=f"{self.name} {key}")
        event.set()

    def add_within(self, key: K, delay: timedelta) -> None:
        """Ask for a pass that starts within `delay`, together with whatever else asks meanwhile."""
        due = time.monotonic() + delay.total_seconds()
        waiting = self._later.get(key)
        if waiting is not None and waiting[0] <= due:
            return
        if waiting is not None:
            waiting[1].cancel()
        self._later[key] = (due, asyncio.get_running_loop().call_later(delay.total_seconds(), self._add_now, key))

    def _add_now(self, key: K) -> None:
        self._later.pop(key, None)
        self.add(key)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for key, event in list(self._dirty.items()):
                group.create_task(self._serve(key, event), name=f"{self.name} {key}")
            await asyncio.Event().wait()

    async def _serve(self, key: K, dirty: asyncio.Event) -> None:
        backoff = Backoff(multiplier=0.5, longest=60)
        again: float | None = None
        while True:
            try:
                async with asyncio.timeout(again):
                    await dirty.wait()
            except TimeoutError:
                pass
            started = time.monotonic()
            async with self._slots:
                # Until it has a place it counts as waiting, and whatever happens meanwhile is seen by this pass.
                dirty.clear()
                began = time.monotonic()
                try:
                    wanted = await self._work(key)
                    again = None if wanted is None else max(0.0, wanted.total_seconds())
                    backoff.reset()
                except Exception as error:
                    # One object's trouble is its own (I9): it is said, and tried again later.
                    again = backoff.draw()
                    self.errors += 1
                    log.warning("%s %s: %s; again in %.1f s", self.name, key, error, again, exc_info=not _is_expected(error))
                if self.on_pass is not None:
                    self.on_pass(time.monotonic() - began)
            await asyncio.sleep(max(0.0, self._spacing - (time.monotonic() - started)))
            if again is None and not dirty.is_set():
                # Nothing is wanted of this key: it may be gone for ever, and costs nothing until it is added again.
                del self._dirty[key]
                return


def _is_expected(error: Exception) -> bool:
    return type(error).__module__.startswith("edgefleet.")


def until(moment: datetime | None, now: datetime) -> timedelta | None:
    """How long from now to `moment`; None stays None."""
    return None if moment is None else max(timedelta(0), moment - now)
