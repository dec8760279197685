"""Live traffic's word on a run: whether it goes on, holds, or goes back, and which sites go back alone. The statistics are in traffic."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from edgefleet.api.model import Slo
from edgefleet.api.rollout import GateRecord
from edgefleet.core.case import Case, Streams, find_watched, plan_case
from edgefleet.core.facts import FleetFacts, RunFacts, SiteFacts
from edgefleet.core.gates import REASONS, AbsoluteGate, plan_gates
from edgefleet.core.judge import Fail, Traffic
from edgefleet.core.outlook import Outlook, explain_gates
from edgefleet.core.traffic import Control, GateVerdict, SiteTally, Watched, count_requests, judge_gates

WORST = 3


@dataclass(frozen=True, slots=True)
class Worse:
    """Why one site goes back alone."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Live:
    """`case` is None where no gate is configured. `worse` are sites whose own traffic proves the revision worse; `hold` says why the
    run is held; `requests` is by site; `in_force`: at least one gate may act."""

    case: Case | None = None
    gates: tuple[GateRecord, ...] = ()
    fail: Fail | None = None
    worse: Mapping[str, Worse] = field(default_factory=dict)
    hold: str = ""
    requests: Mapping[str, int] = field(default_factory=dict)
    in_force: bool = False

    def traffic_of(self, sites: Iterable[str]) -> Traffic | None:
        """What counts for a wave of these sites; None if no gate is in force."""
        return Traffic(sum(self.requests.get(site, 0) for site in sites), self.hold) if self.in_force else None


def judge_live(run: RunFacts, sites: Mapping[str, SiteFacts], fleet: FleetFacts, now: datetime) -> Live:
    """What live traffic says of this run now."""
    case = plan_case(run, sites, fleet, now)
    if case is None:
        return Live()
    verdicts = judge_case(case, fleet.health)
    acting = _acting(verdicts)
    worse = {
        one.site: Worse(REASONS[verdict.gate.metric], f"{describe_gate(verdict, case.slo)}: {_describe_site(one)}")
        for verdict in acting
        for one in verdict.worse
    }
    # Sites that go back alone count as failed sites; whether the revision is worse elsewhere is asked without them.
    others = {site: member for site, member in case.watched.items() if site not in worse}
    rest = _acting(judge_case(case.model_copy(update={"watched": others}), fleet.health)) if worse else acting
    failed = [one for one in rest if one.outcome == "Fail"]
    return Live(
        case=case,
        gates=tuple(map(record_gate, verdicts)),
        fail=Fail(REASONS[failed[0].gate.metric], explain_failure(failed[0], case.slo)) if failed else None,
        worse=worse,
        hold="; ".join(_explain_hold(one, case) for one in rest if one.outcome == "Hold"),
        requests=count_requests(find_watched(case, fleet.health)),
        in_force=bool(acting),
    )


def _acting(verdicts: Iterable[GateVerdict]) -> list[GateVerdict]:
    return [one for one in verdicts if not one.gate.dry_run and one.outcome != "NotApplicable"]


def judge_case(case: Case, streams: Streams) -> tuple[GateVerdict, ...]:
    """The verdict of each gate: a function of nothing but the case and the set of records."""
    gates = plan_gates(case.slo, case.analysis)
    watched, controls = _find_sides(case, streams)
    return judge_gates(
        gates, case.analysis, watched=watched, controls=controls, opened=case.opened, now=case.now, first_release=case.first_release
    )


def foresee_case(case: Case, streams: Streams) -> tuple[Outlook, ...]:
    """What would change the verdict of each gate that is applicable."""
    gates = plan_gates(case.slo, case.analysis)
    watched, controls = _find_sides(case, streams)
    return explain_gates(
        gates, case.analysis, watched=watched, controls=controls, opened=case.opened, now=case.now, first_release=case.first_release
    )


def _find_sides(case: Case, streams: Streams) -> tuple[list[Watched], list[Control]]:
    """The sites that are judged, and those that they are compared with."""
    watched = [Watched(site, case.watched[site].group, stream) for site, stream in find_watched(case, streams).items()]
    controls = [
        Control(site, member.group, tuple(one for one in streams.get(site, ()) if one.revision != case.revision))
        for site, member in case.controls.items()
    ]
    return watched, controls


def record_gate(verdict: GateVerdict) -> GateRecord:
    """One gate as the run's status holds it: numbers as Python's repr, so that they can be compared bit for bit."""
    return GateRecord(
        name=verdict.gate.metric,
        kind=verdict.gate.kind,
        dry_run=verdict.gate.dry_run,
        verdict=verdict.outcome,
        requests=verdict.requests,
        seen=verdict.seen,
        allowed=repr(verdict.allowed),
        evidence=repr(verdict.evidence),
        bound=repr(verdict.bound),
    )


def describe_gate(verdict: GateVerdict, slo: Slo) -> str:
    """The gate in words: `latency above 50ms, at most 1 %`."""
    gate = verdict.gate
    what = {
        "errors": "failed answers",
        "latency": f"answers slower than {slo.latency.le if slo.latency else '?'}",
        "confidence": f"predictions below {slo.confidence.ge if slo.confidence else '?'}",
    }[gate.metric]
    if isinstance(gate, AbsoluteGate):
        return f"{what}, at most {gate.limit:.3%}"
    return f"{what}, at most {gate.max_increase:.0%} or {gate.min_increase * 100:g} points above usual"


def worst_sites(verdict: GateVerdict) -> tuple[SiteTally, ...]:
    """The three sites whose own traffic speaks loudest against the revision."""
    return tuple(sorted(verdict.sites, key=lambda one: (-one.evidence, -one.seen, one.site))[:WORST])


def explain_failure(verdict: GateVerdict, slo: Slo) -> str:
    """Why a gate failed, in one sentence with its numbers."""
    worst = ", ".join(f"{one.site} {one.seen} of {one.requests}" for one in worst_sites(verdict) if one.seen)
    return (
        f"{describe_gate(verdict, slo)}: {verdict.seen} of {verdict.requests} at {len(verdict.sites)} site(s), about {verdict.allowed:.1f}"
        f" would be allowed; evidence {verdict.evidence:.3g}, {verdict.bound:g} is enough; worst: {worst}"
    )


def _explain_hold(verdict: GateVerdict, case: Case) -> str:
    return (
        f"{explain_failure(verdict, case.slo)}; but only {verdict.controls} unchanged site(s) like these were heard meanwhile, controls.min"
        f" is {case.analysis.controls.min}: nobody can tell a worse revision from a bad hour. Abort the run, or promote it by soak.max"
    )


def _describe_site(one: SiteTally) -> str:
    return f"{one.seen} of {one.requests} at {one.site}, about {one.allowed:.1f} would be allowed; its own evidence {one.evidence:.3g}"
