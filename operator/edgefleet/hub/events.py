"""Telling of transitions: Events, which `kubectl describe` and `kubectl events` show.

They are written through core/v1: `kubectl describe` sorts them by lastTimestamp, which events.k8s.io/v1 lets nobody set. An Event's name is
a hash of the object, the state that it was in (its resourceVersion) and the note, so the same step taken twice meets its own Event
(Conflict) and is told once. Events are written before the status that records the step: a hub that dies in between tells nothing twice,
and none is lost. They are a courtesy: bounded in rate and in time, and no failure of theirs hinders a pass.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from edgefleet.api.fleet import EdgeFleet
from edgefleet.api.meta import GROUP, ObjectMeta, format_time
from edgefleet.api.rollout import ModelRollout
from edgefleet.core.events import Note
from edgefleet.core.facts import FleetKey
from edgefleet.hub.settings import FIELD_MANAGER
from edgefleet.kube.client import Api
from edgefleet.kube.errors import ApiError, Conflict
from edgefleet.kube.resources import EDGE_FLEETS, EVENTS, MODEL_ROLLOUTS, Resource

log = logging.getLogger(__name__)

BURST = 100.0
PER_SECOND = 2.0
PATIENCE_SECONDS = 1.0
MAX_MESSAGE_BYTES = 1024
CLUSTER_SCOPED_NAMESPACE = "default"
"""Where the API server demands Events about objects without a namespace."""


class Events:
    """Writes notes about objects; `fleets` are all that are known. `counts` says what became of the notes: written, known (told before),
    dropped (too many), failed."""

    def __init__(self, api: Api, fleets: Mapping[FleetKey, EdgeFleet]) -> None:
        self._api = api
        self._fleets = fleets
        self._allowances: dict[str, Allowance] = {}
        self.counts: Counter[str] = Counter(written=0, known=0, dropped=0, failed=0)

    async def tell(self, kind: Resource, meta: ObjectMeta, notes: Sequence[Note]) -> None:
        """Write an Event for each note about an object. `meta` is its metadata as read before this step."""
        await self._tell(kind, meta, notes, meta.resource_version, None)

    async def tell_of_run(self, fleet: FleetKey, run: ModelRollout, notes: Sequence[Note]) -> None:
        """The same for a run, as read before this step; the Events are about its fleet."""
        held = self._fleets.get(fleet)
        if held is not None:
            await self._tell(EDGE_FLEETS, held.metadata, notes, run.metadata.resource_version, _reference(MODEL_ROLLOUTS, run.metadata))

    async def _tell(
        self, kind: Resource, meta: ObjectMeta, notes: Sequence[Note], state: str | None, related: dict[str, str] | None
    ) -> None:
        # One kind's flood (ten thousand sites that come back) must not silence the others.
        allowance = self._allowances.setdefault(kind.kind, Allowance(BURST, PER_SECOND))
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                for note in notes:
                    if allowance.take():
                        await self._write(_event(kind, meta, note, state or "", related))
                    else:
                        self.counts["dropped"] += 1
        except (ApiError, TimeoutError) as error:
            self.counts["failed"] += 1
            log.info("events about %s %s: %s", kind.kind, meta.name, error or "no answer in time")

    async def _write(self, body: dict[str, Any]) -> None:
        try:
            await self._api.create(EVENTS, body)
        except Conflict:
            self.counts["known"] += 1
        else:
            self.counts["written"] += 1


class Allowance:
    """So many at once, so many a second in the long run."""

    def __init__(self, burst: float, per_second: float) -> None:
        self._burst, self._per_second = burst, per_second
        self._left, self._at = burst, time.monotonic()

    def take(self) -> bool:
        """Whether one more is allowed now."""
        now = time.monotonic()
        self._left, self._at = min(self._burst, self._left + (now - self._at) * self._per_second), now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _event(kind: Resource, meta: ObjectMeta, note: Note, state: str, related: dict[str, str] | None) -> dict[str, Any]:
    mark = sha256("\n".join((meta.uid or "", state, note.key, note.reason)).encode()).hexdigest()[:16]
    now = datetime.now(UTC)
    body: dict[str, Any] = {
        "metadata": {"name": f"{meta.name}.{mark}", "namespace": meta.namespace or CLUSTER_SCOPED_NAMESPACE},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "firstTimestamp": format_time(now),
        "lastTimestamp": format_time(now),
        "count": 1,
        "reportingComponent": f"{GROUP}/hub",
        "reportingInstance": FIELD_MANAGER,
        "source": {"component": FIELD_MANAGER},
        "action": "Reconcile",
        "type": note.type,
        "reason": note.reason,
        "message": note.message.encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore"),
        "involvedObject": _reference(kind, meta),
    }
    return {**body, "related": related} if related else body


def _reference(kind: Resource, meta: ObjectMeta) -> dict[str, str]:
    found = {"apiVersion": kind.api_version, "kind": kind.kind, "name": meta.name, "uid": meta.uid or ""}
    return {**found, "namespace": meta.namespace} if meta.namespace else found
