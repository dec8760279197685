"""A run's status: its record, what it waits for and since when, and its conditions. Decides nothing about the rollout but whether
its progress deadline has passed.

The deadline counts from the last progress: a site became active, proved itself, failed or came back, or a wave opened. It stands
still while the run waits for a person or for a soak that is running.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from edgefleet.api.conditions import Condition, ConditionStatus, merge_conditions
from edgefleet.api.fleet import SiteCounts
from edgefleet.api.meta import format_time, parse_time
from edgefleet.api.quantities import parse_duration
from edgefleet.api.rollout import GateRecord, ModelRolloutStatus, Outcome, Phase, WaveRecord
from edgefleet.core.actions import Action
from edgefleet.core.facts import RunFacts
from edgefleet.core.judge import Inconclusive, Pass, Verdict
from edgefleet.core.memory import BARRING
from edgefleet.core.progress import UNREACHABLE, SiteProgress, Stand
from edgefleet.core.said import record_said

DEADLINE = "ProgressDeadlineExceeded"
STANDSTILL = frozenset({"AwaitingApproval", "UserPaused", "FleetSuspended", "MaxFailedExceeded", "NoSafeTarget", "Soaking"})
"""What a run waits for while its progress deadline stands still: a person, or a soak that is running."""

FOR_A_PERSON = frozenset({"MaxFailedExceeded", "NoSafeTarget"})
"""Why a run stands that nothing but a person moves, without anybody having planned that: Stalled."""


@dataclass(frozen=True, slots=True)
class Step:
    """What the decision about a run came to, before it is put into words. `paused` is the reason why it stands, if it does."""

    phase: Phase
    waiting_for: str = ""
    waiting_message: str = ""
    reason: str = ""
    message: str = ""
    outcome: Outcome | None = None
    paused: str = ""
    verdict: Verdict | None = None
    waves: tuple[WaveRecord, ...] = ()
    gates: tuple[GateRecord, ...] = ()
    actions: tuple[Action, ...] = ()
    returning: Outcome | None = None


def condition(kind: str, status: ConditionStatus, reason: str, message: str = "") -> Condition:
    """A condition whose message is cut to what the schema allows."""
    return Condition(type=kind, status=status, reason=reason, message=message[:1024])


def count_sites(progress: Sequence[SiteProgress]) -> SiteCounts:
    """The counters of a run. A site that was skipped because it is silent counts as unreachable, any other skipped site as skipped."""
    stands = [one.stand for one in progress]
    inside = [one for one in progress if one.stand is not Stand.OUT]
    return SiteCounts(
        desired=len(inside),
        updated=sum(one.active for one in inside),
        ready=sum(one.active and one.reachable for one in inside),
        failed=sum(one.failed for one in progress),
        inconclusive=stands.count(Stand.SOAKING),
        unreachable=sum(not one.reachable for one in inside),
        skipped=sum(one.stand is Stand.OUT or (one.stand is Stand.SKIPPED and one.reason != UNREACHABLE) for one in progress),
        rolled_back=stands.count(Stand.RETURNED),
    )


def progressed(old: SiteCounts, new: SiteCounts) -> bool:
    """Whether a fact arrived that brings the run nearer to its end, one way or the other. Time alone (a skip) is none."""
    return (
        new.updated > old.updated
        or new.updated - new.inconclusive > old.updated - old.inconclusive
        or new.failed > old.failed
        or new.rolled_back > old.rolled_back
    )


def idle_for(run: RunFacts, counts: SiteCounts, now: datetime) -> timedelta:
    """How long the run's deadline clock has run since the last progress."""
    status = run.status
    if status.progressed_at is None or progressed(status.sites, counts):
        return timedelta(0)
    until = parse_time(status.since) if status.since and status.waiting_for in STANDSTILL else now
    return until - parse_time(status.progressed_at)


def deadline_passed(run: RunFacts, counts: SiteCounts, now: datetime) -> bool:
    """Whether progressDeadline is over."""
    return idle_for(run, counts, now) >= parse_duration(run.policy.progress_deadline)


