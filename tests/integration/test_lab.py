"""The lab itself, against its promises: real servers, apart from each other, and ended by whoever asks."""

import json

from tests.lab.cluster import Lab


def test_every_cluster_is_ready(lab: Lab) -> None:
    for cluster in (lab.hub, *lab.sites.values()):
        assert cluster.kubectl("get", "--raw", "/readyz") == "ok"
        assert json.loads(cluster.kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"] == "v1.36.3"


def test_site_clusters_share_nothing(lab: Lab) -> None:
    lab.sites["east"].kubectl("create", "configmap", "only-east")
    names = {site.name: site.kubectl("get", "configmaps", "-o", "name") for site in lab.sites.values()}
    lab.sites["east"].kubectl("delete", "configmap", "only-east")
    assert "configmap/only-east" in names["east"]
    assert "configmap/only-east" not in names["west"]
