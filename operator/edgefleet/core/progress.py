"""Where each planned site stands in a run: the facts read under the rules of evidence.

Only a status or report that names the assigned revision and sequence counts. Soak runs from the site's own activation and needs
a Lease from after its end: a site that fell silent meanwhile proves nothing. Whether a wave passes is decided in judge.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from edgefleet.api.assignment import Fault
from edgefleet.api.meta import parse_time
from edgefleet.api.quantities import parse_duration
from edgefleet.core.eligibility import NOT_SELECTED, Eligibility, decide_eligibility
from edgefleet.core.facts import AssignmentFacts, FleetFacts, PlannedSite, RunFacts, SiteFacts
from edgefleet.core.memory import exposed_to, taken_back_by
from edgefleet.core.reach import earliest, given_up_at, is_reachable, unreachable_at
from edgefleet.core.waves import list_waves

UNREACHABLE = "Unreachable"
SITE_FAULT = "SiteFault"
REVISION_FAULT = "CheckFailed"

FAULT_OF_STATE: dict[str, Fault] = {"Failed": "Revision", "Blocked": "Site", "Refused": "Site"}


class Stand(StrEnum):
    """One site in one run."""

    WAITING = "Waiting"  # not assigned yet
    UNDERWAY = "UnderWay"  # assigned; not active, not given up
    SOAKING = "Soaking"  # active; its soak, or the report that proves it, is still to come
    PROVEN = "Proven"  # active, soaked, and heard after that
    FAILED = "Failed"  # the revision's fault
    SKIPPED = "Skipped"  # silent, or faulty itself, for too long; it keeps its assignment and catches up
    OUT = "Out"  # left the fleet in mid-run, with a reason; it keeps serving
    RETURNING = "Returning"  # sent back by this run
    RETURNED = "Returned"  # and there


@dataclass(frozen=True, slots=True)
class SiteProgress:
    """One planned site. `changes_at` is when time alone changes its stand; `soaks_until` when its soak ends, if it is active.

    `exposed`: told to run this revision. `silent`: not heard since before its wave opened, so it cannot speak of this revision.
    `given_up`: a RETURNING site that is no longer waited for. `quarantined`: the run took this one site back alone, for `reason`.
    """

    site: str
    wave: int
    variant: str
    stand: Stand = Stand.WAITING
    reason: str = ""
    message: str = ""
    exposed: bool = False
    reachable: bool = False
    silent: bool = False
    given_up: bool = False
    quarantined: bool = False
    activated_at: datetime | None = None
    soaks_until: datetime | None = None
    changes_at: datetime | None = None

    @property
    def active(self) -> bool:
        """Whether the site's gateway routes to the revision, as far as is known."""
        return self.stand in (Stand.SOAKING, Stand.PROVEN)

    @property
    def failed(self) -> bool:
        """Whether the revision failed at this site."""
        return self.stand is Stand.FAILED or self.quarantined


@dataclass(frozen=True, slots=True)
class _Rules:
    """What the policy says for one wave; `opened_at` is now while the wave is not recorded as open."""

    opened_at: datetime
    soak: timedelta
    skip_after: timedelta


def survey(run: RunFacts, sites: Mapping[str, SiteFacts], fleet: FleetFacts, now: datetime) -> tuple[SiteProgress, ...]:
    """Every planned site, in plan order."""
    opened = {record.name: parse_time(record.opened_at) for record in run.status.waves if record.opened_at}
    skip_after = parse_duration(run.policy.unreachable.skip_after)
    rules = [
        _Rules(opened.get(wave.name, now), parse_duration(run.policy.soak_of(wave).min), skip_after) for wave in list_waves(run.policy)
    ]
    return tuple(_locate(planned, run, sites.get(planned.site), fleet, rules[planned.wave], now) for planned in run.plan)


def fault_of(assignment: AssignmentFacts) -> Fault | None:
    """Whose fault the site's trouble is, if the status speaks of the present assignment and reports trouble."""
    if assignment.status_sequence != assignment.sequence or assignment.state not in FAULT_OF_STATE:
        return None
    return assignment.fault or FAULT_OF_STATE[assignment.state]


def is_confirmed(assignment: AssignmentFacts) -> bool:
    """Whether the site says that it has done what the present assignment tells it."""
    done = "Withdrawn" if assignment.action == "Withdraw" else "Active"
    return assignment.status_sequence == assignment.sequence and assignment.state == done


def is_reported(site: SiteFacts) -> bool:
    """Whether the site's Lease names the assigned revision and sequence."""
    assignment, report = site.assignment, site.report
    if assignment is None or report is None:
        return False
    return report.sequence == assignment.sequence and report.revision == assignment.revision


def clean_reason(reason: str, default: str) -> str:
    """A site's reason if it may stand in a condition, else `default`: a bad word from a site must not stop the hub."""
    return reason if re.fullmatch(r"[A-Z][A-Za-z]{0,63}", reason) else default


