"""One site at the hub: its namespace, its rights there, its copy of the trust bundle, and the status of its EdgeSite.

What was set up is remembered as a hash in an annotation of the namespace, so that a hub that starts with 10,000 sites writes nothing.
Nothing is taken away because something is absent: a deleted EdgeSite leaves its namespace, and the site goes on serving (I12). A site that
a person took out (`edgefleet site leave`) has no rights until it joins again.
"""

import hashlib
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from edgefleet.api.meta import (
    GROUP,
    SITE_LABEL,
    SITE_USER_PREFIX,
    TRUST_BUNDLE,
    TRUST_BUNDLE_ENTRY,
    format_time,
    site_namespace,
)
from edgefleet.core.events import plan_site_events
from edgefleet.core.status import summarise_site
from edgefleet.hub.events import Events
from edgefleet.hub.inventory import Inventory
from edgefleet.hub.queue import until
from edgefleet.hub.settings import FIELD_MANAGER, SITE_ROLE
from edgefleet.kube.client import Api
from edgefleet.kube.errors import NotFound
from edgefleet.kube.resources import CONFIG_MAPS, EDGE_SITES, NAMESPACES, ROLE_BINDINGS

log = logging.getLogger(__name__)

PROVISIONED = f"{GROUP}/provisioned"
LEFT = "left"
"""What `provisioned` says of a site that has no rights."""


class Sites:
    """`bundle` is the text of the trust bundle now; an empty one means that there is none yet."""

    def __init__(self, api: Api, inventory: Inventory, events: Events) -> None:
        self._api = api
        self._events = events
        self._inventory = inventory
        self.bundle = ""

    async def reconcile(self, name: str) -> timedelta | None:
        """One pass over one site. Returns when silence alone will change its status."""
        record = self._inventory.sites.get("", name)
        if record is None:
            return None
        await self._apply_namespace(name)
        now = datetime.now(UTC)
        report = self._inventory.site_report(name)
        status, wake_at = summarise_site(
            old=record.status,
            spec=record.spec,
            generation=record.metadata.generation,
            report=report,
            last_heard=self._inventory.last_heard(name),
            renew_seconds=self._inventory.renew_seconds(name),
            left=self._inventory.left_at(name),
            now=now,
        )
        if status != record.status:
            await self._events.tell(EDGE_SITES, record.metadata, plan_site_events(record.status, status))
            # These are written where they are decided (joining): a copy of them here could be an old one.
            body = {"metadata": {"name": name}, "status": status.model_copy(update={"identity": None, "attestation": None}).to_json_dict()}
            try:
                self._inventory.sites.observe(await self._api.apply(EDGE_SITES, body, manager=FIELD_MANAGER, subresource="status"))
            except NotFound:
                return None
        return until(wake_at, now)

    async def _apply_namespace(self, site: str) -> None:
        namespace = site_namespace(site)
        binding, bundle = _role_binding(site), self.bundle
        left = self._inventory.left_at(site) is not None
        mark = LEFT if left else hashlib.sha256(f"{binding}{bundle}".encode()).hexdigest()[:16]
        held = self._inventory.namespaces.get("", namespace)
        if held is not None and (held.metadata.deletion_timestamp or held.metadata.annotations.get(PROVISIONED) == mark):
            return
        meta = {"name": namespace, "labels": {SITE_LABEL: site}}
        await self._api.apply(NAMESPACES, {"metadata": meta}, manager=FIELD_MANAGER)
        if left:
            # Whoever took the site out has done it already, unless this hub was giving it its rights in that moment.
            await self._api.delete(ROLE_BINDINGS, SITE_ROLE, namespace)
        else:
            await self._api.apply(ROLE_BINDINGS, binding, manager=FIELD_MANAGER)
        if bundle and not left:
            await self._api.apply(
                CONFIG_MAPS,
                {"metadata": {"name": TRUST_BUNDLE, "namespace": namespace}, "data": {TRUST_BUNDLE_ENTRY: bundle}},
                manager=FIELD_MANAGER,
            )
        # Last, so that a hub that dies before this does it all again.
        done = {"metadata": {**meta, "annotations": {PROVISIONED: mark}}}
        self._inventory.namespaces.observe(await self._api.apply(NAMESPACES, done, manager=FIELD_MANAGER))
        log.info("site %s: namespace %s is %s at %s", site, namespace, LEFT if left else "set up", format_time(datetime.now(UTC)))


def _role_binding(site: str) -> dict[str, Any]:
    return {
        "metadata": {"name": SITE_ROLE, "namespace": site_namespace(site)},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": SITE_ROLE},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": SITE_USER_PREFIX + site}],
    }
