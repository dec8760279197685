"""Whether a fleet without an active run starts one, adopts what its sites already run, or what keeps it from doing either.

A run starts for a verified revision that is not stable, not revoked and not barred, as soon as one site is eligible. A new policy
alone starts nothing. A fleet without any run (its memory was lost) looks at what its sites report first: if they all name the
target, that is adopted; if not, nothing moves until a person decides.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from edgefleet.api.model import Revision
from edgefleet.api.policy import STANDARD_POLICY, RolloutPolicySpec
from edgefleet.api.quantities import parse_duration
from edgefleet.core.actions import Action, AdoptRun, AdoptSite, StartRun
from edgefleet.core.decisions import Obstacle
from edgefleet.core.eligibility import HARDWARE_UNKNOWN, Eligibility
from edgefleet.core.facts import FleetFacts, SiteFacts
from edgefleet.core.gates import find_undeliverable
from edgefleet.core.memory import Memory, count_names, next_run
from edgefleet.core.reach import earliest, is_reachable
from edgefleet.core.returning import NO_SAFE_TARGET, NO_SAFE_TARGET_MESSAGE
from edgefleet.core.waves import plan_waves

NO_SITE_MATCHED = "NoSiteMatched"
SUSPENDED = "FleetSuspended"
AUTHOR_UNKNOWN = "AuthorUnknown"
_AUTHOR_UNKNOWN_MESSAGE = (
    "the policy asks for approval by others than the author (approval.notAuthor), and EdgeModel {} has no annotation edgefleet.io/author:"
    " whoever named the release writes their own user name there (`kubectl auth whoami`)"
)


@dataclass(frozen=True, slots=True)
class Start:
    """Actions that change the set of runs, or the obstacle, or neither: the fleet is where its model wants it."""

    actions: tuple[Action, ...] = ()
    obstacle: Obstacle | None = None
    wake_at: datetime | None = None


def find_missing(fleet: FleetFacts) -> Obstacle | None:
    """An object that the fleet's spec names and that does not exist."""
    namespace = fleet.key.namespace
    if fleet.model is None:
        name = fleet.spec.model_ref.name
        message = f"spec.modelRef: EdgeModel {name} does not exist in namespace {namespace}: apply it; sites keep what they run"
        return Obstacle("ModelNotFound", message, stalled=True)
    if fleet.policy is None and fleet.spec.rollout_policy_ref is not None:
        name = fleet.spec.rollout_policy_ref.name
        message = f"spec.rolloutPolicyRef: RolloutPolicy {name} does not exist in namespace {namespace}: apply it, or leave the field out"
        return Obstacle("PolicyNotFound", message, stalled=True)
    return None


def decide_start(fleet: FleetFacts, memory: Memory, eligibilities: Mapping[str, Eligibility], now: datetime) -> Start:
    """For a fleet without an active run. `eligibilities` are those of the selected sites for the target revision."""
    obstacle = find_missing(fleet) or _find_obstacle(fleet, memory)
    target = fleet.model.target if fleet.model else None
    if obstacle is not None or target is None:
        return Start(obstacle=_or_no_safe_target(obstacle, memory))
    if memory.stable is not None and memory.stable.hash == target.hash:
        return Start()
    eligible = [site for site in fleet.sites if site.name in eligibilities and eligibilities[site.name].eligible]
    reporting = [] if fleet.runs else [site for site in eligible if _reports_alone(site)]
    if reporting:
        return _adopt(fleet, target, reporting, eligibilities, now)
    if not eligible:
        return Start(obstacle=_or_no_safe_target(_no_site(fleet, eligibilities), memory))
    policy = fleet.policy or STANDARD_POLICY
    undeliverable = find_undeliverable(target.slo, policy.analysis)
    if undeliverable:
        named = fleet.spec.rollout_policy_ref.name if fleet.spec.rollout_policy_ref else "standard"
        message = f"{'; '.join(undeliverable)} (RolloutPolicy {named}, EdgeModel {target.model}). Set it there, or take the gate out"
        return Start(obstacle=Obstacle("GateInputMissing", message, stalled=True))
    author = fleet.model.author if fleet.model else ""
    if not author and any(wave.approval and wave.approval.not_author for wave in policy.waves):
        return Start(obstacle=Obstacle(AUTHOR_UNKNOWN, _AUTHOR_UNKNOWN_MESSAGE.format(target.model), stalled=True))
    number, name = next_run(fleet)
    first = {site.name for site in eligible if _is_ahead(site, memory, target)}
    # A canary that cannot be heard would prove nothing, and keep the others waiting.
    last = {site.name for site in eligible if not is_reachable(site, now)}
    candidates = [(site.name, eligibilities[site.name].variant, site.labels) for site in eligible]
    plan = plan_waves(fleet.key, name, policy, candidates, first, last)
    return Start((StartRun(name, number, target, policy, plan, author),))


