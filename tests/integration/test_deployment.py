"""Pods as a runtime: a real API server with the real controllers of Deployments, Envoy, and a fake node that runs the pods."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.assignment import FrozenRevision
from edgefleet.api.model import Serving
from edgefleet.api.policy import HardChecks
from edgefleet.kube.resources import DEPLOYMENTS
from tests.integration.podsite import open_node, start_agent
from tests.integration.site_rig import Client, Rig, open_rig, wait_until
from tests.lab.cluster import Lab
from tests.lab.fakenode import FakeNode
from tests.lab.processes import free_ports
from tests.lab.registry import Registry
from tests.lab.server import ModelServer

pytestmark = pytest.mark.timeout(240, func_only=True)
_names = itertools.count(1)
IMAGE = "registry.example/tiny-server@sha256:" + "5" * 64


@dataclass
class PodSite:
    """A site whose cluster has a (fake) node."""

    rig: Rig
    node: FakeNode
    namespace: str
    port: int

    def push(self, version: str, seq: int, *, switch: str = "SideBySide", container: dict[str, Any] | None = None) -> FrozenRevision:
        """A release that is served by pods."""
        return self.served_by_pods(self.rig.push(version, seq), switch=switch, container=container)

    def served_by_pods(
        self, revision: FrozenRevision, *, switch: str = "SideBySide", container: dict[str, Any] | None = None
    ) -> FrozenRevision:
        """The same release, served by pods."""
        server = {"name": "server", "image": IMAGE, "ports": [{"containerPort": self.port}], **(container or {})}
        server["resources"] = {"requests": {"memory": "100Mi"}, "limits": {"memory": "100Mi"}}
        deployment = {"template": {"spec": {"containers": [server]}}, "port": self.port, "mountPath": "/models"}
        serving = Serving.model_validate({"deployment": deployment, "switch": switch})
        return revision.model_copy(update={"serving": serving})

    def name(self, revision: FrozenRevision) -> str:
        """What its Deployment is called."""
        return f"{self.rig.model}--{revision.hash[:8]}"

    def start_agent(self, *, keep: str = "30m") -> None:
        """With pods."""
        start_agent(self.rig, self.namespace, keep=keep)

    async def deployments(self) -> set[str]:
        """The Deployments that there are."""
        return {body["metadata"]["name"] for body in await self.rig.local.list(DEPLOYMENTS, self.namespace)}

    async def wait_for_deployments(self, *revisions: FrozenRevision) -> None:
        """These and no others."""
        wanted = {self.name(revision) for revision in revisions}

        async def there() -> bool:
            return await self.deployments() == wanted and self.node.served == wanted

        await wait_until(there, lambda: f"Deployments {wanted}, running are {self.node.served}\n{self.rig.log()}", 60)


@pytest.fixture
async def open_site(
    controllers: Lab, registry: Registry, model_server: ModelServer, tmp_path: Path
) -> AsyncIterator[Callable[..., PodSite]]:
    """Makes the site, with this much memory in Mi; its agent is not started yet."""
    number = next(_names)
    async with open_rig(tmp_path, controllers, registry, model_server, f"pods-{number}") as rig:
        namespace = f"served-{number}"
        (port,) = free_ports(1)
        async with open_node(rig, namespace) as node:

            def with_memory(mebibytes: int = 1024) -> PodSite:
                node.memory = mebibytes << 20
                return PodSite(rig, node, namespace, port)

            yield with_memory


@asynccontextmanager
async def asking(rig: Rig) -> AsyncIterator[Client]:
    """A client whose last answer may still come: the fake node's servers live in the test's own loop, which must go on meanwhile."""
    client = Client(rig)
    client.__enter__()
    try:
        yield client
    finally:
        await asyncio.to_thread(client.__exit__, None, None, None)


async def serving(rig: Rig) -> str:
    """See Rig.serving."""
    return await asyncio.to_thread(rig.serving)


async def test_a_second_revision_starts_beside_the_first_and_no_request_is_lost(open_site: Callable[..., PodSite]) -> None:
    site = open_site()
    rig = site.rig
    rig.push_golden()
    first, second = site.push("1.0", 1), site.push("1.1", 2)
    site.start_agent(keep="6s")
    await rig.assign(first)
    assert (await rig.wait_for("Active")).golden_score == "100.0%"
    async with asking(rig) as client:
        await client.answered(20)
        await rig.assign(second)
        await rig.wait_for("Active")
        await client.answered(20)
        assert site.name(first) in await site.deployments(), "the old pods are kept for a while"
        await site.wait_for_deployments(second)
        await client.answered(20)
    assert client.lost == []
    assert set(client.answers) == {site.name(first), site.name(second)}


async def test_a_failed_golden_set_ends_its_pods_and_the_old_ones_serve(open_site: Callable[..., PodSite]) -> None:
    site = open_site()
    rig = site.rig
    rig.push_golden()
    good, bad = site.push("1.0", 1), site.served_by_pods(rig.push("1.1", 2, bias=1))
    site.start_agent()
    await rig.assign(good)
    await rig.wait_for("Active")
    async with asking(rig) as client:
        await rig.assign(bad)
        status = await rig.wait_for("Failed", "GoldenSetFailed")
        await site.wait_for_deployments(good)
        await client.answered(10)
    assert status.fault == "Revision"
    assert (client.lost, set(client.answers)) == ([], {site.name(good)})


@pytest.mark.parametrize(("reason", "said"), [("Error", "Restarted"), ("OOMKilled", "OOMKilled")])
async def test_pods_that_break_after_the_switch_are_taken_back(open_site: Callable[..., PodSite], reason: str, said: str) -> None:
    site = open_site()
    rig = site.rig
    first, second = site.push("1.0", 1), site.push("1.1", 2)
    site.start_agent()
    await rig.assign(first)
    await rig.wait_for("Active")
    checks = HardChecks(ready_within="60s", max_restarts=1, oom_killed=0)
    await rig.assign(second, checks=checks)
    await rig.wait_for("Active")
    async with asking(rig) as client:
        await client.answered(5)
        await site.node.restart(site.name(second), reason)
        if reason == "Error":
            await client.answered(20)
            assert (await rig.status()).state == "Active", "one restart is allowed"
            await site.node.restart(site.name(second), reason)
        status = await rig.wait_for("Failed", said)
        await client.answered(10)
        await site.wait_for_deployments(first)
    assert status.fault == "Revision"
    assert status.active is not None
    assert status.active.revision == first.hash
    assert client.lost == []


async def test_no_room_beside_the_old_one_is_the_sites_fault_and_names_the_way(open_site: Callable[..., PodSite]) -> None:
    site = open_site(150)
    rig = site.rig
    first, second = site.push("1.0", 1), site.push("1.1", 2)
    site.start_agent()
    await rig.assign(first)
    await rig.wait_for("Active")
    async with asking(rig) as client:
        await rig.assign(second)
        status = await rig.wait_for("Blocked", "NoRoomBeside")
        await client.answered(10)
    assert status.fault == "Site"
    assert "switch: Replace" in status.message
    assert (client.lost, set(client.answers)) == ([], {site.name(first)})


async def test_replace_stops_the_old_one_first_and_counts_the_gap(open_site: Callable[..., PodSite]) -> None:
    site = open_site(150)
    rig = site.rig
    first, second = site.push("1.0", 1), site.push("1.1", 2, switch="Replace")
    site.start_agent()
    await rig.assign(first)
    await rig.wait_for("Active")
    async with asking(rig) as client:
        await client.answered(5)
        await rig.assign(second)
        status = await rig.wait_for("Active")
        await client.answered(5)
    await site.wait_for_deployments(second)
    assert client.lost, "there is a gap"
    assert {lost[:3] for lost in client.lost} == {"503"}
    assert f"{len(client.lost)} request(s) were refused" in status.message, (status.message, len(client.lost))


async def test_replace_by_one_that_fails_brings_the_old_one_back(open_site: Callable[..., PodSite]) -> None:
    site = open_site(150)
    rig = site.rig
    rig.push_golden()
    good, bad = site.push("1.0", 1), site.served_by_pods(rig.push("1.1", 2, bias=1), switch="Replace")
    site.start_agent()
    await rig.assign(good)
    await rig.wait_for("Active")
    await rig.assign(bad)
    await rig.wait_for("Failed", "GoldenSetFailed")
    await site.wait_for_deployments(good)

    async def back() -> bool:
        return await serving(rig) == site.name(good)

    await wait_until(back, rig.log)


async def test_the_route_follows_a_pod_that_comes_back_elsewhere(open_site: Callable[..., PodSite]) -> None:
    site = open_site()
    rig = site.rig
    revision = site.push("1.0", 1)
    site.start_agent()
    await rig.assign(revision)
    await rig.wait_for("Active")
    name = site.name(revision)
    before = site.node.addresses(name)
    await site.node.move(name)

    async def moved() -> bool:
        return site.node.addresses(name) not in ([], before) and await serving(rig) == name

    await wait_until(moved, lambda: f"{before} -> {site.node.addresses(name)}\n{rig.log()}")


async def test_an_agent_killed_on_the_way_goes_on_and_sweeps(open_site: Callable[..., PodSite]) -> None:
    site = open_site()
    rig = site.rig
    first, second, third = site.push("1.0", 1), site.push("1.1", 2), site.push("1.2", 3)
    site.start_agent(keep="2s")
    await rig.assign(first)
    await rig.wait_for("Active")
    site.node.memory = 150 << 20  # the second must wait
    await rig.assign(second)

    async def begun() -> bool:
        return site.name(second) in await site.deployments()

    await wait_until(begun, rig.log)
    rig.kill_agent()
    async with asking(rig) as client:
        await rig.assign(third)
        site.node.memory = 1 << 30
        site.start_agent(keep="2s")
        await rig.wait_for("Active")
        await site.wait_for_deployments(third)
        await client.answered(5)
    assert client.lost == []
    assert {path.name for path in (rig.state / "pods").iterdir()} == {site.name(third)}


async def test_a_privileged_pod_is_refused_and_nothing_changes(open_site: Callable[..., PodSite]) -> None:
    site = open_site()
    rig = site.rig
    good, bad = site.push("1.0", 1), site.push("1.1", 2, container={"securityContext": {"privileged": True}})
    site.start_agent()
    await rig.assign(good)
    await rig.wait_for("Active")
    await rig.assign(bad)
    status = await rig.wait_for("Refused", "PodNotAllowed")
    assert "privileged" in status.message
    assert await site.deployments() == {site.name(good)}
    assert await serving(rig) == site.name(good)


async def test_both_runtimes_serve_at_one_site(open_site: Callable[..., PodSite]) -> None:
    site = open_site()
    rig = site.rig
    plain, pods = rig.push("1.0", 1), site.push("1.1", 2)
    site.start_agent(keep="2s")
    with_server = await _activate(rig, plain)
    assert "NotApplicable" in with_server
    async with asking(rig) as client:
        await client.answered(5)
        assert "NotApplicable" not in await _activate(rig, pods)
        await client.answered(5)
        await _activate(rig, plain)
        await client.answered(5)
        await site.wait_for_deployments()
    assert client.lost == []


async def _activate(rig: Rig, revision: FrozenRevision) -> str:
    await rig.assign(revision)
    return (await rig.wait_for("Active")).message
