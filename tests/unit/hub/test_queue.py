"""The pass queue: no change is missed, one pass per key at a time, errors stay with their key."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from edgefleet.hub.queue import PassQueue, until


@asynccontextmanager
async def serving(work: Callable[[str], Awaitable[timedelta | None]]) -> AsyncIterator[PassQueue[str]]:
    queue: PassQueue[str] = PassQueue("thing", work, spacing=timedelta(0))
    task = asyncio.create_task(queue.run())
    await asyncio.sleep(0)
    try:
        yield queue
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_change_during_a_pass_leads_to_another_pass() -> None:
    started, release, passes = asyncio.Event(), asyncio.Event(), []

    async def work(key: str) -> None:
        passes.append(key)
        started.set()
        await release.wait()

    async with serving(work) as queue, asyncio.timeout(5):
        queue.add("a")
        await started.wait()
        queue.add("a")
        queue.add("a")
        release.set()
        while len(passes) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
    assert passes == ["a", "a"]


async def test_one_key_is_never_served_twice_at_once() -> None:
    running, most = 0, 0

    async def work(key: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1

    async with serving(work) as queue:
        for _ in range(20):
            queue.add("a")
            await asyncio.sleep(0.002)
    assert most == 1


async def test_a_failing_key_is_tried_again_and_hurts_no_other(caplog: pytest.LogCaptureFixture) -> None:
    tries: list[str] = []
    done = asyncio.Event()

    async def work(key: str) -> None:
        tries.append(key)
        if key == "bad" and tries.count("bad") == 1:
            raise RuntimeError("no luck")
        if key == "good" or tries.count("bad") == 2:
            done.set() if "good" in tries and tries.count("bad") == 2 else None

    async with serving(work) as queue, asyncio.timeout(5):
        queue.add("bad")
        queue.add("good")
        await done.wait()
    assert tries.count("good") == 1
    assert "no luck" in caplog.text


async def test_a_pass_that_asks_for_a_time_gets_it() -> None:
    passes = 0
    twice = asyncio.Event()

    async def work(key: str) -> timedelta | None:
        nonlocal passes
        passes += 1
        if passes == 2:
            twice.set()
            return None
        return timedelta(milliseconds=20)

    async with serving(work) as queue, asyncio.timeout(5):
        queue.add("a")
        await twice.wait()
        await asyncio.sleep(0.1)
    assert passes == 2


async def test_what_was_added_before_the_start_is_served() -> None:
    served = asyncio.Event()

    async def work(key: str) -> None:
        served.set()

    queue: PassQueue[str] = PassQueue("thing", work)
    queue.add("early")
    task = asyncio.create_task(queue.run())
    async with asyncio.timeout(5):
        await served.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_until_never_lies_in_the_past() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert until(None, now) is None
    assert until(now - timedelta(hours=1), now) == timedelta(0)
    assert until(now + timedelta(hours=1), now) == timedelta(hours=1)


async def test_a_key_that_wants_nothing_costs_nothing_and_can_be_added_again() -> None:
    passes = 0

    async def work(key: str) -> None:
        nonlocal passes
        passes += 1

    async with serving(work) as queue, asyncio.timeout(5):
        idle = len(asyncio.all_tasks())
        for turn in (1, 2):
            queue.add("a")
            while passes < turn or len(asyncio.all_tasks()) > idle:
                await asyncio.sleep(0.005)
    assert passes == 2


async def test_a_pass_that_may_wait_comes_once_and_in_time() -> None:
    """Many reports within the delay are one pass; one that may not wait so long brings it forward."""
    passes: list[float] = []
    done = asyncio.Event()

    async def work(_: str) -> None:
        passes.append(time.monotonic())
        done.set()

    async with asyncio.timeout(5), serving(work) as queue:
        began = time.monotonic()
        for _ in range(20):
            queue.add_within("a", timedelta(seconds=30))
        queue.add_within("a", timedelta(milliseconds=20))
        await done.wait()
        assert len(passes) == 1
        assert passes[0] - began < 5
