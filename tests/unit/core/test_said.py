"""What people said stays in the run's record, once, under their names, and within bounds."""

from edgefleet.api.rollout import Control, SaidRecord, WaveApproval
from edgefleet.core.said import KEPT, record_said

T1, T2, T3 = "2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z", "2026-01-01T00:00:03Z"


def approving(*people: str, **more: object) -> Control:
    return Control(approvals=tuple(WaveApproval(wave="all", by=by, reason="seen") for by in people), **more)  # type: ignore[arg-type]


def test_nothing_said_is_nothing_recorded() -> None:
    assert record_said((), Control(), T1) == ()


def test_a_pause_and_its_end_are_two_lines_each_with_its_person() -> None:
    paused = record_said((), Control(paused=True, by="ada"), T1)
    again = record_said(paused, Control(paused=True, by="ada"), T2)
    resumed = record_said(again, Control(paused=False, by="bob"), T3)
    assert [(one.what, one.by, one.at) for one in resumed] == [("Paused", "ada", T1), ("Resumed", "bob", T3)]


def test_who_left_no_name_is_recorded_without_one() -> None:
    assert record_said((), Control(paused=True), T1) == (SaidRecord(what="Paused", at=T1),)


def test_an_abort_is_recorded_once() -> None:
    once = record_said((), Control(aborted=True, by="ada"), T1)
    assert record_said(once, Control(aborted=True, by="ada"), T2) == once == (SaidRecord(what="Aborted", by="ada", at=T1),)


def test_an_approval_that_is_written_twice_is_one() -> None:
    record = record_said((), approving("ada", "ada", "bob"), T1)
    assert [(one.what, one.by, one.wave, one.reason) for one in record] == [
        ("Approved", "ada", "all", "seen"),
        ("Approved", "bob", "all", "seen"),
    ]


def test_an_approval_that_is_taken_away_and_given_again_is_three_lines() -> None:
    record = record_said((), approving("ada"), T1)
    record = record_said(record, Control(), T2)
    record = record_said(record, approving("ada"), T3)
    assert [(one.what, one.at) for one in record] == [("Approved", T1), ("Withdrawn", T2), ("Approved", T3)]


def test_what_still_holds_stays_however_much_is_said() -> None:
    record = record_said((), approving("ada"), T1)
    for turn in range(3 * KEPT):
        record = record_said(record, approving("ada", paused=turn % 2 == 0, by="bob"), T2)
    assert len(record) == KEPT
    assert record[0] == SaidRecord(what="Approved", by="ada", wave="all", reason="seen", at=T1)
    assert record[-1].what == "Resumed"
    assert record_said(record, approving("ada", by="bob"), T3) == record
