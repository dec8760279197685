"""The command line as a whole: help that teaches, exit codes, errors on one line."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import typer.main

from edgefleet.cli.app import load, make_app, run


@pytest.fixture(autouse=True)
def no_logins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


NOUNS = ("fleet", "golden", "model", "site", "trust")
VERBS = [(name, verb) for name in NOUNS for verb in typer.main.get_command(load(name)).commands]  # type: ignore[attr-defined]
VERBS += [("rollout", "explain"), ("rollout", "export"), ("judge", "replay")]


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_each_command_explains_itself_and_its_exit_codes(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "--help"]) == 0
    said = capsys.readouterr().out
    assert "0 done, 1 refused or failed" in said
    assert len(said.splitlines()) > 10


def test_status_explains_its_own_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--help"]) == 0
    assert "0 nothing needs a person, 1 something does" in " ".join(capsys.readouterr().out.split())


def test_the_help_for_push_shows_a_recipe_that_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edgefleet.cli.recipe import read_recipe

    run(["model", "push", "--help"])
    said = capsys.readouterr().out
    example = re.search(r"^    name: digits\n(?:.*\n)+?(?=\n)", said, re.MULTILINE)
    assert example
    file = tmp_path / "release.yaml"
    file.write_text(example[0])
    recipe, _ = read_recipe(file, [], {})
    assert [variant.name for variant in recipe.variants] == ["fp32", "int8"]
    assert recipe.variants[1].features == ("avx512_vnni",)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"edgefleet {metadata.version('edgefleet')}"


def test_an_agent_does_not_carry_what_it_never_calls() -> None:
    """It runs for months beside the model; these are the largest of what other commands need."""
    code = "import sys; from edgefleet.cli.app import make_app; make_app('agent'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert "edgefleet.cli.agent" in loaded
    assert not {"rich", "kopf", "edgefleet.cli.model", "edgefleet.core.traffic"} & set(loaded)


def test_unknown_commands_are_wrong_usage() -> None:
    assert run(["nonsense"]) == 2
    assert make_app().info.name == "edgefleet"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["model", "verify", "digits", "--key", "k.pub"], 2, "does not begin with a registry|names no tag"),
        (["model", "verify", "127.0.0.1:1/digits:1"], 2, "whom to trust: keys or identities, or --bundle with"),
        (["model", "verify", "127.0.0.1:1/digits:1", "--key", "KEY", "--threshold", "0"], 2, "--threshold"),
        (["model", "push", "127.0.0.1:1/digits@sha256:" + "a" * 64, "--no-sign"], 2, "push to a tag"),
        (["model", "push", "127.0.0.1:1/digits:1"], 2, "--key"),
        (["model", "push", "127.0.0.1:1/digits:1", "--no-sign"], 2, "name: Field required"),
        (["model", "push", "127.0.0.1:1/digits:1", "--no-sign", "--variant", "name"], 2, "'name' is not one of"),
        (["model", "push", "127.0.0.1:1/digits:1", "--no-sign", "--from", "nowhere.yaml"], 1, "No such file"),
        (["golden", "push", "127.0.0.1:1/digits:1", "KEY", "--name", "digits", "--key", "KEY"], 1, "KeyInvalid: KEY: "),
        (["golden", "push", "127.0.0.1:1/digits:1", "KEY", "--name", "Digits", "--key", "KEY"], 2, "'Digits': lower-case"),
        (["model", "verify", "127.0.0.1:1/digits:1", "--key", "nowhere.pub"], 1, "No such file"),
        (["judge", "replay", "nowhere.jsonl"], 1, "No such file"),
        (["judge", "replay", "KEY"], 1, "RecordInvalid: KEY: line 1 is no line of a record"),
        (["status", "--kubeconfig", "nowhere"], 1, "KubeconfigInvalid"),
        (["hub", "--metrics-port", "0"], 2, "--metrics-port"),
    ],
)
def test_errors_are_told_on_stderr(
    arguments: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "KEY").write_text("no key")
    assert run(arguments) == code
    out, err = capsys.readouterr()
    assert re.search(said, err), err
    assert "Traceback" not in err
    assert not out
