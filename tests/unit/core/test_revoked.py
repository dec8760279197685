"""What is taken back from outside of any judgement: a release by its digest, those who signed it, and the time until it may serve.

Who is still believed of those who signed is told in tests/unit/hub/test_disowned.py.
"""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from edgefleet.api.assignment import FrozenRevision, Order, StopServing
from edgefleet.api.conditions import find_condition
from edgefleet.api.meta import format_time
from edgefleet.api.model import EdgeModelStatus, Release, RevokedRelease, Serving, Variant
from edgefleet.core.actions import AssignSite, EndRun, RenewSite, StartRun
from edgefleet.core.facts import FleetFacts, SiteFacts
from edgefleet.core.fleet import decide_fleet
from edgefleet.core.revocation import Revocations, merge_stops
from edgefleet.core.site import FleetMemory, Step, decide_step
from edgefleet.core.status import summarise_model
from edgefleet.core.upkeep import terms_of
from tests.unit.core.facts_of import NOW, A, B, C, digest_of, fleet, model, opened, run, site, told, variant

STABLE = run(1, A, outcome="Promoted")
ROLLING = run(2, B, plan=[("s1", 0), ("s2", 1)], phase="Rolling", waves=opened(("canary", 5, None)))
WHY = "PublisherRemoved: nobody is left"
STOP = StopServing(digest=A.digest, by=NOW + timedelta(hours=1))


def rolling(**more: Any) -> FleetFacts:
    sites = [told(site("s1"), B, "weld-2", "Active", sequence=2), told(site("s2"), A, "weld-1", "Active")]
    return fleet(B, runs=[STABLE, ROLLING], sites=sites, model=model(B, verified=False, reason="SignatureInvalid", **more))


def test_a_run_of_a_release_whose_publisher_is_not_believed_any_more_goes_back_at_once() -> None:
    decision = decide_fleet(rolling(disowned=WHY), NOW)
    assert decision.rollout is not None
    assert (decision.rollout.status.phase, decision.rollout.status.reason) == ("Returning", "TrustWithdrawn")
    assert WHY in decision.rollout.status.message
    assert [(one.site, one.revision) for one in decision.actions if isinstance(one, AssignSite)] == [("s1", A)]


def test_a_release_that_cannot_be_verified_now_ends_no_run() -> None:
    """The registry lost its signatures, or the tag names one that nobody signed."""
    decision = decide_fleet(rolling(), NOW)
    assert not [one for one in decision.actions if isinstance(one, AssignSite | EndRun)]


def test_what_is_said_of_another_release_does_not_end_this_run() -> None:
    facts = replace(rolling(), model=model(C, verified=False, disowned=WHY))
    decision = decide_fleet(facts, NOW)
    assert decision.rollout is not None
    assert decision.rollout.status.phase == "Rolling"


def test_stable_goes_on_when_its_publisher_is_not_believed_any_more() -> None:
    facts = fleet(A, runs=[STABLE], sites=[told(site("s1"), A, "weld-1", "Active")], model=model(A, verified=False, disowned=WHY))
    decision = decide_fleet(facts, NOW)
    assert decision.actions == ()
    assert decision.stable == A


# -- when serving ends -----------------------------------------------------------------------------------------------------------------


def test_orders_are_signed_anew_as_soon_as_serving_shall_end() -> None:
    """Whatever the site has: it may serve what it was told to leave, and be cut off in a minute."""
    sites = [told(site("s1"), A, "weld-1", "Active"), replace(told(site("s2"), A, "weld-1", "Active"), deleting=True)]
    facts = fleet(A, runs=[STABLE], sites=sites, model=model(A, revoked=frozenset({A.digest}), stops=(STOP,)))
    assert decide_fleet(facts, NOW).actions == (RenewSite("s1"),)
    assert decide_fleet(replace(facts, model=None), NOW).actions == (), "a model that is gone takes nothing out of orders"
    first = sites[0].assignment
    assert first is not None
    told_so = replace(sites[0], assignment=replace(first, terms=terms_of(sites[0].spec, (STOP,))))
    assert decide_fleet(replace(facts, sites=(told_so,)), NOW).actions == ()
    lifted = replace(facts, sites=(told_so,), model=model(A))
    assert decide_fleet(lifted, NOW).actions == (RenewSite("s1"),), "a revocation that was lifted comes out of the orders"


