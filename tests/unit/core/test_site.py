"""What a site decides by itself."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet.api.assignment import FrozenRevision, Order, SiteAssignmentSpec
from edgefleet.api.meta import format_time
from edgefleet.api.model import Serving, Variant
from edgefleet.api.site import Hardware
from edgefleet.core.limits import Limits
from edgefleet.core.site import (
    MAX_SEQUENCE_JUMP,
    RETRY_DELAYS,
    Accept,
    Cause,
    FleetMemory,
    Refuse,
    SiteContext,
    Step,
    StoredRevision,
    asked_for,
    decide_fault,
    decide_order,
    decide_step,
    plan_delay,
    plan_retention,
)

NOTHING = FleetMemory()
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HARDWARE = Hardware(arch="amd64", memory=8 << 30, features=("avx2",))
NEEDS: dict[str, Any] = {"name": "cpu", "digest": "sha256:" + "0" * 64, "size": 10, "arch": "amd64"}


def make_revision(letter: str = "a", **needs: Any) -> FrozenRevision:
    return FrozenRevision(
        hash=letter * 64,
        model="weld",
        repository="registry.example/vision/weld",
        digest="sha256:" + letter * 64,
        version="1.0",
        seq=1,
        variant=Variant(**{**NEEDS, **needs}),
        serving=Serving(repository={}),
    )


def make_order(**changes: Any) -> Order:
    order = Order(
        site="plant-7",
        fleet="vision/plants",
        sequence=7,
        action="Run",
        model="weld",
        revision=make_revision(),
        issued_at=NOW,
        expires_at=NOW + timedelta(days=14),
    )
    return order.model_copy(update=changes)


def make_copy(order: Order, **changes: Any) -> SiteAssignmentSpec:
    revision = order.revision
    copy = SiteAssignmentSpec(
        site=order.site,
        fleet=order.fleet,
        sequence=order.sequence,
        action=order.action,
        model=order.model,
        revision=revision.hash if revision else None,
        version=revision.version if revision else "",
        variant=revision.variant.name if revision else "",
        expires_at=format_time(order.expires_at),
        envelope="x",
    )
    return copy.model_copy(update=changes)


def judge(
    order: Order, memory: FleetMemory = NOTHING, *, now: datetime = NOW, name: str = "vision.plants", **context: Any
) -> Accept | Refuse:
    facts = {"site": "plant-7", "hardware": HARDWARE, "now": now, "holders": {}, **context}
    return decide_order(order, make_copy(order), object_name=name, memory=memory, context=SiteContext(**facts))


def served(sequence: int, letter: str = "a") -> FleetMemory:
    return FleetMemory(floor=sequence, accepted=("Run", letter * 64), active=letter * 64)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"site": "plant-8"}, "WrongSite"),
        ({"fleet": "vision/others"}, "WrongFleet"),
        ({"fleet": "retail/plants"}, "WrongFleet"),
        ({"revision": None}, "OrderIncomplete"),
        ({"model": "paint"}, "OrderIncomplete"),
        ({"sequence": 4}, "SequenceTooLow"),
        ({"sequence": 5, "revision": make_revision("b")}, "SequenceReused"),
        ({"sequence": 5, "action": "Withdraw", "revision": None}, "SequenceReused"),
        ({"sequence": 5 + MAX_SEQUENCE_JUMP + 1}, "SequenceJump"),
        ({"expires_at": NOW}, "TrustStale"),
        ({"revision": make_revision("b", arch="arm64")}, "NoVariantFits"),
        ({"revision": make_revision("b", accelerator="nvidia")}, "NoVariantFits"),
        ({"revision": make_revision("b", features=("avx2", "avx512_vnni"))}, "NoVariantFits"),
        ({"revision": make_revision("b", min_memory=16 << 30)}, "NoVariantFits"),
    ],
)
def test_an_order_is_refused_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    verdict = judge(make_order(**changes), served(5))
    assert isinstance(verdict, Refuse)
    assert verdict.reason == reason
    assert verdict.message


@pytest.mark.parametrize(
    "changes",
    [
        {"site": "x"},
        {"fleet": "vision/x"},
        {"sequence": 8},
        {"action": "Withdraw"},
        {"model": "x"},
        {"revision": "f" * 64},
        {"version": "9"},
        {"variant": "gpu"},
        {"expires_at": "2030-01-01T00:00:00Z"},
        {"expires_at": "tomorrow"},
    ],
)
def test_a_copy_that_differs_is_refused_and_the_field_named(changes: dict[str, str]) -> None:
    order = make_order()
    context = SiteContext("plant-7", HARDWARE, NOW, {})
    verdict = decide_order(order, make_copy(order, **changes), object_name="vision.plants", memory=FleetMemory(), context=context)
    assert isinstance(verdict, Refuse)
    assert verdict.reason == "CopyMismatch"
    field = next(iter(changes)).replace("expires_at", "expiresAt")
    assert field in verdict.message


def test_another_fleets_model_is_not_taken() -> None:
    verdict = judge(make_order(), holders={"weld": "retail/shops"})
    assert isinstance(verdict, Refuse)
    assert verdict.reason == "ModelTaken"
    assert "retail/shops" in verdict.message
    assert judge(make_order(), holders={"weld": "vision/plants"}) == Accept(make_order())


def test_orders_that_are_obeyed() -> None:
    assert judge(make_order()) == Accept(make_order())
    assert judge(make_order(sequence=90_000)) == Accept(make_order(sequence=90_000)), "the first order sets the floor"
    assert judge(make_order(sequence=1007), served(7)) == Accept(make_order(sequence=1007))
    renewed = make_order(expires_at=NOW + timedelta(days=28))
    assert judge(renewed, served(7)) == Accept(renewed), "a renewal keeps its sequence"
    withdrawal = make_order(action="Withdraw", revision=None, sequence=8)
    assert judge(withdrawal, served(7)) == Accept(withdrawal)


def test_past_its_end_what_serves_goes_on_and_nothing_is_activated() -> None:
    late = NOW + timedelta(days=15)
    assert judge(make_order(), served(7), now=late) == Accept(make_order(), stale=True)
    underway = FleetMemory(floor=7, accepted=("Run", "a" * 64), active="b" * 64)
    verdict = judge(make_order(), underway, now=late)
    assert isinstance(verdict, Refuse)
    assert verdict.reason == "TrustStale"


def test_hardware_that_has_changed_does_not_take_out_what_serves() -> None:
    order = make_order(revision=make_revision(features=("amx_int8",)))
    assert judge(order, served(7)) == Accept(order)


def in_pods(**container: Any) -> FrozenRevision:
    """Served by pods of one container."""
    server = {"name": "server", "image": "registry.example/serving/mlserver@sha256:" + "5" * 64, **container}
    serving = {"deployment": {"template": {"spec": {"containers": [server]}}, "port": 8080, "mountPath": "/models"}}
    return make_revision("b").model_copy(update={"serving": Serving.model_validate(serving)})


DECENT, PRIVILEGED = {"allowPrivilegeEscalation": False}, {"privileged": True}


@pytest.mark.parametrize("memory", [served(5), served(5, "b")], ids=["another serves", "under the hash of what serves"])
@pytest.mark.parametrize(
    ("revision", "context", "reason"),
    [
        pytest.param(in_pods(securityContext=DECENT), {"pods": True, "limits": Limits(), "region": "kz"}, "", id="within"),
        pytest.param(in_pods(securityContext=DECENT), {}, "NoPodsHere", id="no pods here"),
        pytest.param(in_pods(securityContext=PRIVILEGED), {"pods": True}, "PodNotAllowed", id="privileged"),
        pytest.param(in_pods(securityContext=DECENT), {"pods": True, "limits": Limits(images=())}, "ImageNotAllowed", id="image"),
        pytest.param(make_revision("b"), {"limits": Limits(endpoints=())}, "EndpointNotAllowed", id="endpoint"),
        pytest.param(make_revision("b"), {"limits": Limits(regions=("kz",)), "region": "de"}, "ResidencyDenied", id="region"),
    ],
)
def test_what_comes_with_a_revision_is_judged_whatever_serves(
    revision: FrozenRevision, context: dict[str, Any], reason: str, memory: FleetMemory
) -> None:
    """The hash is the hub's word, and says nothing of what comes with it."""
    order = make_order(revision=revision)
    verdict = judge(order, memory, **context)
    assert verdict == Accept(order) if not reason else isinstance(verdict, Refuse) and verdict.reason == reason


