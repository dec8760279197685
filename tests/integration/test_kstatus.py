"""What the kstatus library, by which Flux and kpt wait, computes for each kind in each state.

The objects are those that the decisions write (core is asked, nothing is typed by hand), and in the last test those of a real hub.
"""

from dataclasses import replace
from typing import Any

import pytest

from edgefleet.api.assignment import SiteAssignmentStatus
from edgefleet.api.fleet import EdgeFleetStatus
from edgefleet.api.meta import Schema, format_time
from edgefleet.api.model import EdgeModelStatus, Release
from edgefleet.api.rollout import Control
from edgefleet.api.site import EdgeSiteSpec, EdgeSiteStatus
from edgefleet.core.facts import FleetFacts, RunFacts
from edgefleet.core.fleet import decide_fleet
from edgefleet.core.rollout import decide, end_rollout
from edgefleet.core.status import summarise_fleet, summarise_model, summarise_site
from edgefleet.kube.resources import EDGE_FLEETS, EDGE_MODELS, EDGE_SITES, MODEL_ROLLOUTS, ROLLOUT_POLICIES
from edgefleet.site.summary import Finding, summarise_assignment
from tests.integration.fakesites import FakeSites, activates
from tests.integration.world import World, four_sites
from tests.lab.gitops import compute_kstatus
from tests.unit.core.facts_of import NOW, A, B, digest_of, fleet, minutes, model, opened, policy, run, site, told, variant

pytestmark = pytest.mark.timeout(900)  # the first call compiles the library

STABLE = run(1, A, outcome="Promoted", message="all waves passed")
PLAN: Any = [("s1", 0), ("s2", 1)]
SOAKING = run(2, B, plan=PLAN, phase="Rolling", waves=opened(("canary", 5, None)))
DAYS_OLD = run(
    2,
    B,
    plan=PLAN,
    phase="Rolling",
    waves=opened(("canary", 5 * 24 * 60, None)),
    under=policy({"name": "canary", "sites": 1}, {"name": "all", "percent": 100}, soak={"min": "168h", "max": "192h"}),
)
LATE = run(
    2,
    B,
    plan=PLAN,
    phase="Rolling",
    waves=opened(("canary", 700, None)),
    progressed_at=format_time(NOW - minutes(700)),
    since=format_time(NOW - minutes(700)),
    waiting_for="WaitingForSites",
)
TAKEN_BACK = run(2, B, outcome="RolledBack", reason="GoldenSetFailed", message="31 % of 100 answers are right")
ON_A = [told(site(name), A, "weld-1") for name in ("s1", "s2")]
ON_B = [told(site("s1"), B, "weld-2", sequence=2, since=NOW - minutes(4)), ON_A[1]]
UNREPORTED = [told(site("s1"), B, "weld-2", "Progressing", sequence=2), ON_A[1]]


def controlled(one: RunFacts, **control: Any) -> RunFacts:
    return replace(one, control=Control(**control))


def written(kind: str, status: Schema | None, *, generation: int = 1, **metadata: Any) -> dict[str, Any]:
    """The object as the API server would return it."""
    meta = {"name": "weld", "namespace": "plants", "generation": generation, **metadata}
    body = {"apiVersion": "edgefleet.io/v1alpha1", "kind": kind, "metadata": meta, "spec": {}}
    return body if status is None else {**body, "status": status.to_json_dict()}


def fleet_of(facts: FleetFacts) -> Schema:
    return summarise_fleet(facts, decide_fleet(facts, NOW), old=EdgeFleetStatus(), now=NOW)


