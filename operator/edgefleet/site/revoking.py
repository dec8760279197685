"""What is revoked at this site now: by the trust bundle in force, and by the newest order of each fleet. What follows is decided in core/.

All of it is on disk (the bundle, the orders' times in the state file), so it holds without hub, API server or a fresh order.
"""

from datetime import timedelta

from edgefleet.api.assignment import FrozenRevision, Order
from edgefleet.core.revocation import REVOKED, Revocations, merge_stops
from edgefleet.site.state import Failure, StateFile
from edgefleet.site.store import Store
from edgefleet.site.trust_keeper import TrustKeeper


class Revoking:
    """Asked by the worker before it puts something into service, and by what keeps it there."""

    def __init__(self, trust: TrustKeeper, state: StateFile, store: Store) -> None:
        self._trust = trust
        self._state = state
        self._store = store

    def forbids(self, fleet: str, revision: FrozenRevision) -> str:
        """Why this may not be put into service for a fleet now; empty if it may."""
        return self._of(fleet).forbids(revision, self._state.now())

    def is_disowned(self, fleet: str) -> bool:
        """Whether this site leaves what serves (or did until its time was over) by itself, for what served before."""
        state = self._state.fleet(fleet)
        return self._of(fleet).disowned(self._find(state.active or state.stopped), self._find(state.previous))

    def make_order(self, assignment: str) -> Order | None:
        """The site's own order, never sent, to leave what serves for an assignment's fleet (`<namespace>.<name>`): for when the hub's
        is refused or has ended. None unless what serves is disowned."""
        fleet = assignment.replace(".", "/", 1)
        state, now = self._state.fleet(fleet), self._state.now()
        revision = self._find(state.active or state.stopped)
        if revision is None or not self.is_disowned(fleet):
            return None
        return Order(
            site=self._state.site,
            fleet=fleet,
            sequence=max(1, self._sequence_of(fleet, revision)),
            action="Run",
            model=state.model,
            revision=revision,
            issued_at=now,
            expires_at=now + timedelta(days=1),
        )

    def describe(self, fleet: str) -> str:
        """What a person is told of what serves; empty if it is not revoked."""
        return self._of(fleet).describe(self._find(self._state.fleet(fleet).active))

    def find_over(self, fleet: str) -> Failure | None:
        """What serves and may not any more, as the failure to be remembered."""
        state, now = self._state.fleet(fleet), self._state.now()
        revision = self._find(state.active)
        if revision is None or not self._of(fleet).is_over(revision, now):
            return None
        said = f"{self._of(fleet).forbids(revision, now)}. Nothing serves here until then"
        return Failure(sequence=self._sequence_of(fleet, revision), revision=revision.hash, reason=REVOKED, message=said, at=now)

    def _sequence_of(self, fleet: str, revision: FrozenRevision) -> int:
        """Under which order this serves: a newer one may wait to put another in its place, and has not failed."""
        state = self._state.fleet(fleet)
        return state.floor if state.accepted_revision == revision.hash else state.served_sequence

    def _of(self, fleet: str) -> Revocations:
        revoked = self._trust.revoked
        return Revocations(revoked.digests, merge_stops(revoked.stops.items(), self._state.fleet(fleet).stops.items()))

    def _find(self, revision: str | None) -> FrozenRevision | None:
        record = self._store.find(revision or "")
        return record.revision if record else None
