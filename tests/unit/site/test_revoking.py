"""What is revoked and past its time goes out of service, and stays out, wherever a crash comes in between."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgefleet.site.revoking import Revoking
from edgefleet.site.runtimes.choice import Runtimes
from edgefleet.site.serving import Serving
from edgefleet.site.state import StateFile
from edgefleet.site.store import RevisionRecord, Store
from edgefleet.site.trust_keeper import TrustKeeper
from edgefleet.trust.publishers import Revoked

FLEET = "vision/plants"
A = "a" * 64
PAST = datetime.now(UTC) - timedelta(seconds=1)
FUTURE = datetime.now(UTC) + timedelta(days=1)


class Crash(Exception):
    """As kill -9 at this point."""


class FakeGateway:
    """Remembers what it routes, and can crash with everything else before it does."""

    def __init__(self, crashes: bool) -> None:
        self.table: dict[str, str | None] = {"weld": A}
        self.crashes = crashes

    async def switch(self, model: str, revision: str | None) -> None:
        if self.crashes:
            raise Crash
        self.table[model] = revision


class Site:
    """One start of the agent on the same folder; `crash_at` is the step of a write at which it dies."""

    def __init__(self, folder: Path, *, bundle: datetime | None = None, crash_at: str = "") -> None:
        def checkpoint(step: str) -> None:
            if step == f"{crash_at} state.json":
                raise Crash

        self.state = StateFile.open(folder / "state.json", site="plant-7", checkpoint=checkpoint)
        self.store = Store(folder / "store")
        self.gateway = FakeGateway(crash_at == "gateway")
        digest = "sha256:" + "1" * 64
        revoked = Revoked(frozenset({digest}), stops={digest: bundle}) if bundle else Revoked()
        runtime: Any = SimpleNamespace(placed=lambda: set())
        parts: dict[str, Any] = {"state": self.state, "store": self.store, "runtimes": Runtimes(runtime), "gateway": self.gateway}
        self.serving = Serving(**parts)
        self.revoking = Revoking(cast("TrustKeeper", SimpleNamespace(revoked=revoked)), self.state, self.store)
        self.serving.find_over = self.revoking.find_over


def begin(folder: Path, place: Callable[..., RevisionRecord], **more: Any) -> None:
    site = Site(folder)
    place(site.store, "a", b"weights")
    site.state.change_fleet(FLEET, floor=3, accepted_action="Run", accepted_revision=A, model="weld", active=A, active_since=PAST, **more)


@pytest.mark.parametrize("crash_at", ["write", "sync", "rename", "sync folder of", "gateway"])
async def test_a_crash_at_any_point_ends_in_the_same(tmp_path: Path, place: Callable[..., RevisionRecord], crash_at: str) -> None:
    begin(tmp_path, place)
    dying = Site(tmp_path, bundle=PAST, crash_at=crash_at)
    with pytest.raises(Crash):
        await dying.serving.stop_if_over(FLEET)
    site = Site(tmp_path, bundle=PAST)
    await site.serving.stop_if_over(FLEET)
    await site.serving.close()
    found = StateFile.open(tmp_path / "state.json", site="plant-7").fleet(FLEET)
    assert (found.active, site.gateway.table["weld"]) == (None, None)
    assert found.failure is not None
    assert (found.failure.sequence, found.failure.revision, found.failure.reason) == (3, A, "Revoked")


@pytest.mark.parametrize(
    ("bundle", "order", "over"),
    [(None, None, False), (FUTURE, None, False), (FUTURE, PAST, True), (PAST, FUTURE, True), (None, FUTURE, False), (None, PAST, True)],
)
async def test_the_earlier_of_bundle_and_order_counts(
    tmp_path: Path, place: Callable[..., RevisionRecord], bundle: datetime | None, order: datetime | None, over: bool
) -> None:
    begin(tmp_path, place, stops={"sha256:" + "1" * 64: order} if order else {})
    site = Site(tmp_path, bundle=bundle)
    assert await site.serving.stop_if_over(FLEET) is over
    await site.serving.close()
    assert (site.state.fleet(FLEET).active is None) is over
    assert bool(site.revoking.describe(FLEET)) is (not over and (bundle or order) is not None)
