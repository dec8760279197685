"""Running a fetch in a thread that nobody has to wait for: it is told to stop, and ends when its next chunk or its timeout comes.

Two fetches of one fleet never run at once: they would write the same files. The threads are daemons, because a registry that stalls
must not keep an agent from ending.
"""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Fetching(Generic[T]):
    """One site's fetches, by fleet."""

    def __init__(self) -> None:
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self, fleet: str, work: Callable[[threading.Event], T]) -> T:
        """The result of `work`, called in a thread with the event that tells it to stop. Raises what it raises.

        When this is cancelled, it returns at once; the next call for the fleet waits until the thread has ended.
        """
        lock, stop, loop = self._locks[fleet], threading.Event(), asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: Exception | None) -> None:
            lock.release()
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def call() -> None:
            result, error = None, None
            try:
                result = work(stop)
            except Exception as failure:
                error = failure
            try:
                loop.call_soon_threadsafe(settle, result, error)
            except RuntimeError:
                # The agent has ended meanwhile: nobody is left to be told.
                return

        await lock.acquire()
        threading.Thread(target=call, name=f"fetch-{fleet}", daemon=True).start()
        try:
            return await done
        finally:
            stop.set()
