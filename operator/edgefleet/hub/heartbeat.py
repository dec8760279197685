"""A deaf hub ends itself.

Every few seconds the hub writes an object that kopf watches and one that our own list-watch does, and waits to see both come back. A
beat that is not seen in time, or a resourceVersion that falls (an API server restored from a backup: the old watch then stays silent for
ever), ends the process; whoever runs it starts it again. The object for kopf is a RolloutPolicy in the hub's namespace that nothing
refers to: it must be of a kind that kopf watches anyway.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from edgefleet.api.meta import GROUP
from edgefleet.api.report import LEASE_NAME
from edgefleet.hub.settings import FIELD_MANAGER, HEARTBEAT, Settings
from edgefleet.kube.client import Api
from edgefleet.kube.errors import ApiError
from edgefleet.kube.resources import LEASES, ROLLOUT_POLICIES

log = logging.getLogger(__name__)

BEAT_ANNOTATION = f"{GROUP}/beat"


class DeafError(Exception):
    """The hub does not hear its own heartbeat."""


class Heartbeat:
    """`heard(channel, body)` is called by whoever watches; `run` raises DeafError when one of the channels went silent."""

    CHANNELS = ("kopf", "list-watch")

    def __init__(self, api: Api, settings: Settings) -> None:
        self._api = api
        self._settings = settings
        self._heard = dict.fromkeys(self.CHANNELS, time.monotonic())
        self._version = 0

    def heard(self, channel: str, beat: str | None) -> None:
        """A beat came back: `beat` is the annotation's value. Beats of an earlier process do not count."""
        if beat is not None and beat.startswith(self._mark):
            self._heard[channel] = time.monotonic()

    @property
    def last_heard(self) -> Mapping[str, float]:
        """When each channel last brought a beat (time.monotonic)."""
        return self._heard

    @property
    def _mark(self) -> str:
        return f"{id(self):x}@"

    async def run(self) -> None:
        """Beat until cancelled. Raises DeafError."""
        lost_after = self._settings.heartbeat_lost_after.total_seconds()
        self._heard = dict.fromkeys(self.CHANNELS, time.monotonic())
        while True:
            try:
                async with asyncio.timeout(lost_after / 2):
                    await self._beat()
            except (ApiError, TimeoutError) as error:
                log.warning("heartbeat: %s", error or "the API server does not answer")
            await asyncio.sleep(self._settings.heartbeat_every.total_seconds())
            for channel, moment in self._heard.items():
                if time.monotonic() - moment > lost_after:
                    raise DeafError(f"own heartbeat not seen by {channel} for {lost_after:.0f} s: ending, to be started again")

    async def _beat(self) -> None:
        beat = f"{self._mark}{datetime.now(UTC).isoformat()}"
        meta = {"namespace": self._settings.namespace, "annotations": {BEAT_ANNOTATION: beat}}
        policy = {"metadata": {**meta, "name": HEARTBEAT}, "spec": {"waves": [{"name": "none", "sites": 1}]}}
        answer = await self._api.apply(ROLLOUT_POLICIES, policy, manager=FIELD_MANAGER)
        await self._api.apply(LEASES, self._lease(meta), manager=FIELD_MANAGER)
        version = int(answer["metadata"]["resourceVersion"])
        if version < self._version:
            raise DeafError(f"resourceVersion fell from {self._version} to {version}: the API server was restored from a backup")
        self._version = version

    def _lease(self, meta: dict[str, Any]) -> dict[str, Any]:
        # Labelled and named as sites' Leases are, so that it comes back through the very watch that brings theirs.
        return {
            "metadata": {**meta, "name": LEASE_NAME, "labels": {f"{GROUP}/site": ""}},
            "spec": {
                "holderIdentity": FIELD_MANAGER,
                "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "leaseDurationSeconds": int((3 * max(self._settings.heartbeat_every, timedelta(seconds=1))).total_seconds()),
            },
        }
