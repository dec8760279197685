"""The door for orders over the real state file and the real trust: what a wrong clock changes, and what replayed orders cannot."""

import asyncio
import functools
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from edgefleet.api.assignment import FrozenRevision, Order, SiteAssignmentSpec, StopServing
from edgefleet.api.meta import ObjectMeta, format_time
from edgefleet.api.site import Hardware
from edgefleet.core.site import Accept, Refuse, asked_for
from edgefleet.site import state as state_module
from edgefleet.site.intake import Intake
from edgefleet.site.revoking import Revoking
from edgefleet.site.runtimes.choice import Runtimes
from edgefleet.site.serving import Serving
from edgefleet.site.state import StateFile
from edgefleet.site.status import AssignmentRecord
from edgefleet.site.store import RevisionRecord, Store
from edgefleet.site.summary import Finding
from edgefleet.site.trust_keeper import TrustKeeper
from edgefleet.site.worker import Worker
from edgefleet.trust.bundle import make_bundle, make_root
from edgefleet.trust.bundle_content import BundleContent
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.orders import sign_order
from edgefleet.trust.publishers import Publisher, Revoked

ROOT, HUB, OLD_HUB = (PrivateKey.generate() for _ in range(3))
FLEET = "vision/plants"
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
YEAR, DAY, HOUR = timedelta(days=365), timedelta(days=1), timedelta(hours=1)
PINNED = make_root([ROOT.public], signers=[ROOT], threshold=1, version=1, expires_at=NOW + 30 * YEAR)


def bundle(version: int, ends: datetime, key: PrivateKey = HUB) -> bytes:
    content = BundleContent({"weld": Publisher((HUB.public,))}, (key.public,))
    return make_bundle(roots=[PINNED], signers=[ROOT], version=version, content=content, expires_at=ends)


def record_of(order: Order, key: PrivateKey = HUB) -> AssignmentRecord:
    revision = order.revision
    spec = SiteAssignmentSpec(
        site=order.site,
        fleet=order.fleet,
        sequence=order.sequence,
        action=order.action,
        model=order.model,
        expires_at=format_time(order.expires_at),
        envelope=sign_order(order, key),
        revision=revision.hash if revision else None,
        version=revision.version if revision else "",
        variant=revision.variant.name if revision else "",
    )
    return AssignmentRecord(metadata=ObjectMeta(name="vision.plants"), spec=spec)


def order_of(revision: FrozenRevision | None, sequence: int, ends: datetime) -> Order:
    return Order(
        site="plant-7",
        fleet=FLEET,
        sequence=sequence,
        action="Run" if revision else "Withdraw",
        model="weld",
        revision=revision,
        issued_at=ends - 14 * DAY,
        expires_at=ends,
    )


class Clock(datetime):
    """A wall clock that is set by hand."""

    set_to = NOW

    @classmethod
    def now(cls, tz: object = None) -> "Clock":
        return cls.fromtimestamp(cls.set_to.timestamp(), UTC)


