"""Writing SiteAssignments: one signed order, one write.

The sequence is one more than the larger of what the object holds and what the site reports as its floor, and the write applies only to
the object as it was read: two hubs, or a stale cache, cannot hand out one sequence twice (I4).
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from edgefleet.api.assignment import FrozenRevision, Order, StopServing, assignment_name
from edgefleet.api.meta import FLEET_LABEL, QUARANTINE_LABEL, RUN_LABEL, SITE_LABEL, TERMS_ANNOTATION, format_time, site_namespace
from edgefleet.api.model import Revision
from edgefleet.api.policy import Analysis, HardChecks
from edgefleet.core.facts import FleetKey
from edgefleet.core.upkeep import ORDER_LIFETIME, terms_of
from edgefleet.core.variants import fit_serving
from edgefleet.hub.inventory import Inventory
from edgefleet.hub.records import SiteRecord
from edgefleet.kube.client import Api
from edgefleet.kube.errors import Conflict
from edgefleet.kube.resources import SITE_ASSIGNMENTS
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.orders import sign_order


@dataclass(frozen=True, slots=True)
class Task:
    """What one site shall do: run a revision's variant, or, with `revision` None, withdraw the model.

    `sequence` is set only to renew or adopt what the site has already; otherwise the next one is taken. `stops` is what it must not serve.
    """

    site: str
    revision: Revision | None = None
    variant: str = ""
    run: str | None = None
    checks: HardChecks = field(default_factory=HardChecks)
    analysis: Analysis = field(default_factory=Analysis)
    sequence: int | None = None
    quarantine: str = ""
    soak: str | None = None
    stops: tuple[StopServing, ...] = ()


class AssignmentWriter:
    """Signs and writes. `key` is the hub's private key; it never leaves this process."""

    def __init__(self, api: Api, inventory: Inventory, key: PrivateKey) -> None:
        self._api = api
        self._inventory = inventory
        self._key = key

    async def apply(self, fleet: FleetKey, model: str, task: Task) -> None:
        """Write one assignment. Raises Conflict when the object changed since it was seen: look again."""
        name, namespace = assignment_name(fleet.namespace, fleet.name), site_namespace(task.site)
        held = self._inventory.assignments.get(namespace, name)
        order = self._order(fleet, model, task, held.spec.sequence if held else 0)
        if held is not None and order.sequence < held.spec.sequence:
            # A renewal of what was replaced since the decision.
            raise Conflict(409, f"{namespace}/{name} has sequence {held.spec.sequence} now, not {order.sequence}")
        labels = {
            SITE_LABEL: task.site,
            FLEET_LABEL: fleet.name,
            f"{FLEET_LABEL}-namespace": fleet.namespace,
            RUN_LABEL: task.run or None,
            QUARANTINE_LABEL: task.quarantine or None,
        }
        annotations = {TERMS_ANNOTATION: terms_of(self._site(task.site).spec, task.stops) or None}
        metadata: dict[str, Any] = {"name": name, "namespace": namespace, "labels": labels, "annotations": annotations}
        revision = order.revision
        spec: dict[str, Any] = {
            "site": order.site,
            "fleet": order.fleet,
            "sequence": order.sequence,
            "action": order.action,
            "model": order.model,
            "expiresAt": format_time(order.expires_at),
            "envelope": sign_order(order, self._key),
            "revision": revision.hash if revision else None,
            "version": revision.version if revision else None,
            "variant": revision.variant.name if revision else None,
        }
        body = {"metadata": metadata, "spec": spec}
        if held is None:
            metadata |= {"labels": _present(labels), "annotations": _present(annotations)}
            answer = await self._api.create(SITE_ASSIGNMENTS, {"metadata": metadata, "spec": _present(spec)})
        else:
            metadata["resourceVersion"] = held.metadata.resource_version
            # A merge patch: what is None goes away. A server-side apply takes away only what was applied, and not what `create` wrote.
            answer = await self._api.patch(SITE_ASSIGNMENTS, name, namespace, body)
        self._inventory.assignments.observe(answer)

    def _order(self, fleet: FleetKey, model: str, task: Task, held: int) -> Order:
        now = datetime.now(UTC).replace(microsecond=0)
        report = self._inventory.fleet_report(task.site, fleet)
        record = self._site(task.site)
        return Order(
            site=task.site,
            fleet=str(fleet),
            sequence=task.sequence or max(held, report.floor if report else 0) + 1,
            action="Run" if task.revision else "Withdraw",
            model=model,
            revision=self._frozen(task) if task.revision else None,
            checks=task.checks,
            analysis=task.analysis,
            soak=task.soak,
            storage=record.spec.storage,
            registries=record.spec.registries or None,
            proxy=record.spec.proxy,
            stop_serving=task.stops or None,
            issued_at=now,
            expires_at=now + ORDER_LIFETIME,
        )

    def _site(self, name: str) -> SiteRecord:
        record = self._inventory.sites.get("", name)
        if record is None:
            raise LookupError(f"EdgeSite {name} is gone")
        return record

    def _frozen(self, task: Task) -> FrozenRevision:
        revision = task.revision
        site = self._inventory.site_report(task.site)
        variant = next((v for v in revision.variants if v.name == task.variant), None) if revision else None
        serving = fit_serving(revision.serving, site.hardware) if revision and site else None
        if revision is None or variant is None or serving is None:
            raise LookupError(f"site {task.site}: no variant {task.variant!r} or serving entry of {revision and revision.version} fits")
        return FrozenRevision(
            hash=revision.hash,
            model=revision.model,
            repository=revision.repository,
            digest=revision.digest,
            version=revision.version,
            seq=revision.seq,
            variant=variant,
            serving=serving,
            golden=revision.golden,
            slo=revision.slo,
        )


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
