"""How commands speak: ages in their largest unit, prose that folds under its label."""

from datetime import UTC, datetime, timedelta

import pytest

from edgefleet.cli.output import print_prose, show_age

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "said"), [(-5, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_800, "2d"), (1e7, "115d")]
)
def test_an_age_is_told_in_its_largest_unit(seconds: float, said: str) -> None:
    assert show_age(NOW - timedelta(seconds=seconds), NOW) == said


def test_no_moment_has_no_age() -> None:
    assert show_age(None, NOW) == "-"


def test_prose_folds_under_its_label_and_keeps_commands_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_prose({"why": "word " * 12, "none": "", "next": "edgefleet " + "x" * 60}, indent=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("  why  word")
    assert lines[1].startswith("       word")
    assert all(len(line) <= 40 for line in lines[:-1])
    assert lines[-1].strip() == "x" * 60
    assert not any("none" in line for line in lines)