class Door:
    """A site's folder; `restart()` is an agent that starts, `obey()` remembers an order as the worker does before it acts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.restart()

    def restart(self) -> None:
        self.state = StateFile.open(self.folder / "state.json", site="plant-7")
        self.trust = TrustKeeper(self.folder / "bundle.json", root=PINNED, state=self.state, on_change=lambda: None)
        parts = {"trust": self.trust, "state": self.state, "store": Store(self.folder / "store")}
        self.intake = Intake(site="plant-7", hardware=Hardware(arch="amd64", memory=1 << 30), **parts)  # type: ignore[arg-type]

    def judge(self, order: Order, key: PrivateKey = HUB) -> str:
        """`Accept`, `Stale` (it serves already), or the reason of the refusal."""
        match self.intake.judge(record_of(order, key)):
            case Accept(_, stale):
                return "Stale" if stale else "Accept"
            case Refuse() as refused:
                return refused.reason

    def obey(self, order: Order) -> None:
        if order.sequence > self.state.fleet(FLEET).floor:
            action, revision = asked_for(order)
            self.state.change_fleet(FLEET, floor=order.sequence, accepted_action=action, accepted_revision=revision)


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """Sets the wall clock of the state file; the seconds that the machine counts stand still."""
    monkeypatch.setattr(state_module, "datetime", Clock)

    def put(moment: datetime) -> None:
        Clock.set_to = moment

    put(NOW)
    return put


SKEWS = {
    "right": (timedelta(0), "Accept"),
    "10 minutes back": (-timedelta(minutes=10), "Accept"),
    "10 minutes ahead": (timedelta(minutes=10), "Accept"),
    "a day back": (-DAY, "Accept"),
    "a year back": (-YEAR, "Accept"),
    "1970": (datetime(1970, 1, 1, tzinfo=UTC) - NOW, "Accept"),
    "20 days ahead": (20 * DAY, "TrustStale"),
    "10 years ahead": (10 * YEAR, "TrustStale"),
}


@pytest.mark.parametrize(("skew", "fresh"), SKEWS.values(), ids=SKEWS)
@pytest.mark.parametrize("case", ["fresh", "order expired", "bundle expired"])
async def test_no_clock_brings_back_what_has_ended(
    skew: timedelta, fresh: str, case: str, tmp_path: Path, revision: FrozenRevision, set_clock: Callable[[datetime], None]
) -> None:
    """The site has kept the true time; then its machine starts with another."""
    door = Door(tmp_path)
    ends = NOW - HOUR if case == "bundle expired" else NOW + YEAR / 2
    set_clock(NOW - DAY)
    await door.trust.offer(bundle(1, ends))
    set_clock(NOW)
    door.state.remember_time()
    set_clock(NOW + skew)
    door.restart()
    await door.trust.restore()
    order = order_of(revision, 1, NOW - HOUR if case == "order expired" else NOW + 14 * DAY)
    assert door.judge(order) == (fresh if case == "fresh" else "TrustStale")


async def test_a_clock_ahead_ends_nothing_for_good_and_says_what_it_is(
    tmp_path: Path, revision: FrozenRevision, set_clock: Callable[[datetime], None]
) -> None:
    door = Door(tmp_path)
    await door.trust.offer(bundle(1, NOW + YEAR))
    order = order_of(revision, 1, NOW + 14 * DAY)
    assert door.judge(order) == "Accept"
    door.obey(order)
    door.state.change_fleet(FLEET, active=revision.hash)
    # What serves is not touched; nothing new is activated.
    set_clock(NOW + 20 * DAY)
    assert door.judge(order) == "Stale"
    assert door.judge(order_of(None, 2, NOW + 14 * DAY)) == "TrustStale"
    # Back in time before it was kept: as if nothing had been.
    set_clock(NOW)
    assert door.judge(order_of(None, 2, NOW + 14 * DAY)) == "Accept"
    # Kept: it counts, and the report says so, until the line is taken out.
    set_clock(NOW + 10 * YEAR)
    door.state.remember_time()
    set_clock(NOW)
    assert door.judge(order_of(None, 2, NOW + 14 * DAY)) == "TrustStale"
    assert format_time(NOW + 10 * YEAR) in door.trust.report().clock


async def test_a_renewal_says_the_same_for_longer(tmp_path: Path, revision: FrozenRevision, set_clock: Callable[[datetime], None]) -> None:
    door = Door(tmp_path)
    await door.trust.offer(bundle(1, NOW + YEAR))
    order = order_of(revision, 4, NOW + DAY)
    door.obey(order)
    set_clock(NOW + 2 * DAY)
    assert door.judge(order) == "TrustStale"
    assert door.judge(order_of(revision, 4, NOW + 16 * DAY)) == "Accept"
    assert door.judge(order_of(None, 4, NOW + 16 * DAY)) == "SequenceReused", "under its number nothing else"
    assert door.state.fleet(FLEET).floor == 4


async def test_another_hub_key_counts_from_the_bundle_on(tmp_path: Path, revision: FrozenRevision) -> None:
    door, now = Door(tmp_path), datetime.now(UTC)
    order = order_of(revision, 1, now + 14 * DAY)
    await door.trust.offer(bundle(1, now + YEAR, key=OLD_HUB))
    assert (door.judge(order, OLD_HUB), door.judge(order, HUB)) == ("Accept", "OrderSignatureInvalid")
    await door.trust.offer(bundle(2, now + YEAR, key=HUB))
    assert (door.judge(order, OLD_HUB), door.judge(order, HUB)) == ("OrderSignatureInvalid", "Accept")


@pytest.mark.parametrize("known_as", ["active", "previous", "accepted_revision"])
@pytest.mark.parametrize("fleet", [FLEET, "vision/others"])
async def test_no_order_is_served_under_the_name_of_another_revision(
    known_as: str, fleet: str, tmp_path: Path, revision: FrozenRevision
) -> None:
    """A model server knows the first 8 digits of a hash, and says at once that it is ready."""
    door, now = Door(tmp_path), datetime.now(UTC)
    await door.trust.offer(bundle(1, now + YEAR))
    door.state.change_fleet(fleet, model="paint", **{known_as: "a" * 8 + "b" * 56})
    assert door.judge(order_of(revision, 5, now + DAY)) == "HashMismatch"
    door.state.change_fleet(fleet, **{known_as: "a" * 7 + "b" * 57})
    assert door.judge(order_of(revision, 5, now + DAY)) == "Accept"


@pytest.mark.parametrize(("rotten", "expected"), [(False, "HashMismatch"), (True, "Accept")])
async def test_a_hash_in_the_store_is_taken_unless_its_record_is_rotten(
    rotten: bool,
    expected: str,
    tmp_path: Path,
    revision: FrozenRevision,
    place: Callable[..., RevisionRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has changed on the disk must not keep the order out that heals it."""
    door, now = Door(tmp_path), datetime.now(UTC)
    await door.trust.offer(bundle(1, now + YEAR))
    place(Store(tmp_path / "store"), "a", b"weights")
    monkeypatch.setattr(Store, "agrees", lambda *_: not rotten)
    assert door.judge(order_of(revision, 5, now + DAY)) == "Accept"
    assert door.judge(order_of(revision.model_copy(update={"digest": "sha256:" + "9" * 64}), 5, now + DAY)) == expected


