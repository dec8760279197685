"""The sequence of an assignment only grows, whoever wrote it meanwhile (I4)."""

from typing import Any

import pytest

from edgefleet.api.meta import RUN_LABEL, TERMS_ANNOTATION
from edgefleet.api.site import EdgeSiteSpec
from edgefleet.core.facts import FleetKey
from edgefleet.core.upkeep import terms_of
from edgefleet.hub.assignments import AssignmentWriter, Task
from edgefleet.hub.inventory import Inventory
from edgefleet.kube.errors import Conflict
from edgefleet.trust.keys import PrivateKey

FLEET = FleetKey("vision", "plants")


def ignore(_: object) -> None:
    return


def present(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


class Cluster:
    """Keeps the sequences that are written, and the last body."""

    def __init__(self) -> None:
        self.written: list[int] = []
        self.body: dict[str, Any] = {}

    async def patch(self, resource: object, name: str, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        self.written.append(body["spec"]["sequence"])
        self.body = body
        return {
            "metadata": {"name": name, "namespace": namespace, "resourceVersion": str(10 + len(self.written))},
            "spec": present(body["spec"]),
        }


async def test_a_renewal_of_what_was_replaced_meanwhile_is_not_written() -> None:
    cluster: Any = Cluster()
    inventory = Inventory(
        cluster, on_fleet=ignore, on_site=ignore, on_renewal=ignore, on_health=lambda site, fleet: None, on_heartbeat=ignore
    )
    inventory.sites.observe({"metadata": {"name": "berlin", "resourceVersion": "1"}, "spec": {}})
    spec = {"site": "berlin", "fleet": str(FLEET), "sequence": 5, "action": "Withdraw", "model": "weld"}
    spec |= {"expiresAt": "2030-01-01T00:00:00Z", "envelope": "e30="}
    meta = {"name": "vision.plants", "namespace": "edgesite-berlin", "resourceVersion": "2"}
    inventory.assignments.observe({"metadata": meta, "spec": spec})
    writer = AssignmentWriter(cluster, inventory, PrivateKey.generate())
    with pytest.raises(Conflict, match="sequence 5 now, not 4"):
        await writer.apply(FLEET, "weld", Task("berlin", sequence=4))
    await writer.apply(FLEET, "weld", Task("berlin", sequence=5))
    await writer.apply(FLEET, "weld", Task("berlin"))
    assert cluster.written == [5, 6]
    assert cluster.body["metadata"]["annotations"] == {TERMS_ANNOTATION: None}
    spec_of_site = {"proxy": {"https": "http://proxy.example:3128"}}
    inventory.sites.observe({"metadata": {"name": "berlin", "resourceVersion": "20"}, "spec": spec_of_site})
    await writer.apply(FLEET, "weld", Task("berlin", sequence=6))
    assert cluster.written == [5, 6, 6], "a renewal keeps its sequence"
    assert cluster.body["metadata"]["annotations"] == {TERMS_ANNOTATION: terms_of(EdgeSiteSpec.model_validate(spec_of_site))}
    # What the order before it said, a merge patch takes away only where it is named.
    assert {name for name, value in cluster.body["spec"].items() if value is None} == {"revision", "version", "variant"}
    assert cluster.body["metadata"]["labels"][RUN_LABEL] is None
