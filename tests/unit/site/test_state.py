"""What a site must not forget."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edgefleet.site.state import Failure, StateFile, StateUnreadable

FLEET = "vision/plants"
HASH = "a" * 64


def test_everything_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state = StateFile.open(path, site="plant-7")
    now = datetime.now(UTC)
    failure = Failure(sequence=5, revision=HASH, reason="GoldenSetFailed", message="41 %", golden_score="41.0%", at=now)
    state.change_fleet(FLEET, floor=5, accepted_action="Run", accepted_revision=HASH, model="weld", active=HASH, failure=failure)
    state.raise_bundle_version(3)
    again = StateFile.open(path, site="plant-7")
    assert again.fleet(FLEET) == state.fleet(FLEET)
    assert again.fleet(FLEET).to_memory().failed_at == 5
    assert again.bundle_version == 3
    assert again.holders() == {"weld": FLEET}


def test_nothing_is_in_memory_before_it_is_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for cut in ("write", "sync state", "rename", "sync folder"):
        path.unlink(missing_ok=True)
        StateFile.open(path, site="plant-7").change_fleet(FLEET, floor=4)

        def fail(step: str, cut: str = cut) -> None:
            if step.startswith(cut):
                raise OSError(28, "No space left on device")

        state = StateFile.open(path, site="plant-7", checkpoint=fail)
        with pytest.raises(OSError, match="No space"):
            state.change_fleet(FLEET, floor=5)
        assert state.fleet(FLEET).floor == 4
        assert StateFile.open(path, site="plant-7").fleet(FLEET).floor in (4, 5)


def test_a_bundle_version_never_goes_down(tmp_path: Path) -> None:
    state = StateFile.open(tmp_path / "state.json", site="plant-7")
    state.raise_bundle_version(3)
    state.raise_bundle_version(2)
    assert StateFile.open(tmp_path / "state.json", site="plant-7").bundle_version == 3


def test_a_clock_that_was_set_back_does_not_bring_time_back(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    StateFile.open(path, site="plant-7").change_fleet(FLEET, floor=1)
    future = datetime.now(UTC) + timedelta(days=400)
    text = path.read_text()
    stamp = next(line for line in text.splitlines() if "latestTime" in line)
    path.write_text(text.replace(stamp, f'"latestTime": "{future.isoformat()}",'))
    assert StateFile.open(path, site="plant-7").now() == future


@pytest.mark.parametrize("content", [b"", b"{", b'{"site": "plant-7", "fleets": {"a/b": {"floor": "x"}}}', b"null"])
def test_a_damaged_file_stops_the_agent(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(StateUnreadable, match="Restore it from a backup"):
        StateFile.open(path, site="plant-7")
    assert path.read_bytes() == content


def test_another_sites_file_is_refused(tmp_path: Path) -> None:
    StateFile.open(tmp_path / "state.json", site="plant-7").change_fleet(FLEET, floor=1)
    with pytest.raises(StateUnreadable, match="plant-7"):
        StateFile.open(tmp_path / "state.json", site="plant-8")
