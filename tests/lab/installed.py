"""edgefleet's own objects in a cluster, as a person installs them: kinds, rights and admission policies."""

from pathlib import Path

from tests.lab.cluster import Cluster

ROOT = Path(__file__).parents[2]
KINDS = ROOT / "crds"
RIGHTS = ROOT / "charts" / "edgefleet" / "templates"


def install_hub(cluster: Cluster) -> Cluster:
    """Apply everything that the hub's cluster needs, and wait until the kinds are served. May be done twice."""
    return _install(cluster, KINDS, RIGHTS)


def install_site(cluster: Cluster) -> Cluster:
    """Apply the one kind that a site's cluster needs, and wait until it is served."""
    return _install(cluster, KINDS / "siteassignments.yaml")


def _install(cluster: Cluster, kinds: Path, *more: Path) -> Cluster:
    for path in (kinds, *more):
        cluster.kubectl("apply", "--server-side", "-f", str(path))
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(kinds))
    return cluster
