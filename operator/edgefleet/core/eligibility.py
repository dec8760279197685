"""Which sites a fleet may use now, and why not the others: one reason per site, the first that holds, in one fixed order.

A site that cannot be reached is eligible: silence is no reason against it. What a site already runs is not touched from here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from edgefleet.api.model import Revision
from edgefleet.core.attestation import find_standing
from edgefleet.core.facts import FleetFacts, SiteFacts
from edgefleet.core.variants import fit_serving, fit_variant

NOT_SELECTED = "NotSelected"
HARDWARE_UNKNOWN = "HardwareUnknown"
QUARANTINED = "Quarantined"


@dataclass(frozen=True, slots=True)
class Eligibility:
    """`reason` is None if the site is eligible; `variant` then names what fits it, or is empty when no revision was asked for."""

    site: str
    reason: str | None = None
    message: str = ""
    variant: str = ""

    @property
    def eligible(self) -> bool:
        """Whether the fleet may send this site an assignment."""
        return self.reason is None


def selected(fleet: FleetFacts) -> tuple[SiteFacts, ...]:
    """The sites that the fleet's selector names, in their given order."""
    return tuple(site for site in fleet.sites if fleet.spec.site_selector.matches(site.labels))


def decide_eligibilities(fleet: FleetFacts, sites: Iterable[SiteFacts], revision: Revision | None, now: datetime) -> dict[str, Eligibility]:
    """decide_eligibility for each of these sites, by name."""
    return {site.name: decide_eligibility(fleet, site, revision, now) for site in sites}


def decide_eligibility(
    fleet: FleetFacts, site: SiteFacts, revision: Revision | None, now: datetime, *, going_back: bool = False
) -> Eligibility:
    """Whether this fleet may run `revision` at this site. The selector is not asked: see `selected`.

    With revision None the hardware must be known but need not fit. `going_back`: the site goes to what it had before, which its TPM need
    not vouch for again.
    """
    refusal = (
        _refuse_namespace(fleet, site)
        or _refuse_residency(fleet, site)
        or _refuse_taint(fleet, site)
        or _refuse_hold(site, now)
        or (None if going_back else _refuse_attestation(site, now))
        or _refuse_taken(fleet, site)
        or _refuse_hardware(site)
        or _refuse_quarantine(fleet, site, revision)
    )
    variant = ""
    if refusal is None and revision is not None:
        variant = _fit(site, revision)
        if not variant:
            refusal = _refuse_variant(site, revision)
    if refusal is None and site.deleting:
        refusal = ("SiteDeleting", f"EdgeSite {site.name} is being deleted: nothing new goes to it")
    if refusal is not None:
        return Eligibility(site.name, *refusal)
    return Eligibility(site.name, variant=variant)


Refusal = tuple[str, str] | None


def _refuse_namespace(fleet: FleetFacts, site: SiteFacts) -> Refusal:
    allowed = site.spec.allowed_namespaces
    if allowed is not None and allowed.matches(fleet.namespace_labels):
        return None
    found = "is absent, which means nobody" if allowed is None else "does not match the labels of that namespace"
    return (
        "NamespaceNotAllowed",
        f"EdgeSite {site.name}: spec.allowedNamespaces {found}; fleet {fleet.key} may not use it."
        f" Let the site's owner admit namespace {fleet.key.namespace}",
    )


def _refuse_residency(fleet: FleetFacts, site: SiteFacts) -> Refusal:
    residency = fleet.spec.residency
    if residency is None or site.spec.region in residency.allowed_regions:
        return None
    return (
        "ResidencyDenied",
        f"EdgeSite {site.name}: spec.region is {site.spec.region or 'absent'}; fleet {fleet.key} allows only"
        f" {', '.join(residency.allowed_regions)} (spec.residency.allowedRegions). Correct the region, or allow it",
    )


