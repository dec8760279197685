"""The hub on a real API server, with real signed artifacts from a real registry; its sites are fakes that fail on demand."""

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.assignment import SiteAssignmentSpec
from edgefleet.kube.errors import NotFound
from edgefleet.kube.resources import (
    EDGE_FLEETS,
    EDGE_MODELS,
    MODEL_ROLLOUTS,
    NAMESPACES,
    ROLLOUT_POLICIES,
    SECRETS,
    SITE_ASSIGNMENTS,
)
from edgefleet.trust.keys import PrivateKey
from tests.integration.fakesites import FakeSites, activates
from tests.integration.world import POLICY, World, four_sites, settled, versions

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(90)


async def test_a_signed_release_goes_through_the_waves_and_is_promoted(world: World, sites: FakeSites) -> None:
    names = await four_sites(world, sites)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    run = await world.until_ended(1, "Promoted")
    assert versions(sites) == ["1"] * 4
    assert [wave["name"] for wave in run["status"]["waves"]][:3] == ["canary", "half", "all"]

    world.push("2", int8=True)
    await world.name_release("2")
    await world.until_ended(2, "Promoted")
    assert {name: sites[name].orders[-1].variant for name in names} == {**dict.fromkeys(names, "fp32"), names[3]: "int8"}
    fleet = await world.until("the fleet is settled", lambda: settled(world, "2"))
    assert fleet["status"]["sites"] | {"desired": 4, "updated": 4, "ready": 4, "failed": 0} == fleet["status"]["sites"]
    for name in names:
        assert [order.sequence for order in sites[name].orders] == [1, 2], "one order per site and release"


async def test_a_bad_release_is_taken_back_after_its_canary_and_not_tried_again(world: World, sites: FakeSites) -> None:
    names = await four_sites(world, sites)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    await world.until_ended(1, "Promoted")

    def fails_the_exam(spec: SiteAssignmentSpec) -> dict[str, Any]:
        if spec.version == "2":
            return {"state": "Failed", "fault": "Revision", "reason": "GoldenSetFailed", "message": "31 % of 100 answers are right"}
        return activates(spec)

    for name in names:
        sites[name].behaviour = fails_the_exam
    world.push("2")
    await world.name_release("2")
    run = await world.until_ended(2, "RolledBack")
    assert run["status"]["reason"] == "GoldenSetFailed"
    touched = [name for name in names if any(order.version == "2" for order in sites[name].orders)]
    assert len(touched) == 1, "only the canary"
    assert versions(sites) == ["1"] * 4
    found = await world.until_condition(EDGE_FLEETS, "plants", "Stalled", "RolledBack")
    assert "GoldenSetFailed" in found["message"]
    assert "rollout forget plants-2" in found["message"]
    await asyncio.sleep(2)  # it must not try again, which only time can show
    assert len(await world.api.list(MODEL_ROLLOUTS, world.team)) == 2

    world.push("3")
    await world.name_release("3")
    await world.until_ended(3, "Promoted")
    assert versions(sites) == ["3"] * 4


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("unsigned", "SignatureMissing"),
        ("stranger", "SignatureInvalid"),
        ("other model", "ModelMismatch"),
        ("old", "SeqTooLow"),
        ("absent", "NotFound"),
        ("revoked", "Revoked"),
        ("revoked key", "SignatureInvalid"),
        ("not reviewed", "PredicateMissing"),
    ],
)
async def test_a_release_that_cannot_be_believed_starts_nothing(world: World, sites: FakeSites, case: str, reason: str) -> None:
    name = await world.add_site("s0")
    await sites.add(name)
    world.push("5")
    await world.name_release("5")
    await world.add_fleet()
    await world.until_ended(1, "Promoted")
    more: dict[str, Any] = {}
    if case == "unsigned":
        world.push("6", signed=False)
    elif case == "stranger":
        world.push("6", key=PrivateKey.generate())
    elif case == "other model":
        world.push("6", model="paint")
    elif case == "old":
        world.push("6")
        more["verify"] = {"keys": {"secretRef": "publishers"}, "minReleaseSeq": 7}
    elif case == "revoked key":
        world.push("6")
        more["verify"] = {"keys": {"secretRef": "publishers"}, "revoked": {"keys": [world.key.public.id]}}
    elif case == "not reviewed":
        world.push("6")
        more["verify"] = {"keys": {"secretRef": "publishers"}, "requiredPredicates": ["https://acme.test/review/v1"]}
    elif case == "revoked":
        more["revoked"] = [{"digest": world.push("6"), "reason": "wrong labels"}]
    await world.name_release("6", **more)
    refusal = await world.until_condition(EDGE_MODELS, "weld", "SourceVerified", reason)
    said = {"revoked": "wrong labels", "revoked key": "PublisherRevoked", "not reviewed": "https://acme.test/review/v1"}
    assert said.get(case, "") in refusal["message"]
    found = await world.until_condition(EDGE_FLEETS, "plants", "Ready", reason)
    assert found["status"] == "False"
    assert [order.version for order in sites[name].orders] == ["5"]
    assert (await world.api.get(EDGE_MODELS, "weld", world.team))["status"]["release"]["version"] == "5"
    assert len(await world.api.list(MODEL_ROLLOUTS, world.team)) == 1


