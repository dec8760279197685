"""What the store's reading finds and removes, whom it tells, and that it keeps to its rate and ends at once. Healing: integration."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from edgefleet.site import scrub as module
from edgefleet.site.scrub import Scrub
from edgefleet.site.state import StateFile
from edgefleet.site.store import RevisionRecord, Store, StoredBlob

Placed = Callable[..., RevisionRecord]
FLEET = "vision/plants"


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.chmod(0o600)
    path.write_bytes(data)


def state_in(folder: Path, **changes: object) -> StateFile:
    state = StateFile.open(folder / "state.json", site="plant-7")
    state.change_fleet(FLEET, model="weld", **changes)
    return state


def test_each_flipped_bit_is_found_and_its_blob_removed(tmp_path: Path, place: Placed) -> None:
    store = Store(tmp_path)
    record = place(store, "a", b"weights")
    assert store.find_damage(record) == []
    for bit in range(8 * len(b"weights")):
        flip(store.path(record.files[0].digest), bit)
        assert store.find_damage(record) == ["model.onnx"]
        assert not store.is_whole(record)
        assert store.put(b"weights", "model.onnx") == record.files[0]
    assert store.damaged == 56
    assert store.is_whole(record)


@pytest.mark.parametrize("part", ["index", "manifest", "bundles"])
def test_evidence_is_read_as_well(part: str, tmp_path: Path, place: Placed) -> None:
    store = Store(tmp_path)
    record = place(store, "a", b"weights")
    found = getattr(record, part)
    blob: StoredBlob = found[0] if isinstance(found, tuple) else found
    flip(store.path(blob.digest), 0)
    assert store.find_damage(record) == [f"evidence {blob.digest[:19]}"]
    assert not store.path(blob.digest).exists()


def test_what_is_shorter_longer_or_gone_is_damage(tmp_path: Path, place: Placed) -> None:
    store = Store(tmp_path)
    record = place(store, "a", b"weights")
    path = store.path(record.files[0].digest)
    for data in (b"weight", b"weights!", b""):
        path.unlink()
        path.write_bytes(data)
        assert store.find_damage(record) == ["model.onnx"]
        store.put(b"weights", "model.onnx")
    path.unlink()
    assert store.find_damage(record) == ["model.onnx"]
    assert store.damaged == 3


async def test_a_pass_reads_what_serves_and_what_served_before_and_tells_its_fleet(tmp_path: Path, place: Placed) -> None:
    store = Store(tmp_path)
    serving, previous, other = (place(store, letter, letter.encode() * 9) for letter in "abc")
    told: list[str] = []
    scrub = Scrub(store, state_in(tmp_path, active="a" * 64, previous="b" * 64), told.append)
    await scrub.look()
    assert told == []
    assert scrub.passed_at is not None
    for record in (serving, previous, other):
        flip(store.path(record.files[0].digest), 3)
    await scrub.look()
    assert told == [FLEET, FLEET]
    assert [store.is_whole(record) for record in (serving, previous, other)] == [False, False, True]


async def test_it_keeps_to_its_rate_and_ends_when_the_agent_does(tmp_path: Path, place: Placed, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    place(store, "a", b"weights")
    priorities: list[int] = []
    monkeypatch.setattr(module.os, "setpriority", lambda which, who, value: priorities.append(value))
    # At a byte in an hour, the first chunk is more than its share for the rest of this test.
    scrub = Scrub(store, state_in(tmp_path, active="a" * 64), lambda _: None, bytes_per_second=1 / 3600)
    running = asyncio.create_task(scrub.run())
    async with asyncio.timeout(10):
        while not priorities:
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert scrub.passed_at is None
    assert priorities == [module.NICENESS]
