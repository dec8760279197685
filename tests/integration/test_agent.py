"""The site agent on real parts: API servers for hub and site, a registry, MLServer, Envoy; one agent process for each test."""

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.integration.site_rig import ROOT, RUNTIME, Client, Rig, open_rig, wait_until
from tests.lab.cluster import Lab
from tests.lab.registry import Registry
from tests.lab.server import ModelServer, ServerEnvironment, start_model_server

_names = itertools.count(1)


@pytest.fixture(scope="module")
def model_server(server_env: ServerEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """One MLServer for all tests here; each has a model name of its own."""
    folder = tmp_path_factory.mktemp("server")
    runtime = folder / "runtime"
    runtime.mkdir()
    (runtime / "tiny_model.py").write_text(RUNTIME)
    server = start_model_server(server_env, folder / "run", "mlserver", folder / "models", runtime)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def kinds(lab: Lab) -> Lab:
    """The kinds, rights and admission policies at the hub, and SiteAssignment at the site's cluster."""
    lab.hub.kubectl("apply", "-f", str(ROOT / "crds"))
    lab.hub.kubectl("apply", "-f", str(ROOT / "charts" / "edgefleet" / "templates"))
    lab.sites["east"].kubectl("apply", "-f", str(ROOT / "crds" / "siteassignments.yaml"))
    for cluster in (lab.hub, lab.sites["east"]):
        cluster.kubectl("wait", "--for=condition=Established", "crd/siteassignments.edgefleet.io", "--timeout=30s")
    return lab


@pytest.fixture
async def rig(kinds: Lab, registry: Registry, model_server: ModelServer, tmp_path: Path) -> AsyncIterator[Rig]:
    """A site of its own for each test; its agent is not started yet."""
    async with open_rig(tmp_path, kinds, registry, model_server, f"plant-{next(_names)}") as running:
        yield running


async def test_first_activation_and_a_second_revision_beside_it(rig: Rig) -> None:
    rig.push_golden()
    first = rig.push("1.0", 1)
    rig.start_agent()
    await rig.assign(first)
    status = await rig.wait_for("Active")
    assert status.golden_score == "100.0%"
    assert status.active is not None
    assert (status.active.revision, status.active.version, status.active.variant) == (first.hash, "1.0", "cpu")
    assert rig.serving() == f"{rig.model}--{first.hash[:8]}"

    second = rig.push("1.1", 2)
    with Client(rig) as client:
        await client.answered(20)
        await rig.assign(second)
        await rig.wait_for("Active")
        await client.answered(20)
    assert client.lost == []
    assert set(client.answers) == {f"{rig.model}--{first.hash[:8]}", f"{rig.model}--{second.hash[:8]}"}