def _refuse_taint(fleet: FleetFacts, site: SiteFacts) -> Refusal:
    tolerated = {toleration.key for toleration in fleet.spec.tolerations}
    taint = next((taint for taint in site.spec.taints if taint.key not in tolerated), None)
    if taint is None:
        return None
    why = f" ({taint.reason})" if taint.reason else ""
    return (
        "Tainted",
        f"EdgeSite {site.name}: spec.taints has {taint.key}{why}. Remove it, or tolerate it in spec.tolerations of {fleet.key}",
    )


def _refuse_hold(site: SiteFacts, now: datetime) -> Refusal:
    hold = site.spec.hold
    if hold is None or hold.until <= now:
        return None
    return (
        "OnHold",
        f"EdgeSite {site.name}: spec.hold until {hold.until.isoformat()} ({hold.reason}). Remove the hold, or wait",
    )


def _refuse_attestation(site: SiteFacts, now: datetime) -> Refusal:
    standing = find_standing(site.spec, site.attestation, now)
    if standing is None or standing.status == "True":
        return None
    return (
        "NotAttested",
        f"EdgeSite {site.name}: spec.attestation is Required, and it is not attested ({standing.reason}): {standing.message}",
    )


def _refuse_taken(fleet: FleetFacts, site: SiteFacts) -> Refusal:
    """The fleet whose assignment is already there keeps the site, else the older, then by name."""
    ours_is_there = site.assignment is not None and site.assignment.action == "Run"
    ours = (not ours_is_there, fleet.created_at, fleet.key)
    stronger = [claim for claim in site.claims if (not claim.assigned, claim.created_at, claim.fleet) < ours]
    if not stronger:
        return None
    holder = min(stronger, key=lambda claim: (not claim.assigned, claim.created_at, claim.fleet))
    if holder.gone:
        return (
            "SiteTaken",
            f"EdgeSite {site.name}: fleet {holder.fleet} does not exist and left model {fleet.spec.model_ref.name} there"
            " (onDelete: Retain). Apply that fleet again with spec.onDelete: Withdraw, and delete it",
        )
    return (
        "SiteTaken",
        f"EdgeSite {site.name}: fleet {holder.fleet} has model {fleet.spec.model_ref.name} there."
        " One fleet per model and site: narrow one of the two siteSelectors",
    )


def _refuse_hardware(site: SiteFacts) -> Refusal:
    if site.hardware is not None:
        return None
    return (
        HARDWARE_UNKNOWN,
        f"EdgeSite {site.name}: no Lease from its agent yet, so its hardware is not known. Start `edgefleet agent` at the site",
    )


def _refuse_quarantine(fleet: FleetFacts, site: SiteFacts, revision: Revision | None) -> Refusal:
    """A revision that one site's own traffic proved worse is not sent there again; the next one is."""
    held = site.assignment
    if held is None or not held.quarantine or revision is None:
        return None
    run = next((run for run in fleet.runs if run.name == held.run), None)
    if run is None or run.revision.hash != revision.hash:
        return None
    return (
        QUARANTINED,
        f"EdgeSite {site.name}: {run.name} took {revision.version} back there alone ({held.quarantine}). It gets the next release;"
        f" `edgefleet rollout explain {run.name} -n {fleet.key.namespace}` shows the evidence",
    )


def _fit(site: SiteFacts, revision: Revision) -> str:
    if site.hardware is None or fit_serving(revision.serving, site.hardware) is None:
        return ""
    variant = fit_variant(revision.variants, site.hardware)
    return variant.name if variant else ""


def _refuse_variant(site: SiteFacts, revision: Revision) -> Refusal:
    hardware = site.hardware
    found = "nothing" if hardware is None else f"{hardware.arch}, accelerator {hardware.accelerator or 'none'}, {hardware.memory} bytes"
    names = ", ".join(variant.name for variant in revision.variants)
    return (
        "NoVariantFits",
        f"EdgeSite {site.name}: its hardware ({found}) fits no variant of {revision.model} {revision.version} ({names}),"
        " or no entry of the model's spec.serving. Publish a variant for it, or leave the site out of the siteSelector",
    )
