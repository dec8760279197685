"""One fleet at this site: obeys its newest believable order, one at a time. A newer one ends what is under way (I11).

Refused orders change nothing: what was under way goes on, unless the very order that asked for it is refused now, under a new trust
bundle. Failures on the site's account are tried again by themselves, those on the revision's account never under the same sequence (I10).
All that must survive a crash is in the state file before it is acted on.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime

from edgefleet.api.assignment import FrozenRevision, Order
from edgefleet.api.meta import format_time
from edgefleet.core.golden import GoldenLine
from edgefleet.core.revocation import REVOKED
from edgefleet.core.site import Accept, Cause, Refuse, Step, asked_for, decide_fault, decide_step, plan_delay
from edgefleet.oci.golden import parse_golden_lines
from edgefleet.site.faults import StepFailed, explain_failure
from edgefleet.site.fetching import Fetching
from edgefleet.site.gateway_config import Target
from edgefleet.site.healing import Healing
from edgefleet.site.intake import Intake
from edgefleet.site.prefetch import Prefetcher
from edgefleet.site.registries import Access
from edgefleet.site.revoking import Revoking
from edgefleet.site.runtimes.choice import Runtimes
from edgefleet.site.serving import Serving
from edgefleet.site.state import Failure, StateFile
from edgefleet.site.status import AssignmentRecord
from edgefleet.site.store import RevisionRecord, Store
from edgefleet.site.summary import Finding, find_failed, find_served
from edgefleet.site.trial import require_no_trouble, verify_golden_set, verify_ready
from edgefleet.site.trust_keeper import TrustKeeper

log = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS = 3600.0
AFTER_TROUBLE_SECONDS = 5.0
PHASES = ("Fetching", "Starting", "CheckingGolden")


class Site:
    """The parts of a site that every worker shares."""

    def __init__(
        self,
        *,
        state: StateFile,
        store: Store,
        trust: TrustKeeper,
        intake: Intake,
        serving: Serving,
        runtimes: Runtimes,
        prefetcher: Prefetcher,
        access: Callable[[Order], Awaitable[Access]],
        publish: Callable[[str, Finding], None],
        report_now: Callable[[], None],
    ) -> None:
        self.state = state
        self.store = store
        self.trust = trust
        self.intake = intake
        self.serving = serving
        self.runtimes = runtimes
        self.prefetcher = prefetcher
        self.access = access
        self.publish = publish
        self.report_now = report_now
        self.fetching: Fetching[RevisionRecord] = Fetching()
        self.revoking = Revoking(trust, state, store)


def _carried(order: Order) -> tuple[object, ...]:
    """What an order is carried out by: a renewal says the same for longer, unless its EdgeSite was changed."""
    return order.sequence, order.storage, order.registries, order.proxy, order.stop_serving


class Worker:
    """Runs as one task for one assignment. `offer` gives it the newest object; it never forgets an accepted order."""

    def __init__(self, name: str, site: Site) -> None:
        self._name = name
        self._site = site
        self._record: AssignmentRecord | None = None
        self._order: Order | None = None
        self._taken: AssignmentRecord | None = None
        self._job: asyncio.Task[None] | None = None
        self._refusal: Finding | None = None
        self._finding: Finding | None = None
        self._rested: Finding | None = None
        self._phase = 0
        self._failed_phase = -1
        self._wake = asyncio.Event()
        self._retry = asyncio.Event()
        self._healing = Healing(
            site,
            fetch=lambda order: self._prefetch(order),
            go_back=lambda order, revision: self._activate(order, revision, back=True),
        )

    def offer(self, record: AssignmentRecord) -> None:
        """The assignment as it is now."""
        self._record = record
        self._wake.set()

    def nudge(self) -> None:
        """Something that orders depend on has changed (trust, hardware): judge again, and do not wait for the next try."""
        self._retry.set()
        self._wake.set()

    async def run(self) -> None:
        """Obey until cancelled."""
        try:
            while True:
                await self._wait()
                self._wake.clear()
                if self._record is not None:
                    await self._try_to_take(self._record)
        finally:
            await self._end_job()

    async def _wait(self) -> None:
        left = LONGEST_WAIT_SECONDS
        now = self._site.state.now()
        if self._order is not None and self._order.expires_at > now:
            left = min(left, (self._order.expires_at - now).total_seconds())
        try:
            async with asyncio.timeout(left):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _try_to_take(self, record: AssignmentRecord) -> None:
        try:
            await self._take(record)
        except Exception as error:
            # Most likely a disk that is full: what cannot be remembered must not be acted on.
            failed = explain_failure(error) or StepFailed(Cause.DISK, "InternalError", f"{type(error).__name__}: {error}")
            log.exception("%s: sequence %d cannot be taken", self._name, record.spec.sequence)
            state, fault = decide_fault(failed.cause)
            spec = record.spec
            self._publish(Finding(spec.sequence, spec.revision, state, failed.reason, datetime.now(UTC), failed.message, fault))
            asyncio.get_running_loop().call_later(AFTER_TROUBLE_SECONDS, self._wake.set)

    async def _take(self, record: AssignmentRecord) -> None:
        match self._site.intake.judge(record):
            case Refuse() as refused:
                self._refuse(record, refused)
                if self._find_refusal() is not None:
                    await self._end_job()
                await self._leave_what_is_disowned()
            case Accept(order, stale):
                self._refusal = None
                self._taken = record
                new = self._order is None or _carried(self._order) != _carried(order)
                self._order = order
                if stale:
                    ended = f"the order ended at {format_time(order.expires_at)}: the hub has not renewed it"
                    self._publish(find_served(order, self._site.state.fleet(order.fleet), "TrustStale", ended))
                    await self._leave_what_is_disowned()
                elif new or self._job is None or self._job.done():
                    await self._end_job()
                    self._accept(order)
                    self._job = asyncio.create_task(self._carry_out(order), name=f"{self._name}@{order.sequence}")

    def _refuse(self, record: AssignmentRecord, refused: Refuse) -> None:
        spec = record.spec
        log.warning("%s: sequence %d is refused: %s: %s", self._name, spec.sequence, refused.reason, refused.message)
        self._refusal = Finding(
            sequence=spec.sequence,
            revision=spec.revision,
            state="Refused",
            fault="Site",
            reason=refused.reason,
            message=refused.message,
            since=datetime.now(UTC),
        )
        self._publish(self._refusal)

    def _find_refusal(self) -> Refuse | None:
        """Why the order that was accepted last would not be now."""
        verdict = self._site.intake.judge(self._taken) if self._taken is not None else None
        return verdict if isinstance(verdict, Refuse) else None

    async def _leave_what_is_disowned(self) -> None:
        """What the root of trust revoked does not serve on because the hub's order is not believed, or has ended."""
        order = self._site.revoking.make_order(self._name)
        if order is not None and (self._job is None or self._job.done()):
            await self._end_job()
            self._job = asyncio.create_task(self._carry_out(order), name=f"{self._name} leaves what is revoked")

    def _accept(self, order: Order) -> None:
        if order.sequence > self._site.state.fleet(order.fleet).floor:
            action, revision = asked_for(order)
            self._site.state.change_fleet(
                order.fleet, floor=order.sequence, accepted_action=action, accepted_revision=revision, failure=None
            )
        stops = {one.digest: one.by for one in order.stop_serving or ()}
        if stops != self._site.state.fleet(order.fleet).stops:
            self._site.state.change_fleet(order.fleet, stops=stops)
            self._site.serving.look_now()

    async def _end_job(self) -> None:
        if self._job is not None and not self._job.done():
            self._job.cancel()
            await asyncio.gather(self._job, return_exceptions=True)

    async def _carry_out(self, order: Order) -> None:
        failures = 0
        self._failed_phase = -1
        while True:
            self._phase = 0
            self._retry.clear()
            try:
                await self._attempt(order)
                return
            except Exception as error:
                failed = explain_failure(error)
                if failed is None:
                    log.exception("%s: unforeseen", self._name)
                    failed = StepFailed(Cause.SERVER, "InternalError", f"{type(error).__name__}: {error}")
            try:
                final = self._note(order, failed)
            except OSError as error:
                # A verdict that cannot be remembered is none: it is told as the disk's trouble, and reached again.
                final = self._note(order, explain_failure(error) or failed)
            if final:
                return
            failures += 1
            self._failed_phase = self._phase
            pause = plan_delay(failures, random.random())  # noqa: S311 (spreads load)
            try:
                async with asyncio.timeout(pause.total_seconds()):
                    await self._retry.wait()
            except TimeoutError:
                continue

    def _note(self, order: Order, failed: StepFailed) -> bool:
        """Tell a failure; True if it is final."""
        state, fault = decide_fault(failed.cause)
        log.warning("%s: sequence %d: %s (%s) %s", self._name, order.sequence, state, fault, failed)
        final = fault == "Revision" and order.revision is not None
        now = datetime.now(UTC)
        if final and order.revision is not None:
            failure = Failure(
                sequence=order.sequence,
                revision=order.revision.hash,
                reason=failed.reason,
                message=failed.message,
                golden_score=failed.golden_score,
                at=now,
            )
            self._site.state.change_fleet(order.fleet, failure=failure)
            self._site.serving.expect(order.fleet, None)
        self._publish(
            Finding(
                sequence=order.sequence,
                revision=asked_for(order)[1],
                state=state,
                fault=fault,
                reason=failed.reason,
                message=failed.message,
                golden_score=failed.golden_score,
                since=now,
            )
        )
        return final

    async def _attempt(self, order: Order) -> None:
        site = self._site
        state = site.state.fleet(order.fleet)
        disowned = site.revoking.is_disowned(order.fleet)
        barred = order.revision is not None and bool(site.revoking.forbids(order.fleet, order.revision))
        match decide_step(order, state.to_memory(), disowned=disowned, barred=barred):
            case Step.KEEP:
                changed = await self._confirm(order)
                self._publish(self._served(order))
            case Step.WITHDRAW:
                changed = await site.serving.withdraw(order)
                self._publish(find_served(order, site.state.fleet(order.fleet), "Withdrawn"))
            case Step.GO_BACK:
                failure = state.failure
                if failure is None and order.revision is not None:
                    why = f"{site.revoking.describe(order.fleet) or 'it is revoked'}; this site goes back to what served before"
                    failure = Failure(
                        sequence=order.sequence, revision=order.revision.hash, reason=REVOKED, message=why, at=datetime.now(UTC)
                    )
                    site.state.change_fleet(order.fleet, failure=failure)
                await self._go_back(order)
                changed = True
                if failure is not None:
                    self._publish(find_failed(failure))
            case Step.REST:
                changed = False
                if state.failure is not None:
                    self._publish(find_failed(state.failure))
            case Step.ACTIVATE:
                if order.revision is None:
                    raise ValueError("core accepted a Run without a revision")
                await self._activate(order, order.revision)
                changed = True
                self._publish(self._served(order))
        if changed:
            site.report_now()

    async def _confirm(self, order: Order) -> bool:
        try:
            changed = await self._site.serving.confirm(order)
        except Exception as error:
            failed = explain_failure(error)
            if failed is None:
                raise
            if failed.reason == "StoreDamaged":
                await self._healing.replace(order, failed)
                await self._site.serving.confirm(order)
                return True
            # It has served here: that it does not now is the site's trouble, whatever the model server says of it.
            raise StepFailed(Cause.SERVER, failed.reason, failed.message) from error
        await self._healing.complete(order)
        return changed

    async def _go_back(self, order: Order) -> None:
        """To what served before, as good as it was then and verified anew; its files are here, so no registry is needed."""
        previous = self._site.store.find(self._site.state.fleet(order.fleet).previous or "")
        try:
            if previous is None:
                raise StepFailed(Cause.DISK, "StoreDamaged", "what served before is not in the store any more")
            await self._activate(order, previous.revision, back=True)
        except Exception as error:
            failed = explain_failure(error)
            if failed is None:
                raise
            # It has served here: that it cannot now is the site's trouble. What failed goes on serving until it can, or an order comes.
            raise StepFailed(Cause.SERVER if failed.cause is not Cause.TRUST else Cause.TRUST, failed.reason, failed.message) from error

    async def _activate(self, order: Order, revision: FrozenRevision, *, back: bool = False) -> None:
        site = self._site
        trust = site.trust.require()
        self._require_allowed(order, revision, back=back)
        site.serving.expect(order.fleet, revision.hash)
        self._progress(order, "Fetching", f"{revision.variant.size} bytes from {revision.repository}")
        record = await self._healing.bring(order, revision)
        target = Target(order.model, revision.hash)
        runtime = site.runtimes.pick(revision)
        replace_ = self._must_replace(order.fleet, revision)
        async with site.serving.trying(order.fleet, target, replace=replace_):
            started = "its pod starts" if revision.serving.deployment else "the model server loads it"
            self._progress(order, "Starting", f"{target.served_name}: {started}")
            files = {blob.name: site.store.path(blob.digest) for blob in record.files}
            beside = site.state.fleet(order.fleet).active is not None and not replace_
            await verify_ready(runtime, target.served_name, files, checks=order.checks, beside=beside)
            score = ""
            if revision.golden is not None:
                self._progress(order, "CheckingGolden", f"{target.served_name} answers the golden set")
                lines = await asyncio.to_thread(self._golden_lines, record)
                score = await verify_golden_set(runtime, target.served_name, revision.golden, lines)
            require_no_trouble(runtime.judge(target.served_name, order.checks, beside=beside))
            if not (back and site.revoking.is_disowned(order.fleet)):
                self._require_fresh(order)
            self._require_allowed(order, revision, back=back)
            if site.trust.require() is not trust:
                raise StepFailed(Cause.TRUST, "TrustChanged", "another trust bundle came into force meanwhile: all is verified anew")
            await site.serving.activate(order, record, score, back=back)

    def _must_replace(self, fleet: str, revision: FrozenRevision) -> bool:
        serving = self._site.store.find(self._site.state.fleet(fleet).active or "")
        # Going back from one that fills the hardware needs its room just the same.
        return "Replace" in (revision.serving.switch, serving.revision.serving.switch if serving else "")

    def _served(self, order: Order) -> Finding:
        state = self._site.state.fleet(order.fleet)
        said = [state.gap] if state.gap else []
        if order.revision is not None and order.revision.serving.deployment is None:
            said.append("hardChecks.maxRestarts and oomKilled are NotApplicable: this site does not start the model server")
        revoked = self._site.revoking.describe(order.fleet)
        said = [revoked, *said, self._healing.describe(order.fleet)]
        return find_served(order, state, REVOKED if revoked else "Serving", "; ".join(filter(None, said)))

    async def _prefetch(self, order: Order) -> RevisionRecord:
        site = self._site
        access = await site.access(order)
        trust, now, protected = site.trust.require(), site.state.now(), site.serving.protected
        return await site.fetching.run(
            order.fleet, lambda stop: site.prefetcher.run(order, trust, access=access, protected=protected, now=now, stop=stop)
        )

    def _golden_lines(self, record: RevisionRecord) -> tuple[GoldenLine, ...]:
        data = self._site.store.read(record.golden_lines) if record.golden_lines else None
        if data is None:
            raise StepFailed(Cause.DISK, "StoreDamaged", "the golden set is gone from the store: it will be fetched again")
        return parse_golden_lines(data, "golden set")

    def _require_allowed(self, order: Order, revision: FrozenRevision, *, back: bool) -> None:
        """The trust in force allows this now: it may have changed while the revision was on its way."""
        forbidden = self._site.revoking.forbids(order.fleet, revision)
        if forbidden:
            raise StepFailed(Cause.TRUST, REVOKED, forbidden)
        refused = self._site.intake.judge_return(order, revision) if back else self._find_refusal()
        if refused is not None:
            raise StepFailed(Cause.TRUST, refused.reason, refused.message)

    def _require_fresh(self, order: Order) -> None:
        # The newest envelope counts: a renewal may have come while this was under way.
        newest = self._order if self._order and self._order.sequence == order.sequence else order
        if self._site.state.now() >= newest.expires_at:
            raise StepFailed(Cause.TRUST, "TrustStale", "the order ended while it was carried out: the hub must renew it")
        self._site.trust.require()

    def _progress(self, order: Order, reason: str, message: str) -> None:
        self._phase = PHASES.index(reason)
        # While it is tried again, what blocked it stays in sight until it has got further than that.
        if self._phase > self._failed_phase:
            self._publish(Finding(order.sequence, asked_for(order)[1], "Progressing", reason, datetime.now(UTC), message))

    def _publish(self, finding: Finding) -> None:
        if self._refusal is not None and finding is not self._refusal:
            # The object asks for something that is refused: that is what its status is about.
            finding = self._refusal
        if not finding.in_between:
            # A retry that ends as before is no news: the time and words of the first one stay.
            if self._rested is not None and finding.same_as(self._rested):
                finding = replace(self._rested, fault=finding.fault, golden_score=finding.golden_score)
            self._rested = finding
        if self._finding is None or not finding.same_as(self._finding):
            log.info("%s: sequence %d: %s %s", self._name, finding.sequence, finding.state, finding.reason)
        self._finding = finding
        self._site.publish(self._name, finding)
