"""The life of a hub: backed up, lost, restored; its sites know better than any backup and keep serving."""

import asyncio
import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.meta import site_namespace
from edgefleet.kube.resources import (
    CONFIG_MAPS,
    EDGE_FLEETS,
    EDGE_MODELS,
    EDGE_SITES,
    MODEL_ROLLOUTS,
    ROLLOUT_POLICIES,
    SECRETS,
    SITE_ASSIGNMENTS,
)
from tests.integration.fakesites import FakeSites, activates
from tests.integration.world import POLICY, World, four_sites, settled, versions
from tests.lab.cluster import Cluster

RESTORER = "dora"


def fails_two(spec: Any) -> dict[str, Any]:
    if spec.version == "2" and spec.action == "Run":
        return {"state": "Failed", "fault": "Revision", "reason": "GoldenSetFailed", "message": "31% of 90%"}
    return activates(spec)


async def edgefleet(world: World, kubeconfig: Path, *words: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "edgefleet", *words, "--kubeconfig", str(kubeconfig)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


async def back_up(world: World) -> Path:
    """Only this team's objects are kept: other tests share the hub's API server."""
    file = world.folder / "backup.json"
    await edgefleet(world, world.lab.hub.kubeconfig, "backup", "--hub-namespace", world.system, "-o", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    whole = json.loads(file.read_text())
    whole["items"] = [body for body in whole["items"] if world.mark in json.dumps(body["metadata"])]
    file.write_text(json.dumps(whole))
    return file


async def lose(world: World, sites: FakeSites) -> None:
    """The hub, and all that it and its people had made. The sites are not asked."""
    world.kill_hub()
    for kind in (EDGE_FLEETS, MODEL_ROLLOUTS, EDGE_MODELS, ROLLOUT_POLICIES, SECRETS, CONFIG_MAPS):
        for body in await world.api.list(kind, world.team):
            await world.api.delete(kind, body["metadata"]["name"], world.team)
    await world.api.delete(SECRETS, "hub-key", world.system)
    for name in sites.sites:
        for body in await world.api.list(SITE_ASSIGNMENTS, site_namespace(name)):
            await world.api.delete(SITE_ASSIGNMENTS, body["metadata"]["name"], site_namespace(name))
        await world.api.delete(EDGE_SITES, name)


def restorer(world: World) -> Cluster:
    """A person who may restore, and nothing else."""
    admin = world.lab.hub.kubectl
    body = admin(
        "create", "clusterrolebinding", RESTORER, "--clusterrole=edgefleet-restorer", f"--user={RESTORER}", "--dry-run=client", "-ojson"
    )
    admin("apply", "--server-side", "-f", "-", stdin=body)
    return Cluster(RESTORER, world.lab.hub.url, world.lab.hub.folder, world.lab.client_kubeconfig("hub", RESTORER, ()), None)


async def restore(world: World, file: Path) -> str:
    person = await asyncio.to_thread(restorer, world)
    said = await edgefleet(world, person.kubeconfig, "restore", str(file))
    world.start_hub()
    return said


def floors(sites: FakeSites) -> dict[str, int]:
    return {name: site.orders[-1].sequence for name, site in sites.sites.items()}


@pytest.mark.timeout(300)
async def test_a_restored_hub_adopts_what_its_sites_run_and_keeps_its_bars(world: World, sites: FakeSites) -> None:
    names = await four_sites(world, sites, behaviour=fails_two)
    for version in ("1", "2", "3"):
        world.push(version)
    await world.name_release("1")
    await world.add_fleet()
    await world.until_ended(1, "Promoted", 60)
    await world.name_release("2")
    await world.until_ended(2, "RolledBack", 60)
    gated = {**POLICY, "waves": [{"name": "canary", "sites": 1}, {"name": "all", "percent": 100, "approval": {"required": 1}}]}
    await world.apply(ROLLOUT_POLICIES, "careful", gated)
    await world.name_release("3")

    async def gate_reached() -> bool:
        return bool((await world.run(3)).get("status", {}).get("waitingFor") == "AwaitingApproval")

    await world.until("release 3 has passed its canary", gate_reached, 60)
    file = await back_up(world)
    await world.say("rollout", "approve", "plants-3", "all")
    await world.until_ended(3, "Promoted", 60)
    before, given = floors(sites), {name: len(sites[name].orders) for name in names}

    await lose(world, sites)
    assert "plants-3 had not ended and is paused" in await restore(world, file)

    async def remembers() -> bool:
        runs = [(await world.run(number))["status"].get("outcome") for number in (1, 2, 3)]
        paused = (await world.run(3))["status"].get("waitingFor") == "UserPaused"
        return runs == ["Promoted", "RolledBack", None] and paused

    await world.until("the runs are known, and the open one is paused", remembers, 60)
    said = (await world.run(3))["status"]["said"]
    assert ("Paused", RESTORER) in [(one["what"], one["by"]) for one in said]
    assert versions(sites) == ["3"] * 4
    await world.say("rollout", "resume", "plants-3")
    await world.until("the run waits for its approval again", gate_reached, 60)
    await world.say("rollout", "approve", "plants-3", "all")
    await world.until_ended(3, "Promoted", 60)
    assert await world.until("the fleet is settled", lambda: settled(world, "3"), 60)
    for name in names:
        later = sites[name].orders[given[name] :]
        assert [one.version for one in later] == ["3"] * len(later), "a site was told to run something else"
        assert all(one.sequence > before[name] for one in later)

    await world.name_release("2")
    told = await world.until_condition(EDGE_FLEETS, "plants", "Stalled", "RolledBack")
    assert "run plants-2 took release 2 back" in told["message"]
    assert versions(sites) == ["3"] * 4


@pytest.mark.timeout(300)
async def test_a_hub_from_a_backup_that_is_too_old_moves_nothing_until_a_person_names_what_runs(world: World, sites: FakeSites) -> None:
    names = await four_sites(world, sites)
    world.push("1")
    world.push("3")
    await world.name_release("1")
    await world.add_fleet()
    await world.until_ended(1, "Promoted", 60)
    file = await back_up(world)
    await world.name_release("3")
    await world.until_ended(2, "Promoted", 60)
    given = {name: len(sites[name].orders) for name in names}

    await lose(world, sites)
    await restore(world, file)
    told = await world.until_condition(EDGE_FLEETS, "plants", "Paused", "AdoptionConflict")
    assert all(name in told["message"] for name in names)
    assert {name: len(sites[name].orders) for name in names} == given

    await world.name_release("3")
    await world.until_ended(2, "Promoted", 60)
    assert versions(sites) == ["3"] * 4
    assert all(one.version == "3" for name in names for one in sites[name].orders[given[name] :])
