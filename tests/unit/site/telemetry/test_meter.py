"""Looking, keeping and telling, on a gateway that is a fake and a clock that is turned by hand; the real ones are in tests/integration."""

import functools
import json
import random
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgefleet.api.model import LatencySlo, Slo
from edgefleet.api.report import MAX_HEALTH_BYTES, HealthReport, health_annotation
from edgefleet.core.health import merge_streams, read_stream
from edgefleet.site.gateway import GatewayDown, Look
from edgefleet.site.state import StateFile
from edgefleet.site.telemetry import meter as module
from edgefleet.site.telemetry.events import Edges
from edgefleet.site.telemetry.meter import BACKLOG_SECONDS, Meter

FLEET = "vision/plants"
A, B = "a" * 64, "b" * 64
START = 1_790_000_100.0


class FakeGateway:
    """Counts what it is told; `alive` False is an Envoy that does not answer; `ended` those that run no more."""

    def __init__(self) -> None:
        self.life, self.alive = "1", True
        self.counts: dict[str, list[int]] = {}
        self.ended: dict[str, Look] = {}

    def forget(self, life: str) -> None:
        del self.ended[life]

    async def fetch_stats(self, query: Any) -> dict[str, Look]:
        if not self.alive:
            raise GatewayDown("it has ended")
        entries: list[dict[str, Any]] = []
        for name, (requests, errors, slow) in self.counts.items():
            for counter, value in (("rq_completed", requests), ("rq_5xx", errors)):
                entries.append({"name": f"cluster.{name}.upstream_{counter}", "value": value})
            totals = [{"lower_bound": 5, "count": requests - slow}, {"lower_bound": 60, "count": slow}]
            entries.append({"histograms": {"details": [{"name": f"cluster.{name}.upstream_rq_time", "totals": totals}]}})
        return {**self.ended, self.life: Look({"stats": entries})}

    def ask(self, revision: str, requests: int, *, failed: int = 0, slow: int = 0) -> None:
        held = self.counts.setdefault(f"weld--{revision[:8]}", [0, 0, 0])
        held[:] = [held[0] + requests, held[1] + failed, held[2] + slow]


class Bench:
    """A meter whose time and gateway are in our hands."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.now = folder, START
        self.gateway = FakeGateway()
        self.state = StateFile.open(folder / "state.json", site="plant-7")
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.meter = self.open()

    def open(self) -> Meter:
        gateway: Any = self.gateway
        self.meter = Meter(self.folder / "telemetry", state=self.state, gateway=gateway, metrics_url=None, clock=lambda: self.now)
        return self.meter

    def serve(self, revision: str, *, sequence: int = 1) -> None:
        since = datetime.fromtimestamp(self.now, UTC)
        slo = Slo(latency=LatencySlo(le="50ms", share="99%"))
        self.state.change_fleet(FLEET, active=revision, active_since=since, model="weld", served_sequence=sequence, slo=slo)
        self.gateway.counts.setdefault(f"weld--{revision[:8]}", [0, 0, 0])

    def report(self) -> tuple[HealthReport, int]:
        text = self.meter.reports(skew=0.4)[health_annotation(FLEET)]
        return HealthReport.model_validate_json(text), len(text)

    async def pass_minutes(self, minutes: int, *, told: bool, requests: int = 60) -> None:
        """Traffic, looks and renewals; `told`: whether the hub takes them."""
        for _ in range(minutes):
            self.now += 60
            self.gateway.ask(next(state.active or "" for state in self.state.fleets.values()), requests, slow=1)
            await self.meter.look()
            self.report()
            if told:
                self.meter.note_renewed()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Nothing serves yet."""
    return Bench(tmp_path, monkeypatch)


async def test_a_report_is_of_what_serves_since_its_switch(bench: Bench) -> None:
    await bench.meter.look()
    assert bench.meter.reports(skew=0) == {}
    bench.serve(A)
    bench.gateway.ask(A, 100, failed=2, slow=3)
    await bench.meter.look()
    report, size = bench.report()
    assert (report.revision, report.sequence, report.activation, report.le_ms) == (A, 1, int(START), 50)
    assert tuple(read_stream(report).total)[:3] == (100, 2, 3)
    assert size <= MAX_HEALTH_BYTES

    bench.now += 600
    bench.serve(B, sequence=2)
    bench.gateway.ask(B, 7)
    await bench.meter.look()
    report, _ = bench.report()
    assert (report.revision, report.sequence) == (B, 2)
    assert tuple(read_stream(report).total)[:3] == (7, 0, 0)
    assert report.before is not None
    assert tuple(report.before)[:3] == (100, 2, 3)


async def test_what_was_checkpointed_survives_agent_and_gateway(bench: Bench) -> None:
    bench.serve(A)
    await bench.pass_minutes(11, told=True)
    held = read_stream(bench.report()[0]).total
    # Both are killed; the last checkpoint was at the last 5-minute mark.
    bench.open()
    bench.gateway.life, bench.gateway.counts = "2", {"weld--aaaaaaaa": [5, 0, 0]}
    await bench.meter.look()
    report, _ = bench.report()
    now = read_stream(report).total
    assert held.requests - 5 * 60 <= now.requests - 5 <= held.requests
    assert len(report.epochs) == 2

    # The agent alone: the gateway has counted on.
    bench.gateway.ask(A, 50)
    bench.open()
    bench.gateway.ask(A, 50)
    await bench.meter.look()
    assert read_stream(bench.report()[0]).total.requests == now.requests + 100
    assert len(bench.report()[0].epochs) == 2


