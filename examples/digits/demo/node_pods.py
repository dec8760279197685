"""The pods of the demo on nodes, as objects: a site's agent with its model server, and the line that leads every pod to the registry."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgefleet.api.meta import site_namespace
from examples.digits.demo.times import RENEW
from tests.lab import tcp_line
from tests.lab.nodes import NETWORK
from tests.lab.pod_images import EDGEFLEET, PYTHON, SERVER

AGENT = "edgefleet-agent"
GATEWAY_PORT = 8000
_FOLDERS = ("/state/agent", "/state/models")
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
    "MLSERVER_HOST": "127.0.0.1",
    "MLSERVER_HTTP_PORT": "8080",
    "MLSERVER_GRPC_PORT": "8081",
    "MLSERVER_METRICS_PORT": "8082",
    "MLSERVER_LOAD_MODELS_AT_STARTUP": "false",
    "MLSERVER_PARALLEL_WORKERS": "0",
    "MLSERVER_DEBUG": "false",
}


def plan_hub_line(registry: str) -> dict[str, Any]:
    """A patch of the hub's Deployment, which gives its pods a line to the `registry` (host and port on loopback)."""
    return {"spec": {"template": {"spec": {"containers": [_line(registry)]}}}}


def plan_site(site: str, secret: Mapping[str, str], registry: str) -> list[dict[str, Any]]:
    """The objects of a site: its files (Base64 by name), a claim on the volume of its own, and the Deployment of its one pod."""
    place = {"name": AGENT, "namespace": site_namespace(site)}
    claim = {"accessModes": ["ReadWriteOnce"], "storageClassName": "lab", "volumeName": f"site-{site}"}
    claim["resources"] = {"requests": {"storage": "1Gi"}}
    state = {"name": "state", "mountPath": "/state"}
    mounts = [state, {"name": "files", "mountPath": "/files", "readOnly": True}, {"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108
    making = f"import os; [os.makedirs(folder, exist_ok=True) for folder in {_FOLDERS}]"
    first = _container("folders", command=[PYTHON], args=["-c", making], volumeMounts=[state])
    agent = _container("agent", args=_agent_words(site), volumeMounts=mounts, ports=[{"name": "gateway", "containerPort": GATEWAY_PORT}])
    agent["readinessProbe"] = {"tcpSocket": {"port": GATEWAY_PORT}, "periodSeconds": 2}
    server = _container("server", args=["/state/models"], volumeMounts=mounts, env=[{"name": k, "value": v} for k, v in _SERVER.items()])
    server["image"] = SERVER
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": _POD,
        "initContainers": [first],
        "containers": [agent, server, _line(registry)],
        "volumes": [
            {"name": "state", "persistentVolumeClaim": {"claimName": AGENT}},
            {"name": "files", "secret": {"secretName": AGENT}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    labels = {"app": AGENT}
    deployment = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},
        "progressDeadlineSeconds": 900,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": place, "data": dict(secret)},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": place, "spec": claim},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": place, "spec": deployment},
    ]


def _agent_words(site: str) -> list[str]:
    return [
        "agent",
        f"--site={site}",
        "--hub-kubeconfig=/files/hub.kubeconfig",
        "--site-kubeconfig=/files/site.kubeconfig",
        "--trusted-root=/files/root.json",
        "--hardware=/files/hardware.yaml",
        "--state=/state/agent",
        "--server-url=http://127.0.0.1:8080",
        "--server-models=/state/models",
        "--server-metrics=http://127.0.0.1:8082/metrics",
        "--gateway-host=0.0.0.0",
        f"--gateway-port={GATEWAY_PORT}",
        f"{RENEW.key}={RENEW.demo}",
    ]


def _line(registry: str) -> dict[str, Any]:
    host, port = registry.split(":")
    text = Path(tcp_line.__file__).read_text()
    return _container("registry-line", command=[PYTHON], args=["-c", text, host, port, f"{NETWORK}.1", port])


def _container(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "image": EDGEFLEET, "securityContext": _RESTRICTED, **fields}
