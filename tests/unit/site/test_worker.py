"""A verdict that cannot be remembered is told as the disk's trouble, and reached again."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgefleet.api.assignment import FrozenRevision, Order
from edgefleet.api.site import Proxy
from edgefleet.core.site import Accept, Cause
from edgefleet.site import worker as module
from edgefleet.site.faults import StepFailed
from edgefleet.site.revoking import Revoking
from edgefleet.site.state import Failure, StateFile
from edgefleet.site.status import AssignmentRecord
from edgefleet.site.store import RevisionRecord, Store
from edgefleet.site.summary import Finding
from edgefleet.site.trust_keeper import TrustKeeper
from edgefleet.site.worker import Worker
from edgefleet.trust.publishers import Revoked


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


async def test_what_serves_is_taken_from_its_server_and_fetched_again_when_the_store_has_lost_it(
    revision: FrozenRevision, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    async def confirm(_: Order) -> bool:
        done.append("confirm")
        if "fetch" not in done:
            raise StepFailed(Cause.DISK, "StoreDamaged", "gone")
        return False

    async def fetch(_: Order) -> None:
        done.append("fetch")

    async def take_away(_: str) -> None:
        done.append("take away")

    site: Any = SimpleNamespace(
        serving=SimpleNamespace(confirm=confirm, take_away=take_away),
        state=SimpleNamespace(fleet=lambda _: SimpleNamespace(active=revision.hash)),
        store=SimpleNamespace(find=lambda _: revision),
    )
    worker = Worker("vision.plants", site)
    monkeypatch.setattr(worker, "_prefetch", fetch)
    assert await worker._confirm(order_of(revision))
    assert done == ["confirm", "take away", "fetch", "confirm"]


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


class Tried(Worker):
    """Fails on its site's account, and notes by what it was tried."""

    def __init__(self, name: str, site: Any) -> None:
        super().__init__(name, site)
        self.tried: asyncio.Queue[Order] = asyncio.Queue()

    async def _carry_out(self, order: Order) -> None:
        self.tried.put_nowait(order)
        await asyncio.Event().wait()

    def _accept(self, order: Order) -> None:
        pass


async def test_a_renewal_that_names_another_proxy_is_tried_at_once_and_any_other_is_not(revision: FrozenRevision) -> None:
    first, offered = order_of(revision), list[Order]()
    site: Any = SimpleNamespace(
        state=SimpleNamespace(now=lambda: datetime.now(UTC)), intake=SimpleNamespace(judge=lambda _: Accept(offered[-1], stale=False))
    )
    worker, record = Tried("vision.plants", site), Any
    running = asyncio.create_task(worker.run())
    later = first.model_copy(update={"expires_at": first.expires_at + timedelta(days=7)})
    changed = later.model_copy(update={"proxy": Proxy(https="http://proxy.example:3128")})
    async with asyncio.timeout(10):
        for order in (first, later, changed):
            offered.append(order)
            worker.offer(cast("AssignmentRecord", record))
            while worker._order is not order:
                await asyncio.sleep(0)
        tried = [await worker.tried.get() for _ in range(2)]
    assert (tried[0] is first, tried[1] is changed, worker.tried.empty()) == (True, True, True)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


class Returning(Worker):
    """Whatever it switches in, it only notes."""

    def __init__(self, name: str, site: Any) -> None:
        super().__init__(name, site)
        self.switched: list[tuple[str, bool]] = []
        self.trouble: list[Exception] = []

    async def _activate(self, order: Order, revision: FrozenRevision, *, back: bool = False) -> None:
        if self.trouble:
            raise self.trouble.pop()
        self.switched.append((revision.hash, back))
        self._site.state.change_fleet(order.fleet, active=revision.hash)


async def test_what_failed_on_live_traffic_is_switched_back_and_told(
    tmp_path: Path, revision: FrozenRevision, place: Callable[..., RevisionRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "plan_delay", lambda *_: timedelta(0))
    order, store = order_of(revision), Store(tmp_path / "store")
    place(store, "b", b"weights")
    state = StateFile.open(tmp_path / "state.json", site="plant-7")
    failure = Failure(sequence=1, revision=revision.hash, reason="LatencyRegression", message="slow", at=datetime.now(UTC))
    state.change_fleet(order.fleet, active=revision.hash, previous="b" * 64, floor=1, failure=failure)
    found: list[Finding] = []
    site: Any = SimpleNamespace(
        state=state,
        store=store,
        revoking=Revoking(cast("TrustKeeper", SimpleNamespace(revoked=Revoked())), state, store),
        serving=SimpleNamespace(expect=lambda *_: None),
        publish=lambda name, finding: found.append(finding),
        report_now=lambda: None,
    )
    worker = Returning("vision.plants", site)
    # That the old one does not load now is not its fault, nor the order's: it is tried again.
    worker.trouble = [StepFailed(Cause.READINESS, "NotReadyInTime", "busy")]
    async with asyncio.timeout(5):
        await worker._carry_out(order)
    assert worker.switched == [("b" * 64, True)]
    assert [(one.state, one.fault, one.reason) for one in found] == [
        ("Blocked", "Site", "NotReadyInTime"),
        ("Failed", "Revision", "LatencyRegression"),
    ]
    assert state.fleet(order.fleet).failure == failure

    # Asked again, under the same sequence: it rests.
    async with asyncio.timeout(5):
        await worker._carry_out(order)
    assert worker.switched == [("b" * 64, True)]
    assert found[-1].reason == "LatencyRegression"
