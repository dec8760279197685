"""Threads that nobody waits for."""

import asyncio
import threading

import pytest

from edgefleet.site.fetching import Fetching


async def test_results_and_errors_come_back() -> None:
    fetching: Fetching[int] = Fetching()
    assert await fetching.run("a/b", lambda stop: 7) == 7

    def fail(_: threading.Event) -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await fetching.run("a/b", fail)
    assert await fetching.run("a/b", lambda stop: 8) == 8


async def test_a_cancelled_fetch_is_told_to_stop_and_the_next_waits_for_its_end() -> None:
    fetching: Fetching[int] = Fetching()
    running, release = threading.Event(), threading.Event()

    def stubborn(stop: threading.Event) -> int:
        running.set()
        assert stop.wait(5), "it was not told to stop"
        release.wait(5)
        return 1

    first = asyncio.create_task(fetching.run("a/b", stubborn))
    assert await asyncio.to_thread(running.wait, 5)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(first, 1)
    second = asyncio.create_task(fetching.run("a/b", lambda stop: 2))
    assert await fetching.run("other/fleet", lambda stop: 3) == 3
    assert not second.done()
    release.set()
    assert await asyncio.wait_for(second, 5) == 2
