"""The bundle as a file: what fails is named and costs nothing else, what is packed is redacted, and only its owner reads it."""

import asyncio
import json
import tarfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edgefleet.cli.app import run
from edgefleet.cli.support import MAX_TEXT_BYTES, gather_parts, to_safe_text, write_bundle
from edgefleet.kube.errors import Denied


async def fine() -> Mapping[str, Any]:
    return {"a.json": {"token": "hunter2"}, "b.log": b"password=hunter2 \xff", "c": Denied(403, "no log for you")}


async def fails() -> Mapping[str, Any]:
    raise KeyError("spec")


async def may_not() -> Mapping[str, Any]:
    raise Denied(403, "leases is forbidden")


async def hangs() -> Mapping[str, Any]:
    await asyncio.Event().wait()
    return {}


async def test_what_cannot_be_had_is_named_and_the_rest_is_packed() -> None:
    files, missing = await gather_parts({"fails": fails, "leases": may_not, "hangs": hangs, "fine": fine}, 0.2)
    assert files == {"a.json": '{\n "token": "[redacted]"\n}\n', "b.log": "password=[redacted] �"}
    assert missing == ["fails: KeyError: 'spec'", "leases: leases is forbidden", "hangs: no answer within 0.2 s", "c: no log for you"]


def test_of_a_long_log_the_end_is_kept() -> None:
    assert to_safe_text(b"first\n" + b"x" * MAX_TEXT_BYTES) == "x" * MAX_TEXT_BYTES


def test_a_bundle_is_for_its_owner_alone_and_replaces_an_older_one(tmp_path: Path) -> None:
    target = tmp_path / "b.tgz"
    for content in ("one", "two"):
        write_bundle(target, {"a/b.txt": content}, datetime.now(UTC))
    assert target.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["b.tgz"]
    with tarfile.open(target) as archive:
        member = archive.extractfile("edgefleet-support/a/b.txt")
        assert member is not None
        assert member.read() == b"two"


def state_folder(folder: Path) -> Path:
    state = folder / "state"
    for name in ("gateway", "store/blobs", "identity"):
        (state / name).mkdir(parents=True)
    memory = {"formatVersion": 1, "site": "berlin", "fleets": {"team/plants": {"floor": 3}}}
    (state / "state.json").write_text(json.dumps(memory))
    (state / "identity" / "agent.key").write_text("-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n")
    (state / "store" / "blobs" / ("ab" * 32)).write_bytes(b"the model: hunter2")
    (state / "gateway" / "envoy.log").write_text("upstream https://u:hunter2@h.example/ reset\n")
    return state


def test_at_a_site_keys_and_models_are_listed_and_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, target, log = state_folder(tmp_path), tmp_path / "b.tgz", tmp_path / "agent.log"
    log.write_text('{"message": "Authorization: Bearer hunter2"}\n')
    words = ["support-bundle", "--state", str(state), "-o", str(target), "--log", str(log), "--log", str(tmp_path / "none.log")]
    assert run(words) == 0
    assert "left out: log none.log: FileNotFoundError" in capsys.readouterr().err
    with tarfile.open(target) as archive:
        found = {name.removeprefix("edgefleet-support/"): archive.extractfile(name).read().decode() for name in archive.getnames()}  # type: ignore[union-attr]
    expected = "about.txt check.json disk.json files.txt gateway.json gateway/envoy.log logs/agent.log state.json versions.json"
    assert sorted(found) == sorted(expected.split())
    assert "hunter2" not in json.dumps(found)
    assert json.loads(found["state.json"])["fleets"] == {"team/plants": {"floor": 3}}
    assert "identity/agent.key" in found["files.txt"]
    assert "ab" * 32 in found["files.txt"]
    assert json.loads(found["check.json"])["level"] == "FAIL", "no trust bundle, no gateway"
    assert "none.log" in found["about.txt"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--state", "."], 1, "StateMissing"),
        (["-o", "/nowhere/at/all.tgz"], 2, "no file in a folder that exists"),
        (["--metrics", "localhost:1"], 2, "write http://HOST:PORT/metrics"),
    ],
)
def test_wrong_usage(
    words: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["support-bundle", *words]) == code
    assert said in " ".join(capsys.readouterr().err.split()).replace("│ ", "")


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["support-bundle", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Secrets are never read" in said
    assert "Exit codes: 0 done" in said