@given(st.lists(st.tuples(st.integers(1, 1 << 53), st.sampled_from("ab")), max_size=30))
def test_the_floor_never_falls_and_a_number_never_changes_its_meaning(orders: list[tuple[int, str]]) -> None:
    memory, seen = FleetMemory(), dict[int, str]()
    for sequence, letter in orders:
        order = make_order(sequence=sequence, revision=make_revision(letter))
        if isinstance(judge(order, memory), Accept):
            assert sequence >= memory.floor
            assert seen.setdefault(sequence, letter) == letter
            assert not memory.floor or sequence - memory.floor <= MAX_SEQUENCE_JUMP
            memory = FleetMemory(floor=sequence, accepted=asked_for(order))


@pytest.mark.parametrize(
    ("order", "memory", "step"),
    [
        (make_order(), FleetMemory(floor=7), Step.ACTIVATE),
        (make_order(), served(7), Step.KEEP),
        (make_order(sequence=9), served(7), Step.KEEP),
        (make_order(), FleetMemory(floor=7, active="b" * 64, failed_at=7), Step.REST),
        (make_order(sequence=8), FleetMemory(floor=8, active="b" * 64, failed_at=7), Step.ACTIVATE),
        (make_order(), FleetMemory(floor=7, active="a" * 64, previous="b" * 64, failed_at=7), Step.GO_BACK),
        (make_order(), FleetMemory(floor=7, active="a" * 64, failed_at=7), Step.KEEP),
        (make_order(sequence=8), FleetMemory(floor=8, active="a" * 64, previous="b" * 64, failed_at=7), Step.KEEP),
        (make_order(action="Withdraw", revision=None), served(6), Step.WITHDRAW),
    ],
)
def test_the_step_follows_from_what_was_remembered(order: Order, memory: FleetMemory, step: Step) -> None:
    assert decide_step(order, memory) is step


