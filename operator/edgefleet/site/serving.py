"""What serves at this site: puts a tried revision into service, keeps it there, takes it out.

What the state file says is made true again after any crash, restart of the server, or restart of Envoy, without the hub and without any
API server. Whether a revision may serve at all was decided before (prefetch.py, trial.py).
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from edgefleet.api.assignment import ActiveRevision, FrozenRevision, Order
from edgefleet.api.meta import format_time
from edgefleet.api.site import Storage
from edgefleet.core.site import Cause
from edgefleet.site.faults import StepFailed, explain_failure
from edgefleet.site.gateway import Gateway, GatewayDown
from edgefleet.site.gateway_config import NOBODY, Target, Upstream
from edgefleet.site.runtimes.choice import Runtimes
from edgefleet.site.state import Failure, FleetState, StateFile
from edgefleet.site.store import RevisionRecord, Store

log = logging.getLogger(__name__)

UPKEEP_SECONDS = 5.0
ENSURE_SECONDS = 600.0


class Serving:
    """The gateway and the runtime of one site, as the state file says."""

    def __init__(self, *, state: StateFile, store: Store, runtimes: Runtimes, gateway: Gateway, keep: timedelta = timedelta(0)) -> None:
        """`keep`: how long old pods run beside those that took their place, where no run's soak says it."""
        self._state = state
        self._store = store
        self._runtimes = runtimes
        self._gateway = gateway
        self._keep = keep
        self._replacing: set[str] = set()
        self._wake = asyncio.Event()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._cleanups: dict[str, asyncio.Task[None]] = {}
        self._trials: set[str] = set()
        self._unloading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._expected: dict[str, str] = {}
        self._sound: set[str] = set()
        self._broken: set[str] = set()
        self.on_switch: Callable[[], None] = lambda: None
        """Called when clients have been switched to another revision."""
        self.find_over: Callable[[str], Failure | None] = lambda _: None
        """Says of a fleet whether what serves may not serve any more, and why."""

    def active(self, fleet: str) -> ActiveRevision | None:
        """What the gateway routes to for a fleet, as reports say it."""
        state = self._state.fleet(fleet)
        if state.active is None:
            return None
        record = self._store.find(state.active)
        return ActiveRevision(
            revision=state.active,
            version=record.revision.version if record else "",
            variant=record.revision.variant.name if record else "",
            since=format_time(state.active_since or datetime.now(UTC)),
        )

    def protected(self) -> set[str]:
        """The revisions that must stay in the store: what serves, its predecessors, and what is on its way. Safe for threads.

        What was withdrawn stays while there is room for it.
        """
        serving = [state for state in self._state.fleets.values() if state.active or state.stopped_at]
        kept = {revision for state in serving for revision in (state.active, state.previous) if revision}
        return kept | set(self._expected.values())

    def expect(self, fleet: str, revision: str | None) -> None:
        """This revision is on its way for a fleet; None: none any more."""
        if revision is None:
            self._expected.pop(fleet, None)
            self._store.release(fleet)
        else:
            self._expected[fleet] = revision

    @asynccontextmanager
    async def trying(self, fleet: str, target: Target, *, replace: bool = False) -> AsyncIterator[None]:
        """While a revision is loaded beside the serving one, or with `replace` instead of it. Unless it then serves, it is unloaded at
        the end, and the one that was stopped for it is started again."""
        self._trials.add(target.served_name)
        try:
            # From here on nothing begins to unload it; what has begun, for whichever fleet, must end before it is placed again.
            async with self._unloading[target.served_name]:
                pass
            if any(not self._is_used(name) for name in self._pods_placed()):
                # What was kept beside the serving one may need the room.
                self._clean_up(fleet)
            if replace:
                await _explained(self._stop_serving(fleet, target))
            yield
        finally:
            self._trials.discard(target.served_name)
            self._replacing.discard(fleet)
            self._wake.set()
            if self._gateway.table.get(target.model) != target and self._state.fleet(fleet).active != target.revision:
                self._clean_up(fleet)

    async def _stop_serving(self, fleet: str, target: Target) -> None:
        async with self._locks[fleet]:
            state = self._state.fleet(fleet)
            if state.active is None or state.active == target.revision:
                return
            self._replacing.add(fleet)
            if state.gap_since is None:
                self._state.change_fleet(fleet, gap_since=datetime.now(UTC))
            await self._gateway.switch(state.model, NOBODY)
            old = Target(state.model, state.active).served_name
            await self._gateway.drain(old)
            await self._runtimes.unload(old)
            log.info("fleet %s: %s is stopped, so that the next has room", fleet, old)

    async def _close_gap(self, fleet: str) -> None:
        state = self._state.fleet(fleet)
        if state.gap_since is None:
            return
        try:
            refused = await self._gateway.count_refused(state.model)
        except GatewayDown as error:
            log.warning("fleet %s: what was refused is not counted: %s", fleet, error)
            refused = 0
        seconds = max(0.0, (datetime.now(UTC) - state.gap_since).total_seconds())
        said = f"switch: Replace: no revision served for {seconds:.1f} s, {refused} request(s) were refused"
        self._state.change_fleet(
            fleet, gap_since=None, gap_seconds=state.gap_seconds + seconds, gap_requests=state.gap_requests + refused, gap=said
        )
        log.info("fleet %s: %s", fleet, said)

    async def activate(self, order: Order, record: RevisionRecord, golden_score: str, *, back: bool = False) -> None:
        """Switch clients to a tried revision. On disk first; after a crash in between, `ensure` finishes it. Raises StepFailed.

        `back`: to the one that served before what the order asks for, which failed here; that is not forgotten.
        """
        revision = record.revision
        async with self._locks[order.fleet]:
            before = self._state.fleet(order.fleet)
            holder = self._state.holders().get(order.model, order.fleet)
            if holder != order.fleet:
                raise StepFailed(Cause.TRUST, "ModelTaken", f"model {order.model!r} is served here for fleet {holder!r}")
            upstream = self._find_upstream(revision, Target(order.model, revision.hash))
            self._state.change_fleet(
                order.fleet,
                active=revision.hash,
                active_since=datetime.now(UTC),
                model=order.model,
                served_sequence=before.previous_sequence if back else order.sequence,
                golden_score=golden_score,
                slo=revision.slo,
                analysis=None if back else order.analysis,
                checks=None if back else order.checks,
                soak=None if back else order.soak,
                gap="",
                previous=before.active or before.previous,
                previous_sequence=before.served_sequence if before.active else before.previous_sequence,
                withdrawn_at=None,
                stopped_at=None,
                stopped=None,
                failure=before.failure if back else None,
            )
            self.expect(order.fleet, None)
            await _explained(self._gateway.switch(order.model, revision.hash, upstream))
            await self._close_gap(order.fleet)
            if before.active and before.model != order.model:
                await _explained(self._gateway.switch(before.model, None))
        log.info("fleet %s: %s %s (%s) serves", order.fleet, order.model, revision.version, revision.hash[:8])
        self.on_switch()
        self._clean_up(order.fleet, order.storage)

    async def confirm(self, order: Order) -> bool:
        """An order names what serves already: note its sequence and make sure that it serves. True if the sequence was new."""
        state = self._state.fleet(order.fleet)
        new = state.served_sequence != order.sequence
        self.expect(order.fleet, None)
        slo = order.revision.slo if order.revision else state.slo
        if new or (state.slo, state.analysis) != (slo, order.analysis):
            self._state.change_fleet(order.fleet, served_sequence=order.sequence, slo=slo, analysis=order.analysis, failure=None)
        await self.ensure(order.fleet)
        if new:
            self._clean_up(order.fleet, order.storage)
        return new

    async def withdraw(self, order: Order) -> bool:
        """Take the fleet's model out of service. True if the sequence was new. Raises StepFailed."""
        self.expect(order.fleet, None)
        async with self._locks[order.fleet]:
            state = self._state.fleet(order.fleet)
            new = state.served_sequence != order.sequence
            if new or state.active:
                self._state.change_fleet(
                    order.fleet,
                    active=None,
                    active_since=None,
                    served_sequence=order.sequence,
                    golden_score="",
                    previous=state.active or state.previous,
                    withdrawn_at=datetime.now(UTC),
                    stopped_at=None,
                    stopped=None,
                    gap_since=None,
                    failure=None,
                )
            for model in {order.model, state.model} - {""}:
                if self._state.holders().get(model) is None:
                    await _explained(self._gateway.switch(model, None))
        if new:
            log.info("fleet %s: %s is withdrawn", order.fleet, order.model)
            self._clean_up(order.fleet, order.storage)
        return new

    async def stop_if_over(self, fleet: str) -> bool:
        """Take out of service what is revoked and past its time; True if it served until now. Raises StepFailed.

        On disk first; after a crash in between, the next look finishes it.
        """
        async with self._locks[fleet]:
            over = self.find_over(fleet)
            if over is not None:
                before = self._state.fleet(fleet)
                # That the newest order failed already must not be forgotten for what happens to an older one.
                failed = before.failure if before.failure and before.failure.sequence > over.sequence else over
                self._state.change_fleet(
                    fleet,
                    active=None,
                    active_since=None,
                    golden_score="",
                    stopped_at=over.at,
                    stopped=over.revision,
                    gap_since=None,
                    failure=failed,
                )
                log.warning("fleet %s: %s", fleet, over.message)
            state = self._state.fleet(fleet)
            if state.stopped_at is not None and self._state.holders().get(state.model) is None:
                await _explained(self._gateway.switch(state.model, None))
        if over is not None:
            self.on_switch()
            self._clean_up(fleet)
        return over is not None

    async def ensure(self, fleet: str) -> None:
        """What the state says serves, serves: loaded, then routed. Raises StepFailed."""
        async with self._locks[fleet]:
            state = self._state.fleet(fleet)
            if state.active is None or fleet in self._replacing:
                return
            await _explained(self._ensure(fleet, state, state.active))
            # Whoever made it serve: that it breaks again is news again.
            self._broken.discard(fleet)

    async def _ensure(self, fleet: str, state: FleetState, revision: str) -> None:
        target, record = Target(state.model, revision), self._store.find(revision)
        runtime = self._runtimes.pick(record.revision if record else None)
        if await runtime.is_ready(target.served_name):
            self._sound.discard(revision)
        else:
            record = await self._require_sound(revision, record)
            await runtime.place(target.served_name, self._files(record))
            await runtime.load(target.served_name)
            if record.revision.serving.deployment is None:
                self._sound.discard(revision)
                log.info("fleet %s: %s was not loaded, and is again", fleet, target.served_name)
        await self._gateway.switch(state.model, revision, self._find_upstream(record.revision, target) if record else None)
        await self._close_gap(fleet)

    async def _require_sound(self, revision: str, record: RevisionRecord | None) -> RevisionRecord:
        """Before files that have lain here are handed to a server, they are read; once for each time that it has lost them."""
        if record is None:
            raise StepFailed(Cause.DISK, "StoreDamaged", f"what serves ({revision[:8]}) is not in the store any more")
        if revision in self._sound and self._store.is_whole(record):
            return record
        damaged = await asyncio.to_thread(self._store.find_damage, record)
        if damaged:
            self._sound.discard(revision)
            raise StepFailed(Cause.DISK, "StoreDamaged", f"{', '.join(damaged[:3])} of {record.revision.version} is damaged on the disk")
        self._sound.add(revision)
        return record

    async def renew_files(self, fleet: str) -> None:
        """After what serves was healed in the store: its server shall find the good files when it starts again. Raises StepFailed."""
        async with self._locks[fleet]:
            state = self._state.fleet(fleet)
            record = self._store.find(state.active or "")
            if record is not None and record.revision.serving.deployment is None:
                name = Target(state.model, record.revision.hash).served_name
                await _explained(self._runtimes.pick(record.revision).place(name, self._files(record)))

    async def take_away(self, fleet: str) -> None:
        """Take the files of what should serve from its server, which has not loaded it: they are damaged. Raises StepFailed."""
        async with self._locks[fleet]:
            state = self._state.fleet(fleet)
            if state.active is not None:
                await _explained(self._runtimes.unload(Target(state.model, state.active).served_name))

    def _find_upstream(self, revision: FrozenRevision, target: Target) -> Upstream | None:
        upstream = self._runtimes.pick(revision).find_upstream(target.served_name)
        if upstream is None and revision.serving.deployment is not None:
            raise StepFailed(Cause.SERVER, "PodNotReady", f"no pod of {target.served_name} is ready")
        return upstream

    def _files(self, record: RevisionRecord) -> dict[str, Path]:
        return {blob.name: self._store.path(blob.digest) for blob in record.files}

    async def run(self, on_change: Callable[[str], None]) -> None:
        """Keep everything in service until cancelled: a model server that restarted has forgotten its models.

        `on_change` is told the fleet whose revision could be served and cannot be now, or the other way round.
        """
        while True:
            self._wake.clear()
            for fleet in list(self._state.fleets):
                if await self._stop_if_over(fleet):
                    on_change(fleet)
                was_broken = fleet in self._broken
                works = await self._upkeep(fleet)
                if not works:
                    self._broken.add(fleet)
                if works is was_broken:
                    on_change(fleet)
                if self._is_clean_up_over(fleet) and any(not self._is_used(name) for name in self._pods_placed()):
                    self._clean_up(fleet)
            try:
                async with asyncio.timeout(UPKEEP_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def look_now(self) -> None:
        """Something of the pods has changed."""
        self._wake.set()

    def _pods_placed(self) -> set[str]:
        return self._runtimes.pods.placed() if self._runtimes.pods is not None else set()

    async def _stop_if_over(self, fleet: str) -> bool:
        try:
            return await self.stop_if_over(fleet)
        except (StepFailed, OSError) as error:
            log.warning("fleet %s: what is revoked is not out of service yet: %s", fleet, error)
            return False

    async def _upkeep(self, fleet: str) -> bool:
        try:
            async with asyncio.timeout(ENSURE_SECONDS):
                await self.ensure(fleet)
        except (StepFailed, TimeoutError) as error:
            log.warning("fleet %s: %s", fleet, error or "the model server takes too long to load what served before")
            return False
        return True

    async def sweep(self) -> None:
        """At start: unload what an agent that crashed has left behind."""
        for fleet in list(self._state.fleets):
            self._clean_up(fleet)

    async def settle(self, fleet: str) -> None:
        """Stop cleaning up after a fleet."""
        task = self._cleanups.pop(fleet, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        """End all cleaning; the next agent sweeps."""
        for fleet in list(self._cleanups):
            await self.settle(fleet)

    def _clean_up(self, fleet: str, storage: Storage | None = None) -> None:
        old = self._cleanups.get(fleet)
        if old is not None:
            old.cancel()
        self._cleanups[fleet] = asyncio.create_task(self._unload_unused(storage, fleet))

    def _is_clean_up_over(self, fleet: str) -> bool:
        return fleet not in self._cleanups or self._cleanups[fleet].done()

    async def _unload_unused(self, storage: Storage | None, fleet: str) -> None:
        try:
            await self._gateway.forget_refused()
            for name in self._runtimes.placed():
                if not self._is_used(name):
                    await self._gateway.drain(name)
                    # Not cancelled half way: a thread would go on taking files away which somebody else places again.
                    await asyncio.shield(self._unload(name))
            if storage is not None:
                for revision in await asyncio.to_thread(lambda: self._store.tidy(protected=self.protected(), storage=storage)):
                    log.info("revision %s is removed from the store", revision[:8])
        except Exception as error:
            failed = explain_failure(error)
            if failed is None:
                raise
            log.warning("cleaning up after fleet %s: %s", fleet, failed)

    async def _unload(self, name: str) -> None:
        async with self._unloading[name]:
            if not self._is_used(name):
                await self._runtimes.unload(name)
                log.info("%s is unloaded", name)

    def _is_used(self, name: str) -> bool:
        routed = {target.served_name for target in self._gateway.table.values()}
        serving = {Target(s.model, s.active).served_name for s in self._state.fleets.values() if s.active}
        return name in routed | serving | self._trials or name in self._kept()

    def _kept(self) -> set[str]:
        """Old pods whose successors have not served for long yet, unless another revision of the model is tried now."""
        kept = set()
        for state in self._state.fleets.values():
            if state.active and state.active_since and state.previous and state.failure is None:
                old = Target(state.model, state.previous).served_name
                others = {name for name in self._trials if name.startswith(f"{state.model}--") and name != old}
                if not others and datetime.now(UTC) - state.active_since < state.watch_for(self._keep) and old in self._pods_placed():
                    kept.add(old)
        return kept


async def _explained(action: Awaitable[None]) -> None:
    try:
        await action
    except Exception as error:
        failed = explain_failure(error)
        if failed is None or failed is error:
            raise
        raise failed from error
