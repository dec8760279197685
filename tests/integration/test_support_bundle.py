"""`edgefleet support-bundle` of a real hub, with secrets planted wherever people and programs put them: none leaves, and what explains a
fault does. The kubelet that gives the pod's log is a fake: there are no nodes in this lab."""

import asyncio
import json
import ssl
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.meta import format_time
from edgefleet.cli.support_hub import PODS
from edgefleet.kube.resources import EDGE_FLEETS, EDGE_MODELS, EVENTS, SECRETS, SITE_ASSIGNMENTS, Resource
from edgefleet.trust.keys import PrivateKey
from tests.integration.fakesites import FakeSites
from tests.integration.world import World
from tests.lab import pki
from tests.lab.cluster import Lab
from tests.lab.processes import free_ports

NODES = Resource("v1", "Node", "nodes", False)
CLUSTER_ROLES = Resource("rbac.authorization.k8s.io/v1", "ClusterRole", "clusterroles", False)
CLUSTER_ROLE_BINDINGS = Resource("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings", False)
KINDS = ("edgefleets", "edgemodels", "edgesites", "modelrollouts", "rolloutpolicies", "siteassignments")
PLANTED = "pl4ntedS3cret"


def plant(place: str) -> str:
    """A secret that says where it was put."""
    return f"{PLANTED}-{place}"


class Kubelet(BaseHTTPRequestHandler):
    """Fake: answers for the log of any container."""

    key = PrivateKey.generate().to_pem()

    def do_GET(self) -> None:
        text = (
            f"2026-11-28 INFO hub of https://127.0.0.1: signing as sha256:{'ab' * 32}\n"
            f"2026-11-28 WARNING GET https://robot:{plant('log-url')}@registry.example/v2/: 401\n"
            f"2026-11-28 DEBUG Authorization: Bearer {plant('log-header')}\n{self.key}"
            "2026-11-28 INFO told to stop\n"
        )
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[int]:
    """The port of a fake kubelet."""
    pair = pki.Authority.make(tmp_path, "kubelet").issue_server("kubelet")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Kubelet)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


async def bundle(folder: Path, *words: str) -> tuple[dict[str, str], str]:
    """The files of a bundle, and what was said on stderr."""
    target = folder / "bundle.tgz"
    command = [sys.executable, "-m", "edgefleet", "support-bundle", "-o", str(target), *words]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    with tarfile.open(target) as archive:
        members = {name.removeprefix("edgefleet-support/"): archive.extractfile(name) for name in archive.getnames()}
        return {name: member.read().decode() for name, member in members.items() if member is not None}, done.stderr


async def plant_everywhere(world: World, port: int) -> None:
    """Secrets in annotations, messages, Events, Secrets, and in a pod's environment, arguments and log."""
    docker = json.dumps({"auths": {"registry.example": {"username": "robot", "password": plant("docker")}}})
    notes = {
        "kubectl.kubernetes.io/last-applied-configuration": json.dumps({"spec": {"note": plant("last-applied")}}),
        "team.example/registry-token": plant("annotation-token"),
        "team.example/docker": docker,
        "team.example/why": f"mirror https://robot:{plant('annotation-url')}@mirror.example/ asked for",
        "team.example/key": PrivateKey.generate().to_pem(),
    }
    for kind, name in ((EDGE_FLEETS, "plants"), (EDGE_MODELS, "weld")):
        await world.api.patch(kind, name, world.team, {"metadata": {"annotations": notes}})
    data = {"metadata": {"name": "pull", "namespace": world.system}, "stringData": {"password": plant("secret")}}
    await world.api.create(SECRETS, data)
    fleet = await world.fleet()
    about = {"apiVersion": "edgefleet.io/v1alpha1", "kind": "EdgeFleet", "name": "plants", "namespace": world.team}
    event = {
        "metadata": {"name": f"planted-{world.mark}", "namespace": world.team},
        "involvedObject": {**about, "uid": fleet["metadata"]["uid"]},
        "reason": "Planted",
        "message": f"GET https://blobs.example/x?X-Amz-Signature={plant('event-url')} failed; proxy password={plant('event-word')}",
        "type": "Warning",
        "lastTimestamp": format_time(datetime.now(UTC)),
    }
    await world.api.create(EVENTS, event)
    node = f"node-{world.mark}"
    status = {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}
    await world.api.create(NODES, {"metadata": {"name": node}})
    await world.api.patch(NODES, node, None, {"status": status}, subresource="status")
    container = {
        "name": "hub",
        "image": "registry.example/edgefleet@sha256:" + "ab" * 32,
        "args": ["hub", "--registry-password", plant("argument"), f"--proxy=http://u:{plant('argument-url')}@proxy.example"],
        "env": [{"name": "PLAIN", "value": plant("environment")}],
    }
    spec = {"nodeName": node, "containers": [container], "automountServiceAccountToken": False, "tolerations": [{"operator": "Exists"}]}
    await world.api.create(PODS, {"metadata": {"name": "edgefleet-hub-0", "namespace": world.system}, "spec": spec})


