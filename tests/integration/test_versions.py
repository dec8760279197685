"""Hub N -> N+1 -> N in the middle of a rollout, with agents of either: the fleet comes to the same end, and nothing that serves restarts.

N is the code of an earlier commit, taken from this repository's history and run with the libraries of now; N+1 is this tree. The kinds in
the cluster are those of N+1, as an upgrade installs them first and leaves them at a rollback.
"""

import io
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgefleet.kube.resources import MODEL_ROLLOUTS, ROLLOUT_POLICIES, Resource
from edgefleet.site.gateway_config import gateway_folder
from edgefleet.site.gateway_process import GatewayProcess
from tests.integration.endstate import FLEET
from tests.integration.ground import Ground, Releases, open_ground, prepare_clusters
from tests.integration.tensecond import POLICY, TenSecondFleet
from tests.lab.cluster import Lab
from tests.lab.faults import FaultPlan
from tests.lab.nursery import ROOT, Knobs, Nursery
from tests.lab.registry import Registry

BEFORE = "3bd6fefff2847985e1eec08723b8bdcd6f9605e4"
"""The commit that stands for N. Move it on when a release is made."""
NOT_KNOWN_BEFORE = ("--identity", "hub")
"""The end of the hub's command line, which N does not know."""
WAVES = [
    {"name": "canary", "sites": 1, "selector": {"matchLabels": {"first": "yes"}}},
    {"name": "second", "sites": 1, "approval": {"required": 1}},
    {"name": "all", "percent": 100, "approval": {"required": 1}},
]
_WHO_AM_I = Resource("authentication.k8s.io/v1", "SelfSubjectReview", "selfsubjectreviews", False)


@pytest.fixture(scope="module")
def tree_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of N."""
    folder = tmp_path_factory.mktemp("before")
    done = subprocess.run(["git", "archive", BEFORE, "operator", "tests"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        # The one thing here that a checkout may lack; the summary of the run names it.
        pytest.skip(f"N is not in this history (git fetch --unshallow brings it): {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Releases]:
    with Registry() as registry:
        made = Releases(registry, tmp_path_factory.mktemp("releases"))
        made.push("1")
        made.push("3")
        yield made


@asynccontextmanager
async def both(lab: Lab, releases: Releases, folder: Path, tree_before: Path) -> AsyncIterator[tuple[Ground, Ground]]:
    """The same ground with N's code, and with N+1's."""
    hub = prepare_clusters(lab)[0]
    async with (
        open_ground(lab, [hub], releases, folder) as now,
        Nursery(lambda pid, code: now.ended.pop(pid)(code), tree_before) as nursery,
    ):
        yield replace(now, nursery=nursery), now


def move(fleet: TenSecondFleet, ground: Ground, *names: str, old: bool) -> None:
    """Their next start is with the code of this ground."""
    for name in names:
        words = list(fleet.actors[name].argv)
        if name == "hub":
            words = words[: -len(NOT_KNOWN_BEFORE)] if old else [*words, *NOT_KNOWN_BEFORE]
        fleet.actors[name].move(ground, words)


async def until_waiting_for(fleet: TenSecondFleet, wave: str) -> dict[str, Any]:
    """The run's status, when it waits for this wave's approval."""
    found: dict[str, Any] = {}

    async def waits() -> bool:
        status = (await fleet.admin.get(MODEL_ROLLOUTS, f"{FLEET}-2", fleet.team)).get("status", {})
        told = next((one["message"] for one in status.get("conditions", ()) if one["type"] == "Progressing"), "")
        found.update(status)
        return status.get("waitingFor") == "AwaitingApproval" and f"wave {wave}:" in told

    async def begun() -> bool:
        return any(body["metadata"]["name"] == f"{FLEET}-2" for body in await fleet.admin.list(MODEL_ROLLOUTS, fleet.team))

    await fleet.until("run 2 begins", begun)
    await fleet.until(f"run 2 waits for approval of {wave}", waits)
    return found


async def approve(fleet: TenSecondFleet, *waves: str) -> None:
    me = (await fleet.admin.create(_WHO_AM_I, {"metadata": {}}))["status"]["userInfo"]["username"]
    given = [{"wave": wave, "by": me} for wave in waves]
    await fleet.admin.patch(MODEL_ROLLOUTS, f"{FLEET}-2", fleet.team, {"spec": {"control": {"approvals": given}}})


def gateways(fleet: TenSecondFleet) -> dict[str, int | None]:
    return {letter: GatewayProcess(gateway_folder(fleet.state(letter))).find() for letter in fleet.SITES}


async def live(now: Ground, before: Ground | None) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """One fleet from its first release to its second; with `before`, the hub changes twice and all agents but one are N, at first. The
    end, and what each site's client and model server noticed."""
    async with TenSecondFleet(now, now.lanes[0], FaultPlan(), Knobs(), patience=150) as fleet:
        if before is not None:
            move(fleet, before, "hub", "agent-a", "agent-b", old=True)
        await fleet.name_release("1")
        await fleet.start()
        await fleet.add_fleet()
        await fleet.until_ended(1, "Promoted")
        routed = gateways(fleet)
        assert None not in routed.values()
        await fleet.apply(ROLLOUT_POLICIES, "careful", {**POLICY, "waves": WAVES})
        await fleet.name_release("3")
        status = await until_waiting_for(fleet, "second")
        if before is not None:
            assert "said" not in status
            await change_hub(fleet, now, old=False)
        await approve(fleet, "second")
        status = await until_waiting_for(fleet, "all")
        assert [one["wave"] for one in status["said"]] == ["second"], "the hub of this tree did not take over"
        if before is not None:
            await change_hub(fleet, before, old=True)
            await fleet.actors["agent-a"].pause()
            move(fleet, now, "agent-a", old=False)
            await fleet.actors["agent-a"].start()
        await approve(fleet, "second", "all")
        await fleet.until_ended(2, "Promoted")
        final = await fleet.settle(None, limit=60)
        assert gateways(fleet) == routed, "a gateway was restarted"
        noticed = {
            letter: [
                f"{entry.kind} {entry.method} {entry.name} {entry.code}"
                for entry in fleet.history.entries
                if (entry.kind == "probe" and entry.actor == f"client-{fleet.site(letter)}")
                or (entry.kind == "model" and entry.actor == f"runtime-{fleet.site(letter)}" and entry.method in ("load", "unload"))
            ]
            for letter in fleet.SITES
        }
        return dict(final.state), noticed


async def change_hub(fleet: TenSecondFleet, ground: Ground, *, old: bool) -> None:
    await fleet.actors["hub"].pause()
    move(fleet, ground, "hub", old=old)
    await fleet.actors["hub"].start()


@pytest.mark.timeout(900)
async def test_hub_and_agents_of_two_versions_come_to_the_same_end(lab: Lab, releases: Releases, tmp_path: Path, tree_before: Path) -> None:
    async with both(lab, releases, tmp_path, tree_before) as (before, now):
        undisturbed, usual = await live(now, None)
        changed, noticed = await live(now, before)
    assert changed == undisturbed
    assert noticed == usual
    for letter, lines in noticed.items():
        seen = [line for line in lines if line.startswith("probe")]
        first = next(n for n, line in enumerate(seen) if line.endswith(" 200"))
        assert len(seen[first:]) == 2, f"site {letter} answered with release 1, then with release 3, and with nothing in between: {seen}"
