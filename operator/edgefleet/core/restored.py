"""Whether a fleet's sites know of orders that this hub never gave: it was restored from a backup that is older than they are."""

from collections import Counter
from collections.abc import Mapping

from edgefleet.core.decisions import Obstacle
from edgefleet.core.eligibility import Eligibility
from edgefleet.core.facts import FleetFacts, SiteFacts
from edgefleet.core.memory import count_names

ADOPTION_CONFLICT = "AdoptionConflict"


def find_unknown_orders(fleet: FleetFacts, eligibilities: Mapping[str, Eligibility]) -> Obstacle | None:
    """A fleet with runs, whose sites run a revision that none of these runs is of, and that the model does not name either, under a
    sequence that the hub has not given: nothing moves. Sending them to what the hub takes for stable would be a step back that nobody
    asked for. A fleet without any run is adopted as it is (starting)."""
    if not fleet.runs:
        return None
    known = {run.revision.hash for run in fleet.runs}
    if fleet.model is not None and fleet.model.target is not None:
        known.add(fleet.model.target.hash)
    chosen = (site for site in fleet.sites if site.name in eligibilities and eligibilities[site.name].reason != "OnHold")
    ahead = {site.name: revision for site in chosen if (revision := _unordered(site)) and revision not in known}
    if not ahead:
        return None
    listed = ", ".join(f"{revision[:8]} at {count}" for revision, count in sorted(Counter(ahead.values()).items()))
    message = (
        f"sites run what none of this fleet's runs is of, under orders that this hub did not give ({listed} site(s): {count_names(ahead)}):"
        " it was restored from a backup that is older than they are. Name in the EdgeModel what they run, and it is rolled out without a"
        " change at these sites; or put them on hold (EdgeSite spec.hold)"
    )
    return Obstacle(ADOPTION_CONFLICT, message, paused=True)


def _unordered(site: SiteFacts) -> str | None:
    """What the site reports to run, if it has accepted a later order than the hub holds for it."""
    given = site.assignment.sequence if site.assignment else 0
    return site.report.revision if site.report is not None and site.report.floor > given else None
