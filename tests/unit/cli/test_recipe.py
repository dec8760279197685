"""Recipes: options and YAML mean the same; a mistake is told with its place."""

from pathlib import Path
from typing import Any

import pytest
import typer

from edgefleet.cli.output import CommandFailed
from edgefleet.cli.recipe import read_recipe

TEXT = """
name: digits
version: "1.0"
seq: 1
variants:
  - name: int8
    arch: amd64
    accelerator: npu
    features: [b, a]
    minMemory: 512Mi
    precision: int8
    priority: 10
    files: {model.onnx: build/model.onnx, conf.json: build/conf.json}
"""
WORDS = (
    "name=int8,arch=amd64,accelerator=npu,features=b+a,minMemory=512Mi,precision=int8,priority=10,"
    "file=build/model.onnx,file=build/conf.json"
)
OVERRIDES: dict[str, Any] = {"name": "digits", "version": "1.0", "seq": 1}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build").mkdir()
    for name in ("model.onnx", "conf.json"):
        (tmp_path / "build" / name).write_text(name)
    (tmp_path / "release.yaml").write_text(TEXT)
    return tmp_path


def test_options_and_yaml_mean_the_same(folder: Path) -> None:
    from_yaml, _ = read_recipe(folder / "release.yaml", [], {})
    from_words, _ = read_recipe(None, [WORDS], OVERRIDES)
    assert from_yaml == from_words
    files = from_yaml.variants[0].to_files(folder)
    assert files.facts.features == ("a", "b")
    assert files.facts.min_memory == 512 << 20
    assert {path: file.read_text() for path, file in files.files.items()} == {"model.onnx": "model.onnx", "conf.json": "conf.json"}


def test_options_win_over_yaml(folder: Path) -> None:
    found, _ = read_recipe(folder / "release.yaml", [], {"version": "2.0", "seq": None, "name": None})
    assert (found.version, found.seq) == ("2.0", 1)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("name: digits", "name: Not A Name", "name"),
        ('version: "1.0"', "version: 1.0", "version"),
        ("seq: 1", "seq: -1", "seq"),
        ("seq: 1", "sequence: 1", "seq"),
        ("arch: amd64", "arch: AMD 64", "variants.0.arch"),
        ("minMemory: 512Mi", "minMemory: lots", "variants.0.minMemory"),
        ("priority: 10", "prio: 10", "variants.0.prio"),
        ("files: {model.onnx: build/model.onnx, conf.json: build/conf.json}", "files: {}", "variants.0.files"),
        ("name: digits", "name: [", "not YAML"),
    ],
)
def test_a_mistake_in_yaml_is_told_with_its_place(old: str, new: str, named: str, folder: Path) -> None:
    (folder / "release.yaml").write_text(TEXT.replace(old, new, 1))
    with pytest.raises(CommandFailed, match=named) as raised:
        read_recipe(folder / "release.yaml", [], {})
    assert "release.yaml" in raised.value.message


def test_yaml_that_is_no_map(folder: Path) -> None:
    (folder / "release.yaml").write_text("- a\n")
    with pytest.raises(CommandFailed, match="a map"):
        read_recipe(folder / "release.yaml", [], {})


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "build" / "conf.json").unlink()
    recipe, _ = read_recipe(folder / "release.yaml", [], {})
    with pytest.raises(CommandFailed, match=r"conf\.json is not a file"):
        recipe.variants[0].to_files(folder)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("name=a,arch=amd64,file=x,colour=red", "colour=red"),
        ("name=a,,arch=amd64", "''"),
        ("name=a,name=b,arch=amd64,file=x", "twice"),
        ("name=a,arch=amd64,file=x/m,file=y/m", "two files called m"),
        ("name=a,arch=amd64", "files"),
        ("name=a,file=x", "arch"),
        ("name=a,arch=amd64,file=", "file="),
    ],
)
def test_a_mistake_in_options_is_wrong_usage(words: str, named: str) -> None:
    with pytest.raises(typer.BadParameter, match=named):
        read_recipe(None, [words], OVERRIDES)
