"""Which of several hubs works: the one that holds the Lease `edgefleet-hub` in the hub's namespace. The others stand by.

A holder renews every 2 s. One that could not for 8 s leads no more: it sends no further write and ends. A standby takes the Lease when it
is free, or when it has not seen it change for 12 s by its own clock, so that clocks need not agree. A hub that ends in order frees it.
"""

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import Any

from edgefleet.hub.metrics import CountingApi
from edgefleet.kube.client import Api
from edgefleet.kube.connection import Connection
from edgefleet.kube.errors import ApiError, Conflict, NotFound
from edgefleet.kube.resources import LEASES

log = logging.getLogger(__name__)

LEASE = "edgefleet-hub"
LEASE_SECONDS = 12
RENEW_SECONDS = 2.0
RENEW_DEADLINE = 8.0
LOOK_SECONDS = 1.0
REQUEST_SECONDS = 5.0


class LeadershipLost(Exception):
    """This hub may write no more."""


class Leadership:
    """`identity` names this process among the hubs of a namespace. Two processes that live at once must never have the same; one that
    follows another under the same name need not wait for its Lease to run out."""

    def __init__(self, api: Api, namespace: str, identity: str) -> None:
        self._api = api
        self._namespace = namespace
        self.identity = identity
        self.holder = ""
        """Who led when this hub last looked."""
        self._version = ""
        self._changed_at = 0.0
        self._renewed_at: float | None = None

    @property
    def leads(self) -> bool:
        """Whether this hub may write now."""
        return self._renewed_at is not None and time.monotonic() - self._renewed_at < RENEW_DEADLINE

    def require(self) -> None:
        """Raises LeadershipLost where this hub may not write."""
        if not self.leads:
            raise LeadershipLost(f"the Lease {self._namespace}/{LEASE} was not renewed for {RENEW_DEADLINE:.0f} s: ending, to stand by")

    async def acquire(self) -> None:
        """Wait until this hub leads."""
        said = ""
        while True:
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    if await self._try():
                        log.info("%s leads", self.identity)
                        return
                state = f"standing by: {self.holder or 'another hub'} leads"
            except (ApiError, TimeoutError) as error:
                state = f"standing by: the Lease {self._namespace}/{LEASE} cannot be had: {error or 'no answer'}"
            if state != said:
                log.info("%s", state)
                said = state
            await asyncio.sleep(LOOK_SECONDS)

    async def keep(self) -> None:
        """Renew until cancelled. Raises LeadershipLost."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            self.require()
            left = RENEW_DEADLINE - (time.monotonic() - (self._renewed_at or 0.0))
            try:
                async with asyncio.timeout(min(left, REQUEST_SECONDS)):
                    await self._renew()
            except (ApiError, TimeoutError) as error:
                log.warning("the Lease %s/%s is not renewed: %s", self._namespace, LEASE, error or "no answer")
            self.require()

    async def release(self) -> None:
        """Let another hub lead at once. Call it when nothing of this one works any more."""
        if not self.leads:
            return
        self._renewed_at = None
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._write({"holderIdentity": None, "leaseDurationSeconds": 1})
            log.info("%s leads no more", self.identity)
        except (ApiError, TimeoutError) as error:
            log.warning("the Lease %s/%s is not released: %s", self._namespace, LEASE, error or "no answer")

    async def _try(self) -> bool:
        now = time.monotonic()
        try:
            lease = await self._api.get(LEASES, LEASE, self._namespace)
        except NotFound:
            return await self._take(now, None)
        spec = lease.get("spec") or {}
        self.holder = spec.get("holderIdentity") or ""
        if lease["metadata"]["resourceVersion"] != self._version:
            self._version, self._changed_at = lease["metadata"]["resourceVersion"], now
        lasts = float(spec.get("leaseDurationSeconds") or LEASE_SECONDS)
        if self.holder not in ("", self.identity) and now - self._changed_at < lasts:
            return False
        return await self._take(now, spec)

    async def _take(self, now: float, before: dict[str, Any] | None) -> bool:
        moment = _now()
        spec = {"holderIdentity": self.identity, "leaseDurationSeconds": LEASE_SECONDS, "acquireTime": moment, "renewTime": moment}
        try:
            if before is None:
                await self._create(spec)
            else:
                await self._write({**spec, "leaseTransitions": int(before.get("leaseTransitions") or 0) + 1})
        except Conflict:
            return False  # another one was quicker
        self.holder, self._renewed_at = self.identity, now
        return True

    async def _renew(self) -> None:
        now = time.monotonic()
        try:
            await self._write({"renewTime": _now()})
        except (Conflict, NotFound):
            await self._look_after_a_conflict()
            return
        self._renewed_at = now

    async def _look_after_a_conflict(self) -> None:
        """Somebody else wrote the Lease, or deleted it: that ends nothing as long as it names this hub or nobody."""
        now = time.monotonic()
        if not await self._try():
            self._renewed_at = None
            raise LeadershipLost(f"the Lease {self._namespace}/{LEASE} is held by {self.holder}: ending, to stand by")
        self._renewed_at = now

    async def _create(self, spec: dict[str, Any]) -> None:
        made = await self._api.create(LEASES, {"metadata": {"name": LEASE, "namespace": self._namespace}, "spec": spec})
        self._version = made["metadata"]["resourceVersion"]

    async def _write(self, spec: dict[str, Any]) -> None:
        """With the version that was read: of two that take a free Lease, one gets a Conflict."""
        body = {"metadata": {"resourceVersion": self._version}, "spec": spec}
        self._version = (await self._api.patch(LEASES, LEASE, self._namespace, body))["metadata"]["resourceVersion"]


class LeaderApi(CountingApi):
    """An Api that sends a write only while its hub leads: also one that is tried again, or that a stopped process had prepared."""

    def __init__(self, connection: Connection, leadership: Leadership, *, user_agent: str) -> None:
        super().__init__(connection, user_agent=user_agent)
        self._leadership = leadership

    def _open(self, method: str, path: str, **options: Any) -> Any:
        if method != "GET":
            self._leadership.require()
        return super()._open(method, path, **options)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