def _find_obstacle(fleet: FleetFacts, memory: Memory) -> Obstacle | None:
    model = fleet.model
    if model is None or model.target is None:
        found = (model.reason, model.message) if model else ("", "")
        return Obstacle(found[0] or "ReleaseNotVerified", found[1] or "the model's release is not verified yet")
    target = model.target
    if not model.verified:
        return Obstacle(model.reason or "ReleaseNotVerified", model.message or "the release that the model names now is not verified")
    if target.digest in model.revoked:
        message = f"release {target.version} ({target.digest}) is in spec.revoked of EdgeModel {target.model}: name another release"
        return Obstacle("Revoked", message, stalled=True)
    if target.hash in memory.barred:
        run = memory.barred[target.hash]
        message = (
            f"run {run.name} took release {target.version} back ({run.status.reason}: {run.status.message})."
            f" Name another release, or have it tried again: `edgefleet rollout retry {run.name}`"
            f" (`edgefleet rollout forget {run.name}` does that too, and deletes the record)"
        )
        return Obstacle(run.outcome or "", message, stalled=True)
    if fleet.spec.suspend:
        return Obstacle(SUSPENDED, "spec.suspend is set: nothing starts until it is cleared", paused=True)
    return None


def _or_no_safe_target(obstacle: Obstacle | None, memory: Memory) -> Obstacle | None:
    if obstacle is None or not memory.no_safe_target:
        return obstacle
    return Obstacle(NO_SAFE_TARGET, f"{NO_SAFE_TARGET_MESSAGE} ({obstacle.reason}: {obstacle.message})", paused=True)


def _no_site(fleet: FleetFacts, eligibilities: Mapping[str, Eligibility]) -> Obstacle:
    if not eligibilities:
        return Obstacle(NO_SITE_MATCHED, f"spec.siteSelector of {fleet.key} matches none of {len(fleet.sites)} EdgeSites")
    reasons = Counter(found.reason or "" for found in eligibilities.values())
    listed = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    first = next(iter(eligibilities.values()))
    return Obstacle(NO_SITE_MATCHED, f"none of {len(eligibilities)} selected sites may be used ({listed}). {first.message}")


def _is_ahead(site: SiteFacts, memory: Memory, target: Revision) -> bool:
    """A superseded run left this site between stable and target: it goes first."""
    held = site.assignment.revision if site.assignment and site.assignment.action == "Run" else None
    return held is not None and held != target.hash and (memory.stable is None or held != memory.stable.hash)


def _reports_alone(site: SiteFacts) -> bool:
    """The site reports that it runs something, and the hub holds no order that says otherwise."""
    if site.report is None or site.report.revision is None:
        return False
    held = site.assignment
    return held is None or (held.action == "Run" and held.revision == site.report.revision)


def _adopt(
    fleet: FleetFacts, target: Revision, reporting: list[SiteFacts], eligibilities: Mapping[str, Eligibility], now: datetime
) -> Start:
    policy: RolloutPolicySpec = fleet.policy or STANDARD_POLICY
    unheard = [name for name, found in eligibilities.items() if found.reason == HARDWARE_UNKNOWN]
    patience = fleet.created_at + parse_duration(policy.unreachable.skip_after)
    if unheard and now < patience:
        message = (
            f"{len(reporting)} site(s) already run this model and the fleet has no run: what all of them run is adopted."
            f" Not heard yet: {count_names(unheard)}; waits until {patience.isoformat()}"
        )
        return Start(obstacle=Obstacle("AwaitingReports", message), wake_at=earliest(patience, after=now))
    other = [site.name for site in reporting if site.report and site.report.revision != target.hash]
    if other:
        found = Counter(site.report.revision[:8] for site in reporting if site.report and site.report.revision)
        listed = ", ".join(f"{revision} at {count}" for revision, count in sorted(found.items()))
        message = (
            f"the fleet has no run, and its sites do not all run {target.hash[:8]} ({target.version}), which the model names: they report"
            f" {listed}; others: {count_names(other)}. Name in the EdgeModel what they run, or put the sites that differ on hold"
            " (EdgeSite spec.hold) until the rest is adopted; they get it when the hold ends"
        )
        return Start(obstacle=Obstacle("AdoptionConflict", message, paused=True))
    number, name = next_run(fleet)
    adopted = [
        AdoptSite(site.name, target, eligibilities[site.name].variant, site.report.adoptable_sequence)
        for site in reporting
        if site.assignment is None and site.report is not None
    ]
    return Start((AdoptRun(name, number, target, policy), *adopted))