@pytest.mark.timeout(300)
async def test_no_planted_secret_leaves(world: World, sites: FakeSites, kubelet: int, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    world.kill_hub()
    world.start_hub("--metrics-port", str(port))
    name = await world.add_site("s0")
    answer = {
        "state": "Blocked",
        "fault": "Site",
        "reason": "RegistryUnreachable",
        "message": f"https://u:{plant('status')}@h.example: 401",
    }
    await sites.add(name, behaviour=lambda _: answer)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()

    async def blocked() -> bool:
        found = await world.api.list(SITE_ASSIGNMENTS, f"edgesite-{name}")
        return bool(found) and found[0].get("status", {}).get("state") == "Blocked"

    await world.until("the site answers", blocked, 90)
    await plant_everywhere(world, kubelet)
    log = tmp_path / "own.log"
    log.write_text(f"2026-11-28 INFO Bearer {plant('own-log')}\n2026-11-28 INFO {name} is set up\n")
    words = ["--kubeconfig", str(world.lab.hub.kubeconfig), "-n", world.system, "--log", str(log)]
    files, said = await bundle(tmp_path, *words, "--metrics", f"http://127.0.0.1:{port}/metrics")
    everything = json.dumps(files)
    left = {place.split('"')[0][:40] for place in everything.split(PLANTED)[1:]}
    assert not left
    assert "BEGIN PRIVATE KEY" not in everything
    assert "left out" not in said, said
    # What explains is there.
    assert json.loads(files["versions.json"])["server"]["gitVersion"].startswith("v1.")
    kinds = {path for path in files if path.startswith("kinds/")}
    assert len(kinds) == 6
    orders = json.loads(files["kinds/siteassignments.json"])
    mine = next(one for one in orders if one["metadata"]["namespace"] == f"edgesite-{name}")
    assert (mine["status"]["reason"], mine["status"]["message"]) == ("RegistryUnreachable", "https://[redacted]@h.example: 401")
    assert any(one["reason"] == "Planted" and "blobs.example" in one["message"] for one in json.loads(files["events.json"]))
    assert any(one["metadata"]["namespace"] == f"edgesite-{name}" for one in json.loads(files["leases.json"]))
    runs = json.loads(files["kinds/modelrollouts.json"])
    assert any(run["metadata"]["name"] == "plants-1" for run in runs)
    pods = json.loads(files["pods.json"])
    assert pods[0]["spec"]["containers"][0]["env"] == [{"name": "PLAIN", "value": "[redacted]"}]
    assert "told to stop" in files["logs/edgefleet-hub-0.hub.log"]
    assert "@registry.example/v2/: 401" in files["logs/edgefleet-hub-0.hub.log"]
    assert f"{name} is set up" in files["logs/own.log"]
    assert "edgefleet_build_info" in files["metrics.txt"]
    assert {line["check"] for line in json.loads(files["check.json"])["lines"]} >= {"kinds", "rights", "hub"}
    assert "edgefleet-hub-owned" in files["installed/validatingadmissionpolicies.json"]
    await world.api.delete(NODES, f"node-{world.mark}")


@pytest.mark.timeout(300)
async def test_it_never_asks_for_a_secret_and_says_what_it_may_not_read(world: World, lab: Lab, tmp_path: Path) -> None:
    """A person who may read all of edgefleet's kinds, and nothing else."""
    reader = lab.hub.client_kubeconfig(f"reader-{world.mark}")
    role = {"rules": [{"apiGroups": ["edgefleet.io"], "resources": ["*"], "verbs": ["get", "list"]}]}
    meta = {"name": f"reader-{world.mark}"}
    await world.api.create(CLUSTER_ROLES, {"metadata": meta, **role})
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": meta["name"]}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": meta["name"]}
    await world.api.create(CLUSTER_ROLE_BINDINGS, {"metadata": meta, "roleRef": reference, "subjects": [subject]})

    files, said = await bundle(tmp_path, "--kubeconfig", str(reader), "-n", world.system)
    assert {path for path in files if path.startswith("kinds/")} == {f"kinds/{kind}.json" for kind in KINDS}
    for part in ("events", "leases", "pods", "installed"):
        assert f"left out: {part}: " in said
        assert f"- {part}: " in files["about.txt"]
    assert "secrets" not in said, "what is not asked for cannot be refused"
    await world.api.delete(CLUSTER_ROLES, meta["name"])
    await world.api.delete(CLUSTER_ROLE_BINDINGS, meta["name"])
