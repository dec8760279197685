"""What a site must not forget."""

from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgefleet.site import state as module
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
    again = StateFile.open(path, site="plant-7")
    assert future <= again.now() <= future + timedelta(seconds=20)
    assert "ClockSkew: the clock says" in again.describe_clock()


class Clock(datetime):
    """A wall clock that is set by hand."""

    set_to = datetime(2026, 11, 28, 12, tzinfo=UTC)

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "Clock":
        return cls.fromtimestamp(cls.set_to.timestamp(), tz)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    """The wall clock, and a counter of seconds that stands still."""
    monkeypatch.setattr(module, "datetime", Clock)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 0.0))
    Clock.set_to = datetime(2026, 11, 28, 12, tzinfo=UTC)
    return Clock


def test_time_is_kept_while_nothing_else_changes_at_most_once_an_hour(tmp_path: Path, clock: type[Clock]) -> None:
    path, writes = tmp_path / "state.json", list[str]()
    state = StateFile.open(path, site="plant-7", checkpoint=lambda step: writes.append(step) if step.startswith("rename") else None)
    began = clock.set_to
    for minute in range(24 * 60):
        clock.set_to = began + timedelta(minutes=minute)
        state.remember_time()
    assert len(writes) == 24
    clock.set_to = datetime(1970, 1, 1, tzinfo=UTC)
    assert StateFile.open(path, site="plant-7").now() == began + timedelta(hours=23)


def test_time_goes_on_though_the_clock_was_set_back(tmp_path: Path, clock: type[Clock], monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a battery that begins in 1970 each time: an order must end there, too, and each hour is kept."""
    seconds = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    StateFile.open(tmp_path / "state.json", site="plant-7").remember_time()
    began = clock.set_to
    for boot in range(3):
        clock.set_to = datetime(1970, 1, 1, tzinfo=UTC)
        state = StateFile.open(tmp_path / "state.json", site="plant-7")
        assert state.now() == began + timedelta(hours=10 * boot)
        for _ in range(10):
            seconds[0] += 3600
            state.remember_time()


def test_a_time_that_was_wrong_is_forgotten_by_hand_and_nothing_else_is(tmp_path: Path, clock: type[Clock]) -> None:
    """docs/security.md says how: the line `latestTime` goes."""
    path, now = tmp_path / "state.json", clock.set_to
    clock.set_to = now + timedelta(days=3650)
    StateFile.open(path, site="plant-7").change_fleet(FLEET, floor=9)
    clock.set_to = now
    assert StateFile.open(path, site="plant-7").now() == now + timedelta(days=3650)
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "latestTime" not in line))
    state = StateFile.open(path, site="plant-7")
    assert (state.now(), state.fleet(FLEET).floor, state.describe_clock()) == (now, 9, "")


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
