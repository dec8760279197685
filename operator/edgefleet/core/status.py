"""Facts and decisions put into the status of EdgeFleet, EdgeModel and EdgeSite. Nothing is decided here; a run's status is in record.

Ready, Reconciling and Stalled follow kstatus. A run under way shows Progressing and leaves the fleet Ready, so that a rollout of days
neither outlives a GitOps wait nor blocks it.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from edgefleet.api.conditions import Condition, find_condition, merge_conditions
from edgefleet.api.fleet import EdgeFleetStatus, SiteCounts
from edgefleet.api.meta import format_time, parse_time
from edgefleet.api.model import EdgeModelStatus, Release, RevokedRelease, RevokedSince
from edgefleet.api.quantities import parse_duration
from edgefleet.api.report import SiteReport
from edgefleet.api.site import EdgeSiteSpec, EdgeSiteStatus, Identity
from edgefleet.core.attestation import find_end, find_standing
from edgefleet.core.decisions import FleetDecision
from edgefleet.core.facts import FleetFacts, RunFacts, SiteFacts
from edgefleet.core.memory import bars, count_names, taken_back_by
from edgefleet.core.progress import clean_reason, fault_of, is_confirmed
from edgefleet.core.reach import is_reachable, unreachable_at
from edgefleet.core.record import condition
from edgefleet.core.returning import DISOWNED
from edgefleet.core.starting import SUSPENDED


def summarise_model(
    *,
    old: EdgeModelStatus,
    generation: int,
    release: Release | None,
    revision: str | None,
    reason: str,
    message: str,
    passing: bool,
    now: datetime,
    revoked: Sequence[RevokedRelease] = (),
    disowned: str = "",
) -> EdgeModelStatus:
    """`release` is None if none was verified in this pass; then `reason` says why, and the last verified one is kept.

    `passing`: the registry could not be asked, so nothing was refused. For the same generation SourceVerified then stays as it is.
    `disowned`: why the one that is kept would not be accepted now. That stands until a release is verified.
    """
    reason = clean_reason(reason, "FetchFailed" if passing else "Refused")
    found: list[Condition]
    if release is not None:
        said = f"release {release.version} ({release.digest}) is signed by {', '.join(release.signed_by)}"
        found = [condition("Ready", "True", "Verified", said), condition("SourceVerified", "True", "Verified", said)]
    elif passing:
        known = find_condition(old.conditions, "SourceVerified") if old.observed_generation == generation else None
        usable = known is not None and known.status == "True"
        found = [
            condition("Ready", "True", "Verified", known.message) if known and usable else condition("Ready", "False", reason, message),
            known or condition("SourceVerified", "Unknown", reason, message),
            condition("FetchFailed", "True", reason, message),
        ]
    else:
        found = [
            condition("Ready", "False", reason, message),
            condition("SourceVerified", "False", reason, message),
            condition("Stalled", "True", reason, message),
        ]
    before = find_condition(old.conditions, DISOWNED)
    if disowned:
        found.append(condition(DISOWNED, "True", DISOWNED, disowned))
    elif before is not None and passing:
        found.append(before)
    return EdgeModelStatus(
        observed_generation=generation,
        release=_same_release(old.release, release) or old.release,
        revision=revision or old.revision,
        revoked=tuple(_revoke(one, old.revoked, now) for one in revoked),
        conditions=merge_conditions(old.conditions, tuple(found), now=format_time(now), generation=generation),
    )


def _revoke(one: RevokedRelease, known: Sequence[RevokedSince], now: datetime) -> RevokedSince:
    since = next((parse_time(before.since) for before in known if before.digest == one.digest), now)
    by = since + parse_duration(one.stop_serving_after) if one.stop_serving_after else None
    return RevokedSince(digest=one.digest, since=format_time(since), stop_serving_by=format_time(by) if by else None)


def summarise_site(
    *,
    old: EdgeSiteStatus,
    spec: EdgeSiteSpec,
    generation: int,
    report: SiteReport | None,
    last_heard: datetime | None,
    renew_seconds: int,
    left: datetime | None = None,
    now: datetime,
) -> tuple[EdgeSiteStatus, datetime | None]:
    """The status, and when silence alone would change it. `left` is since when the site has no rights at the hub.

    A site that is silent is not Stalled and stays Ready: silence is no verdict.
    """
    end = unreachable_at(last_heard, renew_seconds)
    if last_heard is None or end is None:
        connected = condition("Connected", "Unknown", "NeverHeard", "no Lease from its agent yet: start `edgefleet agent` at the site")
    elif now < end:
        connected = condition("Connected", "True", "Heartbeat", f"renews its Lease every {renew_seconds} s")
    else:
        connected = condition("Connected", "Unknown", "HeartbeatLost", f"not heard since {format_time(last_heard)}; it serves what it has")
    standing = find_standing(spec, old.attestation, now)
    attested = [condition("Attested", standing.status, standing.reason, standing.message)] if standing else []
    found = [condition("Ready", "True", "Accepted", _describe_site(spec, now)), connected, *_joined(old.identity, left), *attested]
    status = EdgeSiteStatus(
        observed_generation=generation,
        hardware=report.hardware if report else old.hardware,
        agent_version=report.agent_version if report else old.agent_version,
        identity=old.identity,
        attestation=old.attestation,
        conditions=merge_conditions(old.conditions, tuple(found), now=format_time(now), generation=generation),
    )
    moments = [end, spec.hold.until if spec.hold else None, find_end(old.attestation)]
    return status, min((moment for moment in moments if moment is not None and moment > now), default=None)


def _joined(identity: Identity | None, left: datetime | None) -> list[Condition]:
    if left is not None:
        return [condition("Joined", "False", "Left", f"no rights at the hub since {format_time(left)}; `edgefleet site join` ends that")]
    if identity is None:
        return []
    return [condition("Joined", "True", "CertificateGranted", f"let in at {identity.joined_at}")]


def summarise_fleet(fleet: FleetFacts, decision: FleetDecision, *, old: EdgeFleetStatus, now: datetime) -> EdgeFleetStatus:
    """The fleet's whole next status."""
    run = next((run for run in fleet.runs if run.name == decision.run), None)
    newest = max(fleet.runs, key=lambda run: run.number, default=None)
    counts = count_fleet(fleet, decision, now)
    found = [
        *_fleet_ready(fleet, decision, counts, now),
        _placement(fleet, decision, counts),
        _progressing(decision, run, newest),
        *_source_verified(fleet),
        *_paused(decision),
        *_rolled_back(fleet, decision, run),
    ]
    return EdgeFleetStatus(
        observed_generation=fleet.generation,
        stable=decision.stable.hash if decision.stable else None,
        stable_version=decision.stable.version if decision.stable else "",
        target=decision.target.hash if decision.target else None,
        target_version=decision.target.version if decision.target else "",
        rollout=decision.run or (newest.name if newest else ""),
        sites=counts,
        conditions=merge_conditions(old.conditions, tuple(found), now=format_time(now), generation=fleet.generation),
    )


