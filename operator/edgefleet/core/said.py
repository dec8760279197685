"""What people said to a run in spec.control, kept as the run's record: who, what, when the hub saw it. Decides nothing about the run.

What still holds is always in the record; of what does not hold any more, the newest. What was said and taken back between two looks of
the hub is not in it: the API server's audit log has that.
"""

from edgefleet.api.rollout import Control, SaidRecord

KEPT = 100


def record_said(old: tuple[SaidRecord, ...], control: Control, now: str) -> tuple[SaidRecord, ...]:
    """The record with what is new in `control`, oldest first. `now` is an RFC 3339 time."""
    record = list(old)
    if control.paused != (_last(old, "Paused", "Resumed") == "Paused"):
        record.append(SaidRecord(what="Paused" if control.paused else "Resumed", by=control.by, at=now))
    if control.aborted and _last(old, "Aborted") is None:
        record.append(SaidRecord(what="Aborted", by=control.by, at=now))
    if control.promote and control.promote != next((one.wave for one in reversed(old) if one.what == "Promoted"), ""):
        record.append(SaidRecord(what="Promoted", by=control.by, wave=control.promote, at=now))
    given = {(one.wave, one.by): one for one in control.approvals}
    known = {(one.wave, one.by): one.what for one in old if one.what in ("Approved", "Withdrawn")}
    record += [
        SaidRecord(what="Approved", by=one.by, wave=one.wave, reason=one.reason, at=now)
        for key, one in given.items()
        if known.get(key) != "Approved"
    ]
    record += [
        SaidRecord(what="Withdrawn", by=by, wave=wave, at=now)
        for (wave, by), what in known.items()
        if what == "Approved" and (wave, by) not in given
    ]
    return _trim(record)


def _last(record: tuple[SaidRecord, ...], *kinds: str) -> str | None:
    return next((one.what for one in reversed(record) if one.what in kinds), None)


def _trim(record: list[SaidRecord]) -> tuple[SaidRecord, ...]:
    """Without the oldest of what does not hold any more, where there are more than KEPT."""
    surplus = len(record) - KEPT
    if surplus <= 0:
        return tuple(record)
    holding = {_subject(one): index for index, one in enumerate(record)}
    spent = [index for index, one in enumerate(record) if holding[_subject(one)] != index or one.what == "Withdrawn"]
    dropped = set(spent[:surplus])
    return tuple(one for index, one in enumerate(record) if index not in dropped)


def _subject(one: SaidRecord) -> tuple[str, str, str]:
    about = {"Paused": "pause", "Resumed": "pause", "Aborted": "abort", "Promoted": "promote"}.get(one.what, "approval")
    return (about, one.wave, one.by) if about == "approval" else (about, "", "")
