"""The demo is the widest test there is: real clusters, agents, gateways, model servers, customers, act by act.

It runs as a person runs it, in a process of its own; its assertions are the demo's own, and its last lines are the failure message. With
EDGEFLEET_DEMO_ACTS=all in the environment every act is played, else those of `make demo`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.demo_run import CLEANUP, REPOSITORY, run_demo
from tests.e2e.machine import left_behind

ACTS = os.environ.get("EDGEFLEET_DEMO_ACTS", "standard")
PLAYED = {"standard": range(1, 8), "all": range(1, 11)}[ACTS]
LIMIT = {"standard": 900.0, "all": 1500.0}[ACTS]  # seconds for the acts, once the lab is built
BUILD = 1800.0  # seconds to build the lab where no other test did


@pytest.mark.e2e
@pytest.mark.timeout(BUILD + LIMIT + CLEANUP + 60)
def test_every_act_as_promised_and_no_request_lost(tmp_path: Path) -> None:
    # What takes minutes once per machine is had first, so that the limit is about the acts alone.
    subprocess.run([sys.executable, "-m", "tests.lab", "build"], cwd=REPOSITORY, check=True, timeout=BUILD)

    output = tmp_path / "output.txt"
    code = run_demo(tmp_path / "demo", ACTS, output, LIMIT)

    told = output.read_text()
    assert code == 0, told[-6000:]
    assert re.search(r"customers: [1-9]\d{3,} requests answered at 8 sites .*, 0 lost", told), told[-2000:]
    views = [(tmp_path / "demo" / "out" / f"act-{number}.txt").read_text() for number in PLAYED]
    assert all("vision" in view and "berlin" in view for view in views)
    assert left_behind(tmp_path / "demo") == []
