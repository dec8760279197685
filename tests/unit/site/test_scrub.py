"""What the store's reading finds and removes, whom it tells, and that it keeps to its rate and ends at once. Healing: integration."""

import asyncio
import errno
import json
import os
import resource
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.assignment import FrozenRevision
from edgefleet.api.model import Golden
from edgefleet.oci import media
from edgefleet.site import scrub as module
from edgefleet.site.scrub import Scrub
from edgefleet.site.state import StateFile
from edgefleet.site.store import RECORD, RevisionRecord, Store, StoredBlob

Placed = Callable[..., RevisionRecord]
FLEET = "vision/plants"


def manifest_of(artifact: str, layer: str, *blobs: StoredBlob) -> bytes:
    layers = [{"mediaType": layer, "digest": blob.digest, "size": blob.size, "annotations": {media.FILEPATH: blob.name}} for blob in blobs]
    return json.dumps({"schemaVersion": 2, "mediaType": media.MANIFEST, "artifactType": artifact, "layers": layers}).encode()


@pytest.fixture
def place(revision: FrozenRevision) -> Placed:
    """As everywhere, with evidence that is what the record says: `place(store, "b", b"weights")`."""

    def put(store: Store, letter: str, weights: bytes, *, exam: bytes = b"") -> RevisionRecord:
        file, index = store.put(weights, "model.onnx"), store.put(f"index {letter}".encode())
        manifest = store.put(manifest_of(media.MODEL, min(media.RAW_LAYERS), file))
        lines = store.put(exam) if exam else None
        golden = store.put(manifest_of(media.GOLDEN, media.GOLDEN_LINES, lines)) if lines else None
        changes: dict[str, Any] = {"hash": letter * 64, "digest": index.digest}
        changes["variant"] = revision.variant.model_copy(update={"digest": manifest.digest})
        if golden:
            changes["golden"] = Golden(repository="registry.example/vision/exam", digest=golden.digest, min="90%")
        record = RevisionRecord(
            fleet=FLEET,
            revision=revision.model_copy(update=changes),
            files=(file,),
            index=index,
            manifest=manifest,
            bundles=(store.put(f"bundle {letter}".encode()),),
            golden_manifest=golden,
            golden_lines=lines,
            used_at=datetime(2026, 11, 24, tzinfo=UTC),
        )
        store.complete(record)
        return record

    return put


def record_in(folder: Path, letter: str) -> Path:
    return folder / "revisions" / f"{letter * 64}.json"


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


def test_what_cannot_be_opened_now_is_not_damaged(tmp_path: Path, place: Placed) -> None:
    store = Store(tmp_path)
    record = place(store, "a", b"weights")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(OSError, match="Too many open files"):
            store.find_damage(record)
        with pytest.raises(OSError, match="Too many open files"):
            store.find("a" * 64)
    finally:
        for handle in taken:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (store.damaged, store.is_whole(record), store.find_damage(record)) == (0, True, [])


@pytest.mark.parametrize(("code", "damaged"), [(errno.EIO, 6), (errno.EACCES, 0), (errno.ENOMEM, 0)])
def test_what_the_disk_does_not_give_back_is_damaged_and_what_we_may_not_read_is_not(
    code: int, damaged: int, tmp_path: Path, place: Placed, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    record = place(store, "a", b"weights", exam=b"{}")

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        if damaged:
            assert len(store.find_damage(record)) == damaged
        else:
            with pytest.raises(OSError, match=os.strerror(code)):
                store.find_damage(record)
    assert store.damaged == damaged
    assert sum(store.path(blob.digest).exists() for blob in record.parts()) == 6 - damaged


async def test_a_pass_that_could_not_read_goes_on_and_does_not_count(
    tmp_path: Path, place: Placed, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    place(store, "a", b"weights")
    previous = place(store, "b", b"older")
    flip(store.path(previous.files[0].digest), 0)
    real, told = store.find, []

    def find(revision: str) -> RevisionRecord | None:
        if revision == "a" * 64:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(revision)

    monkeypatch.setattr(store, "find", find)
    scrub = Scrub(store, state_in(tmp_path, active="a" * 64, previous="b" * 64), told.append)
    await scrub.look()
    assert (told, scrub.passed_at) == ([FLEET], None)


@pytest.mark.parametrize("letter", ["a", "b"])
async def test_a_record_that_cannot_be_read_is_told(letter: str, tmp_path: Path, place: Placed) -> None:
    store = Store(tmp_path)
    for one in "ab":
        place(store, one, one.encode() * 9)
    told: list[str] = []
    scrub = Scrub(store, state_in(tmp_path, active="a" * 64, previous="b" * 64), told.append)
    for count, rotten in enumerate((b"", b"{", record_in(tmp_path, "a" if letter == "b" else "b").read_bytes()), start=1):
        record_in(tmp_path, letter).write_bytes(rotten)
        assert store.has_damaged_record(letter * 64)
        await scrub.look()
        assert told == [FLEET] * count


async def test_what_was_evicted_is_told_only_if_it_serves(tmp_path: Path, place: Placed) -> None:
    store = Store(tmp_path)
    place(store, "a", b"weights")
    told: list[str] = []
    scrub = Scrub(store, state_in(tmp_path, active="a" * 64, previous="b" * 64), told.append)
    await scrub.look()
    assert told == []
    record_in(tmp_path, "a").unlink()
    await scrub.look()
    assert told == [FLEET]


@pytest.mark.parametrize("forged", ["files", "name", "no files", "manifest", "variant", "index", "lines", "no golden", "other golden"])
def test_a_record_that_says_otherwise_than_its_evidence_is_found(forged: str, tmp_path: Path, place: Placed) -> None:
    store = Store(tmp_path)
    good, other = place(store, "a", b"weights", exam=b"{}"), place(store, "b", b"another", exam=b"[]")
    revision = good.revision
    changes: dict[str, Any] = {
        "files": {"files": other.files},
        "name": {"files": (good.files[0].model_copy(update={"name": "other.onnx"}),)},
        "no files": {"files": ()},
        "manifest": {"files": other.files, "manifest": other.manifest},
        "variant": {"revision": revision.model_copy(update={"variant": other.revision.variant})},
        "index": {"revision": revision.model_copy(update={"digest": other.revision.digest})},
        "lines": {"golden_lines": other.golden_lines},
        "no golden": {"revision": revision.model_copy(update={"golden": None})},
        "other golden": {"golden_lines": other.golden_lines, "golden_manifest": other.golden_manifest},
    }
    assert store.find_damage(good) == []
    record_in(tmp_path, "a").write_text(good.model_copy(update=changes[forged]).model_dump_json(by_alias=True, exclude_none=True))
    found = store.find("a" * 64)
    assert found is not None
    assert found != good
    assert store.find_damage(found) == [RECORD]
    assert (store.damaged, store.is_whole(found)) == (0, False)
    # Every blob is sound: written anew from them, all is well again.
    store.complete(good)
    assert (store.find_damage(good), store.is_whole(good)) == ([], True)


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