async def test_every_site_that_may_not_be_used_says_why(world: World, sites: FakeSites) -> None:
    allowed = await world.add_site("allowed")
    refused = {
        await world.add_site("us", region="us"): "ResidencyDenied",
        await world.add_site("nowhere", region=None): "ResidencyDenied",
        await world.add_site("closed", allowedNamespaces=None): "NamespaceNotAllowed",
        await world.add_site("tainted", taints=[{"key": "maintenance"}]): "Tainted",
        await world.add_site("held", hold={"until": "2099-01-01T00:00:00Z", "reason": "stocktaking"}): "OnHold",
        await world.add_site("mute"): "HardwareUnknown",
    }
    for name in [allowed, *refused]:
        if "mute" not in name:
            await sites.add(name)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet(residency={"allowedRegions": ["de"]})
    await world.until_ended(1, "Promoted")
    assert {site.name for site in sites.sites.values() if site.orders} == {allowed}

    async def told() -> bool:
        conditions = (await world.fleet())["status"]["conditions"]
        message = next(c["message"] for c in conditions if c["type"] == "PlacementSatisfied")
        return all(name in message and reason in message for name, reason in refused.items())

    await world.until("each refused site is named with its reason", told)


async def test_another_teams_fleet_with_an_empty_selector_gets_nothing(world: World, sites: FakeSites) -> None:
    name = await world.add_site("s0")
    await sites.add(name)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    await world.until_ended(1, "Promoted")
    other = f"other-{world.mark}"
    await world.api.create(NAMESPACES, {"metadata": {"name": other}})
    try:
        for kind, named in ((EDGE_MODELS, "weld"), (SECRETS, "publishers")):
            body = await world.api.get(kind, named, world.team)
            copied = {key: copy.deepcopy(value) for key, value in body.items() if key in ("spec", "data")}
            await world.api.create(kind, {"metadata": {"name": named, "namespace": other}, **copied})
        fleet = {"siteSelector": {}, "modelRef": {"name": "weld"}}
        await world.api.create(EDGE_FLEETS, {"metadata": {"name": "greedy", "namespace": other}, "spec": fleet})

        async def refused() -> bool:
            body = await world.api.get(EDGE_FLEETS, "greedy", other)
            return any(c["reason"] == "NoSiteMatched" for c in body.get("status", {}).get("conditions", []))

        await world.until("the other team's fleet is refused", refused)
        assert [a["metadata"]["name"] for a in await world.api.list(SITE_ASSIGNMENTS, f"edgesite-{name}")] == [f"{world.team}.plants"]
    finally:
        await world.api.delete(NAMESPACES, other)