def count_fleet(fleet: FleetFacts, decision: FleetDecision, now: datetime) -> SiteCounts:
    """The selected sites now. `updated` runs the active run's revision, or stable when none is active."""
    run = next((run for run in fleet.runs if run.name == decision.run), None)
    newest = max(fleet.runs, key=lambda one: one.number, default=None)
    aim = run.revision if run else decision.stable
    counts: Counter[str] = Counter()
    for site in _eligible(fleet, decision):
        counts["desired"] += 1
        counts["unreachable"] += not is_reachable(site, now)
        held = site.assignment
        if held is None:
            continue
        counts["failed"] += fault_of(held) == "Revision"
        if is_confirmed(held):
            counts["updated"] += held.action == "Run" and aim is not None and held.revision == aim.hash
            counts["ready"] += held.action == "Run" and is_reachable(site, now)
            counts["rolled_back"] += newest is not None and taken_back_by(site, newest)
    return SiteCounts(
        desired=counts["desired"],
        updated=counts["updated"],
        ready=counts["ready"],
        failed=counts["failed"],
        inconclusive=decision.rollout.status.sites.inconclusive if decision.rollout and run else 0,
        unreachable=counts["unreachable"],
        skipped=len(decision.eligibilities) - counts["desired"],
        rolled_back=counts["rolled_back"],
    )


def _eligible(fleet: FleetFacts, decision: FleetDecision) -> list[SiteFacts]:
    return [site for site in fleet.sites if site.name in decision.eligibilities and decision.eligibilities[site.name].eligible]


def _same_release(old: Release | None, new: Release | None) -> Release | None:
    """A release that was only verified once more is no change."""
    if old is None or new is None:
        return new
    return old if old == new.model_copy(update={"verified_at": old.verified_at}) else new


def _describe_site(spec: EdgeSiteSpec, now: datetime) -> str:
    notes = [f"taint {taint.key}" for taint in spec.taints]
    if spec.hold is not None and spec.hold.until > now:
        notes.append(f"on hold until {format_time(spec.hold.until)} ({spec.hold.reason})")
    if spec.allowed_namespaces is None:
        notes.append("spec.allowedNamespaces is absent: no fleet may use it")
    return "; ".join(notes) or "accepted"


