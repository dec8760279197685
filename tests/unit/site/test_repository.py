"""How a revision's files come into a model server's folder. That the server takes them is shown in tests/integration."""

import json
from pathlib import Path

import pytest

from edgefleet.site.gateway_config import Endpoint
from edgefleet.site.runtimes import ServerUnreachable, ServingConfigMissing
from edgefleet.site.runtimes.repository import RepositoryRuntime

NAME = "weld--aaaaaaaa"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A variant in the store."""
    store = tmp_path / "store"
    store.mkdir()
    (store / "1").write_text('{"name": "weld", "implementation": "x.Y", "parameters": {"uri": "./model.onnx"}}')
    (store / "2").write_bytes(b"weights")
    (store / "3").write_bytes(b"labels")
    return {"model-settings.json": store / "1", "model.onnx": store / "2", "extra/labels.txt": store / "3"}


@pytest.fixture
def runtime(tmp_path: Path) -> RepositoryRuntime:
    """One whose server does not run."""
    (tmp_path / "models").mkdir()
    return RepositoryRuntime(Endpoint("127.0.0.1", 1), tmp_path / "models")


async def test_files_are_linked_and_only_the_name_in_the_settings_changes(
    runtime: RepositoryRuntime, files: dict[str, Path], tmp_path: Path
) -> None:
    await runtime.place(NAME, files)
    folder = tmp_path / "models" / NAME
    settings = json.loads((folder / "model-settings.json").read_text())
    assert settings == {"name": NAME, "implementation": "x.Y", "parameters": {"uri": "./model.onnx"}}
    assert (folder / "model.onnx").stat().st_ino == files["model.onnx"].stat().st_ino
    assert (folder / "extra" / "labels.txt").read_bytes() == b"labels"
    assert json.loads(files["model-settings.json"].read_text())["name"] == "weld", "the store must not change"
    assert runtime.placed() == {NAME}


async def test_files_are_copied_where_links_are_not_possible(
    runtime: RepositoryRuntime, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    await runtime.place(NAME, files)
    assert (tmp_path / "models" / NAME / "model.onnx").read_bytes() == b"weights"


async def test_placing_again_replaces_what_a_crash_left(runtime: RepositoryRuntime, files: dict[str, Path], tmp_path: Path) -> None:
    await runtime.place(NAME, files)
    (tmp_path / "models" / NAME / "stale.bin").write_bytes(b"x")
    await runtime.place(NAME, files)
    assert not (tmp_path / "models" / NAME / "stale.bin").exists()
    assert (tmp_path / "models" / NAME / "model.onnx").exists()


async def test_the_folders_of_others_are_left_alone(runtime: RepositoryRuntime, files: dict[str, Path], tmp_path: Path) -> None:
    theirs = tmp_path / "models" / "their--model"
    theirs.mkdir()
    (theirs / "model-settings.json").write_text("{}")
    assert runtime.placed() == set()
    theirs.rename(tmp_path / "models" / NAME)
    with pytest.raises(OSError, match="not empty"):
        await runtime.place(NAME, files)
    assert (tmp_path / "models" / NAME / "model-settings.json").read_text() == "{}"


@pytest.mark.parametrize("content", [None, "{", "[]", "\xff", " " * (1 << 20) + "{}"])
async def test_settings_that_are_missing_or_unreadable_are_the_revisions_fault(
    runtime: RepositoryRuntime, files: dict[str, Path], content: str | None
) -> None:
    if content is None:
        del files["model-settings.json"]
    else:
        files["model-settings.json"].write_bytes(content.encode("latin-1"))
    with pytest.raises(ServingConfigMissing, match=r"model-settings\.json"):
        await runtime.place(NAME, files)
    assert runtime.placed() == set()


async def test_a_server_that_does_not_answer_is_unreachable(runtime: RepositoryRuntime) -> None:
    async with runtime:
        with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1"):
            await runtime.is_ready(NAME)
