"""A verdict that cannot be remembered is told as the disk's trouble, and reached again."""

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from edgefleet.api.assignment import FrozenRevision, Order
from edgefleet.core.site import Cause
from edgefleet.site import worker as module
from edgefleet.site.faults import StepFailed
from edgefleet.site.summary import Finding
from edgefleet.site.worker import Worker


class FullDisk:
    """A state file that cannot be written the first time."""

    def __init__(self) -> None:
        self.changes: list[dict[str, Any]] = []
        self.full = True

    def change_fleet(self, fleet: str, **changes: Any) -> None:
        if self.full:
            self.full = False
            raise OSError(28, "No space left on device")
        self.changes.append(changes)


class FailingWorker(Worker):
    """Its revision fails its golden set each time."""

    async def _attempt(self, order: Order) -> None:
        raise StepFailed(Cause.GOLDEN, "GoldenSetFailed", "score 41.2%")


def order_of(revision: FrozenRevision) -> Order:
    now = datetime.now(UTC)
    order = {"site": "plant-7", "fleet": "vision/plants", "sequence": 1, "action": "Run", "model": "weld"}
    return Order.model_validate({**order, "revision": revision, "issued_at": now, "expires_at": now + timedelta(days=14)})


async def test_what_serves_is_fetched_again_when_the_store_has_lost_it(revision: FrozenRevision, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    async def confirm(_: Order) -> bool:
        done.append("confirm")
        if "fetch" not in done:
            raise StepFailed(Cause.DISK, "StoreDamaged", "gone")
        return False

    async def fetch(_: Order) -> None:
        done.append("fetch")

    site: Any = SimpleNamespace(serving=SimpleNamespace(confirm=confirm))
    worker = Worker("vision.plants", site)
    monkeypatch.setattr(worker, "_prefetch", fetch)
    assert await worker._confirm(order_of(revision))
    assert done == ["confirm", "fetch", "confirm"]


async def test_a_failure_that_the_disk_does_not_take_is_reached_again(revision: FrozenRevision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "plan_delay", lambda *_: timedelta(0))
    state, found = FullDisk(), list[Finding]()
    site: Any = SimpleNamespace(
        state=state, serving=SimpleNamespace(expect=lambda *_: None), publish=lambda name, finding: found.append(finding)
    )
    async with asyncio.timeout(5):
        await FailingWorker("vision.plants", site)._carry_out(order_of(revision))
    assert [(one.state, one.reason) for one in found] == [("Blocked", "DiskFull"), ("Failed", "GoldenSetFailed")]
    assert [change["failure"].sequence for change in state.changes] == [1]