FLEETS: list[tuple[str, FleetFacts, str]] = [
    ("steady", fleet(A, runs=[STABLE], sites=ON_A), "Current"),
    ("soaking", fleet(B, runs=[STABLE, SOAKING], sites=ON_B), "Current"),
    ("soaking for days", fleet(B, runs=[STABLE, DAYS_OLD], sites=ON_B), "Current"),
    ("paused", fleet(B, runs=[STABLE, controlled(SOAKING, paused=True)], sites=ON_B), "Current"),
    ("going back", fleet(B, runs=[STABLE, controlled(SOAKING, aborted=True)], sites=ON_B), "Current"),
    ("suspended", fleet(B, runs=[STABLE], sites=ON_A, spec={"suspend": True}), "Current"),
    ("a site is silent", fleet(A, runs=[STABLE], sites=[ON_A[0], replace(ON_A[1], last_heard=NOW - minutes(9))]), "Current"),
    ("a site joins", fleet(A, runs=[STABLE], sites=[ON_A[0], site("s2")]), "InProgress"),
    ("first look", fleet(None, sites=[site("s1")]), "InProgress"),
    ("no site yet", fleet(A), "InProgress"),
    ("rolled back", fleet(B, runs=[STABLE, TAKEN_BACK], sites=ON_A), "Failed"),
    (
        "retried",
        fleet(B, runs=[STABLE, controlled(TAKEN_BACK, retry=True), replace(SOAKING, name="weld-3", number=3)], sites=ON_A),
        "Current",
    ),
    ("Git names stable again", fleet(A, runs=[STABLE, TAKEN_BACK], sites=ON_A), "Current"),
    ("deadline passed", fleet(B, runs=[STABLE, LATE], sites=UNREPORTED), "Failed"),
    ("no model", fleet(None, runs=[STABLE], sites=ON_A, model=None), "Failed"),
    ("nothing safe", fleet(A, runs=[STABLE], sites=ON_A, model=model(A, revoked=frozenset({A.digest}))), "Failed"),
]


@pytest.mark.parametrize(("facts", "expected"), [pytest.param(*rest, id=name) for name, *rest in FLEETS])
def test_a_fleet(facts: FleetFacts, expected: str) -> None:
    assert [found for found, _ in compute_kstatus([written("EdgeFleet", fleet_of(facts))])] == [expected]


def test_a_rolled_back_fleet_fails_with_the_reason() -> None:
    ((found, message),) = compute_kstatus([written("EdgeFleet", fleet_of(fleet(B, runs=[STABLE, TAKEN_BACK], sites=ON_A)))])
    assert found == "Failed"
    assert "GoldenSetFailed: 31 % of 100 answers are right" in message


def test_a_change_that_the_hub_has_not_seen_is_in_progress() -> None:
    seen = fleet_of(fleet(A, runs=[STABLE], sites=ON_A))
    changed = written("EdgeFleet", seen, generation=2)
    leaving = written("EdgeFleet", seen, deletionTimestamp="2026-03-01T12:00:00Z")
    assert [found for found, _ in compute_kstatus([changed, leaving])] == ["InProgress", "Terminating"]


def run_of(one: RunFacts, sites: Any = ON_B, **more: Any) -> Schema:
    facts = fleet(B, runs=[STABLE, one], sites=sites, **more)
    return decide(one, {facts.name: facts for facts in sites}, facts, NOW).status


def ended(outcome: Any) -> Schema:
    facts = fleet(B, runs=[STABLE, SOAKING], sites=ON_B)
    by_name = {one.name: one for one in ON_B}
    return end_rollout(SOAKING, by_name, facts, NOW, outcome=outcome, reason=outcome, message="for a test").status


FAILED_SITES = [
    told(site("s1"), B, "weld-2", "Failed", sequence=2, fault="Revision", reason="GoldenSetFailed", message="31 %"),
    ON_A[1],
]
STANDING = run(
    2,
    B,
    plan=PLAN,
    phase="Rolling",
    waves=opened(("canary", 5, None)),
    under=policy({"name": "canary", "sites": 1}, {"name": "all", "percent": 100}, onFailure="Pause"),
)


def test_a_run() -> None:
    states = {
        "soaking": (run_of(SOAKING), "InProgress"),
        "paused": (run_of(controlled(SOAKING, paused=True)), "InProgress"),
        "promoted": (ended("Promoted"), "Current"),
        "superseded": (ended("Superseded"), "Current"),
        "target changed": (ended("TargetChanged"), "Current"),
        "rolled back": (ended("RolledBack"), "Failed"),
        "aborted": (ended("AbortedByUser"), "Failed"),
        "deadline passed": (run_of(LATE, UNREPORTED), "Failed"),
        "stands at maxFailed": (run_of(STANDING, FAILED_SITES), "Failed"),
    }
    found = compute_kstatus([written("ModelRollout", status) for status, _ in states.values()])
    assert dict(zip(states, [one for one, _ in found], strict=True)) == {name: wanted for name, (_, wanted) in states.items()}


RELEASE = Release(
    digest=digest_of("x"), version="2.4", seq=24, variants=(variant("fp32"),), signed_by=("k",), verified_at="2026-03-01T00:00:00Z"
)