def test_whose_fault_it_is() -> None:
    revision = {cause for cause in Cause if decide_fault(cause)[1] == "Revision"}
    assert revision == {Cause.READINESS, Cause.GOLDEN, Cause.CONTENT, Cause.POD}
    assert {decide_fault(cause)[0] for cause in revision} == {"Failed"}
    assert decide_fault(Cause.TRUST) == ("Refused", "Site")
    assert {decide_fault(cause) for cause in (Cause.FETCH, Cause.DISK, Cause.SERVER)} == {("Blocked", "Site")}


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_delays_are_capped_and_jittered(failures: int, jitter: float) -> None:
    longest = RETRY_DELAYS[min(failures, len(RETRY_DELAYS)) - 1]
    assert longest / 2 <= plan_delay(failures, jitter) <= longest <= timedelta(minutes=5)


def stored(name: str, age: int, fleet: str = "vision/plants", **blobs: int) -> StoredRevision:
    return StoredRevision(name, fleet, blobs or {name: 10}, NOW - timedelta(days=age))


def test_retention_keeps_the_newest_of_each_fleet() -> None:
    have = [stored("a", 3), stored("b", 2), stored("c", 1), stored("x", 9, "retail/shops")]
    assert plan_retention(have, protected=[], keep=2, limit=1000).remove == ("a",)
    assert plan_retention(have, protected=["a", "c"], keep=2, limit=1000).remove == ("b",)


def test_retention_makes_room_from_the_longest_unused_and_never_from_what_serves() -> None:
    have = [stored("a", 3), stored("b", 2), stored("c", 1)]
    plan = plan_retention(have, protected=["a"], keep=16, limit=35, wanted={"new": 10})
    assert (plan.remove, plan.fits) == (("b",), True)
    plan = plan_retention(have, protected=["a", "b", "c"], keep=2, limit=35, wanted={"new": 10})
    assert (plan.remove, plan.fits) == ((), False)


def test_bytes_that_revisions_share_count_once() -> None:
    have = [stored("a", 2, shared=90, own_a=5), stored("b", 1, shared=90, own_b=5)]
    assert plan_retention(have, protected=[], keep=2, limit=110, wanted={"shared": 90, "new": 10}).remove == ()


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 50), min_size=1),
    st.sets(st.sampled_from("abcdefgh")),
    st.integers(2, 4),
    st.integers(0, 200),
)
def test_retention_never_removes_what_is_protected(sizes: dict[str, int], protected: set[str], keep: int, limit: int) -> None:
    have = [stored(name, i, **{name: size}) for i, (name, size) in enumerate(sizes.items())]
    plan = plan_retention(have, protected=protected, keep=keep, limit=limit)
    assert not set(plan.remove) & protected
    left = [one for one in have if one.revision not in plan.remove]
    assert len([one for one in left if one.revision not in protected]) <= keep
    if plan.fits:
        assert sum(sizes[one.revision] for one in left) <= limit
    else:
        assert {one.revision for one in left} <= protected
