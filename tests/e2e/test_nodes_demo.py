"""The demo on real nodes: hub, agents, gateways and model servers are pods, sites join by the command line and get their chart by Helm.

It runs as a person runs it (`make demo NODES=1`), in a process of its own, and asserts by itself. It is asked for by EDGEFLEET_DEMO_NODES=1
in the environment (`make test-all`); else pytest says that it is deselected.
"""

import re
from pathlib import Path

import pytest

from examples.digits.demo.places import DIGITS
from tests.e2e.demo_run import CLEANUP, run_demo
from tests.e2e.machine import kernel_settings, left_behind
from tests.lab.binaries import fetch_control_plane, fetch_node_binaries
from tests.lab.cgroups import list_cgroups
from tests.lab.nodes import GROUP
from tests.lab.pod_images import edgefleet_image, server_image
from tests.lab.server import fetch_server_environment

PLAYED = (1, 2, 11, 7)
LIMIT = 1800.0  # seconds for the acts, once all is built
BUILD = 1800.0  # seconds to build it where no other test did


@pytest.fixture
def node_parts() -> None:
    """What takes minutes once per machine is had first, so that the limit is about the acts alone."""
    for fetch in (fetch_control_plane, fetch_node_binaries, fetch_server_environment, edgefleet_image):
        fetch()
    server_image(DIGITS / "runtime")


@pytest.mark.e2e
@pytest.mark.timeout(BUILD + LIMIT + CLEANUP + 60)
@pytest.mark.usefixtures("node_parts")
def test_on_real_nodes_no_request_is_lost_and_nothing_of_the_machine_changes(tmp_path_factory: pytest.TempPathFactory) -> None:
    before, folder = kernel_settings(), tmp_path_factory.mktemp("nodes")  # short: see require_short

    output = folder / "output.txt"
    code = run_demo(folder / "demo", "nodes", output, LIMIT)

    told = output.read_text()
    assert code == 0, told[-6000:]
    assert re.search(r"customers: [1-9]\d{3,} requests answered at 6 sites .*, 0 lost", told), told[-2000:]
    assert re.search(r"from empty clusters to \w+, the first site that serves: \d+ commands, \d+\.\d minutes", told), told[-6000:]
    views = [(folder / "demo" / "out" / f"act-{number}.txt").read_text() for number in PLAYED]
    assert all("vision" in view and "berlin" in view for view in views)
    assert kernel_settings() == before
    owners = {path.name.removeprefix(GROUP).split("-")[0] for path in list_cgroups(GROUP)}
    assert [owner for owner in owners if not Path(f"/proc/{owner}").exists()] == []
    assert left_behind(folder / "demo") == []
