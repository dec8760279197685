"""The store keeps its promises wherever it is interrupted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.site import Storage
from edgefleet.site.store import RevisionRecord, Store, StoredImage, StoreFull

Placed = Callable[..., RevisionRecord]
SMALL = Storage(limit="200", keep=2)
LARGE = Storage(limit="1Gi", keep=2)


class Killed(Exception):
    """The process is gone."""


def is_whole(store: Store, record: RevisionRecord) -> bool:
    """Whether every blob that the record names is there and right."""
    return all(store.path(digest).stat().st_size == size for digest, size in record.blobs().items() if store.path(digest).exists()) and all(
        store.path(digest).exists() for digest in record.blobs()
    )


def test_a_revision_comes_back_with_its_evidence(tmp_path: Path, place: Placed) -> None:
    record = place(Store(tmp_path), "a", b"weights")
    store = Store(tmp_path)
    assert store.find("a" * 64) == record
    assert store.records() == [record]
    assert store.read(record.bundles[0]) == b"bundle a"
    assert store.path(record.files[0].digest).stat().st_mode & 0o777 == 0o444


def test_evidence_that_was_damaged_is_absent(tmp_path: Path, place: Placed) -> None:
    store = Store(tmp_path)
    record = place(store, "a", b"weights")
    path = store.path(record.index.digest)
    path.chmod(0o600)
    path.write_bytes(b"indeX a")
    assert store.read(record.index) is None
    (tmp_path / "revisions" / f"{'a' * 64}.json").write_text("{")
    assert store.find("a" * 64) is None
    assert store.records() == []


def test_what_serves_is_never_evicted_and_a_full_store_says_so(tmp_path: Path, place: Placed) -> None:
    store = Store(tmp_path)
    serving, predecessor = place(store, "a", b"x" * 60, age=3), place(store, "b", b"y" * 60, age=2)
    protected = {serving.revision.hash, predecessor.revision.hash}
    with pytest.raises(StoreFull, match=r"storage\.limit 200"):
        store.reserve("vision/plants", {"sha256:" + "9" * 64: 100}, protected=protected, storage=SMALL)
    assert is_whole(store, serving)
    assert is_whole(store, predecessor)


def test_room_is_made_from_the_longest_unused(tmp_path: Path, place: Placed) -> None:
    store = Store(tmp_path)
    for letter, age in (("a", 3), ("b", 2), ("c", 1)):
        place(store, letter, letter.encode() * 40, age=age)
    gone = store.reserve("vision/plants", {"sha256:" + "9" * 64: 80}, protected={"c" * 64}, storage=SMALL)
    assert gone == ["a" * 64, "b" * 64]
    assert [record.revision.hash[0] for record in store.records()] == ["c"]
    names = {path.name for path in (tmp_path / "blobs").iterdir()}
    assert names == {digest.removeprefix("sha256:") for digest in store.records()[0].blobs()}


def test_a_blob_that_two_revisions_share_outlives_one_of_them(tmp_path: Path, place: Placed) -> None:
    store = Store(tmp_path)
    place(store, "a", b"shared", age=3)
    place(store, "b", b"other", age=2)
    kept = place(store, "c", b"shared", age=1)
    assert store.tidy(protected=(), storage=LARGE) == ["a" * 64]
    assert is_whole(store, kept)


def test_a_download_under_way_is_not_tidied_away(tmp_path: Path, place: Placed) -> None:
    store = Store(tmp_path)
    place(store, "a", b"weights")
    wanted, other = "9" * 64, "8" * 64
    store.reserve("vision/plants", {f"sha256:{wanted}": 10}, protected=(), storage=LARGE)
    for name in (wanted, other):
        (tmp_path / "blobs" / f"{name}.part").write_bytes(b"half")
    store.tidy(protected=(), storage=LARGE)
    assert {path.name for path in (tmp_path / "blobs").glob("*.part")} == {f"{wanted}.part"}
    store.release("vision/plants")
    store.tidy(protected=(), storage=LARGE)
    assert not list((tmp_path / "blobs").glob("*.part"))


def count_steps(work: Callable[[Callable[[str], None]], Any]) -> int:
    steps: list[str] = []
    work(steps.append)
    return len(steps)


def test_killed_at_any_step_of_writing_a_revision(tmp_path: Path, place: Placed) -> None:
    total = count_steps(lambda checkpoint: place(Store(tmp_path / "dry", checkpoint), "b", b"new weights"))
    assert total > 10
    for kill_at in range(total):
        folder = tmp_path / str(kill_at)
        old = place(Store(folder), "a", b"old weights", age=1)
        left = kill_at

        def fail(_: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        with pytest.raises(Killed):
            place(Store(folder, fail), "b", b"new weights")
        store = Store(folder)
        assert is_whole(store, old)
        assert all(is_whole(store, record) for record in store.records()), "a record was there before its blobs"
        new = place(store, "b", b"new weights")
        store.tidy(protected=(), storage=LARGE)
        assert store.records() == [old, new]
        assert not list(folder.rglob("*.new"))


def test_killed_at_any_step_of_removing_one(tmp_path: Path, place: Placed) -> None:
    def fill(folder: Path) -> None:
        for letter, age in (("a", 3), ("b", 2), ("c", 1)):
            place(Store(folder), letter, letter.encode() * 9, age=age)

    fill(tmp_path / "dry")
    total = count_steps(lambda checkpoint: Store(tmp_path / "dry", checkpoint).tidy(protected=(), storage=LARGE))
    assert total >= 5
    for kill_at in range(total):
        folder = tmp_path / str(kill_at)
        fill(folder)
        left = kill_at

        def fail(_: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        with pytest.raises(Killed):
            Store(folder, fail).tidy(protected=(), storage=LARGE)
        store = Store(folder)
        assert all(is_whole(store, record) for record in store.records())
        store.tidy(protected=(), storage=LARGE)
        assert [record.revision.hash[0] for record in store.records()] == ["b", "c"]
        assert len(list((folder / "blobs").iterdir())) == 8


def test_signatures_of_images_stay_as_long_as_their_revision(tmp_path: Path, place: Placed) -> None:
    store = Store(tmp_path)
    record = place(store, "a", b"weights")
    kept, loose = store.put(b"a signature of an image"), store.put(b"a signature that nothing needs")
    image = StoredImage(image="registry.example/serving/mlserver@sha256:" + "5" * 64, bundles=(kept,))
    store.complete(record.model_copy(update={"images": (image,)}))
    store.tidy(protected=(), storage=Storage())
    assert (store.read(kept), store.read(loose)) == (b"a signature of an image", None)