def revoked_status(*after: str | None) -> list[tuple[str, str | None]]:
    """since and stopServingBy, after each of these values of stopServingAfter, a minute apart."""
    status, said = EdgeModelStatus(), []
    for number, one in enumerate(after):
        status = summarise_model(
            old=status,
            generation=number,
            release=None,
            revision=None,
            reason="Revoked",
            message="it is",
            passing=False,
            now=NOW + timedelta(minutes=number),
            revoked=(RevokedRelease(digest=A.digest, stop_serving_after=one),),
        )
        said.append((status.revoked[0].since, status.revoked[0].stop_serving_by))
    return said


def test_the_time_counts_from_when_the_hub_first_saw_it() -> None:
    since = format_time(NOW)
    assert revoked_status("72h", "72h", "1h", None, "0s") == [
        (since, format_time(NOW + timedelta(hours=72))),
        (since, format_time(NOW + timedelta(hours=72))),
        (since, format_time(NOW + timedelta(hours=1))),
        (since, None),
        (since, since),
    ]


# -- who signed it ---------------------------------------------------------------------------------------------------------------------


def released() -> Release:
    return Release(
        digest=digest_of("x"), version="5", seq=5, variants=(variant("fp32"),), signed_by=("a key",), verified_at="2026-03-01T00:00:00Z"
    )


def test_that_it_is_disowned_stands_until_a_release_is_verified() -> None:
    base: dict[str, Any] = {"generation": 1, "revision": None, "message": "", "now": NOW}
    good = summarise_model(old=EdgeModelStatus(), release=released(), reason="", passing=False, **base)
    refused = summarise_model(old=good, release=None, reason="SignatureInvalid", passing=False, disowned=WHY, **base)
    cut_off = summarise_model(old=refused, release=None, reason="FetchFailed", passing=True, **base)
    again = summarise_model(old=cut_off, release=released(), reason="", passing=False, **base)
    said = [find_condition(status.conditions, "TrustWithdrawn") for status in (good, refused, cut_off, again)]
    assert [one.message if one else None for one in said] == [None, WHY, WHY, None]


def test_nothing_starts_for_what_is_disowned() -> None:
    sites: list[SiteFacts] = [told(site("s1"), A, "weld-1", "Active")]
    decision = decide_fleet(fleet(B, runs=[STABLE], sites=sites, model=model(B, verified=False, reason="X", disowned=WHY)), NOW)
    assert not [one for one in decision.actions if isinstance(one, StartRun)]


# -- at a site -------------------------------------------------------------------------------------------------------------------------

OLD, SERVED, NEW = (
    FrozenRevision(
        hash=letter * 64,
        model="weld-qc",
        repository="registry.example/vision/weld",
        digest="sha256:" + letter * 64,
        version=f"{seq}.0",
        seq=seq,
        variant=Variant(name="cpu", digest="sha256:" + "0" * 64, size=1, arch="amd64"),
        serving=Serving(repository={}),
    )
    for letter, seq in (("a", 1), ("b", 2), ("c", 3))
)


