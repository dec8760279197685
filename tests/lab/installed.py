"""edgefleet's own objects in a cluster, as its chart installs them: kinds, accounts, rights and admission policies.

There are no nodes in this lab, so the hub is a process that the tests start, under the name and the rights of the chart's ServiceAccount.
"""

from functools import cache
from pathlib import Path
from typing import Any

from tests.lab.cluster import Cluster
from tests.lab.helm import render
from tests.lab.manifests import AGENT_CHART, HUB_CHART, HUB_NAMESPACE, KINDS, read_documents

HUB_ACCOUNT = "edgefleet-hub"


def install_hub(cluster: Cluster) -> Cluster:
    """Apply everything that the hub's cluster needs, and wait until the kinds are served. May be done twice."""
    namespace = f"apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {HUB_NAMESPACE}\n"
    rendered = render(HUB_CHART, namespace=HUB_NAMESPACE, settings=["replicas=0"])
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=f"{namespace}---\n{rendered}")
    return _wait_for(cluster, KINDS)


def install_site(cluster: Cluster) -> Cluster:
    """Apply the one kind that a site's cluster needs, and wait until it is served."""
    kind = KINDS / "siteassignments.yaml"
    cluster.kubectl("apply", "--server-side", "-f", str(kind))
    return _wait_for(cluster, kind)


def hub_kubeconfig(cluster: Cluster) -> Path:
    """A kubeconfig of the hub's ServiceAccount, where the chart is installed; it has the rights that the chart gives it."""
    return cluster.account_kubeconfig(HUB_NAMESPACE, HUB_ACCOUNT)


@cache
def site_rules(role: str) -> list[dict[str, Any]]:
    """The rules of a Role of the agent's chart, for the user to whom a test gives them. Not to be changed."""
    rendered: list[dict[str, Any]] = read_documents(render(AGENT_CHART, namespace="x", settings=["site=x", "server.url=http://x:1"]))
    (found,) = (one["rules"] for one in rendered if (one["kind"], one["metadata"]["name"]) == ("Role", role))
    return list(found)


def _wait_for(cluster: Cluster, kinds: Path) -> Cluster:
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(kinds))
    return cluster
