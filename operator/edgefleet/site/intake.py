"""Reading an assignment: its envelope is opened under the trust in force, and the order in it judged. Changes nothing."""

from edgefleet.api.site import Hardware
from edgefleet.core.site import Accept, Refuse, SiteContext, decide_order
from edgefleet.site.state import StateFile
from edgefleet.site.status import AssignmentRecord
from edgefleet.site.trust_keeper import TrustKeeper
from edgefleet.trust.errors import Rejected
from edgefleet.trust.orders import open_order


class Intake:
    """One site's door for orders."""

    def __init__(
        self, *, site: str, hardware: Hardware, trust: TrustKeeper, state: StateFile, pods: bool = False, region: str | None = None
    ) -> None:
        self._site = site
        self._hardware = hardware
        self._trust = trust
        self._state = state
        self._pods = pods
        self._region = region

    def judge(self, record: AssignmentRecord) -> Accept | Refuse:
        """Whether this site obeys the assignment, now."""
        try:
            bundle = self._trust.require()
            order = open_order(record.spec.envelope, bundle.hub_keys)
        except Rejected as error:
            return Refuse(error.reason, error.message)
        now, holders = self._state.now(), self._state.holders()
        context = SiteContext(
            site=self._site,
            hardware=self._hardware,
            now=now,
            holders=holders,
            pods=self._pods,
            limits=bundle.limits.of(order.model),
            region=self._region,
        )
        memory = self._state.fleet(order.fleet).to_memory()
        return decide_order(order, record.spec, object_name=record.metadata.name, memory=memory, context=context)
