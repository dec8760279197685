"""A site that is alone, and its gates. The rule itself is tested in tests/unit/core."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.model import LatencySlo, Slo
from edgefleet.api.policy import Analysis, Gate
from edgefleet.api.report import HealthBaseline, HealthCounts
from edgefleet.core.health import Stream
from edgefleet.site.state import Failure, FleetState, StateFile
from edgefleet.site.store import RevisionRecord, Store
from edgefleet.site.telemetry.events import Edges, Events
from edgefleet.site.telemetry.history import History
from edgefleet.site.telemetry.verdict import OwnJudge, judge_alone, may_judge

FLEET = "vision/plants"
A, B = "a" * 64, "b" * 64
AT = 1_790_000_000
SLO = Slo(latency=LatencySlo(le="50ms", share="99%"), error_rate="1%")
RELATIVE = Analysis(gates=(Gate(name="errors", max_increase="25%"),))


def stream(requests: int, *, failed: int = 0, slow: int = 0, before: HealthBaseline | None = None) -> Stream:
    epochs = {AT: {AT // 300: HealthCounts(requests, failed, slow)}}
    return Stream(B, AT, 2, epochs, le_ms=50, before=before or HealthBaseline(100_000, 100, 100, 0, 0))


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (stream(1000, failed=1, slow=5), None),
        (stream(300, slow=60), "LatencyRegression"),
        (stream(300, failed=60), "ErrorRegression"),
        (stream(3), None),
        (stream(300, failed=60, before=HealthBaseline(1000, 300, 0, 0, 0)), None),
    ],
    ids=["healthy", "slow", "failing", "too few", "no worse than before"],
)
def test_absolute_gates_decide_alone(seen: Stream, reason: str | None) -> None:
    found = judge_alone(seen, SLO, Analysis(), now=AT // 300)
    assert (found and found[0]) == reason
    if found:
        assert "60 of 300" in found[1]
        assert "evidence" in found[1]


def test_relative_gates_and_dry_runs_do_not_but_count_for_the_bound() -> None:
    assert judge_alone(stream(300, failed=60), Slo(), RELATIVE, now=AT // 300) is None
    dry = Analysis(gates=(Gate(name="errors", dry_run=True),))
    assert judge_alone(stream(300, failed=60), Slo(error_rate="1%"), dry, now=AT // 300) is None
    found = judge_alone(stream(300, failed=60), SLO, RELATIVE, now=AT // 300)
    assert found is not None
    assert "60 is enough" in found[1]  # three gates in force / 5 %


SERVES = FleetState(
    floor=2,
    accepted_action="Run",
    accepted_revision=B,
    served_sequence=2,
    model="weld",
    active=B,
    active_since=datetime.fromtimestamp(AT, UTC),
    slo=SLO,
    analysis=Analysis(),
    previous=A,
    previous_sequence=1,
)


@pytest.mark.parametrize(
    "change",
    [
        {"floor": 3, "accepted_action": "Run", "accepted_revision": A},
        {"accepted_action": "Withdraw", "accepted_revision": None},
        {"failure": Failure(sequence=2, revision=B, reason="X", message="", at=datetime.now(UTC))},
        {"previous": None},
        {"analysis": None},
    ],
    ids=["a newer order", "withdrawn", "failed already", "nothing to go back to", "nobody said how"],
)
def test_only_what_the_newest_order_switched_in_is_judged(change: dict[str, Any]) -> None:
    assert may_judge(SERVES)
    assert not may_judge(SERVES.model_copy(update=change))


class FakeMeter:
    """Knows one history."""

    mark = AT // 300

    def __init__(self, *revisions: str) -> None:
        self.history = History()
        for number, revision in enumerate(revisions):
            self.latest = self.history.begin(revision, f"weld--{revision[:8]}", Edges(50), at=AT + number, now=self.mark)

    def find(self, fleet: str) -> Any:
        return self.history, self.latest


class Site:
    """One that has been silent for four minutes."""

    def __init__(self, folder: Path, meter: FakeMeter) -> None:
        self.state, self.store, self.meter = StateFile.open(folder / "state.json", site="plant-7"), Store(folder / "store"), meter
        since = datetime.fromtimestamp(meter.latest.at, UTC)
        self.state.change_fleet(FLEET, **{name: getattr(SERVES, name) for name in FleetState.model_fields} | {"active_since": since})
        self.silence = timedelta(minutes=4)
        self.taken: list[Failure] = []
        self.judge = OwnJudge(
            state=self.state,
            store=self.store,
            meter=meter,  # type: ignore[arg-type]
            renew=timedelta(minutes=1),
            silence=lambda: self.silence,
            take_back=self.take_back,
        )

    def take_back(self, fleet: str, failure: Failure) -> None:
        self.taken.append(failure)
        self.state.change_fleet(fleet, failure=failure)

    def ask(self, requests: int, slow: int) -> None:
        events = Events(requests, 0, {5: requests - slow, 60: slow})
        self.meter.history.record(self.meter.latest, events, life="1", second=AT + 10)


@pytest.fixture
def alone(tmp_path: Path, place: Callable[..., RevisionRecord]) -> Site:
    """B serves and is slow; A ran before it and is in the store."""
    site = Site(tmp_path, FakeMeter(A, B))
    place(site.store, "a", b"weights")
    site.ask(300, 60)
    return site


def test_a_site_that_is_alone_takes_back_what_is_worse_once(alone: Site) -> None:
    alone.judge.look()
    alone.judge.look()
    (failure,) = alone.taken
    assert (failure.sequence, failure.revision, failure.reason) == (2, B, "LatencyRegression")
    assert "could not be reached" in failure.message
    assert alone.judge.taken_back == {FLEET: 1}


def test_while_the_hub_is_heard_it_decides(alone: Site) -> None:
    alone.silence = timedelta(minutes=3)
    alone.judge.look()
    assert alone.taken == []


def test_without_the_old_files_there_is_no_way_back(tmp_path: Path) -> None:
    site = Site(tmp_path, FakeMeter(A, B))
    site.ask(300, 60)
    site.judge.look()
    assert site.taken == []


def test_what_was_taken_back_once_is_not_gone_back_to(tmp_path: Path, place: Callable[..., RevisionRecord]) -> None:
    site = Site(tmp_path, FakeMeter(B, A, B))
    place(site.store, "a", b"weights")
    site.ask(300, 60)
    site.judge.look()
    assert site.taken == []


def test_a_verdict_that_cannot_be_remembered_is_reached_again(alone: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(alone.judge, "_take_back", full)
        alone.judge.look()
    assert alone.judge.taken_back == {}
    alone.judge.look()
    assert len(alone.taken) == 1
