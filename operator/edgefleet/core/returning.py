"""The way back: what makes a run turn round, where each of its sites goes, and when it is over.

A site goes to the fleet's stable revision; a site that stable does not fit, or a fleet that never had one, gets a signed
withdrawal. Had the fleet one and none is safe any more, nothing moves: the run stands with NoSafeTarget. A site that is held,
tainted or no longer ours to use keeps what it has until that ends; one that merely left the selector goes back with the others.

The cause outlives a crash: a person's word and a revocation stand in specs, sites that were taken back carry the run's label, and
the rest is latched in status. A partial way back of a run without such a cause (some sites carry the label, the status was never
written) is finished by the policy's onFailure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from edgefleet.api.rollout import Outcome
from edgefleet.core.actions import AssignSite, WithdrawSite
from edgefleet.core.eligibility import decide_eligibility
from edgefleet.core.facts import FleetFacts, ModelFacts, RunFacts, SiteFacts
from edgefleet.core.judge import Fail
from edgefleet.core.memory import Memory, count_names
from edgefleet.core.progress import SiteProgress, Stand
from edgefleet.core.waves import list_waves

ABORTED = "AbortedByUser"
MAX_FAILED = "MaxFailedExceeded"
DISOWNED = "TrustWithdrawn"
NO_SAFE_TARGET = "NoSafeTarget"
NO_SAFE_TARGET_MESSAGE = (
    "every revision that was promoted is revoked or was taken back, so there is nothing to go back to; sites keep what they have."
    " Publish a good release and name it in the EdgeModel, or lift a revocation in spec.revoked"
)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why the whole run goes back, and how it is going to end."""

    outcome: Outcome
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class WayBack:
    """What to send now, and which sites are still waited for. `held` cannot be sent anywhere; `stranded`: there is no safe target."""

    actions: tuple[AssignSite | WithdrawSite, ...]
    awaited: tuple[str, ...]
    held: tuple[str, ...]
    stranded: bool


def find_cause(
    run: RunFacts, progress: Sequence[SiteProgress], memory: Memory, fail: Fail | None, model: ModelFacts | None = None
) -> Cause | None:
    """Why all exposed sites must go back, if they must."""
    status = run.status
    if run.control.aborted:
        return Cause("AbortedByUser", ABORTED, "spec.control.aborted is set: all sites of this run go back")
    if status.phase == "Returning":
        return Cause("AbortedByUser" if status.reason == ABORTED else "RolledBack", status.reason, status.message)
    if run.revision.hash in memory.revoked:
        message = f"release {run.revision.version} ({run.revision.digest}) is in spec.revoked of EdgeModel {run.revision.model}"
        return Cause("RolledBack", "Revoked", message)
    if model is not None and model.disowned and model.target is not None and model.target.digest == run.revision.digest:
        return Cause("RolledBack", DISOWNED, f"release {run.revision.version} ({run.revision.digest}): {model.disowned}")
    if fail is not None and run.policy.on_failure == "RollbackAll":
        return Cause("RolledBack", fail.reason, fail.message)
    if run.policy.on_failure in ("RollbackAll", "Pause") and (back := _taken_back(progress)):
        return Cause("RolledBack", MAX_FAILED, f"sites of this run were taken back before: {count_names(back)}")
    return None


def find_failing(run: RunFacts, progress: Sequence[SiteProgress], fail: Fail | None) -> tuple[SiteProgress, ...] | None:
    """Under an onFailure that does not take the whole run back: the exposed sites that go back, or None if the run did not fail.

    Sites that were taken back are proof that it did, even if nothing else tells so any more.
    """
    back = _taken_back(progress)
    if fail is None and not back and not (run.status.reason == MAX_FAILED and run.status.phase == "Rolling"):
        return None
    if run.policy.on_failure == "RollbackFailed":
        return tuple(one for one in progress if one.failed)
    if run.policy.on_failure == "RollbackWave":
        wave = _latest_wave(run, [one for one in progress if one.exposed or one.site in back])
        return tuple(one for one in progress if one.exposed and one.wave == wave)
    return ()


def plan_way_back(
    going: Sequence[SiteProgress],
    progress: Sequence[SiteProgress],
    *,
    run: RunFacts,
    sites: Mapping[str, SiteFacts],
    fleet: FleetFacts,
    memory: Memory,
    now: datetime,
) -> WayBack:
    """Send back those of `going` that are exposed; whoever of the run is on its way back already is waited for."""
    exposed = [one.site for one in going if one.exposed and one.site in sites]
    stranded = bool(exposed) and memory.no_safe_target
    orders = {name: plan_return(sites[name], fleet, memory, run.name, now) for name in exposed}
    awaited = [one.site for one in progress if one.stand is Stand.RETURNING and not one.given_up]
    return WayBack(
        actions=tuple(order for order in orders.values() if order is not None),
        awaited=(*awaited, *(name for name, order in orders.items() if order is not None)),
        held=tuple(name for name, order in orders.items() if order is None),
        stranded=stranded,
    )


def plan_return(
    site: SiteFacts, fleet: FleetFacts, memory: Memory, run: str | None, now: datetime, *, quarantine: str = ""
) -> AssignSite | WithdrawSite | None:
    """The order that takes a site to safety, or None if there is none or the site may not be sent anything now."""
    if memory.no_safe_target:
        return None
    allowed = decide_eligibility(fleet, site, memory.stable, now, going_back=True)
    if memory.stable is not None and allowed.eligible:
        return AssignSite(site.name, memory.stable, allowed.variant, run, quarantine)
    if allowed.eligible or allowed.reason == "NoVariantFits":
        return WithdrawSite(site.name, run, quarantine)
    return None


def _latest_wave(run: RunFacts, begun: Sequence[SiteProgress]) -> int:
    """The wave that was rolling: the last that is recorded as open or has sites that were told."""
    open_waves = {record.name for record in run.status.waves if record.opened_at}
    recorded = [index for index, wave in enumerate(list_waves(run.policy)) if wave.name in open_waves]
    return max([*recorded, *(one.wave for one in begun)], default=-1)


def _taken_back(progress: Sequence[SiteProgress]) -> list[str]:
    return [one.site for one in progress if one.stand in (Stand.RETURNING, Stand.RETURNED) and not one.quarantined]
