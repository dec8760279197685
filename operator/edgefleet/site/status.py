"""Writing findings to a cluster: each resting state at once, a state in between only when it has lasted 5 seconds.

A quick activation thus costs one write. What was found is kept until it is written, however long the cluster is away, and only the
newest counts. One writer serves one cluster; the agent has two, for its own and for the hub.
"""

import asyncio
import logging
import random
import time
from dataclasses import dataclass

from edgefleet.api.assignment import ActiveRevision, SiteAssignmentSpec, SiteAssignmentStatus
from edgefleet.core.site import plan_delay
from edgefleet.kube.client import Api
from edgefleet.kube.errors import ApiError, NotFound
from edgefleet.kube.resources import SITE_ASSIGNMENTS
from edgefleet.kube.watch import ListWatch, Record
from edgefleet.site.summary import Finding, summarise_assignment

log = logging.getLogger(__name__)

FIELD_MANAGER = "edgefleet-agent"
LASTING_SECONDS = 5.0


class AssignmentRecord(Record):
    """A SiteAssignment as the agent reads it."""

    spec: SiteAssignmentSpec
    status: SiteAssignmentStatus = SiteAssignmentStatus()


@dataclass(slots=True)
class _Pending:
    finding: Finding
    active: ActiveRevision | None
    due: float
    failures: int = 0


class StatusWriter:
    """Brings findings into the status of the assignments that `watch` sees in one namespace."""

    def __init__(self, api: Api, watch: ListWatch[AssignmentRecord], namespace: str) -> None:
        self._api = api
        self._watch = watch
        self._namespace = namespace
        self._pending: dict[str, _Pending] = {}
        self._wake = asyncio.Event()
        self.writes = 0

    def offer(self, name: str, finding: Finding, active: ActiveRevision | None) -> None:
        """The newest finding about an assignment."""
        now = time.monotonic()
        before = self._pending.get(name)
        due = now + LASTING_SECONDS if finding.in_between else now
        if before is not None and finding.in_between and finding.same_as(before.finding):
            due = before.due
        self._pending[name] = _Pending(finding, active, due)
        self._wake.set()

    def look_again(self) -> None:
        """An assignment changed in the cluster: perhaps its status was lost with it."""
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled; trouble of the cluster is waited out."""
        while True:
            self._wake.clear()
            next_due = await self._write_due()
            try:
                async with asyncio.timeout(None if next_due is None else max(0.0, next_due - time.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _write_due(self) -> float | None:
        later: list[float] = []
        for name, pending in list(self._pending.items()):
            record = self._watch.get(self._namespace, name)
            if record is None:
                continue
            status = summarise_assignment(pending.finding, pending.active, record.status)
            if status == record.status:
                continue
            if pending.due > time.monotonic():
                later.append(pending.due)
                continue
            await self._write(name, pending, status)
            if pending.due > time.monotonic():
                later.append(pending.due)
        return min(later, default=None)

    async def _write(self, name: str, pending: _Pending, status: SiteAssignmentStatus) -> None:
        body = {"metadata": {"name": name, "namespace": self._namespace}, "status": status.to_json_dict()}
        try:
            answer = await self._api.apply(SITE_ASSIGNMENTS, body, manager=FIELD_MANAGER, subresource="status")
        except NotFound:
            # Deleted meanwhile: nothing to say it to, until the watch brings it back.
            pending.due = time.monotonic() + LASTING_SECONDS
        except ApiError as error:
            pending.failures += 1
            pause = plan_delay(pending.failures, random.random())  # noqa: S311 (spreads load)
            pending.due = time.monotonic() + pause.total_seconds()
            log.warning("status of %s/%s at %s not written, again in %s: %s", self._namespace, name, self._api.server, pause, error)
        else:
            self.writes += 1
            pending.failures = 0
            self._watch.observe(answer)
