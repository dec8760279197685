"""What the Lease says of a fleet."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from edgefleet.api.report import MAX_REPORT_BYTES, SiteReport
from edgefleet.api.site import Hardware
from edgefleet.site import heartbeat as module
from edgefleet.site.heartbeat import Heartbeat, plan_report
from edgefleet.site.state import FleetState

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def test_the_sequence_is_the_one_under_which_the_revision_serves() -> None:
    state = FleetState(floor=9, served_sequence=7, active="a" * 64, active_since=NOW)
    report = plan_report(state)
    assert (report.revision, report.sequence, report.floor, report.active_since) == ("a" * 64, 7, 9, NOW)
    assert len(report.model_dump_json(by_alias=True)) < MAX_REPORT_BYTES


def test_what_was_withdrawn_serves_nothing() -> None:
    report = plan_report(FleetState(floor=9, served_sequence=9, active=None, active_since=NOW))
    assert (report.revision, report.sequence, report.active_since) == (None, 9, None)


@pytest.mark.parametrize(("renew", "gap"), [(4, 5), (20, 5), (60, 15)])
def test_news_of_traffic_costs_at_most_one_write_in_five_seconds(renew: int, gap: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    nobody: Any = None
    report = SiteReport(agent_version="1", hardware=Hardware(arch="amd64", memory=1))
    beat = Heartbeat(nobody, site="plant-7", report=lambda: report, renew=timedelta(seconds=renew), fleets=dict, meter=nobody)
    now[0] += gap - 0.1
    beat.report_soon()
    assert not beat._changed.is_set()
    now[0] += 0.1
    beat.report_soon()
    assert beat._changed.is_set()
    assert abs(beat.silence().total_seconds() - gap) < 0.001
