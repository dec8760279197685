"""What all tests share: the lab and its parts, each started once, on demand, and ended with the session.

What has to be built or downloaded is made before the first test, with a progress line, so that no test's time limit
includes a compiler.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import binaries, cluster, debian, flux, server, server_images, tpm
from tests.lab.docker_registry import DockerRegistry, start_docker_registry
from tests.lab.registry import Registry

_LAB_TIMEOUT = 180  # seconds for the one test that starts the lab; the lab's own limits are shorter
_PREPARE: dict[str, Callable[[], object]] = {
    "lab": binaries.fetch_control_plane,
    "lanes": binaries.fetch_control_plane,
    "own_lab": binaries.fetch_control_plane,
    "server_env": server.fetch_server_environment,
    "cosign": debian.fetch_cosign,
    "docker_registry": debian.fetch_docker_registry,
    "prometheus": debian.fetch_prometheus,
    "swtpm": tpm.fetch_swtpm,
    "own_server": lambda: server_images.fetch_example_image("custom"),
    "servers_of_others": lambda: [server_images.fetch_example_image(name) for name in ("kserve", "triton")],
    "flux": flux.fetch_flux,
}
# What takes many minutes to build or to play is played on demand: fixture -> the variable that asks for it with "1".
_ON_DEMAND = {"flux": "EDGEFLEET_FLUX", "node_parts": "EDGEFLEET_DEMO_NODES", "servers_of_others": "EDGEFLEET_SERVERS"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects, so that pytest counts them, the tests of fixtures that nobody asked for."""
    unasked = {fixture for fixture, variable in _ON_DEMAND.items() if os.environ.get(variable) != "1"}
    left_out = [item for item in items if unasked.intersection(getattr(item, "fixturenames", ()))]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds or fetches what the chosen tests ask for by fixture name, and widens the first lab test's limit."""
    if session.config.option.collectonly:
        return
    items = [item for item in session.items if isinstance(item, pytest.Function)]
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        for fixture, prepare in _PREPARE.items():
            users = [item for item in items if fixture in item.fixturenames]
            if users:
                prepare()
                if users[0].get_closest_marker("timeout") is None:
                    users[0].add_marker(pytest.mark.timeout(_LAB_TIMEOUT))


@pytest.fixture(scope="session")
def lab() -> Iterator[cluster.Lab]:
    """A hub (API server, controller-manager) and the sites `east` and `west`, shared by the whole session."""
    parent = Path(tempfile.gettempdir()) / f"edgefleet-lab-tests-{os.getuid()}"
    parent.mkdir(mode=0o700, exist_ok=True)
    cluster.sweep(parent)
    folder = Path(tempfile.mkdtemp(dir=parent))
    running = cluster.Lab.start(folder)
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder)


@pytest.fixture
def registry() -> Iterator[Registry]:
    """An empty registry of its own for each test, with the referrers API and without logins."""
    with Registry() as running:
        yield running


@pytest.fixture(scope="session")
def docker_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """The real docker-registry, which has no referrers API; shared, so repositories need names of their own."""
    running = start_docker_registry(tmp_path_factory.mktemp("docker-registry"))
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def cosign() -> Path:
    """The binary of cosign 3; `tests.lab.cosign.Cosign` knows the flags that keep it off line."""
    return debian.fetch_cosign()


@pytest.fixture(scope="session")
def server_env() -> server.ServerEnvironment:
    """The environment with MLServer and what trains the example models; start servers with `start_model_server`."""
    return server.fetch_server_environment()
