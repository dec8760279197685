"""What the two decisions return: about one run, and about one fleet (which contains the one about its active run)."""

from dataclasses import dataclass, field
from datetime import datetime

from edgefleet.api.model import Revision
from edgefleet.api.rollout import ModelRolloutStatus, Outcome
from edgefleet.core.actions import Action
from edgefleet.core.case import Case
from edgefleet.core.eligibility import Eligibility


@dataclass(frozen=True, slots=True)
class RolloutDecision:
    """`status` is the run's whole next status. `wake_at` is the next moment at which time alone changes the decision, always in the
    future. `returning` is set while the run goes back: how it is going to end. `taken_back`: some of its sites were sent back.
    `unheard`: sites whose soak is over, so that the next Lease from them, whatever it says, changes the decision. `case` is what live
    traffic was judged by, if it was: with the evidence it is to be kept before the decision is acted on."""

    actions: tuple[Action, ...]
    status: ModelRolloutStatus
    wake_at: datetime | None
    returning: Outcome | None = None
    taken_back: bool = False
    unheard: frozenset[str] = frozenset()
    case: Case | None = None


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why the fleet is not simply rolling towards its target: a CamelCase reason and a message with the remedy.

    `stalled`: a person must act. `paused`: a rule holds the fleet. Neither: it waits for a fact.
    """

    reason: str
    message: str
    stalled: bool = False
    paused: bool = False


@dataclass(frozen=True, slots=True)
class FleetDecision:
    """All that the hub shall do for one fleet now, its active run included: `actions` holds those of `rollout` too, in the order in
    which they are best applied.

    `run` is the run that `rollout` is about. `eligibilities` has one entry per selected site. If `again` is true the set of runs
    changes: decide once more as soon as the actions are applied.
    """

    actions: tuple[Action, ...]
    stable: Revision | None
    target: Revision | None
    run: str
    rollout: RolloutDecision | None
    eligibilities: dict[str, Eligibility]
    obstacle: Obstacle | None
    wake_at: datetime | None
    again: bool = field(default=False)