async def test_a_person_pauses_resumes_and_aborts(world: World, sites: FakeSites) -> None:
    await four_sites(world, sites)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    await world.until_ended(1, "Promoted")
    # The second wave soaks for long: the person must be able to abort before it has passed.
    second = {"name": "all", "percent": 100, "approval": {"required": 1}, "soak": {"min": "5m", "max": "10m"}}
    held = {**POLICY, "waves": [{"name": "canary", "sites": 1}, second]}
    await world.apply(ROLLOUT_POLICIES, "careful", held)
    world.push("2")
    await world.name_release("2")

    async def waits() -> bool:
        return bool((await world.run(2)).get("status", {}).get("waitingFor") == "AwaitingApproval")

    await world.until("the run waits for a person", waits)
    assert versions(sites) == ["1", "1", "1", "2"]
    assert "AwaitingApproval" in await world.say("rollout", "list")
    assert f"edgefleet rollout approve plants-2 all -n {world.team}" in await world.say("rollout", "show", "plants-2")
    assert "NoSuchWave" in await world.say("rollout", "approve", "plants-2", "second", fails=True)
    await world.say("rollout", "pause", "plants-2")
    for _ in range(2):  # every verb may be said twice
        await world.say("rollout", "approve", "plants-2", "all", "--reason", "looks fine")
    approvals = (await world.run(2))["spec"]["control"]["approvals"]
    assert [(one["wave"], one["by"]) for one in approvals] == [("all", "lab-admin")]
    await world.until_condition(MODEL_ROLLOUTS, "plants-2", "Paused", "UserPaused")
    assert versions(sites) == ["1", "1", "1", "2"], "paused: approved, but nothing goes out"
    assert "UserPaused" in await world.say("rollout", "show", "plants-2")
    await world.say("rollout", "resume", "plants-2")
    await world.until("the second wave goes out", lambda: caught_up_all(sites, "2"))
    await world.say("rollout", "abort", "plants-2")
    await world.until_ended(2, "AbortedByUser")
    assert versions(sites) == ["1"] * 4
    for verb in (["pause", "plants-2"], ["approve", "plants-2", "all"]):
        assert "RunEnded" in await world.say("rollout", *verb, fails=True)
    assert "NotBarring" in await world.say("rollout", "forget", "plants-1", fails=True)
    listed = json.loads(await world.say("rollout", "list", "plants", "-o", "json"))
    assert [(one["name"], one["status"]["outcome"]) for one in listed] == [("plants-2", "AbortedByUser"), ("plants-1", "Promoted")]
    await world.say("rollout", "forget", "plants-2")

    async def tried_again() -> bool:
        return bool((await world.run(3)).get("status", {}).get("waitingFor") == "AwaitingApproval")

    await world.until("what was forgotten is tried again", tried_again)


async def caught_up_all(sites: FakeSites, version: str) -> bool:
    return versions(sites) == [version] * len(sites.sites)


async def test_a_silent_site_is_skipped_and_catches_up(world: World, sites: FakeSites) -> None:
    # One wave: which site is drawn into which is a hash of names, and a wave of the silent one alone would rightly never pass.
    one_wave = {"waves": [{"name": "all", "percent": 100}], "soak": {"min": "1s", "max": "20s", "minReported": "50%"}}
    await world.apply(ROLLOUT_POLICIES, "careful", {**POLICY, **one_wave})
    names = await four_sites(world, sites)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    await world.until_ended(1, "Promoted")
    sites[names[0]].silent = True
    world.push("2")
    await world.name_release("2")
    await world.until_ended(2, "Promoted")
    assert [order.version for order in sites[names[0]].orders] == ["1"]
    sites[names[0]].silent = False
    await world.until("the site caught up", lambda: caught_up(sites, names[0], "2"))
    await world.until("the fleet is whole", lambda: settled(world, "2"))


async def caught_up(sites: FakeSites, name: str, version: str) -> bool:
    return bool(sites[name].orders[-1].version == version)


