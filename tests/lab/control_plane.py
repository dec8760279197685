"""The servers of the lab with their flags: how each is started, and which fact says that it is ready.

What a lab is, and how it is found again and ended, is cluster.py's matter.
"""

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.lab import audit, pki
from tests.lab.binaries import ControlPlane
from tests.lab.processes import Process, free_ports, start_process

HUB = "hub"
SERVICE_RANGE = "10.99.0.0/16"
READY_LIMIT = 120.0  # seconds; 3 s on an idle machine, but 30 s were seen on a busy one
CONTROLLERS = (
    "certificatesigningrequest-signing-controller",
    "certificatesigningrequest-approving-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "garbage-collector-controller",
    "deployment-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "clusterrole-aggregation-controller",
)


def start_servers(folder: Path, plane: ControlPlane, urls: Mapping[str, str]) -> None:
    """Starts etcd, then the API server of each `urls` (name -> https://127.0.0.1:PORT) at once, then the hub's controllers.

    Each is registered in `folder/run`; certificates and `admin.kubeconfig` go to `folder/clusters/<name>`. Returns when all
    are ready. Raises LabError with the end of the log of the one that is not.
    """
    etcd_url = _start_etcd(folder, plane.etcd)
    with ThreadPoolExecutor(max(1, len(urls))) as pool:
        for started in [pool.submit(_start_apiserver, folder, plane, name, url, etcd_url) for name, url in urls.items()]:
            started.result()
    if plane.controller_manager is not None and HUB in urls:
        start_controllers(folder, plane.controller_manager, HUB, urls[HUB])


def etcd_command(binary: Path, data: Path, client: str, peer: str) -> list[str | Path]:
    """An etcd of one member that keeps its data in `data` and listens at the URLs `client` and `peer`."""
    return [
        binary,
        f"--data-dir={data}",
        "--unsafe-no-fsync",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--log-level=warn",
    ]


def apiserver_command(binary: Path, home: Path, etcd: str, port: int) -> list[str | Path]:
    """An API server whose keys are in `home`. Where it listens, but for the port, is added by who starts it."""
    return [
        binary,
        f"--etcd-servers={etcd}",
        f"--secure-port={port}",
        f"--tls-cert-file={home / 'apiserver.crt'}",
        f"--tls-private-key-file={home / 'apiserver.key'}",
        f"--client-ca-file={home / 'ca.crt'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-signing-key-file={home / 'service-accounts.key'}",
        f"--service-account-key-file={home / 'service-accounts.pub'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--allow-privileged",
        "--endpoint-reconciler-type=none",
        f"--cert-dir={home}",
        "--profiling=false",
    ]


def controllers_command(binary: Path, home: Path, kubeconfig: Path, controllers: Sequence[str]) -> list[str | Path]:
    """A controller-manager with these controllers, which signs with the CA in `home`."""
    return [
        binary,
        f"--kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        f"--cert-dir={home}",
        "--leader-elect=false",
        "--use-service-account-credentials",
        f"--controllers={','.join(controllers)}",
        f"--cluster-signing-cert-file={home / 'ca.crt'}",
        f"--cluster-signing-key-file={home / 'ca.key'}",
        f"--root-ca-file={home / 'ca.crt'}",
        f"--service-account-private-key-file={home / 'service-accounts.key'}",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    ]


def _start_etcd(folder: Path, binary: Path) -> str:
    client, peer = (f"http://127.0.0.1:{port}" for port in free_ports(2))
    command = etcd_command(binary, folder / "etcd", client, peer)
    process = start_process(folder / "run", "etcd", command)
    process.wait_until(lambda: _get(f"{client}/health") is not None, "healthy", READY_LIMIT)
    return client


def _start_apiserver(folder: Path, plane: ControlPlane, name: str, url: str, etcd_url: str) -> None:
    home = folder / "clusters" / name
    authority = pki.Authority.make(home, f"edgefleet-lab-{name}")
    authority.issue_server("apiserver")
    pki.make_signing_key(home)
    admin = authority.issue_client("lab-admin", ["system:masters"])
    (home / "audit.json").write_text(json.dumps(audit.POLICY))
    pki.write_kubeconfig(home / "admin.kubeconfig", name, url, authority.pair.cert.read_bytes(), admin)
    command = apiserver_command(plane.apiserver, home, etcd_url, int(url.rpartition(":")[2]))
    command += [f"--etcd-prefix=/{name}", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"]
    command += [f"--audit-policy-file={home / 'audit.json'}", f"--audit-log-path={home / audit.AUDIT_LOG}"]
    process = start_process(folder / "run", f"{name}-apiserver", command)
    context = ssl.create_default_context(cafile=str(authority.pair.cert))
    context.load_cert_chain(admin.cert, admin.key)
    process.wait_until(lambda: _get(f"{url}/readyz", context) is not None, "ready", READY_LIMIT)
    # The API server makes this namespace by itself a moment after it calls itself ready.
    namespace = f"{url}/api/v1/namespaces/default"
    process.wait_until(lambda: _get(namespace, context) is not None, "showing namespace default", READY_LIMIT)


def start_controllers(folder: Path, binary: Path, name: str, url: str) -> Process:
    """A controller-manager for the cluster `name` of the lab in `folder`; returns when it is at work. A site has none by itself."""
    home = folder / "clusters" / name
    authority = pki.Authority(home)
    ca = authority.pair
    client = authority.issue_client("system:kube-controller-manager")
    serving = authority.issue_server("controller-manager")
    config = pki.write_kubeconfig(home / "controller-manager.kubeconfig", name, url, ca.cert.read_bytes(), client)
    command = controllers_command(binary, home, config, CONTROLLERS)
    command += [f"--secure-port={free_ports(1)[0]}", f"--tls-cert-file={serving.cert}", f"--tls-private-key-file={serving.key}"]
    process = start_process(folder / "run", f"{name}-controller-manager", command)
    context = ssl.create_default_context(cafile=str(ca.cert))
    context.load_cert_chain(home / "lab-admin.crt", home / "lab-admin.key")
    # A controller at work is the fact; its own /healthz says only that the process listens.
    account = f"{url}/api/v1/namespaces/default/serviceaccounts/default"
    process.wait_until(lambda: _get(account, context) is not None, "making service accounts", READY_LIMIT)
    return process


def _get(url: str, context: ssl.SSLContext | None = None) -> bytes | None:
    """Body of a 200, else None. Never through a proxy: these servers are on loopback."""
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if context is not None:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=5) as answer:
            body: bytes = answer.read()
            return body
    except urllib.error.HTTPError as error:
        error.close()
        return None
    except OSError:
        return None