class Looking(Worker):
    """Looks, when it is told to act, at what a restart would find on the disk."""

    def __init__(self, site: Any, file: Path) -> None:
        super().__init__("vision.plants", site)
        self.found: asyncio.Queue[int] = asyncio.Queue()
        self._file = file

    async def _carry_out(self, order: Order) -> None:
        self.found.put_nowait(StateFile.open(self._file, site="plant-7").fleet(order.fleet).floor)


async def test_an_order_is_on_disk_before_it_is_acted_on(tmp_path: Path, revision: FrozenRevision) -> None:
    door, now = Door(tmp_path), datetime.now(UTC)
    await door.trust.offer(bundle(1, now + YEAR))
    worker = Looking(SimpleNamespace(state=door.state, intake=door.intake), tmp_path / "state.json")
    running = asyncio.create_task(worker.run())
    for sequence in (3, 7):
        worker.offer(record_of(order_of(revision, sequence, now + DAY)))
        assert await asyncio.wait_for(worker.found.get(), 10) == sequence
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


class Open:
    """A gateway that routes nothing, and remembers to what it was switched."""

    def __init__(self) -> None:
        self.table: dict[str, str | None] = {}

    async def switch(self, model: str, revision: str | None) -> None:
        self.table[model] = revision


@pytest.mark.parametrize("told_by", ["order", "bundle"])
async def test_serving_ends_on_time_though_orders_and_bundle_have_ended_before(
    told_by: str,
    tmp_path: Path,
    revision: FrozenRevision,
    place: Callable[..., RevisionRecord],
    set_clock: Callable[[datetime], None],
) -> None:
    """A site that was cut off: nothing renews what it has, and it may start again on the way."""
    told: list[Finding] = []
    gateway, runtime = Open(), SimpleNamespace(placed=set)
    by = NOW + 3 * DAY
    revoked = Revoked(frozenset({revision.digest}), stops={revision.digest: by}) if told_by == "bundle" else Revoked()
    stops = (StopServing(digest=revision.digest, by=by),) if told_by == "order" else None
    record = record_of(order_of(revision, 4, NOW + DAY).model_copy(update={"stop_serving": stops}))

    async def start() -> tuple[Door, Worker, Serving]:
        door, store = Door(tmp_path), Store(tmp_path / "store")
        await door.trust.restore()
        parts: Any = {"state": door.state, "store": store, "runtimes": Runtimes(runtime), "gateway": gateway}  # type: ignore[arg-type]
        serving, revoking = Serving(**parts), Revoking(door.trust, door.state, store)
        serving.find_over = revoking.find_over
        site: Any = SimpleNamespace(
            **parts | {"intake": door.intake, "serving": serving, "revoking": revoking}, publish=lambda _, finding: told.append(finding)
        )
        return door, Looking(site, tmp_path / "state.json"), serving

    place(Store(tmp_path / "store"), "a", b"weights")
    door, worker, serving = await start()
    content = BundleContent({"weld": Publisher((HUB.public,))}, (HUB.public,), revoked=revoked)
    await door.trust.offer(make_bundle(roots=[PINNED], signers=[ROOT], version=1, content=content, expires_at=NOW + 2 * DAY))
    door.state.change_fleet(FLEET, floor=4, accepted_action="Run", accepted_revision=revision.hash, model="weld", active=revision.hash)
    await worker._take(record)
    for passed, said in ((1, ("Active", "TrustStale")), (2, ("Refused", "TrustStale"))):
        set_clock(NOW + passed * DAY)
        await worker._take(record)
        assert (told[-1].state, told[-1].reason) == said
        assert not await serving.stop_if_over(FLEET)
    assert door.state.fleet(FLEET).active == revision.hash
    assert gateway.table == {}

    set_clock(by)
    door, worker, serving = await start()
    assert await serving.stop_if_over(FLEET)
    await worker._take(record)
    assert (told[-1].state, told[-1].reason) == ("Refused", "TrustStale"), "what has ended begins nothing again"
    assert (door.state.fleet(FLEET).active, gateway.table) == (None, {"weld": None})
    await serving.close()


