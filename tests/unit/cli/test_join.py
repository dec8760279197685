"""`edgefleet site join` and `identity`, `edgefleet agent --join`: what is wrong is said before anything is made."""

from pathlib import Path

import pytest

from edgefleet.cli.app import run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    run(["trust", "init", str(tmp_path / "trust"), "--model", "digits"])
    return tmp_path / "trust" / "root.json"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--expires", "9m"], 2, "10m to 168h"),
        (["--expires", "169h"], 2, "10m to 168h"),
        (["--region", "kz"], 2, "--create"),
        (["--trusted-root", "nowhere.json"], 1, "nowhere.json"),
        (["--kubeconfig", "nowhere.yaml"], 1, "nowhere.yaml"),
    ],
)
def test_a_join_that_cannot_be(words: list[str], code: int, said: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["site", "join", "berlin", "--trusted-root", str(root), *words]) == code
    assert said in " ".join(capsys.readouterr().err.split())


def test_what_is_no_root_is_not_pinned(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["site", "join", "berlin", "--trusted-root", str(root.with_name("hub.pub"))]) == 1
    assert "hub.pub: not a root document" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--join", "nowhere.json", "--site", "berlin"], "leave --site, --hub-kubeconfig, --trusted-root out"),
        (["--join", "nowhere.json"], "a join file was expected"),
        (["--site", "berlin"], "name the join file with --join"),
        (["--site", "berlin", "--tpm", "/dev/tpmrm0"], "--tpm is for --join"),
    ],
)
def test_an_agent_is_told_in_one_way(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "site-kubeconfig": tmp_path / "site",
        "state": tmp_path / "state",
        "server-url": "http://127.0.0.1:1",
        "server-models": tmp_path,
        "gateway-port": 1,
    }
    assert run(["agent", *(word for key, value in options.items() for word in (f"--{key}", str(value))), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def test_a_machine_that_never_joined_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["site", "identity", "--state", str(tmp_path)]) == 1
    assert "NotJoined" in capsys.readouterr().err
