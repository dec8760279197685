"""Fixtures that several files here share: a hub with its team, and fake sites."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edgefleet.kube.client import Api
from edgefleet.kube.resources import EDGE_SITES, NAMESPACES
from tests.integration.fakesites import FakeSites
from tests.integration.world import World
from tests.lab.cluster import Cluster, Lab
from tests.lab.installed import install_hub
from tests.lab.registry import Registry


@pytest.fixture(scope="module")
def hub_cluster(lab: Lab) -> Cluster:
    return install_hub(lab.hub)


@pytest.fixture
async def world(lab: Lab, hub_cluster: Cluster, registry: Registry, tmp_path: Path) -> AsyncIterator[World]:
    async with Api.connect(hub_cluster.kubeconfig, user_agent="person") as api:
        one = World(lab, api, registry, tmp_path)
        await one.set_up()
        one.start_hub()
        yield one
        one.kill_hub()
        one.close()
        for body in await api.list(EDGE_SITES, labels=f"line={one.mark}"):
            await api.delete(EDGE_SITES, body["metadata"]["name"])
        for namespace in (one.team, one.system):
            await api.delete(NAMESPACES, namespace)


@pytest.fixture
async def sites(world: World) -> AsyncIterator[FakeSites]:
    async with FakeSites(world.lab, world.hub_key.public) as fakes:
        yield fakes
