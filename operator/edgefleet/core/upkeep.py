"""What sites get outside of a run's waves: joiners and latecomers, sites that an ended run left behind, renewals, withdrawals.

Absence is never an instruction: a site that left the selector keeps its assignment, and only the deletion of a fleet that asks for
it (onDelete: Withdraw) withdraws a model that nobody took back.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from edgefleet.api.assignment import StopServing
from edgefleet.api.policy import STANDARD_POLICY
from edgefleet.api.quantities import parse_duration
from edgefleet.api.site import EdgeSiteSpec, Storage
from edgefleet.core.actions import Action, AdoptSite, AssignSite, EndRun, ReleaseFleet, RenewSite, WithdrawSite
from edgefleet.core.decisions import Obstacle
from edgefleet.core.eligibility import decide_eligibility, selected
from edgefleet.core.facts import AssignmentFacts, FleetFacts, SiteFacts
from edgefleet.core.memory import Memory, count_names
from edgefleet.core.progress import fault_of, is_confirmed
from edgefleet.core.reach import earliest
from edgefleet.core.returning import plan_return

ORDER_LIFETIME = timedelta(days=14)
HALF_LIFE = ORDER_LIFETIME / 2
SEQUENCE_REFUSALS = frozenset({"SequenceTooLow", "SequenceReused"})
_DEFAULT_TERMS = (Storage(), (), None)


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Orders, at most one per site, and the next moment at which a renewal is due."""

    actions: tuple[Action, ...]
    wake_at: datetime | None
    obstacle: Obstacle | None = None


def plan_upkeep(fleet: FleetFacts, memory: Memory, now: datetime, *, ordered: Collection[str] = ()) -> Upkeep:
    """For all sites of the fleet but those `ordered` by the active run in the same decision.

    An order is renewed, under its sequence, at its half-life, and at once when what it says of the site is not true any more, or when the
    hub signs with another key than it was signed with.
    While a run is active, only sites that still have what was taken back or revoked are sent to stable; a site that joins waits for
    the run's end. While the fleet is suspended the same holds.
    """
    listed = {site.name for site in selected(fleet)}
    forward = memory.active is None and not fleet.spec.suspend
    actions: list[Action] = []
    renewals = []
    for site in fleet.sites:
        order: Action | None = None
        if site.name not in ordered:
            order = _go_back(site, fleet, memory, now) or _raise_sequence(site, memory)
            if order is None and forward and site.name in listed:
                order = _catch_up(site, fleet, memory, now)
        if order is None and site.assignment is not None and not site.deleting and not _is_over(site.assignment):
            due = site.assignment.expires_at - HALF_LIFE
            renewals.append(due)
            outdated = not _says_what_holds(site, fleet) or _is_signed_by_another(site.assignment, fleet.hub_key)
            if (due <= now or outdated) and site.name not in ordered:
                order = RenewSite(site.name)
        if order is not None:
            actions.append(order)
    return Upkeep(tuple(actions), earliest(*renewals, after=now))


def _says_what_holds(site: SiteFacts, fleet: FleetFacts) -> bool:
    # A model that is gone says nothing of what was revoked: that is no reason to take it out of any order.
    return fleet.model is None or site.assignment is None or site.assignment.terms == terms_of(site.spec, fleet.model.stops)


def terms_of(spec: EdgeSiteSpec, stops: Sequence[StopServing] = ()) -> str:
    """A short name of what each order tells a site of its EdgeSite and of revocations; empty where that is the default."""
    terms = (spec.storage, tuple(spec.registries), spec.proxy)
    if terms == _DEFAULT_TERMS and not stops:
        return ""
    parts = (spec.storage, *spec.registries, *((spec.proxy,) if spec.proxy else ()), *stops)
    said = json.dumps([part.to_json_dict() for part in parts], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def plan_farewell(fleet: FleetFacts, memory: Memory, now: datetime) -> Upkeep:
    """For a fleet that is being deleted. Retain: nothing at all. Withdraw: a signed withdrawal to each site, waited for until all
    have confirmed or skipAfter has passed since the deletion."""
    if fleet.spec.on_delete == "Retain":
        return Upkeep((ReleaseFleet(),), None)
    actions: list[Action] = []
    if memory.active is not None:
        message = f"fleet {fleet.key} was deleted with spec.onDelete: Withdraw"
        actions.append(EndRun(memory.active.name, "TargetChanged", "FleetDeleted", message))
    holders = [site for site in fleet.sites if site.assignment is not None and site.assignment.action == "Run"]
    going = [site for site in holders if decide_eligibility(fleet, site, None, now).reason != "OnHold"]
    actions += [WithdrawSite(site.name) for site in going]
    confirming = [site.name for site in fleet.sites if site.assignment and not is_confirmed(site.assignment)]
    pending = sorted({*(site.name for site in holders), *confirming})
    policy = fleet.policy or STANDARD_POLICY
    patience = fleet.deleted_at + parse_duration(policy.unreachable.skip_after) if fleet.deleted_at else None
    if not actions and (not pending or (patience is not None and patience <= now)):
        return Upkeep((ReleaseFleet(),), None)
    until = f" until {patience.isoformat()}" if patience else ""
    message = f"withdrawn by signed order; {len(pending)} site(s) have not confirmed: {count_names(pending)}; waits{until}"
    return Upkeep(tuple(actions), earliest(patience, after=now), Obstacle("WaitingForWithdrawal", message))


def _go_back(site: SiteFacts, fleet: FleetFacts, memory: Memory, now: datetime) -> Action | None:
    held = site.assignment
    if held is None or held.action != "Run" or not memory.was_taken_back(held):
        return None
    if memory.active is not None and held.revision == memory.active.revision.hash:
        return None
    return plan_return(site, fleet, memory, None, now)


def _catch_up(site: SiteFacts, fleet: FleetFacts, memory: Memory, now: datetime) -> Action | None:
    stable, held = memory.stable, site.assignment
    if stable is None or (held is not None and held.action == "Run" and held.revision == stable.hash):
        return None
    allowed = decide_eligibility(fleet, site, stable, now)
    if not allowed.eligible:
        return None
    if held is None and site.report is not None and site.report.revision == stable.hash:
        return AdoptSite(site.name, stable, allowed.variant, site.report.adoptable_sequence)
    return AssignSite(site.name, stable, allowed.variant, None)


def _raise_sequence(site: SiteFacts, memory: Memory) -> Action | None:
    """The site refuses our sequence: a hub that lost its memory cannot know better. The same order goes out under a higher one."""
    held = site.assignment
    if held is None or fault_of(held) != "Site" or held.reason not in SEQUENCE_REFUSALS:
        return None
    if held.action == "Withdraw":
        return WithdrawSite(site.name, held.run, held.quarantine)
    revision = next((run.revision for run in memory.runs.values() if run.revision.hash == held.revision), None)
    return AssignSite(site.name, revision, held.variant, held.run, held.quarantine) if revision else None


def _is_signed_by_another(assignment: AssignmentFacts, hub_key: str) -> bool:
    return bool(hub_key and assignment.signer and assignment.signer != hub_key)


def _is_over(assignment: AssignmentFacts) -> bool:
    """A withdrawal that was carried out needs no renewal."""
    return assignment.action == "Withdraw" and is_confirmed(assignment)