def _fleet_ready(fleet: FleetFacts, decision: FleetDecision, counts: SiteCounts, now: datetime) -> Sequence[Condition]:
    obstacle, rollout = decision.obstacle, decision.rollout
    if rollout is not None:
        stalled = find_condition(rollout.status.conditions, "Stalled")
        if stalled is not None:
            return _stalled(stalled.reason, f"{decision.run}: {stalled.message}")
        if obstacle is None:
            return (condition("Ready", "True", "RolloutUnderWay", f"{decision.run} is under way; see Progressing"),)
    if obstacle is not None:
        if obstacle.reason == SUSPENDED:
            return (condition("Ready", "True", SUSPENDED, obstacle.message),)
        if obstacle.stalled or obstacle.paused:
            return _stalled(obstacle.reason, obstacle.message)
        ready = condition("Ready", "False", clean_reason(obstacle.reason, "NotReady"), obstacle.message)
        first_look = fleet.model is not None and fleet.model.target is None and not fleet.model.reason
        return (ready, condition("Reconciling", "True", obstacle.reason, obstacle.message)) if first_look else (ready,)
    behind = [site for site in _eligible(fleet, decision) if is_reachable(site, now) and not _is_served(site, decision)]
    if behind:
        faults = [site.assignment for site in behind if site.assignment and fault_of(site.assignment)]
        why = f" ({clean_reason(faults[0].reason, 'SiteFault')}: {faults[0].message})" if faults else ""
        message = f"{len(behind)} reachable site(s) do not run stable yet: {count_names(site.name for site in behind)}{why}"
        return (condition("Ready", "False", "SitesNotReady" if faults else "SitesProgressing", message),)
    version = decision.stable.version if decision.stable else "nothing"
    silent = f"; {counts.unreachable} cannot be reached" if counts.unreachable else ""
    return (condition("Ready", "True", "SitesReady", f"every reachable site of {counts.desired} runs {version}{silent}"),)


def _is_served(site: SiteFacts, decision: FleetDecision) -> bool:
    held = site.assignment
    return held is not None and decision.stable is not None and held.revision == decision.stable.hash and is_confirmed(held)


def _stalled(reason: str, message: str) -> Sequence[Condition]:
    reason = clean_reason(reason, "Stalled")
    return (condition("Ready", "False", reason, message), condition("Stalled", "True", reason, message))


def _placement(fleet: FleetFacts, decision: FleetDecision, counts: SiteCounts) -> Condition:
    refused = [found for found in decision.eligibilities.values() if not found.eligible]
    reasons = Counter(found.reason or "" for found in refused)
    listed = "; ".join(f"{reason}: {count_names(found.site for found in refused if found.reason == reason)}" for reason in sorted(reasons))
    if counts.desired:
        left_out = f"; left out: {listed}" if refused else ""
        return condition("PlacementSatisfied", "True", "Satisfied", f"{counts.desired} eligible site(s){left_out}")
    reason = next(iter(reasons)) if len(reasons) == 1 else "NoSiteMatched"
    told = f"{listed}. {refused[0].message}" if refused else f"spec.siteSelector matches none of {len(fleet.sites)} EdgeSites"
    return condition("PlacementSatisfied", "False", reason, told)


def _progressing(decision: FleetDecision, run: RunFacts | None, newest: RunFacts | None) -> Condition:
    rollout = decision.rollout
    told = find_condition(rollout.status.conditions, "Progressing") if rollout else None
    if run is not None and rollout is not None and told is not None:
        where = f"{run.name}: {rollout.status.phase} {rollout.status.wave}"
        return condition("Progressing", told.status, told.reason, f"{where}: {told.message}")
    if newest is None:
        return condition("Progressing", "False", "NoRollout", "no run yet")
    return condition("Progressing", "False", newest.outcome or "", f"{newest.name} ended: {newest.status.message}")


def _source_verified(fleet: FleetFacts) -> Sequence[Condition]:
    model = fleet.model
    if model is None or (model.target is None and not model.reason):
        return ()
    status = condition("SourceVerified", "True" if model.verified else "False", clean_reason(model.reason, "NotVerified"), model.message)
    return (status,)


def _paused(decision: FleetDecision) -> Sequence[Condition]:
    told = find_condition(decision.rollout.status.conditions, "Paused") if decision.rollout else None
    if told is not None:
        return (condition("Paused", "True", told.reason, f"{decision.run}: {told.message}"),)
    if decision.obstacle is not None and decision.obstacle.paused:
        return (condition("Paused", "True", decision.obstacle.reason, decision.obstacle.message),)
    return ()


def _rolled_back(fleet: FleetFacts, decision: FleetDecision, run: RunFacts | None) -> Sequence[Condition]:
    """Shown while the model still names what was taken back."""
    if run is not None or decision.target is None:
        return ()
    barring = [one for one in fleet.runs if bars(one) and one.revision.hash == decision.target.hash]
    if not barring:
        return ()
    last = max(barring, key=lambda one: one.number)
    return (condition("RolledBack", "True", clean_reason(last.status.reason, last.outcome or ""), f"{last.name}: {last.status.message}"),)
