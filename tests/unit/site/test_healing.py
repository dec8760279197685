"""What is done about a record that the disk has lost or changed: it is written anew from what the order says. Files: test_scrub."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgefleet.api.assignment import FrozenRevision, Order
from edgefleet.core.site import Cause
from edgefleet.site.faults import StepFailed
from edgefleet.site.healing import Healing
from edgefleet.site.state import StateFile
from edgefleet.site.store import RevisionRecord, Store

Placed = Callable[..., RevisionRecord]
FLEET = "vision/plants"
NOW = datetime(2026, 11, 28, tzinfo=UTC)
GONE = StepFailed(Cause.FETCH, "RegistryUnreachable", "no route")


class Plant:
    """A site with a real store and state; `a` serves, `b` served before. `steps` is what healing asked for, in its order."""

    def __init__(self, folder: Path, place: Placed) -> None:
        self.store = Store(folder / "store")
        self.records = {letter: place(self.store, letter, letter.encode() * 9) for letter in "ab"}
        self.state = StateFile.open(folder / "state.json", site="plant-7")
        self.state.change_fleet(FLEET, model="weld", active="a" * 64, previous="b" * 64)
        self.registry_is_there = True
        self.steps: list[str] = []
        serving = SimpleNamespace(take_away=self._note("take away"), renew_files=self._note("renew"))
        site: Any = SimpleNamespace(store=self.store, state=self.state, serving=serving)
        self.healing = Healing(site, fetch=self._fetch, go_back=self._go_back)

    def _note(self, step: str) -> Callable[[str], Any]:
        async def note(_: str) -> None:
            self.steps.append(step)

        return note

    async def _fetch(self, order: Order) -> RevisionRecord:
        assert order.revision is not None
        good = self.records[order.revision.hash[0]]
        self.steps.append(f"fetch {order.revision.hash[0]}")
        if not self.registry_is_there or order.revision != good.revision:
            raise GONE
        self.store.put(order.revision.hash[:1].encode() * 9)
        self.store.complete(good)
        return good

    async def _go_back(self, order: Order, revision: FrozenRevision) -> None:
        self.steps.append(f"back to {revision.hash[0]}")

    def path(self, letter: str) -> Path:
        return next(self.store.path("x").parent.parent.glob(f"revisions/{letter * 64}.json"))

    def rot(self, letter: str) -> None:
        self.path(letter).write_bytes(b"\0" + self.path(letter).read_bytes()[1:])

    def order(self) -> Order:
        return Order(
            site="plant-7",
            fleet=FLEET,
            sequence=3,
            action="Run",
            model="weld",
            revision=self.records["a"].revision,
            issued_at=NOW,
            expires_at=NOW + timedelta(days=1),
        )


@pytest.fixture
def plant(tmp_path: Path, place: Placed) -> Plant:
    return Plant(tmp_path, place)


async def test_what_is_whole_is_left_alone(plant: Plant) -> None:
    await plant.healing.complete(plant.order())
    assert (plant.steps, plant.healing.describe(FLEET)) == ([], "")


async def test_the_lost_record_of_what_serves_is_written_anew_from_the_order(plant: Plant) -> None:
    plant.rot("a")
    plant.registry_is_there = False
    with pytest.raises(StepFailed, match=r"StoreDamaged: 1\.0 serves from memory; its record is damaged on the disk.*RegistryUnreachable"):
        await plant.healing.complete(plant.order())
    plant.registry_is_there = True
    await plant.healing.complete(plant.order())
    assert plant.steps == ["fetch a", "fetch a", "renew"]
    assert plant.store.find("a" * 64) == plant.records["a"]
    await plant.healing.complete(plant.order())
    assert plant.steps == ["fetch a", "fetch a", "renew"]


async def test_a_forged_record_of_what_serves_is_written_anew_from_the_order(plant: Plant) -> None:
    good = plant.records["a"]
    forged = good.model_copy(update={"revision": good.revision.model_copy(update={"digest": "sha256:" + "f" * 64, "version": "9.9"})})
    plant.store.complete(forged)
    assert plant.store.find_damage(forged) == ["the record"]
    await plant.healing.complete(plant.order())
    assert plant.steps == ["fetch a", "renew"]
    assert plant.store.find("a" * 64) == good


async def test_the_lost_record_of_what_served_before_is_told(plant: Plant) -> None:
    plant.rot("b")
    await plant.healing.complete(plant.order())
    assert plant.steps == []
    assert plant.healing.describe(FLEET) == (
        "StoreDamaged: going back to bbbbbbbb needs an order for it, its record is damaged on the disk"
    )
    # One that was evicted, as after a withdrawal, is no damage.
    plant.path("b").unlink()
    assert plant.healing.describe(FLEET) == ""


async def test_that_a_record_is_lost_is_said_when_it_cannot_be_brought(plant: Plant) -> None:
    plant.rot("a")
    plant.registry_is_there = False
    with pytest.raises(StepFailed, match=r"StoreDamaged: the record of 1\.0 is damaged on the disk.*RegistryUnreachable"):
        await plant.healing.bring(plant.order(), plant.records["a"].revision)
    plant.registry_is_there = True
    assert await plant.healing.bring(plant.order(), plant.records["a"].revision) == plant.records["a"]


async def test_without_its_record_what_may_be_serving_is_taken_away_only_if_it_cannot_be_brought(plant: Plant) -> None:
    damage = StepFailed(Cause.DISK, "StoreDamaged", "what serves is not in the store any more")
    plant.rot("a")
    await plant.healing.replace(plant.order(), damage)
    assert plant.steps == ["fetch a"]

    plant.steps.clear()
    plant.rot("a")
    plant.registry_is_there = False
    with pytest.raises(StepFailed, match="which served before, serves meanwhile"):
        await plant.healing.replace(plant.order(), damage)
    assert plant.steps == ["fetch a", "take away", "back to b"]


async def test_damaged_files_are_taken_away_before_they_are_brought(plant: Plant) -> None:
    plant.store.path(plant.records["a"].files[0].digest).unlink()
    await plant.healing.replace(plant.order(), StepFailed(Cause.DISK, "StoreDamaged", "model.onnx is damaged on the disk"))
    assert plant.steps == ["take away", "fetch a"]
