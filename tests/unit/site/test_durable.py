"""A file is the old one or the new one, wherever the power fails."""

import os
from pathlib import Path

import pytest

from edgefleet.site.durable import write_durably


class PowerCut(Exception):
    """The machine is off."""


def test_steps_come_in_the_order_that_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda _: steps.append("fsync"))
    write_durably(tmp_path / "f", b"new", checkpoint=steps.append)
    assert steps == ["write f", "sync f", "fsync", "rename f", "sync folder of f", "fsync"]


@pytest.mark.parametrize(("cut", "content"), [("write", b"old"), ("sync f", b"old"), ("rename", b"old"), ("sync folder", b"new")])
def test_a_cut_leaves_old_or_new(tmp_path: Path, cut: str, content: bytes) -> None:
    file = tmp_path / "f"
    write_durably(file, b"old")

    def fail(step: str) -> None:
        if step.startswith(cut):
            raise PowerCut

    with pytest.raises(PowerCut):
        write_durably(file, b"new", checkpoint=fail)
    assert file.read_bytes() == content
    write_durably(file, b"newest")
    assert file.read_bytes() == b"newest"


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    write_durably(tmp_path / "f", b"x")
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600