def summarise_rollout(run: RunFacts, counts: SiteCounts, step: Step, now: datetime) -> ModelRolloutStatus:
    """The run's whole next status. Equal to the old one if nothing changed but the time."""
    old, moment = run.status, format_time(now)
    since = old.since if old.since and old.waiting_for == step.waiting_for and old.phase == step.phase else moment
    open_wave = next((wave.name for wave in step.waves if wave.opened_at and not wave.passed_at), "")
    late = step.outcome is None and deadline_passed(run, counts, now)
    return ModelRolloutStatus(
        observed_generation=run.generation,
        phase=step.phase,
        outcome=step.outcome,
        reason=step.reason,
        message=step.message[:1024],
        waiting_for=step.waiting_for,
        since=since,
        started_at=old.started_at or moment,
        progressed_at=_progressed_at(run, counts, step, now),
        ended_at=(old.ended_at or moment) if step.outcome else None,
        wave=open_wave,
        waves=step.waves,
        sites=counts,
        gates=step.gates,
        said=record_said(old.said, run.control, moment),
        conditions=merge_conditions(old.conditions, tuple(_conditions(step, since, late=late)), now=moment, generation=run.generation),
    )


def deadline_at(run: RunFacts, status: ModelRolloutStatus) -> datetime | None:
    """When the deadline passes if nothing happens; None while its clock stands still."""
    if status.progressed_at is None or status.outcome or status.waiting_for in STANDSTILL:
        return None
    return parse_time(status.progressed_at) + parse_duration(run.policy.progress_deadline)


def _progressed_at(run: RunFacts, counts: SiteCounts, step: Step, now: datetime) -> str:
    """Kept while nothing happens; moved on by what the clock stood still when it starts again."""
    old = run.status
    opened = {wave.name for wave in step.waves if wave.opened_at} - {wave.name for wave in old.waves if wave.opened_at}
    if old.progressed_at is None or opened or old.phase != step.phase or progressed(old.sites, counts):
        return format_time(now)
    if old.waiting_for in STANDSTILL and step.waiting_for != old.waiting_for:
        return format_time(now - idle_for(run, counts, now))
    return old.progressed_at


def _conditions(step: Step, since: str, *, late: bool) -> list[Condition]:
    found = [*_ready(step), _progressing(step, since)]
    if step.paused:
        found.append(condition("Paused", "True", step.paused, step.message or step.waiting_message))
    if step.verdict is not None:
        found.append(_healthy(step.verdict))
    if step.outcome in BARRING:
        found.append(condition("RolledBack", "True", step.reason, step.message))
        found.append(condition("Stalled", "True", step.outcome, step.message))
    elif step.paused in FOR_A_PERSON:
        found.append(condition("Stalled", "True", step.paused, step.message or step.waiting_message))
    elif late:
        message = f"no progress within spec.policy.progressDeadline; waits for {step.waiting_for} since {since}: {step.waiting_message}"
        found.append(condition("Stalled", "True", DEADLINE, message))
    return found


def _ready(step: Step) -> tuple[Condition, ...]:
    """A run that gave way to another is neither: it never gets ready, and Ready=False would have kstatus wait for that for ever."""
    if step.outcome == "Promoted":
        return (condition("Ready", "True", step.reason, step.message),)
    if step.outcome is not None and step.outcome not in BARRING:
        return ()
    return (condition("Ready", "False", step.outcome or step.waiting_for, step.message or step.waiting_message),)


def _progressing(step: Step, since: str) -> Condition:
    if step.outcome is not None:
        return condition("Progressing", "False", step.outcome, step.message)
    return condition("Progressing", "True", step.waiting_for, f"{step.waiting_message} (since {since})")


def _healthy(verdict: Verdict) -> Condition:
    status: ConditionStatus = "Unknown"
    if not isinstance(verdict, Inconclusive):
        status = "True" if isinstance(verdict, Pass) else "False"
    return condition("Healthy", status, verdict.reason, verdict.message)
