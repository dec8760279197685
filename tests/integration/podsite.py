"""A site whose cluster has a (fake) node: the namespace for its pods, the agent's rights there, and nothing left behind.

What the pods are is the test's matter.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from edgefleet.kube.resources import DEPLOYMENTS, NAMESPACES, PODS, ROLE_BINDINGS
from tests.integration.site_rig import ROLES, Rig, wait_until
from tests.lab.containers import Image
from tests.lab.fakenode import FakeNode
from tests.lab.processes import stop_processes

RIGHTS = [
    {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list", "watch", "create", "patch", "delete"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
]


@asynccontextmanager
async def open_node(rig: Rig, namespace: str, images: Mapping[str, Image] | None = None) -> AsyncIterator[FakeNode]:
    """The node on which the site's pods of `namespace` run; see `start_agent`. Ends the agent, then its pods."""
    await rig.local.apply(NAMESPACES, {"metadata": {"name": namespace}}, manager="test")
    role = {"metadata": {"name": "edgefleet-pods", "namespace": namespace}, "rules": RIGHTS}
    await rig.local.apply(ROLES, role, manager="test")
    binding = {
        "metadata": {"name": "edgefleet-pods", "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "edgefleet-pods"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"edgefleet:agent:{rig.site}"}],
    }
    await rig.local.apply(ROLE_BINDINGS, binding, manager="test")
    async with FakeNode(rig.local, namespace, rig.folder, images=images) as node:
        yield node
        if rig.agent is not None:
            stop_processes([rig.agent])
            rig.agent = None
        for body in await rig.local.list(DEPLOYMENTS, namespace):
            await rig.local.delete(DEPLOYMENTS, body["metadata"]["name"], namespace)

        async def gone() -> bool:
            return not await rig.local.list(PODS, namespace)

        await wait_until(gone, lambda: "the pods end")
    await rig.local.delete(NAMESPACES, namespace)


def start_agent(rig: Rig, namespace: str, *, keep: str = "30m") -> None:
    """With pods of this namespace."""
    rig.start_agent(pods_namespace=namespace, store_claim="store", store_folder="state", pods_keep=keep)