async def test_a_sites_own_fault_never_rejects_a_release(world: World, sites: FakeSites) -> None:
    def blocked(spec: SiteAssignmentSpec) -> dict[str, Any]:
        if spec.version == "2":
            return {"state": "Blocked", "fault": "Site", "reason": "DigestMismatch", "message": "blob sha256:... is corrupt"}
        return activates(spec)

    await four_sites(world, sites, behaviour=blocked)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    await world.until_ended(1, "Promoted")
    world.push("2")
    await world.name_release("2")

    async def waits() -> dict[str, Any] | None:
        run = await world.run(2)
        return run if run.get("status", {}).get("waitingFor") == "SilentWave" else None

    run = await world.until("the run says that its wave has nobody left", waits)
    assert "DigestMismatch" in json.dumps(run["status"])
    assert run["status"].get("outcome") is None
    await world.name_release("1")
    await world.until_ended(2, "TargetChanged")
    await world.until("its site is back on 1", lambda: caught_up_all(sites, "1"))


async def test_a_hub_that_is_replaced_at_any_time_goes_on(world: World, sites: FakeSites) -> None:
    await four_sites(world, sites)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    for _ in range(5):
        await asyncio.sleep(0.7)
        world.kill_hub()
        world.start_hub()
    await world.until_ended(1, "Promoted")
    assert versions(sites) == ["1"] * 4
    for site in sites.sites.values():
        assert [order.sequence for order in site.orders] == [1], "no order was given twice"


async def test_a_deleted_fleet_leaves_its_sites_alone_and_comes_back_adopted(world: World, sites: FakeSites) -> None:
    names = await four_sites(world, sites)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    await world.until_ended(1, "Promoted")
    await world.api.delete(EDGE_FLEETS, "plants", world.team)
    world.kill_hub()
    for body in await world.api.list(MODEL_ROLLOUTS, world.team):
        await world.api.delete(MODEL_ROLLOUTS, body["metadata"]["name"], world.team)
    for name in names:
        await world.api.delete(SITE_ASSIGNMENTS, f"{world.team}.plants", f"edgesite-{name}")
    world.start_hub()
    await world.add_fleet()
    run = await world.until_ended(1, "Promoted")
    assert run["status"]["reason"] == "Adopted"
    await world.until("the fleet is whole", lambda: held_by_all(world, names))
    assert all(len(site.orders) == 1 for site in sites.sites.values()), "no site was told anything new"


async def held_by_all(world: World, names: list[str]) -> bool:
    held = [await world.api.get(SITE_ASSIGNMENTS, f"{world.team}.plants", f"edgesite-{name}") for name in names]
    return all(body["spec"]["sequence"] == 1 for body in held)


async def test_another_fleet_is_told_of_what_a_deleted_one_left(world: World, sites: FakeSites) -> None:
    name = await world.add_site("s0")
    await sites.add(name)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet("old")

    async def serving() -> bool:
        return bool(sites[name].orders)

    await world.until("the old fleet's model is there", serving)
    await world.api.delete(EDGE_FLEETS, "old", world.team)
    await world.add_fleet("new")

    async def told() -> bool:
        return f"fleet {world.team}/old does not exist" in json.dumps(await world.fleet("new"))

    await world.until("the new fleet is told what the old one left", told)
    await world.add_fleet("old", onDelete="Withdraw")

    async def guarded() -> bool:
        return bool((await world.fleet("old"))["metadata"].get("finalizers"))

    await world.until("the hub guards the deletion", guarded)
    await world.api.delete(EDGE_FLEETS, "old", world.team)

    async def taken_over() -> bool:
        return bool(sites[name].orders[-1].fleet == f"{world.team}/new")

    await world.until("the new fleet has the site", taken_over)
    assert [order.action for order in sites[name].orders] == ["Run", "Withdraw", "Run"]


async def test_deleting_with_withdraw_unloads_the_model_and_then_ends(world: World, sites: FakeSites) -> None:
    await four_sites(world, sites)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet(onDelete="Withdraw")
    await world.until_ended(1, "Promoted")
    await world.api.delete(EDGE_FLEETS, "plants", world.team)

    async def gone() -> bool:
        try:
            await world.fleet()
        except NotFound:
            return True
        return False

    await world.until("the fleet is gone", gone)
    assert {site.orders[-1].action for site in sites.sites.values()} == {"Withdraw"}
