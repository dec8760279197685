"""`edgefleet agent` and `edgefleet gateway`: what is wrong is said before anything starts."""

import json
from pathlib import Path

import pytest

from edgefleet.cli.app import run


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A command line that would start an agent."""
    run(["trust", "init", str(tmp_path / "trust"), "--model", "digits"])
    options = {
        "site": "almaty",
        "hub-kubeconfig": tmp_path / "hub",
        "site-kubeconfig": tmp_path / "site",
        "state": tmp_path / "state",
        "trusted-root": tmp_path / "trust" / "root.json",
        "server-url": "http://127.0.0.1:1",
        "server-models": tmp_path,
        "gateway-port": 1,
    }
    return ["agent", *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--site", "Almaty", "is not a name"),
        ("--trusted-root", "trust/hub.pub", "hub.pub: not a root document, such as root.json"),
        ("--trusted-root", "trust/bundle.json", "bundle.json: not a root document"),
        ("--trusted-root", "nowhere", "No such file"),
        ("--server-url", "ftp://x", "write http://HOST:PORT"),
        ("--server-models", "nowhere", "is not a folder"),
        ("--renew", "0s", "1s or longer"),
        ("--renew", "often", "not a duration"),
        ("--server-metrics", "http://elsewhere:8082/metrics", "with the host of --server-url or a loopback one"),
        ("--server-metrics", "https://127.0.0.1:8082/metrics", "write http://"),
    ],
)
def test_an_agent_that_was_told_wrongly_does_not_start(
    option: str,
    value: str,
    said: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert run([*words, option, value]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def test_a_heartbeat_of_the_hub_has_a_shortest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["hub", "--heartbeat", "0s"]) == 2
    assert "1s or longer" in capsys.readouterr().err


def test_a_gateway_that_never_ran_is_told_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["gateway", "status", "--state", str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"gateway: does not run, none was ever started with the state folder {tmp_path}\n"
    assert run(["gateway", "status", "--state", str(tmp_path), "-o", "json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"address": "", "lives": 0, "models": {}, "pid": None}
    assert run(["gateway", "status", "--state", str(tmp_path), "-o", "xml"]) == 2
