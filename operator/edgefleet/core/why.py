"""Why a site runs what it runs, for people: what it was told, what it says, the reason if they differ, since when, and what to do next.

The answers are those of the very decisions that the hub takes (eligibility, progress, memory), put into one line per site; nothing is
decided here. What a site runs is what it last said: `heard` tells how old that is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from edgefleet.api.meta import format_time, parse_time
from edgefleet.core.decisions import FleetDecision
from edgefleet.core.eligibility import HARDWARE_UNKNOWN, NOT_SELECTED, QUARANTINED
from edgefleet.core.facts import AssignmentFacts, FleetFacts, RunFacts, SiteFacts
from edgefleet.core.limits import BEYOND_LIMITS
from edgefleet.core.memory import Memory, recall
from edgefleet.core.progress import UNREACHABLE, SiteProgress, Stand, fault_of, is_confirmed, survey
from edgefleet.core.reach import is_reachable
from edgefleet.core.revocation import REVOKED
from edgefleet.core.upkeep import SEQUENCE_REFUSALS
from edgefleet.core.waves import list_waves

NOTHING = "nothing"
TROUBLE = ("Failed", "Refused", "Blocked", QUARANTINED, UNREACHABLE, "Skipped")
"""Worst first."""
MOVING = ("Returning", "UnderWay", "Behind", "Soaking", "Waiting")
FINE = ("Returned", "UpToDate")


@dataclass(frozen=True, slots=True)
class Standing:
    """One site in one fleet. `state` is a word of ours: a Stand, an agent's state, a reason of eligibility, Unreachable or UpToDate.

    `told` and `runs` are versions (eight digits of the revision where its run is forgotten), or "nothing"; `told` is empty if the site has
    no order of this fleet. `then` is the version that it gets next, if another is on its way. `next` is empty where nobody need do
    anything.
    """

    site: str
    fleet: str
    state: str
    told: str
    runs: str
    then: str = ""
    reason: str = ""
    message: str = ""
    since: datetime | None = None
    heard: datetime | None = None
    next: str = ""

    @property
    def trouble(self) -> int:
        """For sorting: the larger, the more it needs a person."""
        if self.state in FINE:
            return 0
        if self.state in MOVING:
            return 1 + len(MOVING) - MOVING.index(self.state)
        # Between what moves and what is in trouble: left out, by somebody's will.
        return 100 + len(TROUBLE) - TROUBLE.index(self.state) if self.state in TROUBLE else 50


def explain_sites(fleet: FleetFacts, decision: FleetDecision, now: datetime) -> tuple[Standing, ...]:
    """Every site that the fleet selects or has an order for, worst first. `decision` is what decide_fleet made of the same facts."""
    memory = recall(fleet)
    sites = {site.name: site for site in fleet.sites}
    progress = {one.site: one for one in survey(memory.active, sites, fleet, now)} if memory.active else {}
    look = _Look(fleet, decision, memory, progress, now)
    found = [look.explain(site) for site in fleet.sites if site.name in decision.eligibilities or site.assignment is not None]
    return tuple(sorted(found, key=lambda one: (-one.trouble, one.site)))


@dataclass(frozen=True, slots=True)
class _Look:
    fleet: FleetFacts
    decision: FleetDecision
    memory: Memory
    progress: Mapping[str, SiteProgress]
    now: datetime

    def explain(self, site: SiteFacts) -> Standing:
        held, report = site.assignment, site.report
        told = "" if held is None else self._version(held.revision)
        blank = Standing(
            site=site.name,
            fleet=str(self.fleet.key),
            state="",
            told=told,
            runs=self._version(report.revision) if report else NOTHING,
            heard=site.last_heard,
        )
        one = self._place(blank, site)
        one = replace(one, message=one.message.removeprefix(f"EdgeSite {site.name}: "))
        wanted = held is not None or one.state in (*MOVING, HARDWARE_UNKNOWN)
        if is_reachable(site, self.now) or not wanted or (one.state in TROUBLE and one.reason != UNREACHABLE):
            return one
        if site.last_heard is None:
            return replace(one, state=UNREACHABLE, reason="", message="its agent was never heard", next="start `edgefleet agent` there")
        return replace(
            one,
            state=UNREACHABLE,
            reason="",
            message=f"not heard since {format_time(site.last_heard)}; it serves what it has",
            since=site.last_heard,
            next="look at its link and its agent; once heard it catches up by itself",
        )

    def _place(self, blank: Standing, site: SiteFacts) -> Standing:
        held, eligibility = site.assignment, self.decision.eligibilities.get(site.name)
        if held is not None and (faulty := self._place_fault(blank, held)) is not None:
            return faulty
        planned = self.progress.get(site.name)
        if planned is not None and planned.stand is not Stand.OUT:
            return self._place_planned(blank, site, planned)
        if eligibility is None or not eligibility.eligible:
            reason = (eligibility.reason if eligibility else NOT_SELECTED) or ""
            message = eligibility.message if eligibility else f"its labels do not match spec.siteSelector of {self.fleet.key}"
            keeps = "; it keeps what it has" if blank.runs != NOTHING and "keeps what it has" not in message else ""
            return replace(blank, state=reason, reason=reason, message=f"{message}{keeps}", since=held.since if held else None)
        return self._place_settled(blank, site)

    def _place_fault(self, blank: Standing, held: AssignmentFacts) -> Standing | None:
        fault = fault_of(held)
        if fault is None:
            return None
        one = replace(blank, state=held.state, reason=held.reason, message=held.message, since=held.since)
        if held.reason == REVOKED:
            return replace(one, next="it obeys its trust bundle, or the time in its order: name another release in the EdgeModel")
        if fault == "Revision":
            run = held.run or self.decision.run
            show = f": `edgefleet rollout show {run} -n {self.fleet.key.namespace}`" if run else ""
            return replace(one, state="Failed", next=f"the release failed its checks there; it serves what it had. The run decides{show}")
        if held.reason in SEQUENCE_REFUSALS:
            return replace(one, next="nothing: the hub sends the order again under a higher sequence")
        if held.reason in BEYOND_LIMITS:
            return replace(one, next="order what its trust bundle allows, or let the root keys allow it: `edgefleet trust set-limits`")
        if held.state == "Refused":
            return replace(one, next="it believes neither: compare the site's trust bundle with `edgefleet trust show`, and its clock")
        return replace(one, next="it tries again by itself; look there at what the message names (disk, registry, model server)")

    def _place_planned(self, blank: Standing, site: SiteFacts, planned: SiteProgress) -> Standing:
        run, held = self.memory.active, site.assignment
        assert run is not None  # noqa: S101 - there is progress only in a run
        wave = list_waves(run.policy)[planned.wave].name
        one = replace(blank, state=str(planned.stand), reason=planned.reason, message=planned.message, since=held.since if held else None)
        match planned.stand:
            case Stand.WAITING:
                message = (
                    f"wave {wave} of {run.name} is not open" if not _opened(run, wave) else f"wave {wave} of {run.name} has no room yet"
                )
                return replace(one, then=run.revision.version, message=message, since=_opened(run, wave) or _time(run.status.started_at))
            case Stand.SOAKING:
                until = f" until {planned.soaks_until:%H:%M:%S} UTC" if planned.soaks_until else ""
                return replace(one, message=planned.message or f"wave {wave} of {run.name} is watched{until}", since=planned.activated_at)
            case Stand.PROVEN:
                return replace(one, state="UpToDate", since=planned.activated_at)
            case Stand.UNDERWAY:
                return replace(one, message=planned.message or "it was told and has not confirmed yet")
            case Stand.RETURNING:
                return replace(one, message=planned.message or f"{run.name} sent it back; it has not confirmed yet")
            case Stand.RETURNED if planned.quarantined:
                return replace(one, state=QUARANTINED, next=self._explain_command(run.name))
            case Stand.SKIPPED:
                return replace(one, next="the run goes on without it; once it is well it catches up by itself")
            case _:
                return one

    def _place_settled(self, blank: Standing, site: SiteFacts) -> Standing:
        """A site outside of any run's plan."""
        held, stable = site.assignment, self.memory.stable
        if self.memory.active is not None and (held is None or stable is None or held.revision != stable.hash):
            message = f"it is not in the plan of {self.decision.run}, and gets what is stable when that has ended"
            return replace(blank, state="Waiting", reason="JoinedLater", message=message)
        if stable is None:
            found = self.decision.obstacle
            message = f"{found.reason}: {found.message}" if found else "no release was promoted yet"
            return replace(blank, state="Waiting", reason=found.reason if found else "NothingStable", message=message)
        if held is None or held.revision != stable.hash:
            why = "spec.suspend of the fleet is set" if self.fleet.spec.suspend else "its order is written at the next look"
            return replace(blank, state="Behind", then=stable.version, message=why, since=held.since if held else None)
        if not is_confirmed(held):
            return replace(blank, state="UnderWay", message="it was told and has not confirmed yet", since=held.since)
        if held.reason == REVOKED:
            return replace(
                blank,
                state=REVOKED,
                reason=held.reason,
                message=held.message,
                since=held.since,
                next="name another release in the EdgeModel",
            )
        return replace(blank, state="UpToDate", since=held.active_since or held.since)

    def _version(self, revision: str | None) -> str:
        if revision is None:
            return NOTHING
        known = (run.revision.version for run in self.memory.runs.values() if run.revision.hash == revision)
        return next(known, revision[:8])

    def _explain_command(self, run: str) -> str:
        return f"see `edgefleet rollout explain {run} -n {self.fleet.key.namespace}`; the next release goes there again"


def _opened(run: RunFacts, wave: str) -> datetime | None:
    return next((_time(record.opened_at) for record in run.status.waves if record.name == wave), None)


def _time(text: str | None) -> datetime | None:
    return parse_time(text) if text else None
