"""What a site says of one assignment: its status, with kstatus conditions. Pure; written to two clusters by status.py."""

from dataclasses import dataclass, replace
from datetime import datetime

from edgefleet.api.assignment import ActiveRevision, Fault, Order, SiteAssignmentStatus, SiteState
from edgefleet.api.conditions import Condition, merge_conditions
from edgefleet.api.meta import format_time
from edgefleet.site.state import Failure, FleetState

MAX_MESSAGE = 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """Where the site stands with the assignment of this sequence. `in_between` states are told only if they last."""

    sequence: int
    revision: str | None
    state: SiteState
    reason: str
    since: datetime
    message: str = ""
    fault: Fault | None = None
    golden_score: str = ""

    @property
    def in_between(self) -> bool:
        """Whether another state follows by itself soon."""
        return self.state == "Progressing"

    def same_as(self, other: "Finding | None") -> bool:
        """Whether it differs from `other` in nothing but its message and time."""
        return other is not None and (self.sequence, self.state, self.reason) == (other.sequence, other.state, other.reason)


def find_served(order: Order, state: FleetState, reason: str, message: str = "") -> Finding:
    """The finding of an order that was carried out: its revision serves, or is withdrawn."""
    if order.action == "Withdraw":
        return Finding(order.sequence, None, "Withdrawn", reason, state.withdrawn_at or order.issued_at, message)
    since = state.active_since or order.issued_at
    return Finding(order.sequence, state.active, "Active", reason, since, message, golden_score=state.golden_score)


def find_failed(failure: Failure) -> Finding:
    """The finding of an order whose revision failed here, from what was remembered of it."""
    return Finding(
        sequence=failure.sequence,
        revision=failure.revision,
        state="Failed",
        reason=failure.reason,
        since=failure.at,
        message=failure.message,
        fault="Revision",
        golden_score=failure.golden_score,
    )


def summarise_assignment(finding: Finding, active: ActiveRevision | None, old: SiteAssignmentStatus) -> SiteAssignmentStatus:
    """The status to write. Transition times of `old` are kept where nothing changed, so that the same finding is the same status."""
    finding = replace(finding, message=finding.message[:MAX_MESSAGE])
    since = format_time(finding.since)
    conditions = merge_conditions(old.conditions, _conditions(finding), now=since, generation=0)
    return SiteAssignmentStatus(
        sequence=finding.sequence,
        revision=finding.revision,
        state=finding.state,
        fault=finding.fault,
        reason=finding.reason,
        message=finding.message,
        since=since,
        golden_score=finding.golden_score,
        active=active,
        # A renewal changes the generation and nothing else: the sequence says which order is meant.
        conditions=tuple(condition.model_copy(update={"observed_generation": None}) for condition in conditions),
    )


def _conditions(finding: Finding) -> tuple[Condition, ...]:
    done = finding.state in ("Active", "Withdrawn")
    ready = Condition(type="Ready", status="True" if done else "False", reason=finding.reason, message=finding.message)
    if finding.state == "Progressing":
        return (ready, Condition(type="Reconciling", status="True", reason=finding.reason, message=finding.message))
    if finding.state in ("Failed", "Refused"):
        return (ready, Condition(type="Stalled", status="True", reason=finding.reason, message=finding.message))
    return (ready,)
