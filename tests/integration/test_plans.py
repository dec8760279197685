"""A run never loses its plan: neither to a hub that dies while it makes the run, nor to another run with an equal plan."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from edgefleet.api.model import Revision, Serving, Variant
from edgefleet.api.policy import STANDARD_POLICY
from edgefleet.api.rollout import ModelRollout
from edgefleet.core.actions import StartRun
from edgefleet.core.facts import FleetKey, PlannedSite
from edgefleet.hub import runs as module
from edgefleet.hub.events import Events
from edgefleet.hub.evidence import Evidence
from edgefleet.hub.gathering import Gatherer
from edgefleet.hub.inventory import Inventory
from edgefleet.hub.plans import apply_plan, apply_plan_owner, chunk_name, encode_plan, fetch_plan, settle_leftovers
from edgefleet.hub.runs import Runs
from edgefleet.kube.client import Api
from edgefleet.kube.errors import NotFound
from edgefleet.kube.resources import CONFIG_MAPS, EDGE_FLEETS, MODEL_ROLLOUTS, NAMESPACES
from tests.lab.cluster import Lab
from tests.lab.installed import hub_kubeconfig, install_hub

PLAN = (PlannedSite("berlin", "fp32", 0), PlannedSite("oslo", "fp32", 1))
REVISION = Revision(
    hash="a" * 64,
    model="weld",
    repository="registry.example/weld",
    digest=f"sha256:{'a' * 64}",
    version="1",
    seq=1,
    variants=(Variant(name="fp32", digest=f"sha256:{'b' * 64}", size=1, arch="amd64"),),
    serving=(Serving(repository={}),),
)


class Died(Exception):
    """The hub's end."""


@pytest.fixture
async def api(lab: Lab) -> AsyncIterator[Api]:
    install_hub(lab.hub)
    async with Api.connect(hub_kubeconfig(lab.hub), user_agent="test") as client:
        yield client


@pytest.fixture
async def team(api: Api) -> str:
    name = f"team-{uuid.uuid4().hex[:8]}"
    await api.create(NAMESPACES, {"metadata": {"name": name}})
    return name


def start_of(fleet: str) -> StartRun:
    return StartRun(f"{fleet}-1", 1, REVISION, STANDARD_POLICY, PLAN)


async def owners(api: Api, team: str) -> list[str]:
    ref, _ = encode_plan(PLAN)
    meta = (await api.get(CONFIG_MAPS, chunk_name(ref, 0), team))["metadata"]
    return sorted(owner["name"] for owner in meta.get("ownerReferences") or ())


async def test_a_hub_that_dies_before_the_run_owns_its_plan_loses_nothing(api: Api, team: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def die(*_: object) -> None:
        raise Died

    monkeypatch.setattr(module, "apply_plan_owner", die)
    with pytest.raises(Died):
        await Runs(api, Events(api, {})).start(FleetKey(team, "plants"), start_of("plants"))
    orphan = await apply_plan(api, team, "plants", PLAN[:1])
    await settle_leftovers(api)
    run = ModelRollout.parse(await api.get(MODEL_ROLLOUTS, "plants-1", team))
    assert await fetch_plan(api, team, run.spec.plan) == PLAN
    assert await owners(api, team) == ["plants-1"]
    with pytest.raises(NotFound):
        await fetch_plan(api, team, orphan)


async def test_a_plan_that_an_older_run_owns_is_owned_by_the_run_of_a_hub_that_died_too(
    api: Api, team: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(api, Events(api, {}))
    await runs.start(FleetKey(team, "plants"), start_of("plants"))

    async def die(*_: object) -> None:
        raise Died

    monkeypatch.setattr(module, "apply_plan_owner", die)
    with pytest.raises(Died):
        await runs.start(FleetKey(team, "shops"), start_of("shops"))
    await settle_leftovers(api)
    assert await owners(api, team) == ["plants-1", "shops-1"]


async def test_a_run_whose_plan_is_lost_is_named_and_hurts_no_other_fleet(api: Api, lab: Lab, team: str) -> None:
    nothing: Any = None
    inventory = Inventory(nothing, on_fleet=nothing, on_site=nothing, on_renewal=nothing, on_health=nothing, on_heartbeat=nothing)
    evidence = Evidence(api, inventory)
    async with Api.connect(lab.hub.kubeconfig, user_agent="test") as person:
        spec = {"siteSelector": {}, "modelRef": {"name": "weld"}}
        await person.create(EDGE_FLEETS, {"metadata": {"name": "plants", "namespace": team}, "spec": spec})
    await Runs(api, Events(api, {})).start(FleetKey(team, "plants"), start_of("plants"))
    found = await Gatherer(api, inventory, evidence, {}).gather(FleetKey(team, "plants"))
    assert found is not None
    assert ([run.plan for run in found[1].runs], found[1].unreadable) == ([PLAN], ())
    ref, _ = encode_plan(PLAN)
    await api.delete(CONFIG_MAPS, chunk_name(ref, 0), team)
    found = await Gatherer(api, inventory, evidence, {}).gather(FleetKey(team, "plants"))
    assert found is not None
    assert found[1].runs == ()
    assert "ModelRollout plants-1 cannot be used" in found[1].unreadable[0]
    assert "rollout forget --force plants-1" in found[1].unreadable[0]


async def test_runs_with_equal_plans_own_them_together(api: Api, team: str) -> None:
    runs = Runs(api, Events(api, {}))
    await runs.start(FleetKey(team, "plants"), start_of("plants"))
    await runs.start(FleetKey(team, "shops"), start_of("shops"))
    assert await owners(api, team) == ["plants-1", "shops-1"]


async def test_a_plan_that_went_with_an_equal_run_is_written_again(api: Api, team: str) -> None:
    await Runs(api, Events(api, {})).start(FleetKey(team, "plants"), start_of("plants"))
    ref, _ = encode_plan(PLAN)
    await api.delete(CONFIG_MAPS, chunk_name(ref, 0), team)
    await apply_plan_owner(api, await api.get(MODEL_ROLLOUTS, "plants-1", team), PLAN)
    assert await fetch_plan(api, team, ref) == PLAN
    assert await owners(api, team) == ["plants-1"]
