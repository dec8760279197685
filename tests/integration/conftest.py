"""Fixtures that several files here share: a hub with its team and fake sites; the clusters and the model server of a real site."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from edgefleet.kube.client import Api
from edgefleet.kube.resources import EDGE_MODELS, EDGE_SITES, NAMESPACES
from tests.integration.fakesites import FakeSites
from tests.integration.site_rig import start_tiny_server
from tests.integration.world import World
from tests.lab.binaries import fetch_control_plane
from tests.lab.cluster import Cluster, Lab
from tests.lab.control_plane import start_controllers
from tests.lab.installed import install_hub, install_site
from tests.lab.processes import stop_processes
from tests.lab.registry import Registry
from tests.lab.server import ModelServer, ServerEnvironment


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
        # At once, not with the namespace: until then `edgefleet check` of another test's world finds their registry gone.
        for body in await api.list(EDGE_MODELS, one.team):
            await api.delete(EDGE_MODELS, body["metadata"]["name"], one.team)
        for namespace in (one.team, one.system):
            await api.delete(NAMESPACES, namespace)


@pytest.fixture
async def sites(world: World) -> AsyncIterator[FakeSites]:
    async with FakeSites(world.lab, world.hub_key.public) as fakes:
        yield fakes


@pytest.fixture(scope="module")
def model_server(server_env: ServerEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """One MLServer for all tests of a file; each has a model name of its own."""
    server = start_tiny_server(server_env, tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def kinds(lab: Lab) -> Lab:
    """The kinds, rights and admission policies at the hub, and SiteAssignment at the site's cluster."""
    install_hub(lab.hub)
    install_site(lab.sites["east"])
    return lab


@pytest.fixture(scope="module")
def controllers(kinds: Lab) -> Iterator[Lab]:
    """The site's cluster with the controllers of Deployments."""
    plane = fetch_control_plane()
    assert plane.controller_manager is not None
    process = start_controllers(kinds.folder, plane.controller_manager, "east", kinds.sites["east"].url)
    yield kinds
    stop_processes([process])
