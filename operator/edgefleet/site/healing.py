"""What follows when files of a fleet are damaged on the disk: they are fetched again; until that can be, what is good serves.

What a server has in memory goes on. What it must load and cannot have gives way to what served before. That files are damaged is found in
store.py and serving.py; the steps themselves are the worker's.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from edgefleet.api.assignment import FrozenRevision, Order
from edgefleet.core.site import Cause
from edgefleet.site.faults import StepFailed, explain_failure
from edgefleet.site.store import RECORD, RevisionRecord

if TYPE_CHECKING:
    from edgefleet.site.worker import Site

log = logging.getLogger(__name__)


class Healing:
    """One fleet's. `fetch` brings an order's revision to the store, `go_back` puts one that has served into service again."""

    def __init__(
        self,
        site: "Site",
        *,
        fetch: Callable[[Order], Awaitable[RevisionRecord]],
        go_back: Callable[[Order, FrozenRevision], Awaitable[None]],
    ) -> None:
        self._site = site
        self._fetch = fetch
        self._go_back = go_back

    async def bring(self, order: Order, revision: FrozenRevision) -> RevisionRecord:
        """The complete revision; what has lain in the store is read before it is believed. Raises what a fetch does, and StepFailed."""
        store = self._site.store
        held = store.find(revision.hash)
        if held is not None:
            damaged = await asyncio.to_thread(store.find_damage, held)
        else:
            damaged = [RECORD] if store.has_damaged_record(revision.hash) else []
        try:
            return await self._fetch(_of(order, revision))
        except Exception as error:
            failed = _explain(error)
            if not damaged or failed.cause is not Cause.FETCH:
                raise
            said = f"{', '.join(damaged[:3])} of {revision.version} is damaged on the disk"
            raise _damaged(said + _later(failed) + await self._heal_meanwhile(order, revision)) from error

    async def replace(self, order: Order, damage: StepFailed) -> None:
        """What must serve is damaged, and not loaded: bring it, or let what served before serve meanwhile. Raises StepFailed."""
        # Without its record nothing says that a file is bad, and the record is soon written anew: it may be serving all the while.
        lost = self._site.store.find(self._site.state.fleet(order.fleet).active or "") is None
        if not lost:
            await self._site.serving.take_away(order.fleet)
        try:
            await self._fetch(order)
        except Exception as error:
            if lost:
                await self._site.serving.take_away(order.fleet)
            said = damage.message + _later(_explain(error))
            previous = self._site.store.find(self._site.state.fleet(order.fleet).previous or "")
            if previous is not None:
                try:
                    await self._go_back(order, previous.revision)
                except Exception as worse:
                    raise _damaged(f"{said}; before it served {previous.revision.version}: {_explain(worse)}") from error
                said += f": {previous.revision.version}, which served before, serves meanwhile"
            raise _damaged(said) from error

    async def complete(self, order: Order) -> None:
        """While a server has what serves in memory: bring what the store has lost of it, and of what served before. Raises StepFailed."""
        state, store = self._site.state.fleet(order.fleet), self._site.store
        record, previous = (store.find(revision or "") for revision in (state.active, state.previous))
        # A record may be lost or changed: what the order says of the same revision is signed.
        named = order.revision is not None and order.revision.hash == state.active
        serving = order.revision if named else record.revision if record else None
        if serving is not None and (record is None or not store.is_whole(record)):
            try:
                await self._fetch(_of(order, serving))
                await self._site.serving.renew_files(order.fleet)
            except Exception as error:
                said = f"{serving.version} serves from memory; its {'files are' if record else 'record is'} damaged on the disk"
                raise _damaged(said + _later(_explain(error))) from error
        if previous is not None and not store.is_whole(previous):
            try:
                await self._fetch(_of(order, previous.revision))
            except Exception as error:
                # Nobody needs it now: it is said in the status, and tried again after the next look at the disk.
                log.warning("fleet %s: %s, to go back to, is damaged: %s", order.fleet, previous.revision.version, _explain(error))

    def describe(self, fleet: str) -> str:
        """What a person should know although it serves; empty if all is well."""
        before, store = self._site.state.fleet(fleet).previous or "", self._site.store
        previous = store.find(before)
        if previous is None:
            if not store.has_damaged_record(before):
                return ""
            return f"StoreDamaged: going back to {before[:8]} needs an order for it, its record is damaged on the disk"
        if store.is_whole(previous):
            return ""
        return f"StoreDamaged: going back to {previous.revision.version} needs its registry, its files are damaged on the disk"

    async def _heal_meanwhile(self, order: Order, wanted: FrozenRevision) -> str:
        """What should serve until `wanted` can may be damaged as well: bring it; what a message says of that."""
        serving = self._site.store.find(self._site.state.fleet(order.fleet).active or "")
        if serving is None or serving.revision.hash == wanted.hash or self._site.store.is_whole(serving):
            return ""
        try:
            await self._fetch(_of(order, serving.revision))
        except Exception as error:
            return f"; {serving.revision.version}, which should serve meanwhile, is damaged too: {_explain(error)}"
        return ""


def _of(order: Order, revision: FrozenRevision) -> Order:
    return order.model_copy(update={"revision": revision})


def _explain(error: Exception) -> StepFailed:
    failed = explain_failure(error)
    if failed is None:
        raise error
    return failed


def _later(failed: StepFailed) -> str:
    return f", and cannot be fetched again yet ({failed.reason}: {failed.message})"


def _damaged(message: str) -> StepFailed:
    return StepFailed(Cause.DISK, "StoreDamaged", message)