@pytest.mark.parametrize(
    ("revoked", "stops", "previous", "leaves"),
    [
        pytest.param({SERVED}, {}, OLD, True, id="back to what served before"),
        pytest.param(set(), {}, OLD, False, id="nothing is revoked"),
        pytest.param({SERVED}, {}, None, False, id="nothing served before"),
        pytest.param({SERVED, OLD}, {}, OLD, False, id="what served before is revoked too"),
        pytest.param({SERVED}, {OLD: 3600}, OLD, False, id="what served before shall end as well"),
        pytest.param({SERVED}, {}, NEW, False, id="a newer one was taken back from here"),
        pytest.param(set(), {SERVED: -1}, OLD, False, id="the hub alone sends nobody back"),
    ],
)
def test_a_site_leaves_what_its_bundle_revokes(
    revoked: set[Any], stops: dict[Any, int], previous: FrozenRevision | None, leaves: bool
) -> None:
    times = {one.digest: NOW + timedelta(seconds=seconds) for one, seconds in stops.items()}
    assert Revocations(frozenset(one.digest for one in revoked), times).disowned(SERVED, previous) is leaves


def test_the_time_to_be_served_ends_and_is_told() -> None:
    found = Revocations(frozenset({SERVED.digest}), {SERVED.digest: NOW})
    before = NOW - timedelta(seconds=1)
    assert [found.is_over(SERVED, when) for when in (before, NOW)] == [False, True]
    assert (found.is_over(OLD, NOW), found.forbids(OLD, NOW), found.describe(OLD), found.describe(None)) == (False, "", "", "")
    assert "revoked by the trust bundle" in found.forbids(SERVED, before)
    assert f"until {format_time(NOW)}, then nothing serves" in found.describe(SERVED)
    by_order = Revocations(frozenset(), {SERVED.digest: NOW})
    assert by_order.forbids(SERVED, before) == "", "what the hub lets serve until then may be started again until then"
    assert "its time to be served is over" in by_order.forbids(SERVED, NOW)


def test_of_two_voices_the_earlier_counts() -> None:
    later = NOW + timedelta(hours=1)
    assert merge_stops([("x", NOW), ("y", later)], [("x", later), ("y", NOW)]) == {"x": NOW, "y": NOW}


def order(revision: FrozenRevision, sequence: int = 5) -> Order:
    times = {"issued_at": NOW, "expires_at": NOW + timedelta(days=14)}
    return Order(site="s", fleet="vision/weld", sequence=sequence, action="Run", model="weld-qc", revision=revision, **times)


@pytest.mark.parametrize(
    ("asked", "memory", "disowned", "barred", "step"),
    [
        pytest.param(SERVED, {"active": SERVED}, True, True, Step.GO_BACK, id="what is ordered is revoked"),
        pytest.param(SERVED, {"active": SERVED}, False, True, Step.KEEP, id="revoked, and nothing to go back to"),
        pytest.param(SERVED, {"active": OLD, "failed_at": 5}, False, True, Step.REST, id="it went back"),
        pytest.param(SERVED, {"active": OLD}, False, True, Step.ACTIVATE, id="ordered again: refused by name when it is tried"),
        pytest.param(NEW, {"active": SERVED}, True, False, Step.ACTIVATE, id="the hub knows a way"),
        pytest.param(NEW, {"active": SERVED}, True, True, Step.GO_BACK, id="the hub's way is revoked too"),
        pytest.param(NEW, {"active": SERVED, "failed_at": 5}, True, False, Step.GO_BACK, id="the hub's way failed here"),
        pytest.param(SERVED, {"active": None, "failed_at": 5}, True, True, Step.GO_BACK, id="stopped, and there is one to go back to"),
        pytest.param(SERVED, {"active": None, "failed_at": 5}, False, True, Step.REST, id="stopped"),
    ],
)
def test_the_step_at_a_site(asked: FrozenRevision, memory: dict[str, Any], disowned: bool, barred: bool, step: Step) -> None:
    serving = memory.get("active")
    kept = FleetMemory(floor=5, active=serving.hash if serving else None, previous=OLD.hash, failed_at=memory.get("failed_at"))
    assert decide_step(order(asked), kept, disowned=disowned, barred=barred) is step
    assert decide_step(order(asked).model_copy(update={"action": "Withdraw"}), kept, disowned=disowned, barred=barred) is Step.WITHDRAW
