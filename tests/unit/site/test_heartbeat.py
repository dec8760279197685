"""What the Lease says of a fleet."""

from datetime import UTC, datetime

from edgefleet.api.report import MAX_REPORT_BYTES
from edgefleet.site.heartbeat import plan_report
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
