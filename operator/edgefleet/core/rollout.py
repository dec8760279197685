"""One run, decided: which sites are assigned now, which wave opens, whether the run goes back or ends, and what it waits for.

`decide` reads only facts and can be asked at any time, after any part of its last actions: what a site was told stands in its
assignment, what a wave went through in the run's status. Evidence is read in progress, judged in judge, the way back is planned
in returning, and record puts the result into words. Which run a fleet needs is decided in fleet.

Pause and suspension stop what goes forward: new waves and new assignments. Judging goes on, and so does going back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from edgefleet.api.meta import format_time, parse_time
from edgefleet.api.policy import Wave
from edgefleet.api.rollout import Outcome, WaveRecord
from edgefleet.core.actions import AssignSite, EndRun
from edgefleet.core.decisions import RolloutDecision
from edgefleet.core.facts import FleetFacts, RunFacts, SiteFacts
from edgefleet.core.judge import Fail, Inconclusive, Pass, Verdict, judge_hard_checks, judge_wave
from edgefleet.core.live import Live, judge_live
from edgefleet.core.memory import Memory, count_names, recall
from edgefleet.core.progress import UNREACHABLE, SiteProgress, Stand, is_reported, survey
from edgefleet.core.reach import earliest
from edgefleet.core.record import DEADLINE, Step, count_sites, deadline_at, deadline_passed, summarise_rollout
from edgefleet.core.returning import (
    MAX_FAILED,
    NO_SAFE_TARGET,
    NO_SAFE_TARGET_MESSAGE,
    Cause,
    find_cause,
    find_failing,
    plan_return,
    plan_way_back,
)
from edgefleet.core.waves import list_waves

INCONCLUSIVE = "InconclusiveAnalysis"


def decide(run: RunFacts, sites: Mapping[str, SiteFacts], fleet: FleetFacts, now: datetime) -> RolloutDecision:
    """What to do for this run now. `sites` holds at least the planned ones that exist, by name. A run that ended is left alone."""
    if run.outcome is not None:
        status = run.status.model_copy(update={"phase": "Ended", "outcome": run.outcome, "observed_generation": run.generation})
        return RolloutDecision((), status, None)
    # What made it turn round stays in its record; what is heard on the way back is of no concern.
    live = Live(gates=run.status.gates) if run.status.phase == "Returning" else judge_live(run, sites, fleet, now)
    progress = tuple(_mark_worse(one, live) for one in survey(run, sites, fleet, now))
    return _Pass(run, sites, fleet, progress, live, now).decide()


def end_rollout(
    run: RunFacts, sites: Mapping[str, SiteFacts], fleet: FleetFacts, now: datetime, *, outcome: Outcome, reason: str, message: str
) -> RolloutDecision:
    """End this run now, for a reason that lies outside of it."""
    one = _Pass(run, sites, fleet, survey(run, sites, fleet, now), Live(gates=run.status.gates), now)
    return one.conclude(one.end(outcome, reason, message))


@dataclass(frozen=True, slots=True)
class _Pass:
    """One look at one run."""

    run: RunFacts
    sites: Mapping[str, SiteFacts]
    fleet: FleetFacts
    progress: tuple[SiteProgress, ...]
    live: Live
    now: datetime

    def decide(self) -> RolloutDecision:
        memory = recall(self.fleet)
        fail = judge_hard_checks(self.progress, self.run.policy.max_failed, first_wave=self._first_wave()) or self.live.fail
        cause = find_cause(self.run, self.progress, memory, fail, self.fleet.model)
        if cause is None:
            failing = find_failing(self.run, self.progress, fail)
            step = self._stand(failing, fail) if failing is not None else self._go_forward()
            if isinstance(step, Step):
                return self.conclude(self._quarantine(step, memory))
            cause = step
        return self.conclude(self._return_all(cause))

    def _quarantine(self, step: Step, memory: Memory) -> Step:
        """Sites whose own traffic proves the revision worse go back alone, whatever the run does otherwise."""
        orders = []
        for one in self.progress:
            if one.exposed and one.site in self.live.worse:
                order = plan_return(self.sites[one.site], self.fleet, memory, self.run.name, self.now, quarantine=one.reason)
                orders += [order] if order is not None else []
        if not orders:
            return step
        names = {order.site for order in orders}
        if step.outcome is not None:
            # They are on their way before the run ends: whoever looks after a crash must see that.
            message = f"{len(orders)} site(s) go back alone: {count_names(names)}"
            step = Step("Rolling", waiting_for="WaitingForReturn", waiting_message=message, verdict=step.verdict, waves=step.waves)
        others = (action for action in step.actions if getattr(action, "site", None) not in names)
        return replace(step, actions=(*orders, *others))

    def conclude(self, step: Step) -> RolloutDecision:
        counts = count_sites(self.progress)
        step = replace(step, gates=self.live.gates)
        status = summarise_rollout(self.run, counts, step, self.now)
        moments = [one.changes_at for one in self.progress]
        if step.outcome is None:
            moments.append(deadline_at(self.run, status))
            if isinstance(step.verdict, Inconclusive):
                moments.append(step.verdict.ends_at)
        wake_at = earliest(*moments, after=self.now) if step.outcome is None else None
        back = any(one.stand in (Stand.RETURNING, Stand.RETURNED) and not one.quarantined for one in self.progress)
        over = (one for one in self.progress if one.stand is Stand.SOAKING and one.soaks_until and one.soaks_until <= self.now)
        unheard = frozenset(one.site for one in over) if step.outcome is None else frozenset()
        return RolloutDecision(step.actions, status, wake_at, step.returning, taken_back=back, unheard=unheard, case=self.live.case)

    def end(self, outcome: Outcome, reason: str, message: str, verdict: Verdict | None = None) -> Step:
        return Step(
            "Ended",
            reason=reason,
            message=message,
            outcome=outcome,
            verdict=verdict,
            waves=self._records(),
            actions=(EndRun(self.run.name, outcome, reason, message),),
        )

    def _first_wave(self) -> int:
        return min((one.wave for one in self.progress), default=0)

    def _group(self, index: int) -> list[SiteProgress]:
        return [one for one in self.progress if one.wave == index]

    def _records(self) -> tuple[WaveRecord, ...]:
        """The waves as recorded, with their sites counted. A wave that this run assigned sites in is open, recorded or not."""
        known = {record.name: record for record in self.run.status.waves}
        records = []
        for index, wave in enumerate(list_waves(self.run.policy)):
            group = self._group(index)
            if not group and index == len(self.run.policy.waves):
                continue  # the implicit last wave, where it has nothing to take
            record = known.get(wave.name, WaveRecord(name=wave.name))
            begun = any(one.exposed and self._sent(one.site) for one in group)
            opened_at = record.opened_at or (format_time(self.now) if begun else None)
            records.append(record.model_copy(update={"sites": len(group), "opened_at": opened_at}))
        return tuple(records)

    def _sent(self, site: str) -> bool:
        assignment = self.sites[site].assignment
        return assignment is not None and assignment.run == self.run.name

    def _return_all(self, cause: Cause) -> Step:
        back = plan_way_back(
            self.progress, self.progress, run=self.run, sites=self.sites, fleet=self.fleet, memory=recall(self.fleet), now=self.now
        )
        verdict = Fail(cause.reason, cause.message) if cause.outcome == "RolledBack" else None
        going = Step(
            "Returning",
            reason=cause.reason,
            message=cause.message,
            verdict=verdict,
            waves=self._records(),
            actions=back.actions,
            returning=cause.outcome,
        )
        if back.stranded:
            return replace(going, waiting_for=NO_SAFE_TARGET, waiting_message=NO_SAFE_TARGET_MESSAGE, paused=NO_SAFE_TARGET)
        if back.awaited:
            waiting = f"{len(back.awaited)} site(s) go back: {count_names(back.awaited)}"
            return replace(going, waiting_for="WaitingForReturn", waiting_message=waiting)
        left = f"; not sent back, as they take no change now: {count_names(back.held)}" if back.held else ""
        return self.end(cause.outcome, cause.reason, cause.message + left, verdict)

    def _stand(self, failing: tuple[SiteProgress, ...], fail: Fail | None) -> Step:
        """The run failed and its policy does not take it back whole: part of it may go back, and the run stands."""
        back = plan_way_back(
            failing, self.progress, run=self.run, sites=self.sites, fleet=self.fleet, memory=recall(self.fleet), now=self.now
        )
        message = fail.message if fail else self.run.status.message or "more sites failed than spec.policy.maxFailed allows"
        remedy = "abort the run (spec.control.aborted), or name another release in the EdgeModel"
        going = f"; {len(back.awaited)} site(s) go back: {count_names(back.awaited)}" if back.awaited else ""
        return Step(
            "Rolling",
            waiting_for=MAX_FAILED,
            waiting_message=f"{remedy}{going}",
            reason=MAX_FAILED,
            message=message,
            paused=MAX_FAILED,
            verdict=fail or Fail(MAX_FAILED, message),
            waves=self._records(),
            actions=back.actions,
        )

    def _go_forward(self) -> Step | Cause:
        """Walk the waves up to the first that has not passed. Several may pass in one look."""
        hold = self._hold()
        records = list(self._records())
        actions: list[AssignSite] = []
        proven: set[str] = set()
        verdict = Pass()
        for index, wave in enumerate(list_waves(self.run.policy)):
            group = self._group(index)
            if not group:
                continue
            if records[index].opened_at is None:
                barrier = hold or self._find_barrier(wave)
                if barrier is not None:
                    return self._wait(barrier, verdict, records, actions)
                records[index] = records[index].model_copy(update={"opened_at": format_time(self.now)})
            if hold is None:
                actions += self._assign(wave, group)
            judged = self._judge(wave, group, records[index], proven)
            if records[index].passed_at is None:
                if self._is_left_over(index, group, proven):
                    continue
                if isinstance(judged, Inconclusive) and not self._is_promoted(wave, group):
                    chosen = (wave.on_inconclusive or self.run.policy.on_inconclusive) if judged.final else "Hold"
                    if chosen == "Rollback":
                        return Cause("RolledBack", INCONCLUSIVE, f"wave {wave.name} after soak.max: {judged.message}")
                    if chosen == "Hold":
                        return self._wait(hold or _waiting(wave, judged), judged, records, actions)
                records[index] = records[index].model_copy(update={"passed_at": format_time(self.now)})
            verdict = judged if isinstance(judged, Pass) else _passed_before(wave, judged)
            proven |= {one.variant for one in group if one.stand is Stand.PROVEN}
        if hold is not None:
            return self._wait(hold, verdict, records, actions)
        left = [one.site for one in self.progress if one.stand is not Stand.PROVEN]
        message = f"all waves passed{f'; not proven: {count_names(left)}' if left else ''}"
        ended = self.end("Promoted", "AllWavesPassed", message, verdict)
        return replace(ended, waves=tuple(records), actions=(*actions, *ended.actions))

    def _is_left_over(self, index: int, group: Sequence[SiteProgress], proven: set[str]) -> bool:
        """Whether only sites that cannot be had are left: the last wave of a revision that earlier waves proved. They do not keep the run
        from its end (nor count for it), and catch up with stable when they are back. How many may have failed, maxFailed says."""
        return (
            bool(proven)
            and index == max(one.wave for one in self.progress)
            and all(one.failed or one.stand is Stand.OUT or (one.stand is Stand.SKIPPED and one.reason == UNREACHABLE) for one in group)
        )

    def _is_promoted(self, wave: Wave, group: Sequence[SiteProgress]) -> bool:
        """Whether a person lets this wave pass on what is known now. That stands in for time, traffic and numbers, never for silence:
        one of its sites must have reported the revision."""
        return self.run.control.promote == wave.name and any(one.active and is_reported(self.sites[one.site]) for one in group)

    def _hold(self) -> tuple[str, str] | None:
        if self.run.control.paused:
            return "UserPaused", "spec.control.paused is set: clear it, or abort the run"
        if self.fleet.spec.suspend:
            return "FleetSuspended", f"spec.suspend of fleet {self.fleet.key} is set: clear it to go on"
        return None

    def _find_barrier(self, wave: Wave) -> tuple[str, str] | None:
        if wave.approval is not None:
            people = {approval.by for approval in self.run.control.approvals if approval.wave == wave.name}
            others = ""
            if wave.approval.not_author:
                people = people - {self.run.author} if self.run.author else set()
                others = f" other than {self.run.author or 'the author, who is not known'}"
            if len(people) < wave.approval.required:
                found = f"{len(people)} of {wave.approval.required} people{others} approved"
                command = f"edgefleet rollout approve {self.run.name} {wave.name} -n {self.fleet.key.namespace}"
                return "AwaitingApproval", f"wave {wave.name}: {found}; `{command}` adds one to spec.control.approvals"
        if deadline_passed(self.run, count_sites(self.progress), self.now):
            return DEADLINE, f"wave {wave.name} does not open while progressDeadline is exceeded: bring a site back, or abort the run"
        return None

    def _assign(self, wave: Wave, group: Sequence[SiteProgress]) -> list[AssignSite]:
        waiting = [one for one in group if one.stand is Stand.WAITING]
        slots = len(waiting)
        if wave.max_concurrent is not None:
            slots = max(0, wave.max_concurrent - sum(one.stand is Stand.UNDERWAY for one in group))
        return [AssignSite(one.site, self.run.revision, one.variant, self.run.name) for one in waiting[:slots]]

    def _judge(self, wave: Wave, group: Sequence[SiteProgress], record: WaveRecord, proven: set[str]) -> Pass | Inconclusive:
        opened_at = parse_time(record.opened_at) if record.opened_at else self.now
        soak = self.run.policy.soak_of(wave)
        traffic = self.live.traffic_of(one.site for one in group)
        return judge_wave(group, soak, opened_at=opened_at, proven_variants=proven, traffic=traffic, now=self.now)

    def _wait(self, waiting: tuple[str, str], verdict: Verdict, records: Sequence[WaveRecord], actions: Sequence[AssignSite]) -> Step:
        reason, message = waiting
        return Step(
            "Rolling",
            waiting_for=reason,
            waiting_message=message,
            paused=reason if reason in ("UserPaused", "FleetSuspended", INCONCLUSIVE) else "",
            verdict=verdict if any(record.opened_at for record in records) else None,
            waves=tuple(records),
            actions=tuple(actions),
        )


def _mark_worse(one: SiteProgress, live: Live) -> SiteProgress:
    """A site whose own traffic proves the revision worse has failed there."""
    worse = live.worse.get(one.site)
    if worse is None or not one.exposed:
        return one
    return replace(one, stand=Stand.FAILED, reason=worse.reason, message=worse.message, changes_at=None)


def _passed_before(wave: Wave, judged: Inconclusive) -> Pass:
    """A wave that has passed stays passed: it was promoted inconclusive, or a site of it changed since."""
    return Pass("PassedInconclusive", f"wave {wave.name} has passed, with {judged.reason}: {judged.message}")


def _waiting(wave: Wave, verdict: Inconclusive) -> tuple[str, str]:
    if verdict.final:
        return INCONCLUSIVE, f"wave {wave.name} after soak.max, {verdict.reason}: {verdict.message}"
    return verdict.reason, f"wave {wave.name}: {verdict.message}"
