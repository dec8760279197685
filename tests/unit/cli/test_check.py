"""`edgefleet check` without a cluster: usage, what it takes for installed, and lines that fail or hang beside others."""

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgefleet.cli.app import run
from edgefleet.cli.check import in_thread, run_probes
from edgefleet.core.preflight import Level, Line
from edgefleet.kube.errors import Denied, Unavailable
from tests.lab.expected import INSTALL, TARGET, plan_expected


def test_what_is_taken_for_installed_is_what_the_chart_installs() -> None:
    assert TARGET.read_text() == plan_expected(INSTALL.read_text()), "run `python -m tests.lab.expected` after `make manifests`"
    found = json.loads(TARGET.read_text())
    assert {"edgefleet-site-writes", "edgefleet-hub-owned"} <= found["policies"].keys()
    assert found["policies"].keys() == {binding["policyName"] for binding in found["bindings"].values()}
    assert {"group": "edgefleet.io", "resource": "edgefleets", "subresource": "status", "verb": "patch"} in found["rights"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--site", "a", "--state", "b"], "give one kind"),
        (["--timeout", "0s"], "1s to 5m"),
        (["--timeout", "soon"], "--timeout"),
    ],
)
def test_wrong_usage(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_no_state_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--state", str(tmp_path)]) == 1
    assert "StateMissing" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "edgefleet check --site berlin" in said
    assert "Exit codes: 0 no line says FAIL" in said


async def fine() -> Sequence[Line]:
    return [Line("fine", Level.OK, "it is")]


async def hangs() -> Sequence[Line]:
    await asyncio.Event().wait()
    return []


async def hangs_in_a_thread() -> Sequence[Line]:
    await in_thread(lambda: time.sleep(30))
    return []


async def may_not() -> Sequence[Line]:
    raise Denied(403, "forbidden")


async def is_away() -> Sequence[Line]:
    raise Unavailable(0, "refused")


async def breaks() -> Sequence[Line]:
    raise KeyError("spec")


async def test_each_line_stands_alone_and_has_its_own_time() -> None:
    probes = {"a": fine, "b": hangs, "c": hangs_in_a_thread, "d": may_not, "e": is_away, "f": breaks, "g": fine}
    start = time.monotonic()
    lines = await run_probes({}, probes, 0.2)
    assert time.monotonic() - start < 5
    assert [(line.check, line.level.value) for line in lines] == [
        ("fine", "OK"),
        ("b", "FAIL"),
        ("c", "FAIL"),
        ("d", "WARN"),
        ("e", "FAIL"),
        ("f", "FAIL"),
        ("fine", "OK"),
    ]
    assert all(line.remedy for line in lines if line.level is not Level.OK)


async def test_where_the_first_fails_no_other_is_asked() -> None:
    assert [line.check for line in await run_probes({"a": is_away}, {"b": fine}, 1)] == ["a"]
