"""What the demo on nodes gives to clusters besides the charts: a site's model server with the claim that it shares with the agent and the
gateway, the values of the site's chart, and the line that leads pods to the registry.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgefleet.api.meta import site_namespace
from examples.digits.demo.places import MEMORY, Place
from examples.digits.demo.times import RENEW
from tests.lab import tcp_line
from tests.lab.nodes import NETWORK
from tests.lab.pod_images import EDGEFLEET, PYTHON, SERVER

CLAIM = "site"
SERVER_NAME = "model-server"
SERVER_PORT, METRICS_PORT = 8080, 8082
GATEWAY_PORT = 8000
MODELS = "/var/lib/edgefleet/models"  # where the chart's agent has the claim's folder `models`
_RESTRICTED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
_POD = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "fsGroup": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}
# The model server is told by variables what tests/lab/server.py writes into its settings: it starts without a model.
_SERVER = {
    "MLSERVER_HOST": "0.0.0.0",  # noqa: S104
    "MLSERVER_HTTP_PORT": str(SERVER_PORT),
    "MLSERVER_GRPC_PORT": "8081",
    "MLSERVER_METRICS_PORT": str(METRICS_PORT),
    "MLSERVER_LOAD_MODELS_AT_STARTUP": "false",
    "MLSERVER_PARALLEL_WORKERS": "0",
    "MLSERVER_DEBUG": "false",
}


def plan_hub_line(registry: str) -> dict[str, Any]:
    """A patch of the hub's Deployment, which gives its pods a line to the `registry` (host and port on loopback)."""
    return {"spec": {"template": {"spec": {"containers": [_line(registry)]}}}}


def plan_server(site: str) -> list[dict[str, Any]]:
    """What a site has before edgefleet comes: its namespace, which admits restricted pods alone, a claim, and a model server."""
    place = {"name": SERVER_NAME, "namespace": site_namespace(site)}
    labels = {"app": SERVER_NAME}
    server = {
        "name": "server",
        "image": SERVER,
        "args": [MODELS],
        "securityContext": _RESTRICTED,
        "env": [{"name": name, "value": value} for name, value in _SERVER.items()],
        "ports": [{"name": "models", "containerPort": SERVER_PORT}],
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": SERVER_PORT}, "periodSeconds": 3, "timeoutSeconds": 5},
        "resources": {"requests": {"cpu": "50m", "memory": "192Mi"}},
        "volumeMounts": [
            {"name": "store", "mountPath": MODELS, "subPath": "models", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": _POD,
        "containers": [server],
        "volumes": [{"name": "store", "persistentVolumeClaim": {"claimName": CLAIM}}, {"name": "tmp", "emptyDir": {}}],
    }
    claim = {"accessModes": ["ReadWriteOnce"], "storageClassName": "lab", "resources": {"requests": {"storage": "1Gi"}}}
    deployment = {
        "strategy": {"type": "Recreate"},
        "progressDeadlineSeconds": 900,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": place["namespace"], "labels": restricted}},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {**place, "name": CLAIM}, "spec": claim},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": place, "spec": deployment},
    ]


def plan_values(place: Place, server: str, registry: str, *, kinds: bool) -> Mapping[str, Any]:
    """Values of charts/edgefleet-agent for a site whose model server has the address `server`; `kinds` for the first of a cluster."""
    return {
        "site": place.name,
        "server": {"url": f"http://{server}:{SERVER_PORT}", "metrics": f"http://{server}:{METRICS_PORT}/metrics"},
        "storage": {"existingClaim": CLAIM},
        "hardware": {"arch": "amd64", "memory": MEMORY, "features": list(place.features)},
        RENEW.key.lstrip("-"): RENEW.demo,
        "extraContainers": [_line(registry)],
        "crds": kinds,
    }


def _line(registry: str) -> dict[str, Any]:
    host, port = registry.split(":")
    text = Path(tcp_line.__file__).read_text()
    line = {"name": "registry-line", "image": EDGEFLEET, "securityContext": _RESTRICTED}
    return {**line, "command": [PYTHON], "args": ["-c", text, host, port, f"{NETWORK}.1", port]}