def model_of(
    old: EdgeModelStatus | None = None, release: Release | None = None, reason: str = "", *, passing: bool = False
) -> EdgeModelStatus:
    return summarise_model(
        old=old or EdgeModelStatus(),
        generation=1,
        release=release,
        revision="a" * 64 if release else None,
        reason=reason,
        message="why",
        passing=passing,
        now=NOW,
    )


def test_a_model() -> None:
    states = {
        "verified": (model_of(release=RELEASE), "Current"),
        "refused": (model_of(reason="SignatureMissing"), "Failed"),
        "refused after a good one": (model_of(model_of(release=RELEASE), reason="SignatureMissing"), "Failed"),
        "registry away at first": (model_of(reason="FetchFailed", passing=True), "InProgress"),
        "registry away later": (model_of(model_of(release=RELEASE), reason="FetchFailed", passing=True), "Current"),
    }
    found = compute_kstatus([written("EdgeModel", status) for status, _ in states.values()])
    assert dict(zip(states, [one for one, _ in found], strict=True)) == {name: wanted for name, (_, wanted) in states.items()}


def test_a_site_is_current_whether_it_is_heard_or_not() -> None:
    states = []
    for heard, left in ((NOW, None), (NOW - minutes(60), None), (None, None), (None, NOW)):
        status, _ = summarise_site(
            old=EdgeSiteStatus(),
            spec=EdgeSiteSpec(),
            generation=1,
            report=None,
            last_heard=heard,
            renew_seconds=60,
            left=left,
            now=NOW,
        )
        states.append(written("EdgeSite", status))
    assert {found for found, _ in compute_kstatus(states)} == {"Current"}


def test_an_assignment_and_a_policy() -> None:
    states = {"Active": "Current", "Progressing": "InProgress", "Failed": "Failed", "Withdrawn": "Current"}
    bodies = []
    for state in states:
        finding = Finding(sequence=1, revision="a" * 64, state=state, reason="R", since=NOW)  # type: ignore[arg-type]
        bodies.append(written("SiteAssignment", summarise_assignment(finding, None, SiteAssignmentStatus())))
    assert dict(zip(states, [found for found, _ in compute_kstatus(bodies)], strict=True)) == states
    assert compute_kstatus([written("RolloutPolicy", None)])[0][0] == "Current"


async def test_what_a_real_hub_writes(world: World, sites: FakeSites) -> None:
    async def found(kind: Any, name: str) -> tuple[str, str]:
        body = await world.api.get(kind, name, world.team if kind.namespaced else None)
        return compute_kstatus([body])[0]

    world.kill_hub()
    site_name = await world.add_site("waits")
    await world.name_release("1")
    await world.add_fleet()
    fresh = [await found(kind, name) for kind, name in ((EDGE_MODELS, "weld"), (EDGE_FLEETS, "plants"), (EDGE_SITES, site_name))]
    assert [status for status, _ in fresh] == ["InProgress"] * 3, "nobody has looked at them yet"
    assert (await found(ROLLOUT_POLICIES, "careful"))[0] == "Current"
    await world.api.delete(EDGE_SITES, site_name)

    world.start_hub()
    names = await four_sites(world, sites)
    world.push("1")
    await world.until_ended(1, "Promoted")

    async def current() -> bool:
        return (await found(EDGE_FLEETS, "plants"))[0] == "Current"

    await world.until("the fleet is Current", current)
    assert (await found(EDGE_MODELS, "weld"))[0] == "Current"
    for name in names:
        sites[name].behaviour = lambda spec: (
            {"state": "Failed", "fault": "Revision", "reason": "GoldenSetFailed", "message": "31 %"}
            if spec.version == "2"
            else activates(spec)
        )
    world.push("2")
    await world.name_release("2")
    await world.until_ended(2, "RolledBack")
    await world.until_condition(EDGE_FLEETS, "plants", "Stalled", "RolledBack")
    status, message = await found(EDGE_FLEETS, "plants")
    assert (status, "GoldenSetFailed" in message) == ("Failed", True)
    assert (await found(MODEL_ROLLOUTS, "plants-2"))[0] == "Failed"

    for name in names:
        sites[name].behaviour = activates
    await world.say("rollout", "retry", "plants-2")
    await world.until_ended(3, "Promoted")
    await world.until("the fleet is Current again", current)
    assert (await world.run(2))["status"]["outcome"] == "RolledBack", "the record stays"
