"""What several tests of the site need: revisions and their records."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from edgefleet.api.assignment import FrozenRevision
from edgefleet.api.model import Serving, Variant
from edgefleet.site.store import RevisionRecord, Store

Placed = Callable[..., RevisionRecord]


@pytest.fixture
def revision() -> FrozenRevision:
    """A revision whose hash is all `a`."""
    return FrozenRevision(
        hash="a" * 64,
        model="weld",
        repository="registry.example/vision/weld",
        digest="sha256:" + "1" * 64,
        version="1.0",
        seq=1,
        variant=Variant(name="cpu", digest="sha256:" + "2" * 64, size=10, arch="amd64"),
        serving=Serving(repository={}),
    )


@pytest.fixture
def place(revision: FrozenRevision) -> Placed:
    """Puts a complete revision into a store: `place(store, "b", b"weights", age=1)`."""

    def put(store: Store, letter: str, weights: bytes, *, age: int = 0, fleet: str = "vision/plants") -> RevisionRecord:
        record = RevisionRecord(
            fleet=fleet,
            revision=revision.model_copy(update={"hash": letter * 64}),
            files=(store.put(weights, "model.onnx"),),
            index=store.put(f"index {letter}".encode()),
            manifest=store.put(f"manifest {letter}".encode()),
            bundles=(store.put(f"bundle {letter}".encode()),),
            used_at=datetime(2026, 11, 24, tzinfo=UTC) - timedelta(days=age),
        )
        store.complete(record)
        return record

    return put
