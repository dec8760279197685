"""Reading an assignment: its envelope is opened under the trust in force, and the order in it judged. Changes nothing."""

from typing import TYPE_CHECKING

from edgefleet.api.assignment import FrozenRevision, Order
from edgefleet.api.site import Hardware
from edgefleet.core.known import Known
from edgefleet.core.site import Accept, Refuse, SiteContext, decide_limits, decide_order
from edgefleet.site.state import StateFile
from edgefleet.site.status import AssignmentRecord
from edgefleet.site.store import Store
from edgefleet.site.trust_keeper import TrustKeeper
from edgefleet.trust.errors import Rejected
from edgefleet.trust.orders import open_order

if TYPE_CHECKING:
    from edgefleet.trust.bundle import TrustBundle


class Intake:
    """One site's door for orders."""

    def __init__(
        self,
        *,
        site: str,
        hardware: Hardware,
        trust: TrustKeeper,
        state: StateFile,
        store: Store,
        pods: bool = False,
        region: str | None = None,
    ) -> None:
        self._site = site
        self._hardware = hardware
        self._trust = trust
        self._state = state
        self._store = store
        self._pods = pods
        self._region = region

    def judge(self, record: AssignmentRecord) -> Accept | Refuse:
        """Whether this site obeys the assignment, now."""
        try:
            bundle = self._trust.require()
            order = open_order(record.spec.envelope, bundle.hub_keys)
        except Rejected as error:
            return Refuse(error.reason, error.message)
        memory = self._state.fleet(order.fleet).to_memory()
        return decide_order(order, record.spec, object_name=record.metadata.name, memory=memory, context=self._context(order, bundle))

    def judge_return(self, order: Order, revision: FrozenRevision) -> Refuse | None:
        """Whether the bundle's limits forbid this site to go back to what served before."""
        try:
            bundle = self._trust.require()
        except Rejected as error:
            return Refuse(error.reason, error.message)
        return decide_limits(order.model_copy(update={"revision": revision}), self._context(order, bundle))

    def _context(self, order: Order, bundle: "TrustBundle") -> SiteContext:
        return SiteContext(
            site=self._site,
            hardware=self._hardware,
            now=self._state.now(),
            holders=self._state.holders(),
            pods=self._pods,
            limits=bundle.limits.of(order.model),
            region=self._region,
            known=self._known(),
        )

    def _known(self) -> Known:
        fleets = self._state.fleets.values()
        hashes = {one for fleet in fleets for one in (fleet.active, fleet.previous, fleet.accepted_revision) if one}
        # One that has changed on the disk says nothing: it is written anew from the order.
        sound = (record.revision for record in self._store.records() if self._store.agrees(record))
        return Known(frozenset(hashes), {revision.hash: revision for revision in sound})
