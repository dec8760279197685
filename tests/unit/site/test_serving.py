"""What serves, and cleaning up after it, on a runtime and a gateway that are fakes: the real ones are in tests/integration."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgefleet.site.faults import StepFailed
from edgefleet.site.gateway_config import Target
from edgefleet.site.runtimes.choice import Runtimes
from edgefleet.site.serving import Serving
from edgefleet.site.state import StateFile
from edgefleet.site.store import RevisionRecord, Store

A, B, C = "a" * 64, "b" * 64, "c" * 64
Placed = Callable[..., RevisionRecord]
PLANTS, SHOPS = "vision/plants", "vision/shops"


class FakeRuntime:
    """Has the files of some names; an unload lasts until `gate` is open."""

    def __init__(self, *names: str) -> None:
        self.names, self.half_gone = set(names), set[str]()
        self.unloading, self.gate = asyncio.Event(), asyncio.Event()

    async def place(self, name: str, files: Mapping[str, Path]) -> None:
        self.names.add(name)

    async def unload(self, name: str) -> None:
        """As the real one, goes on in a thread of its own whatever becomes of who asked."""
        self.unloading.set()
        self.half_gone.add(name)
        await asyncio.shield(self._take_away(name))

    async def _take_away(self, name: str) -> None:
        await self.gate.wait()
        self.half_gone.discard(name)
        self.names.discard(name)

    async def is_ready(self, name: str) -> bool:
        return False

    def placed(self) -> set[str]:
        return set(self.names)


class FakeGateway:
    """Routes nothing, and everything is drained at once."""

    table: dict[str, Target] = {}

    async def drain(self, served_name: str) -> None:
        await asyncio.sleep(0)

    async def forget_refused(self) -> None:
        """There are none."""


def serving_in(folder: Path, runtime: FakeRuntime) -> tuple[Serving, StateFile]:
    state = StateFile.open(folder / "state.json", site="plant-7")
    repository: Any = runtime
    parts: dict[str, Any] = {"state": state, "store": Store(folder / "store"), "runtimes": Runtimes(repository), "gateway": FakeGateway()}
    return Serving(**parts), state


@pytest.mark.parametrize("cancelled", [False, True], ids=["after another fleet", "cut short"])
async def test_what_is_tried_is_not_unloaded_by_a_cleaning_that_has_begun(tmp_path: Path, cancelled: bool) -> None:
    target = Target("weld", A)
    runtime = FakeRuntime(target.served_name)
    serving, state = serving_in(tmp_path, runtime)
    state.change_fleet(SHOPS, floor=1)
    await serving.sweep()
    tried = asyncio.Event()

    async def try_it() -> None:
        async with serving.trying(PLANTS, target):
            await runtime.place(target.served_name, {})
            tried.set()
            await asyncio.Event().wait()

    async with asyncio.timeout(5):
        await runtime.unloading.wait()
        if cancelled:
            await serving.settle(SHOPS)
        trial = asyncio.create_task(try_it())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not tried.is_set() or target.served_name not in runtime.half_gone
        runtime.gate.set()
        await tried.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        await serving.sweep()
        for _ in range(10):
            await asyncio.sleep(0)
    assert runtime.names == {target.served_name}
    trial.cancel()
    await asyncio.gather(trial, return_exceptions=True)
    await serving.close()


def test_what_was_withdrawn_may_make_room(tmp_path: Path) -> None:
    serving, state = serving_in(tmp_path, FakeRuntime())
    state.change_fleet(PLANTS, active=A, active_since=datetime.now(UTC), model="weld", previous=B)
    assert serving.protected() == {A, B}
    state.change_fleet(SHOPS, active=None, previous=C)
    serving.expect(SHOPS, "d" * 64)
    assert serving.protected() == {A, B, "d" * 64}


async def test_a_serving_revision_whose_files_are_gone_is_named(tmp_path: Path, place: Placed) -> None:
    serving, state = serving_in(tmp_path, FakeRuntime())
    record = place(Store(tmp_path / "store"), "a", b"weights")
    state.change_fleet(PLANTS, active=A, active_since=datetime.now(UTC), model="weld")
    Store(tmp_path / "store").path(record.files[0].digest).unlink()
    with pytest.raises(StepFailed, match="StoreDamaged"):
        await serving.ensure(PLANTS)


@pytest.mark.parametrize(
    ("soak", "minutes", "kept"), [("2h", 110, True), ("2h", 130, False), ("5m", 6, False), (None, 29, True), (None, 31, False)]
)
def test_old_pods_are_kept_until_the_soak_of_the_new_ones_is_over(tmp_path: Path, soak: str | None, minutes: int, kept: bool) -> None:
    old = Target("weld", B).served_name
    state, nobody = StateFile.open(tmp_path / "state.json", site="plant-7"), cast("Any", FakeRuntime())
    pods = cast("Any", SimpleNamespace(placed=lambda: {old}))
    gateway = cast("Any", FakeGateway())
    runtimes, store = Runtimes(nobody, pods), Store(tmp_path / "store")
    serving = Serving(state=state, store=store, runtimes=runtimes, gateway=gateway, keep=timedelta(minutes=30))
    since = datetime.now(UTC) - timedelta(minutes=minutes)
    state.change_fleet(PLANTS, active=A, active_since=since, model="weld", previous=B, soak=soak)
    assert serving._kept() == ({old} if kept else set())