@pytest.mark.parametrize("envelope", ["", "e30=", "another order's"])
async def test_what_the_readable_copy_says_is_no_order(envelope: str, tmp_path: Path, revision: FrozenRevision) -> None:
    """A withdrawal without an envelope, or with one that says something else."""
    door, now = Door(tmp_path), datetime.now(UTC)
    await door.trust.offer(bundle(1, now + YEAR))
    withdrawal, run = record_of(order_of(None, 4, now + DAY)), record_of(order_of(revision, 4, now + DAY))
    said = run.spec.envelope if envelope == "another order's" else envelope
    verdict = door.intake.judge(withdrawal.model_copy(update={"spec": withdrawal.spec.model_copy(update={"envelope": said})}))
    assert isinstance(verdict, Refuse)
    assert verdict.reason == ("CopyMismatch" if said == run.spec.envelope else "OrderMalformed")
    assert isinstance(door.intake.judge(withdrawal), Accept)


@pytest.mark.parametrize(("sequence", "expected"), [(1 << 40, "SequenceJump"), (1005, "SequenceJump"), (1004, "Accept")])
async def test_a_stolen_hub_key_cannot_use_up_the_numbers(sequence: int, expected: str, tmp_path: Path, revision: FrozenRevision) -> None:
    door, now = Door(tmp_path), datetime.now(UTC)
    await door.trust.offer(bundle(1, now + YEAR))
    door.obey(order_of(revision, 4, now + DAY))
    assert door.judge(order_of(revision, sequence, now + DAY)) == expected


FAR = datetime.now(UTC) + YEAR
RECORDED = range(1, 501)


@functools.cache
def recorded(sequence: int) -> tuple[Order, AssignmentRecord]:
    """An order that was once given, and the object that it came in."""
    order = order_of(None, sequence, FAR)
    return order, record_of(order)


@settings(max_examples=5, deadline=None, phases=[Phase.reuse, Phase.generate])
@given(replay=st.permutations(RECORDED), restarts=st.sets(st.sampled_from(RECORDED), max_size=5))
async def test_replayed_orders_never_lower_the_sequence(replay: list[int], restarts: set[int]) -> None:
    """500 recorded assignments in any order, with restarts in between."""
    with tempfile.TemporaryDirectory() as folder:
        door = Door(Path(folder))
        await door.trust.offer(bundle(1, FAR))
        highest = 0
        for step, sequence in enumerate(replay, start=1):
            order, record = recorded(sequence)
            match door.intake.judge(record):
                case Accept():
                    assert sequence > highest
                    door.obey(order)
                case Refuse(reason):
                    assert (sequence < highest, reason) == (True, "SequenceTooLow")
            highest = max(highest, sequence)
            if step in restarts:
                door.restart()
                await door.trust.restore()
            assert door.state.fleet(FLEET).floor == highest