async def test_a_backlog_follows_a_cut_and_stays_for_ten_minutes(bench: Bench) -> None:
    bench.serve(A)
    await bench.pass_minutes(30, told=True)
    assert bench.report()[1] <= MAX_HEALTH_BYTES
    await bench.pass_minutes(600, told=False)
    report, size = bench.report()
    assert size > MAX_HEALTH_BYTES
    assert len(report.epochs[0].records) >= 600 / 5
    assert read_stream(report).total.requests == 630 * 60
    bench.meter.note_renewed()
    await bench.pass_minutes(int(BACKLOG_SECONDS / 60) - 1, told=True)
    assert bench.report()[1] > MAX_HEALTH_BYTES
    await bench.pass_minutes(1, told=True)
    report, size = bench.report()
    assert size <= MAX_HEALTH_BYTES
    assert read_stream(report).total.requests == 640 * 60
    await bench.pass_minutes(30, told=True)
    assert bench.report()[1] <= MAX_HEALTH_BYTES


async def test_a_cut_of_nine_days_says_what_was_lost(bench: Bench) -> None:
    bench.serve(A)
    await bench.pass_minutes(10, told=True)
    for _ in range(9 * 24 * 4):
        bench.now += 900
        bench.gateway.ask(A, 10)
        await bench.meter.look()
    report, size = bench.report()
    assert MAX_HEALTH_BYTES < size <= 32_768
    assert report.lost > 0
    assert read_stream(report).total.requests == 600 + 9 * 24 * 40
    assert (bench.folder / "telemetry").stat().st_size < 262_144


async def test_the_hub_knows_the_same_whatever_it_missed_and_in_whatever_order(bench: Bench) -> None:
    draw, heard = random.Random(7), list[HealthReport]()
    bench.serve(A)
    for minute in range(600):
        bench.now += 60
        bench.gateway.ask(A, draw.randrange(100), slow=draw.randrange(2))
        if minute == 300:
            bench.gateway.life, bench.gateway.counts = "2", {"weld--aaaaaaaa": [1, 0, 0]}
        await bench.meter.look()
        report, _ = bench.report()
        # The line is bad for hours; the site does not know which reports came through, only which were taken.
        if draw.random() < (0.02 if 100 < minute < 500 else 0.8):
            bench.meter.note_renewed()
            heard.append(report)
    heard.append(bench.report()[0])
    last = read_stream(heard[-1])
    draw.shuffle(heard)
    streams = [read_stream(report) for report in heard]
    merged = functools.reduce(merge_streams, [*streams, *streams[:20]])
    found = bench.meter.find(FLEET)
    assert found is not None
    assert merged.total == last.total == found[1].total.measure(Edges(50))
    marks = {mark for epoch in found[1].epochs for mark in epoch.marks}
    assert marks <= {mark for records in merged.epochs.values() for mark in records}


async def test_bad_answers_of_a_young_revision_are_urgent_until_told(bench: Bench) -> None:
    bench.serve(A)
    bench.gateway.ask(A, 100)
    await bench.meter.look()
    assert not bench.meter.is_urgent()
    bench.gateway.ask(A, 10, failed=1)
    await bench.meter.look()
    assert bench.meter.is_urgent()
    bench.report()
    assert not bench.meter.is_urgent()
    bench.now += 2 * 24 * 3600
    bench.gateway.ask(A, 100, failed=100)
    await bench.meter.look()
    assert not bench.meter.is_urgent()


async def test_a_gateway_that_tells_nothing_and_a_disk_that_takes_nothing_stop_nobody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench.serve(A)
    bench.gateway.alive = False
    for _ in range(3):
        await bench.meter.look()
    assert caplog.text.count("not counted now: it has ended") == 1
    bench.gateway.alive = True
    bench.gateway.ask(A, 100)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_durably", full)
        await bench.meter.look()
    assert "No space left" in caplog.text
    assert read_stream(bench.report()[0]).total.requests == 100
    bench.now += 300
    await bench.meter.look()
    bench.open()
    await bench.meter.look()
    assert read_stream(bench.report()[0]).total.requests == 100


async def test_last_words_are_forgotten_when_they_are_on_disk_and_not_before(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.serve(A)
    bench.gateway.ask(A, 100)
    await bench.meter.look()
    bench.gateway.ask(A, 20)
    told = (await bench.gateway.fetch_stats({}))["1"].stats
    bench.gateway.ended["1"] = Look(told, ended=True)
    bench.gateway.life, bench.gateway.counts = "2", {"weld--aaaaaaaa": [5, 0, 0]}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_durably", full)
        await bench.meter.look()
    assert bench.gateway.ended.keys() == {"1"}
    bench.open()
    await bench.meter.look()
    assert bench.gateway.ended == {}
    bench.open()
    await bench.meter.look()
    report = bench.report()[0]
    assert read_stream(report).total.requests == 125
    assert len(report.epochs) == 2


async def test_a_file_that_cannot_be_read_costs_the_past_alone(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    (bench.folder / "telemetry").write_bytes(json.dumps({"formatVersion": 1}).encode())
    bench.open()
    assert "past traffic is forgotten" in caplog.text
    bench.serve(A)
    bench.gateway.ask(A, 100)
    await bench.meter.look()
    assert read_stream(bench.report()[0]).total.requests == 100
