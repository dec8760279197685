"""Real nodes: kubelet, containerd and runc of each cluster in namespaces of their own, which leave the machine as it was."""

import json
import os
from collections.abc import Iterator

import pytest

from tests.e2e.machine import kernel_settings, left_behind
from tests.lab import LabError
from tests.lab.cgroups import list_cgroups
from tests.lab.nodes import GROUP, NodeCluster, NodeLab
from tests.lab.pod_images import EDGEFLEET, PYTHON, busybox_image, edgefleet_image

WEB = "localhost/web:1"
START = 900.0  # seconds: seldom are kubelet and scheduler in the cache, and then a lab is up in ten
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(START)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeLab]:
    """Clusters `hub` and `east`, with a node each."""
    folder = tmp_path_factory.mktemp("nodes")
    before = kernel_settings()
    with NodeLab.start(folder, ["hub", "east"]) as lab:
        for cluster in lab.clusters.values():
            cluster.import_image(busybox_image(WEB, "httpd", "-f", "-p", "8080", "-h", "/srv"))
        lab.clusters["hub"].import_image(edgefleet_image())
        yield lab
    assert kernel_settings() == before
    assert list_cgroups(f"{GROUP}{os.getpid()}-") == []
    assert left_behind(folder) == []


def test_a_pod_with_a_volume_serves_on_a_real_node(nodes: NodeLab) -> None:
    east = nodes.clusters["east"]
    folder = east.make_volume("words")
    (folder / "said").write_text("by the volume\n")
    _apply_web(east)

    east.kubectl("wait", "--for=condition=Available", "deployment/web", "--timeout=60s", limit=70)

    assert _fetch(nodes.clusters["hub"], f"http://{_pod_address(east)}:8080/said") == "by the volume\n"
    assert "httpd" in east.kubectl("exec", "deployment/web", "--", "/bin/busybox", "ps")


def test_a_cut_link_separates_clusters_and_stops_none(nodes: NodeLab) -> None:
    hub, east = nodes.clusters["hub"], nodes.clusters["east"]
    url = f"http://{_pod_address(east)}:8080/said"
    restarts = "jsonpath={.items[0].status.containerStatuses[0].restartCount}"

    nodes.cut("east")
    try:
        with pytest.raises(LabError, match="Connection timed out|timed out|No route"):
            _fetch(hub, url)
        assert _fetch(east, url) == "by the volume\n"
        assert "east-node" in east.kubectl("get", "nodes")
    finally:
        nodes.mend("east")

    assert _fetch(hub, url) == "by the volume\n"
    assert east.kubectl("get", "pods", "-l", "app=web", "-o", restarts) == "0"


@pytest.mark.parametrize(
    ("name", "command", "args", "said"),
    [
        ("version", None, ["--version"], "edgefleet 0.1"),
        ("envoy", ["/wheels/envoy/_bin/envoy"], ["--version"], "version:"),
        ("user", [PYTHON], ["-c", "import os; print(os.getuid(), os.getgid(), os.access('/', os.W_OK))"], "65532 65532 False"),
        ("shell", [PYTHON], ["-c", "import os; print([name for name in os.listdir('/usr/bin') if name.endswith('sh')])"], "[]"),
        ("modules", [PYTHON], ["-c", "import ssl, ctypes, sqlite3, bz2, lzma, edgefleet.hub.process, edgefleet.site.agent"], ""),
    ],
)
def test_our_image_starts_without_rights(nodes: NodeLab, name: str, command: list[str] | None, args: list[str], said: str) -> None:
    hub = nodes.clusters["hub"]
    container = {
        "name": "main",
        "image": EDGEFLEET,
        "args": args,
        **({"command": command} if command else {}),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    restricted = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = {"restartPolicy": "Never", "securityContext": restricted, "containers": [container]}
    hub.kubectl("create", "namespace", name)
    hub.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    hub.kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=30s", "-n", name)
    hub.kubectl(
        "apply", "-n", name, "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod})
    )

    try:
        hub.kubectl("wait", "-n", name, "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=60s", limit=70)
    except LabError:
        pytest.fail(hub.kubectl("describe", "pod", name, "-n", name) + hub.kubectl("logs", name, "-n", name))

    assert said in hub.kubectl("logs", name, "-n", name)


def _apply_web(cluster: NodeCluster) -> None:
    container = {
        "name": "web",
        "image": WEB,
        "readinessProbe": {"httpGet": {"path": "/said", "port": 8080}, "periodSeconds": 1},
        "volumeMounts": [{"name": "words", "mountPath": "/srv"}],
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "words", "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "lab", "resources": {"requests": {"storage": "1Gi"}}},
    }
    pod = {"containers": [container], "volumes": [{"name": "words", "persistentVolumeClaim": {"claimName": "words"}}]}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": pod},
        },
    }
    for found in (claim, deployment):
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(found))


def _pod_address(cluster: NodeCluster) -> str:
    return cluster.kubectl("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].status.podIP}")


def _fetch(cluster: NodeCluster, url: str) -> str:
    """What a client that stands in the network of `cluster` gets."""
    return cluster.space.call("curl", "--silent", "--show-error", "--fail", "--max-time", "5", "--noproxy", "*", url, network_only=True)
