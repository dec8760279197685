"""What is worth telling of the step from one status to the next: one note per transition, as Kubernetes Events show them.

Nothing here depends on the time of the look: whoever takes the same step again, after a crash before the new status was written, finds
the same notes. Reasons are those of conditions. What concerns a run is told of its fleet, since that is what people describe; the run's
own status is its record.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from edgefleet.api.conditions import Condition, find_condition
from edgefleet.api.fleet import EdgeFleetStatus
from edgefleet.api.model import EdgeModelStatus
from edgefleet.api.rollout import ModelRolloutStatus
from edgefleet.api.site import EdgeSiteStatus
from edgefleet.core.actions import Action
from edgefleet.core.memory import BARRING, count_names

TOLD_WAITS = frozenset({"AwaitingApproval", "RegressionUnconfirmed", "SilentWave", "TooFewReported", "ProgressDeadlineExceeded"})
"""What a run may wait for that a person wants to hear of; what pauses it is told by the fleet's condition Paused."""
BY_PEOPLE = frozenset({"UserPaused", "FleetSuspended"})


@dataclass(frozen=True, slots=True)
class Note:
    """One transition of one object. `key` tells it from the other notes of the same step."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    key: str


def plan_run_events(run: str, version: str, old: ModelRolloutStatus, new: ModelRolloutStatus) -> tuple[Note, ...]:
    """The notes about a run between two of its statuses; they go to its fleet."""
    notes = []
    if old.started_at is None and new.waves:
        notes.append(_note("Planned", f"{run}: version {version} for {new.sites.desired} site(s) in {len(new.waves)} wave(s)"))
    before = {wave.name: wave for wave in old.waves}
    for wave in new.waves:
        known = before.get(wave.name)
        if wave.opened_at and not (known and known.opened_at):
            notes.append(_note("WaveOpened", f"{run}: wave {wave.name} of {wave.sites} site(s) opened", key=f"opened/{wave.name}"))
        if wave.passed_at and not (known and known.passed_at):
            notes.append(_note("WavePassed", f"{run}: wave {wave.name} of {wave.sites} site(s) passed", key=f"passed/{wave.name}"))
    notes += _counted("SitesFailed", f"{run}: %d site(s) failed", old.sites.failed, new.sites.failed)
    notes += _counted("SitesSkipped", f"{run}: %d site(s) skipped", old.sites.skipped, new.sites.skipped)
    if new.waiting_for in TOLD_WAITS and new.waiting_for != old.waiting_for:
        progress = find_condition(new.conditions, "Progressing")
        notes.append(_note(new.waiting_for, f"{run}: {progress.message if progress else ''}"))
    if new.phase == "Returning" and old.phase != "Returning":
        notes.append(_note(new.reason or "Returning", f"{run}: its sites go back: {new.message}", warning=True, key="returning"))
    if new.outcome is not None and old.outcome is None:
        why = "" if new.reason == new.outcome else f", {new.reason}"
        notes.append(_note(new.outcome, f"{run} ended {new.outcome}{why}: {new.message}", warning=new.outcome in BARRING, key="ended"))
    return tuple(notes)


def plan_quarantine_events(run: str, actions: Iterable[Action]) -> tuple[Note, ...]:
    """The note about sites that go back alone with these actions."""
    going = {action.site: action.quarantine for action in actions if getattr(action, "quarantine", "")}  # type: ignore[union-attr]
    if not going:
        return ()
    reasons = sorted(set(going.values()))
    message = f"{run}: {len(going)} site(s) go back alone ({', '.join(reasons)}), the run goes on: {count_names(going)}"
    return (_note(reasons[0], message, warning=True, key=f"alone/{','.join(sorted(going))}"),)


def plan_fleet_events(old: EdgeFleetStatus, new: EdgeFleetStatus) -> tuple[Note, ...]:
    """The notes about a fleet itself."""
    notes = []
    for kind in ("Stalled", "Paused"):
        before, after = _step(old.conditions, new.conditions, kind)
        if after is not None and (before is None or before.reason != after.reason):
            loud = kind == "Stalled" or after.reason not in BY_PEOPLE
            notes.append(_note(after.reason, after.message, warning=loud, key=kind))
        if kind == "Paused" and before is not None and after is None:
            notes.append(_note("Resumed", f"not paused any more; it was for {before.reason}"))
    before, after = _step(old.conditions, new.conditions, "Ready")
    if after is not None and after.reason in ("SitesNotReady", "SitesReady") and (before is None or before.reason != after.reason):
        notes.append(_note(after.reason, after.message, warning=after.status != "True"))
    before, after = _step(old.conditions, new.conditions, "PlacementSatisfied")
    if after is not None and after.status == "False" and (before is None or before.reason != after.reason):
        notes.append(_note(after.reason, after.message, warning=True, key="placement"))
    silent = "%d site(s) cannot be reached; they serve what they have"
    return (*notes, *_counted("SitesUnreachable", silent, old.sites.unreachable, new.sites.unreachable))


def plan_model_events(old: EdgeModelStatus, new: EdgeModelStatus) -> tuple[Note, ...]:
    """The notes about a model: a release verified, the source refused, the registry away or back."""
    notes = []
    before, after = _step(old.conditions, new.conditions, "SourceVerified")
    if after is not None and after.status != "Unknown" and not _same(before, after):
        notes.append(_note(after.reason, after.message, warning=after.status == "False", key="source"))
    before, after = _step(old.conditions, new.conditions, "FetchFailed")
    if after is not None and (before is None or before.reason != after.reason):
        notes.append(_note(after.reason, after.message, warning=True, key="fetch"))
    if before is not None and after is None:
        notes.append(_note("FetchSucceeded", f"the registry answers again; it was {before.reason}"))
    return tuple(notes)


def plan_site_events(old: EdgeSiteStatus, new: EdgeSiteStatus) -> tuple[Note, ...]:
    """The notes about a site: heard for the first time, unreachable, back."""
    before, after = _step(old.conditions, new.conditions, "Connected")
    if after is None or (before is None and after.status != "True") or (before is not None and before.status == after.status):
        return ()
    if after.status != "True":
        return (_note(after.reason, after.message, warning=True),)
    again = before is not None and before.reason == "HeartbeatLost"
    return (_note(after.reason, f"heard {'again' if again else 'for the first time'}; {after.message}"),)


def _note(reason: str, message: str, *, warning: bool = False, key: str = "") -> Note:
    return Note("Warning" if warning else "Normal", reason, message, key or reason)


def _counted(reason: str, message: str, old: int, new: int) -> list[Note]:
    """A count that rose past a power of two: ten thousand sites are told of in fourteen notes."""
    return [_note(reason, message % new, warning=True)] if new.bit_length() > old.bit_length() else []


def _step(old: tuple[Condition, ...], new: tuple[Condition, ...], kind: str) -> tuple[Condition | None, Condition | None]:
    return find_condition(old, kind), find_condition(new, kind)


def _same(before: Condition | None, after: Condition) -> bool:
    return before is not None and (before.status, before.reason, before.message) == (after.status, after.reason, after.message)
