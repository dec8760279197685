"""The pull link: what the hub wants comes from the site's own namespace there; what the site says goes back. The site connects out.

Assignments are copied to the site's cluster, where they survive the cut; the trust bundle goes to the trust keeper. What is absent at
the hub (object, CRD, namespace, rights, the hub itself) changes nothing here (I12), and the link goes on by itself when it is back.
"""

import asyncio
import logging
import random
from contextlib import suppress
from typing import Annotated

from pydantic import Field

from edgefleet.api.meta import TRUST_BUNDLE, TRUST_BUNDLE_ENTRY
from edgefleet.core.site import plan_delay
from edgefleet.kube.client import Api
from edgefleet.kube.errors import ApiError, Unavailable
from edgefleet.kube.resources import CONFIG_MAPS, SITE_ASSIGNMENTS
from edgefleet.kube.watch import Key, ListWatch, Record
from edgefleet.site.status import FIELD_MANAGER, AssignmentRecord
from edgefleet.site.trust_keeper import TrustKeeper

log = logging.getLogger(__name__)


class BundleRecord(Record):
    """The ConfigMap with the trust bundle."""

    data: Annotated[dict[str, str], Field(max_length=16)] = Field(default_factory=dict)


class Link:
    """Copies from the hub to the site. `assignments` and `local` are the two views of the same namespace."""

    def __init__(
        self,
        *,
        hub: Api,
        local_api: Api,
        assignments: ListWatch[AssignmentRecord],
        local: ListWatch[AssignmentRecord],
        namespace: str,
        trust: TrustKeeper,
    ) -> None:
        self._local_api = local_api
        self._assignments = assignments
        self._local = local
        self._namespace = namespace
        self._trust = trust
        self._wake = asyncio.Event()
        self.bundles = ListWatch(
            hub,
            CONFIG_MAPS,
            BundleRecord,
            namespace=namespace,
            fields=f"metadata.name={TRUST_BUNDLE}",
            on_change=self._bundle_changed,
        )

    def look_again(self) -> None:
        """An assignment changed on one of the two sides."""
        self._wake.set()

    async def run(self) -> None:
        """Copy until cancelled; trouble of either side is waited out."""
        # An assignment that came before its trust bundle would be refused for nothing.
        await self.bundles.synced.wait()
        await self._local.synced.wait()
        failures = 0
        while True:
            self._wake.clear()
            try:
                # Two watches that come back after a cut know nothing of each other: an order by a key, or of a release, that the newest
                # bundle disowns would get in before that bundle.
                if self._has_news():
                    await self.bundles.refresh()
                await self._offer_bundle()
                await self._copy_assignments()
                failures = 0
            except (ApiError, OSError) as error:
                # OSError: a disk that takes no new trust bundle. The agent must go on, since what serves needs it.
                failures += 1
                pause = plan_delay(failures, random.random())  # noqa: S311 (spreads load)
                log.warning("not all is copied from the hub to %s, again in %s: %s", self._local_api.server, pause, error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause.total_seconds()):
                        await self._wake.wait()
            else:
                await self._wake.wait()

    async def _offer_bundle(self) -> None:
        record = self.bundles.get(self._namespace, TRUST_BUNDLE)
        text = record.data.get(TRUST_BUNDLE_ENTRY) if record else None
        if text:
            await self._trust.offer(text.encode())

    def _has_news(self) -> bool:
        return any(self._is_new(record) for record in self._assignments)

    def _is_new(self, record: AssignmentRecord) -> bool:
        held = self._local.get(self._namespace, record.metadata.name)
        return held is None or held.spec != record.spec

    async def _copy_assignments(self) -> None:
        """All that differ; one that the site's cluster does not take keeps back no other (I9). Raises ApiError at the end, if any."""
        trouble: ApiError | None = None
        for record in self._assignments:
            name = record.metadata.name
            if not self._is_new(record):
                continue
            labels = {key: value for key, value in record.metadata.labels.items() if key.startswith("edgefleet.io/")}
            body = {
                "metadata": {"name": name, "namespace": self._namespace, "labels": labels},
                "spec": record.spec.to_json_dict(),
            }
            try:
                self._local.observe(await self._local_api.apply(SITE_ASSIGNMENTS, body, manager=FIELD_MANAGER))
            except Unavailable:
                raise
            except ApiError as error:
                trouble = error
            else:
                log.info("%s: sequence %d came from the hub", name, record.spec.sequence)
        if trouble is not None:
            raise trouble

    def _bundle_changed(self, _: Key, __: BundleRecord | None, ___: BundleRecord | None) -> None:
        self._wake.set()
