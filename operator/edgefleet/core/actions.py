"""What a decision may ask the hub to do. Each is carried out alone, in any order, and asking twice does no harm.

A decision asks; the hub adds what only it can know: the next sequence (greater than the object's and the site's floor), the
signature, the expiry. Nothing here is executed in core/.
"""

from dataclasses import dataclass

from edgefleet.api.model import Revision
from edgefleet.api.policy import RolloutPolicySpec
from edgefleet.api.rollout import Outcome
from edgefleet.core.facts import PlannedSite


@dataclass(frozen=True, slots=True)
class AssignSite:
    """Write one signed order to run `revision` under the next sequence.

    `run` is the name of the run that sends it, forward or back, and becomes the assignment's run label: an assignment that names
    a run but not that run's revision is the memory that the run took this site back. None: sent outside of a run. `quarantine` is the
    reason why this site alone is sent back, while its run goes on; it is kept with the assignment.
    """

    site: str
    revision: Revision
    variant: str
    run: str | None
    quarantine: str = ""


@dataclass(frozen=True, slots=True)
class WithdrawSite:
    """Write one signed order to unload the model, under the next sequence. `run` and `quarantine` as in AssignSite."""

    site: str
    run: str | None = None
    quarantine: str = ""


@dataclass(frozen=True, slots=True)
class RenewSite:
    """Sign the existing assignment again with a later expiry: the same sequence, the same content, the same run label."""

    site: str


@dataclass(frozen=True, slots=True)
class AdoptSite:
    """Write the assignment that is missing at the hub, under the sequence that the site reports: nothing changes at the site."""

    site: str
    revision: Revision
    variant: str
    sequence: int


@dataclass(frozen=True, slots=True)
class StartRun:
    """Make the run `name`, with its plan. `policy`, `plan` and `author` (who named the release, if known) are frozen with it."""

    name: str
    number: int
    revision: Revision
    policy: RolloutPolicySpec
    plan: tuple[PlannedSite, ...]
    author: str = ""


@dataclass(frozen=True, slots=True)
class AdoptRun:
    """Make the run `name` as one that already ended Promoted (reason Adopted), without a plan. AdoptSite actions follow in the
    same decision, one for each site that reports the revision."""

    name: str
    number: int
    revision: Revision
    policy: RolloutPolicySpec


@dataclass(frozen=True, slots=True)
class EndRun:
    """Record the outcome, in status and in the outcome label. The status to apply is that of the same decision."""

    run: str
    outcome: Outcome
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ForgetRun:
    """Delete a run that nothing remembers any more (history)."""

    run: str


@dataclass(frozen=True, slots=True)
class ReleaseFleet:
    """Remove our finalizer from the fleet that is being deleted."""


Action = AssignSite | WithdrawSite | RenewSite | AdoptSite | StartRun | AdoptRun | EndRun | ForgetRun | ReleaseFleet
