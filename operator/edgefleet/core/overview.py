"""Fleets and models at a glance, for people: does anything need one, since when, and what would they do next.

Read from what the hub wrote into statuses, so that whoever may read a team's namespace may know.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum

from edgefleet.api.conditions import Condition, find_condition
from edgefleet.api.fleet import EdgeFleet
from edgefleet.api.meta import parse_time
from edgefleet.api.model import EdgeModel
from edgefleet.api.rollout import ModelRollout
from edgefleet.core.gates import REASONS

UNSEEN_FOR = timedelta(seconds=30)
"""A fleet or model that the hub has not looked at for so long tells that no hub looks."""
WAITS_FOR_PEOPLE = frozenset(
    {"AwaitingApproval", "RegressionUnconfirmed", "SilentWave", "VariantUnproven", "TooFewReported", "NoSafeTarget"}
)


class Level(IntEnum):
    """How much something needs a person."""

    FINE = 0
    MOVES = 1  # on its way, by itself
    WAITS = 2  # stands until a person says something
    WRONG = 3


@dataclass(frozen=True, slots=True)
class Overview:
    """One object: `state` is a CamelCase reason, `next` a command or an act, empty where there is nothing to do."""

    kind: str
    namespace: str
    name: str
    level: Level
    state: str
    message: str = ""
    since: datetime | None = None
    next: str = ""


def look_at_fleet(fleet: EdgeFleet, run: ModelRollout | None, now: datetime) -> Overview:
    """`run` is the one that the fleet's status names, if it exists."""
    status, meta = fleet.status, fleet.metadata
    namespace = meta.namespace or ""

    def found(level: Level, condition: Condition, next_step: str = "") -> Overview:
        return Overview("EdgeFleet", namespace, meta.name, level, condition.reason, condition.message, _since(condition), next_step)

    if status.observed_generation < meta.generation or not status.conditions:
        return _unseen("EdgeFleet", namespace, meta.name, meta.creation_timestamp if not status.conditions else None, now)
    stalled, paused, ready, progress, placed = (
        find_condition(status.conditions, kind) for kind in ("Stalled", "Paused", "Ready", "Progressing", "PlacementSatisfied")
    )
    if stalled is not None:
        return found(Level.WRONG, stalled, _after_stall(stalled.reason, run, namespace))
    if paused is not None:
        return found(Level.WAITS, paused, _after_pause(paused.reason, run, namespace))
    moves = find_condition(status.conditions, "Reconciling") is not None or (ready is not None and ready.reason == "SitesProgressing")
    if ready is not None and ready.status == "False":
        sites = f"edgefleet fleet sites {meta.name} -n {namespace}" if ready.reason == "SitesNotReady" else ""
        return found(Level.MOVES if moves else Level.WRONG, ready, sites)
    if placed is not None and placed.status == "False":
        return found(Level.WRONG, placed, f"edgefleet fleet sites {meta.name} -n {namespace}")
    if progress is not None and progress.status == "True":
        waits = progress.reason in WAITS_FOR_PEOPLE
        since = parse_time(run.status.since) if run and run.status.since else _since(progress)
        one = found(Level.WAITS if waits else Level.MOVES, progress, _after_wait(progress.reason, run, namespace) if waits else "")
        return Overview(one.kind, namespace, one.name, one.level, one.state, one.message, since, one.next)
    if ready is None:
        return _unseen("EdgeFleet", namespace, meta.name, None, now)
    return found(Level.FINE, ready)


def look_at_model(model: EdgeModel, now: datetime) -> Overview:
    """A model's source: verified, refused, or not to be had."""
    status, meta = model.status, model.metadata
    namespace = meta.namespace or ""
    if status.observed_generation < meta.generation or not status.conditions:
        return _unseen("EdgeModel", namespace, meta.name, meta.creation_timestamp if not status.conditions else None, now)
    verified, away, ready = (find_condition(status.conditions, kind) for kind in ("SourceVerified", "FetchFailed", "Ready"))
    step = f"kubectl describe edgemodel {meta.name} -n {namespace}"
    for one in (away, verified, ready):
        if one is not None and (one.status == "True") == (one is away):
            return Overview("EdgeModel", namespace, meta.name, Level.WRONG, one.reason, one.message, _since(one), step)
    state, since = (ready.reason, _since(ready)) if ready else ("", None)
    return Overview("EdgeModel", namespace, meta.name, Level.FINE, state, "", since)


def without_echoes(fleets: Sequence[tuple[Overview, str]], models: Sequence[Overview]) -> tuple[Overview, ...]:
    """The models that say what no fleet says already. Each fleet comes with the name of its model."""
    said = {(one.namespace, model, one.state) for one, model in fleets}
    return tuple(one for one in models if one.level is not Level.FINE and (one.namespace, one.name, one.state) not in said)


def _after_stall(reason: str, run: ModelRollout | None, namespace: str) -> str:
    if run is None:
        return ""
    name = run.metadata.name
    if reason == "RolledBack" and run.status.reason in REASONS.values():
        return f"edgefleet rollout explain {name} -n {namespace}"
    if reason in ("RolledBack", "AbortedByUser", "ProgressDeadlineExceeded"):
        return f"edgefleet rollout show {name} -n {namespace}"
    return ""


def _after_pause(reason: str, run: ModelRollout | None, namespace: str) -> str:
    if run is None or run.status.outcome is not None:
        return ""
    if reason == "UserPaused":
        return f"edgefleet rollout resume {run.metadata.name} -n {namespace}"
    if reason == "MaxFailedExceeded":
        return f"edgefleet rollout abort {run.metadata.name} -n {namespace}"
    return "" if reason == "FleetSuspended" else f"edgefleet rollout show {run.metadata.name} -n {namespace}"


def _after_wait(reason: str, run: ModelRollout | None, namespace: str) -> str:
    if run is None:
        return ""
    if reason == "AwaitingApproval":
        wave = next((wave.name for wave in run.status.waves if not wave.opened_at), "WAVE")
        return f"edgefleet rollout approve {run.metadata.name} {wave} -n {namespace}"
    if reason == "RegressionUnconfirmed":
        return f"edgefleet rollout explain {run.metadata.name} -n {namespace}"
    return f"edgefleet fleet sites {run.spec.fleet} -n {namespace}"


def _unseen(kind: str, namespace: str, name: str, created: datetime | None, now: datetime) -> Overview:
    fresh = created is None or now - created < UNSEEN_FOR
    message = "the hub has not looked at its present form yet"
    return Overview(
        kind, namespace, name, Level.MOVES if fresh else Level.WRONG, "NotSeen", message, created, "" if fresh else "is a hub running?"
    )


def _since(condition: Condition) -> datetime | None:
    return parse_time(condition.last_transition_time) if condition.last_transition_time else None
