"""The Lua under charts/argocd, run by Argo CD's engine over what core writes; and its actions, applied to a real API server."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgefleet.api.fleet import EdgeFleetStatus
from edgefleet.kube.resources import MODEL_ROLLOUTS, ROLLOUT_POLICIES
from tests.integration.fakesites import FakeSites
from tests.integration.test_kstatus import (
    FAILED_SITES,
    FLEETS,
    LATE,
    RELEASE,
    SOAKING,
    STANDING,
    UNREPORTED,
    controlled,
    ended,
    fleet_of,
    model_of,
    run_of,
    written,
)
from tests.integration.world import POLICY, World, four_sites
from tests.lab.gitops import run_lua

pytestmark = pytest.mark.timeout(900)  # the first call compiles the engine

MANIFEST = Path(__file__).parents[2] / "charts/argocd/argocd-cm.yaml"
ENTRIES: dict[str, str] = yaml.safe_load(MANIFEST.read_text())["data"]
ACTIONS = yaml.safe_load(ENTRIES["resource.customizations.actions.edgefleet.io_ModelRollout"])
DEFINED = {one["name"]: one["action.lua"] for one in ACTIONS["definitions"]}
ARGO = "system:serviceaccount:argocd:argocd-server"
FLEET_HEALTH = {"Current": "Healthy", "InProgress": "Progressing", "Failed": "Degraded"}
HELD = {"paused", "suspended"}


def health(body: dict[str, Any]) -> str:
    script = ENTRIES[f"resource.customizations.health.edgefleet.io_{body['kind']}"]
    (answer,) = run_lua([(script, body)])
    assert answer["message"] is not None
    return str(answer["status"])


@pytest.mark.parametrize(("name", "facts", "kstatus"), FLEETS, ids=[name for name, *_ in FLEETS])
def test_a_fleet_is_as_flux_sees_it_but_shown_suspended_where_a_person_holds_it(name: str, facts: Any, kstatus: str) -> None:
    assert health(written("EdgeFleet", fleet_of(facts))) == ("Suspended" if name in HELD else FLEET_HEALTH[kstatus])


async def test_the_entries_go_into_argo_cds_own_config_map(world: World) -> None:
    world.lab.hub.kubectl("create", "configmap", "argocd-cm", "-n", world.team, "--from-literal=url=kept")
    world.lab.hub.kubectl("patch", "configmap", "argocd-cm", "-n", world.team, "--patch-file", str(MANIFEST))
    found = json.loads(world.lab.hub.kubectl("get", "configmap", "argocd-cm", "-n", world.team, "-o", "json"))
    assert found["data"] == {"url": "kept", **ENTRIES}


def test_what_the_hub_has_not_seen_is_progressing() -> None:
    assert health(written("EdgeFleet", EdgeFleetStatus())) == "Progressing"
    for kind in ("EdgeFleet", "EdgeModel", "EdgeSite", "ModelRollout", "SiteAssignment"):
        assert health(written(kind, None)) == "Progressing"


def test_a_run() -> None:
    states = {
        "soaking": (run_of(SOAKING), "Progressing"),
        "paused": (run_of(controlled(SOAKING, paused=True)), "Suspended"),
        "promoted": (ended("Promoted"), "Healthy"),
        "superseded": (ended("Superseded"), "Healthy"),
        "rolled back": (ended("RolledBack"), "Degraded"),
        "aborted": (ended("AbortedByUser"), "Degraded"),
        "deadline passed": (run_of(LATE, UNREPORTED), "Degraded"),
        "stands at maxFailed": (run_of(STANDING, FAILED_SITES), "Degraded"),
    }
    found = {name: health(written("ModelRollout", status)) for name, (status, _) in states.items()}
    assert found == {name: wanted for name, (_, wanted) in states.items()}


def test_a_model_and_a_policy() -> None:
    assert health(written("EdgeModel", model_of(release=RELEASE))) == "Healthy"
    assert health(written("EdgeModel", model_of(reason="SignatureMissing"))) == "Degraded"
    assert health(written("EdgeModel", model_of(reason="FetchFailed", passing=True))) == "Progressing"
    assert health(written("RolloutPolicy", None)) == "Healthy"


def test_an_assignment() -> None:
    for state, wanted in (("Active", "Healthy"), ("Withdrawn", "Healthy"), ("Failed", "Degraded"), ("Blocked", "Progressing")):
        body: dict[str, Any] = {"apiVersion": "edgefleet.io/v1alpha1", "kind": "SiteAssignment", "metadata": {"name": "a"}}
        body |= {"spec": {"sequence": 2}, "status": {"sequence": 2, "state": state, "reason": "R", "message": "m"}}
        assert health(body) == wanted
        assert health({**body, "spec": {"sequence": 3}}) == "Progressing", "an answer to the order before"


async def test_each_action_is_accepted_by_the_api_server_and_obeyed(world: World, sites: FakeSites) -> None:
    """Every action as Argo CD's account applies it: a merge patch of what the Lua changed."""
    argo = world.lab.client_kubeconfig("hub", ARGO, ["system:masters"])

    async def offered() -> set[str]:
        (found,) = run_lua([(ACTIONS["discovery.lua"], await world.run(1))])
        return {name for name, told in found.items() if not told.get("disabled")}

    async def act(name: str) -> None:
        assert name in await offered()
        (changed,) = run_lua([(DEFINED[name], await world.run(1))])
        patch = json.dumps({"spec": {"control": changed["spec"]["control"]}})
        words = ["patch", MODEL_ROLLOUTS.plural, "plants-1", "-n", world.team, "--type=merge", "-p", patch]
        world.lab.hub.kubectl("--kubeconfig", str(argo), *words)

    async def waits_for(reason: str) -> None:
        async def waiting() -> bool:
            return (await world.run(1)).get("status", {}).get("waitingFor") == reason

        await world.until(f"the run waits for {reason}", waiting)

    slow = {**POLICY, "soak": {"min": "1h", "max": "2h"}}
    slow["waves"] = [{"name": "canary", "sites": 1}, {"name": "all", "percent": 100, "approval": {"required": 1}}]
    await world.api.apply(ROLLOUT_POLICIES, {"metadata": {"name": "careful", "namespace": world.team}, "spec": slow}, manager="person")
    await four_sites(world, sites)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    await waits_for("Soaking")
    await act("pause")
    await waits_for("UserPaused")
    await act("resume")
    await waits_for("Soaking")
    await act("promote")
    await waits_for("AwaitingApproval")
    await act("approve")
    await waits_for("Soaking")
    assert (await world.run(1))["status"]["wave"] == "all"
    await act("abort")
    await world.until_ended(1, "AbortedByUser")
    await act("retry")

    async def started() -> bool:
        return bool((await world.run(2)).get("status", {}).get("phase"))

    await world.until("a new run tries it again", started)
    assert await offered() == set(), "nothing is left to say to the old run"
