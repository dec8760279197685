"""What a new trust bundle changes for an order that is on its way, and for what serves: a worker over the real state, store and trust."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgefleet.api.assignment import FrozenRevision, Order, SiteAssignmentSpec
from edgefleet.api.meta import ObjectMeta, format_time
from edgefleet.api.model import Golden
from edgefleet.api.site import Hardware
from edgefleet.core.limits import GoldenLimit, Limits, LimitsByModel
from edgefleet.core.site import Cause
from edgefleet.site import worker as module
from edgefleet.site.faults import StepFailed
from edgefleet.site.intake import Intake
from edgefleet.site.serving import Serving
from edgefleet.site.state import StateFile
from edgefleet.site.status import AssignmentRecord
from edgefleet.site.store import RevisionRecord, Store
from edgefleet.site.summary import Finding
from edgefleet.site.trust_keeper import TrustKeeper
from edgefleet.site.worker import Site, Worker
from edgefleet.trust.bundle import make_bundle, make_root
from edgefleet.trust.bundle_content import BundleContent
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.orders import sign_order
from edgefleet.trust.publishers import Publisher, Revoked

ROOT, HUB, NEW_HUB = (PrivateKey.generate() for _ in range(3))
FLEET = "vision/plants"
NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=300)
PINNED = make_root([ROOT.public], signers=[ROOT], threshold=1, version=1, expires_at=LATER)


def bundle(version: int, *, key: PrivateKey = HUB, limits: Limits | None = None, revoked: Revoked | None = None) -> bytes:
    content = BundleContent(
        {"weld": Publisher((ROOT.public,))}, (key.public,), revoked=revoked or Revoked(), limits=LimitsByModel(limits or Limits())
    )
    return make_bundle(roots=[PINNED], signers=[ROOT], version=version, content=content, expires_at=LATER)


def record_of(revision: FrozenRevision, sequence: int) -> AssignmentRecord:
    ends = NOW + timedelta(days=7)
    order = Order(
        site="plant-7", fleet=FLEET, sequence=sequence, action="Run", model="weld", revision=revision, issued_at=NOW, expires_at=ends
    )
    spec = SiteAssignmentSpec(
        **order.model_dump(include={"site", "fleet", "sequence", "action", "model"}),
        revision=revision.hash,
        version=revision.version,
        variant=revision.variant.name,
        expires_at=format_time(ends),
        envelope=sign_order(order, HUB),
    )
    return AssignmentRecord(metadata=ObjectMeta(name="vision.plants"), spec=spec)


class FakeServing(Serving):
    """Puts into service without a gateway or a model server, and remembers what."""

    def __init__(self, state: StateFile, store: Store) -> None:
        async def switch(*_: object) -> None:
            return

        gateway: Any = SimpleNamespace(table={}, switch=switch, forget_refused=switch)
        runtimes: Any = SimpleNamespace(placed=set, pods=None)
        super().__init__(state=state, store=store, runtimes=runtimes, gateway=gateway)
        self.activated: list[str] = []

    @asynccontextmanager
    async def trying(self, *_: Any, **__: Any) -> AsyncIterator[None]:
        yield

    async def confirm(self, order: Order) -> bool:
        return False

    async def activate(self, order: Order, record: RevisionRecord, golden_score: str, *, back: bool = False) -> None:
        self.activated.append(record.revision.version)
        self._state.change_fleet(FLEET, active=record.revision.hash, model="weld", stopped_at=None, stopped=None)


class Rig:
    """One site that knows release 1, serves release 2 (with a golden set, release 1 has none), and whose registry is away."""

    def __init__(self, folder: Path, revision: FrozenRevision, monkeypatch: pytest.MonkeyPatch) -> None:
        async def ready(*_: object, **__: object) -> None:
            return

        async def answered(*_: object) -> str:
            return "99%"

        monkeypatch.setattr(module, "verify_ready", ready)
        monkeypatch.setattr(module, "verify_golden_set", answered)
        monkeypatch.setattr(module, "plan_delay", lambda *_: timedelta(seconds=0.02))
        self.state, self.store = StateFile.open(folder / "state.json", site="plant-7"), Store(folder / "store")
        golden = Golden(repository="registry.example/vision/golden", digest="sha256:" + "9" * 64, min="95%")
        self.one, self.two, self.three = (
            revision.model_copy(update={"hash": letter * 64, "version": f"{n}.0", "seq": n, "digest": "sha256:" + letter * 64} | more)
            for n, (letter, more) in enumerate((("b", {}), ("a", {"golden": golden}), ("c", {"golden": golden})), start=1)
        )
        for known in (self.one, self.two):
            self.store.complete(self.record(known))
        self.state.change_fleet(
            FLEET,
            **{"floor": 2, "accepted_action": "Run", "accepted_revision": self.two.hash, "served_sequence": 2},
            **{"active": self.two.hash, "previous": self.one.hash, "model": "weld", "active_since": NOW},
        )
        self.trust = TrustKeeper(folder / "bundle.json", root=PINNED, state=self.state, on_change=lambda: self.worker.nudge())
        intake = Intake(
            site="plant-7", hardware=Hardware(arch="amd64", memory=1 << 30), trust=self.trust, state=self.state, store=self.store
        )
        self.told: list[Finding] = []
        self.serving = FakeServing(self.state, self.store)
        self.registry_is_there = False
        parts: Any = {"runtimes": SimpleNamespace(pick=lambda _: SimpleNamespace(judge=lambda *_, **__: None)), "prefetcher": None}
        site = Site(
            **{"state": self.state, "store": self.store, "trust": self.trust, "intake": intake, "serving": self.serving, **parts},
            access=lambda _: ready(),  # type: ignore[arg-type, return-value]
            publish=lambda _, finding: self.told.append(finding),
            report_now=lambda: None,
        )
        self.serving.find_over = site.revoking.find_over
        self.worker = Worker("vision.plants", site)
        monkeypatch.setattr(self.worker, "_prefetch", self.fetch)
        monkeypatch.setattr(self.worker, "_golden_lines", lambda _: ())

    def record(self, revision: FrozenRevision) -> RevisionRecord:
        part = revision.hash[:1].encode()
        singles = {"index": self.store.put(b"index" + part), "manifest": self.store.put(b"manifest" + part), "bundles": ()}
        return RevisionRecord(fleet=FLEET, revision=revision, files=(self.store.put(part, "m"),), used_at=NOW, **singles)  # type: ignore[arg-type]

    async def fetch(self, order: Order) -> RevisionRecord:
        assert order.revision is not None
        if order.revision.hash == self.three.hash and not self.registry_is_there:
            raise StepFailed(Cause.FETCH, "RegistryUnreachable", "away")
        return self.record(order.revision)

    async def until(self, holds: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(20):
                while not holds():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pytest.fail(f"told {[(one.state, one.reason) for one in self.told[-5:]]}, activated {self.serving.activated}")

    def says(self, state: str, reason: str) -> Callable[[], bool]:
        return lambda: bool(self.told) and (self.told[-1].state, self.told[-1].reason) == (state, reason)


@pytest.fixture
async def rig(tmp_path: Path, revision: FrozenRevision, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    made = Rig(tmp_path, revision, monkeypatch)
    await made.trust.offer(bundle(1))
    running = asyncio.create_task(made.worker.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await made.serving.close()


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        pytest.param(bundle(2, key=NEW_HUB), "OrderSignatureInvalid", id="another hub key"),
        pytest.param(bundle(2, limits=Limits(golden=GoldenLimit(99))), "GoldenTooLow", id="a higher minimum"),
        pytest.param(bundle(2, limits=Limits(regions=("nl",))), "ResidencyDenied", id="regions"),
    ],
)
async def test_an_order_that_is_refused_under_the_new_bundle_is_not_carried_out(rig: Rig, second: bytes, reason: str) -> None:
    rig.worker.offer(record_of(rig.three, 3))
    await rig.until(rig.says("Blocked", "RegistryUnreachable"))
    await rig.trust.offer(second)
    await rig.until(rig.says("Refused", reason))
    rig.registry_is_there = True
    rig.worker.nudge()
    await rig.until(lambda: rig.worker._job is None or rig.worker._job.done())
    assert rig.serving.activated == []
    await rig.trust.offer(bundle(3))
    await rig.until(lambda: rig.serving.activated == ["3.0"])


async def test_an_order_that_is_refused_while_it_loads_is_not_switched_to(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def loads(*_: object, **__: object) -> None:
        # In force, and the worker has not looked yet.
        monkeypatch.setattr(rig.worker, "nudge", lambda: None)
        await rig.trust.offer(bundle(2, key=NEW_HUB))

    monkeypatch.setattr(module, "verify_ready", loads)
    rig.registry_is_there = True
    rig.worker.offer(record_of(rig.three, 3))
    await rig.until(rig.says("Refused", "OrderSignatureInvalid"))
    assert rig.serving.activated == []


async def test_a_forged_object_does_not_end_what_is_under_way(rig: Rig) -> None:
    record = record_of(rig.three, 3)
    rig.worker.offer(record)
    await rig.until(rig.says("Blocked", "RegistryUnreachable"))
    rig.worker.offer(record.model_copy(update={"spec": record.spec.model_copy(update={"sequence": 4})}))
    await rig.until(rig.says("Refused", "CopyMismatch"))
    rig.registry_is_there = True
    await rig.until(lambda: rig.serving.activated == ["3.0"])


@pytest.mark.parametrize("asked_before", [True, False], ids=["running", "just started"])
async def test_what_is_revoked_goes_though_its_order_is_not_believed_any_more(rig: Rig, asked_before: bool) -> None:
    record = record_of(rig.two, 2)
    if asked_before:
        rig.worker.offer(record)
        await rig.until(rig.says("Active", "Serving"))
    await rig.trust.offer(bundle(2, key=NEW_HUB, revoked=Revoked(frozenset({rig.two.digest}))))
    rig.worker.offer(record)
    await rig.until(lambda: rig.serving.activated == ["1.0"])
    assert rig.says("Refused", "OrderSignatureInvalid")()


async def test_limits_hold_on_the_way_back_too(rig: Rig) -> None:
    rig.worker.offer(record_of(rig.two, 2))
    await rig.until(rig.says("Active", "Serving"))
    revoked = Revoked(frozenset({rig.two.digest}))
    await rig.trust.offer(bundle(2, limits=Limits(golden=GoldenLimit(90)), revoked=revoked))
    await rig.until(rig.says("Refused", "GoldenMissing"))
    assert rig.serving.activated == []


async def test_the_end_of_a_revoked_release_does_not_fail_the_good_one_that_waits(rig: Rig) -> None:
    rig.worker.offer(record_of(rig.three, 3))
    await rig.until(rig.says("Blocked", "RegistryUnreachable"))
    stopped = Revoked(frozenset({rig.two.digest, rig.one.digest}), stops={rig.two.digest: NOW})
    await rig.trust.offer(bundle(2, revoked=stopped))
    assert await rig.serving.stop_if_over(FLEET)
    rig.worker.nudge()
    await rig.until(rig.says("Blocked", "RegistryUnreachable"))
    found = rig.state.fleet(FLEET)
    assert (found.active, found.stopped) == (None, rig.two.hash)
    rig.registry_is_there = True
    await rig.until(lambda: rig.serving.activated == ["3.0"])


async def test_that_the_newest_order_failed_is_kept_when_an_older_release_ends(rig: Rig) -> None:
    failure = module.Failure(sequence=3, revision=rig.three.hash, reason="GoldenSetFailed", message="", at=NOW)
    rig.state.change_fleet(FLEET, floor=3, accepted_revision=rig.three.hash, failure=failure)
    await rig.trust.offer(bundle(2, revoked=Revoked(frozenset({rig.two.digest}), stops={rig.two.digest: NOW})))
    assert await rig.serving.stop_if_over(FLEET)
    assert rig.state.fleet(FLEET).failure == failure