def _locate(planned: PlannedSite, run: RunFacts, site: SiteFacts | None, fleet: FleetFacts, rules: _Rules, now: datetime) -> SiteProgress:
    blank = SiteProgress(planned.site, planned.wave, planned.variant)
    if site is None:
        message = f"EdgeSite {planned.site} does not exist any more: apply it again, or let the run go on without it"
        return replace(blank, stand=Stand.OUT, reason="SiteGone", message=message)
    allowed = _allow(fleet, site, run, now)
    blank = replace(
        blank,
        variant=allowed.variant or planned.variant,
        exposed=exposed_to(site, run.revision.hash),
        reachable=is_reachable(site, now),
        silent=site.last_heard is None or site.last_heard < rules.opened_at,
        changes_at=site.spec.hold.until if site.spec.hold and site.spec.hold.until > now else None,
    )
    assignment = site.assignment
    if assignment is not None and taken_back_by(site, run):
        return _locate_return(blank, site, assignment, rules, now)
    if assignment is not None and blank.exposed and fault_of(assignment) == "Revision":
        reason = clean_reason(assignment.reason, REVISION_FAULT)
        return replace(blank, stand=Stand.FAILED, reason=reason, message=assignment.message, changes_at=None)
    if not allowed.eligible:
        return replace(blank, stand=Stand.OUT, reason=allowed.reason or "", message=allowed.message)
    if assignment is None or not blank.exposed:
        return blank
    if assignment.status_sequence == assignment.sequence and assignment.state == "Active":
        return _locate_active(blank, site, assignment, rules, now)
    return _await(blank, site, rules, now)


def _allow(fleet: FleetFacts, site: SiteFacts, run: RunFacts, now: datetime) -> Eligibility:
    if fleet.spec.site_selector.matches(site.labels):
        return decide_eligibility(fleet, site, run.revision, now)
    message = f"EdgeSite {site.name}: its labels no longer match spec.siteSelector of {fleet.key}; it keeps what it has"
    return Eligibility(site.name, NOT_SELECTED, message)


def _locate_active(blank: SiteProgress, site: SiteFacts, assignment: AssignmentFacts, rules: _Rules, now: datetime) -> SiteProgress:
    """A site's clock may be wrong: an activation from before its wave opened is dated at the opening."""
    reported = is_reported(site)
    said = (site.report.active_since if reported and site.report else None) or assignment.active_since or assignment.since
    start = max(said or rules.opened_at, rules.opened_at)
    end = start + rules.soak
    found = replace(blank, stand=Stand.SOAKING, activated_at=start, soaks_until=end)
    if reported and site.last_heard is not None and site.last_heard >= end:
        return replace(found, stand=Stand.PROVEN, changes_at=unreachable_at(site.last_heard, site.renew_seconds))
    waiting = _await(found, site, rules, now)
    if waiting.stand is Stand.SKIPPED:
        return waiting
    return replace(found, reason=waiting.reason, message=waiting.message, changes_at=earliest(end, waiting.changes_at, after=now))


def _locate_return(blank: SiteProgress, site: SiteFacts, assignment: AssignmentFacts, rules: _Rules, now: datetime) -> SiteProgress:
    if is_confirmed(assignment):
        found = replace(blank, stand=Stand.RETURNED, changes_at=None)
    else:
        waiting = _await(blank, site, rules, now)
        found = replace(waiting, stand=Stand.RETURNING, given_up=waiting.stand is Stand.SKIPPED)
    if not assignment.quarantine:
        return found
    message = f"EdgeSite {site.name}: its own traffic proved the revision worse there; it was sent back alone"
    return replace(found, quarantined=True, reason=clean_reason(assignment.quarantine, REVISION_FAULT), message=message)


def _await(blank: SiteProgress, site: SiteFacts, rules: _Rules, now: datetime) -> SiteProgress:
    """A site that has not done yet what it was told: under way, or skipped once its silence or its own fault lasted too long."""
    given_up = given_up_at(site, rules.skip_after)
    if not blank.reachable:
        heard = f"not heard since {site.last_heard.isoformat()}" if site.last_heard else "never heard"
        found = replace(blank, stand=Stand.UNDERWAY, reason=UNREACHABLE, message=f"EdgeSite {site.name}: {heard}")
        if given_up is None or given_up <= now:
            return replace(found, stand=Stand.SKIPPED, changes_at=None)
        return replace(found, changes_at=given_up)
    found = replace(blank, stand=Stand.UNDERWAY, changes_at=unreachable_at(site.last_heard, site.renew_seconds))
    assignment = site.assignment
    if assignment is None or fault_of(assignment) is None:
        return found
    fault_ends = (assignment.since or rules.opened_at) + rules.skip_after
    found = replace(found, reason=clean_reason(assignment.reason, SITE_FAULT), message=assignment.message)
    if fault_ends <= now:
        return replace(found, stand=Stand.SKIPPED)
    return replace(found, changes_at=earliest(fault_ends, found.changes_at, after=now))
