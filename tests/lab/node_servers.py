"""The servers of a cluster that has a node, inside its namespaces: etcd, API server, controllers, scheduler, containerd, kubelet.

Their flags, and which fact says that each is ready. What a cluster is and how several are joined is nodes.py's matter. There is no
kube-proxy: the one Service that pods need, the API server's own, is an address on which the API server listens itself.
"""

import json
from pathlib import Path

import yaml

from tests.lab import LabError, pki
from tests.lab.binaries import ControlPlane, NodeBinaries, fetch_kubectl
from tests.lab.control_plane import CONTROLLERS, apiserver_command, controllers_command, etcd_command
from tests.lab.debian import NodeTools
from tests.lab.namespaces import Namespaces

READY_LIMIT = 120.0  # seconds; 6 s on an idle machine
API_PORT = 443  # that of the Service `kubernetes`, which nothing translates here
API_SERVICE = "10.99.0.1"
ETCD = ("http://127.0.0.1:2379", "http://127.0.0.1:2380")
PAUSE = "localhost/pause:1"
NODE_CONTROLLERS = (
    *CONTROLLERS,
    "node-lifecycle-controller",
    "persistentvolume-binder-controller",
    "disruption-controller",
)
# Kernel settings that a kubelet sets for the whole machine, with the values it wants: it finds them so, and the machine keeps its own.
KUBELET_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


def start_control_plane(space: Namespaces, home: Path, address: str, plane: ControlPlane, scheduler: Path) -> None:
    """Starts etcd, API server, controllers and scheduler; keys and `admin.kubeconfig` go to `home`. Returns when all answer."""
    authority = pki.Authority.make(home, f"edgefleet-lab-{space.name}")
    authority.issue_server("apiserver", [address, API_SERVICE])
    pki.make_signing_key(home)
    authority.issue_client("kubelet-client", ["system:masters"])
    for user, groups in (("lab-admin", ["system:masters"]), ("system:kube-controller-manager", []), ("system:kube-scheduler", [])):
        write_kubeconfig(home, space.name, address, user, groups)
    (home / "lab-admin.kubeconfig").rename(home / "admin.kubeconfig")
    space.start(f"{space.name}-etcd", etcd_command(plane.etcd, home / "etcd", *ETCD))
    apiserver = space.start(f"{space.name}-apiserver", _apiserver(plane.apiserver, home, address))
    apiserver.wait_until(lambda: _answers(space, home, "/readyz"), "ready", READY_LIMIT)
    if plane.controller_manager is not None:
        config = home / "system_kube-controller-manager.kubeconfig"
        command = controllers_command(plane.controller_manager, home, config, NODE_CONTROLLERS)
        manager = space.start(f"{space.name}-controller-manager", command)
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        manager.wait_until(lambda: _answers(space, home, account), "making service accounts", READY_LIMIT)
    config = home / "system_kube-scheduler.kubeconfig"
    space.start(f"{space.name}-scheduler", [scheduler, f"--kubeconfig={config}", "--leader-elect=false", "--secure-port=0"])


def start_node(space: Namespaces, home: Path, address: str, pods: str, cgroup: str, tools: NodeTools, binaries: NodeBinaries) -> None:
    """Starts containerd and a kubelet as node `<cluster>-node` whose pods get addresses of `pods` (CIDR). Returns when it runs pods."""
    space.shield(KUBELET_SETTINGS, home / "settings")
    # Paths that containerd and the kubelet have built in.
    space.cover("/run", "/opt", "/var/lib", "/var/log")
    programs = {"PATH": f"{tools.containerd}:{tools.runc}:/usr/sbin:/usr/bin:/sbin:/bin"}
    socket = Path("/run/containerd.sock")
    (home / "containerd.toml").write_text(_containerd_config(home, tools, socket))
    (home / "cni").mkdir()
    (home / "cni" / "10-bridge.conflist").write_text(json.dumps(_network(home, pods)))
    runtime = space.start(f"{space.name}-containerd", [tools.containerd / "containerd", "-c", home / "containerd.toml"], env=programs)
    seen = Path(f"/proc/{space.pid}/root{socket}")
    runtime.wait_until(seen.exists, "listening", READY_LIMIT)
    node = f"{space.name}-node"
    write_kubeconfig(home, space.name, address, f"system:node:{node}", ["system:nodes"])
    serving = pki.Authority(home).issue_server(node, [address])
    (home / "kubelet.yaml").write_text(yaml.safe_dump(_kubelet_config(home, address, cgroup, socket, serving)))
    command: list[str | Path] = [
        binaries.kubelet,
        f"--config={home / 'kubelet.yaml'}",
        f"--kubeconfig={home / f'system_node_{node}.kubeconfig'}",
        f"--root-dir={home / 'kubelet'}",
        f"--cert-dir={home / 'kubelet' / 'pki'}",
        f"--node-ip={address}",
        f"--hostname-override={node}",
    ]
    kubelet = space.start(f"{space.name}-kubelet", command, env=programs)
    kubelet.wait_until(lambda: _is_node_ready(space, home, node), "a Ready node", READY_LIMIT)


def import_image(space: Namespaces, tools: NodeTools, archive: Path) -> None:
    """Gives the node an OCI archive; pods name it as its index does. Raises LabError."""
    words = [tools.containerd / "ctr", "--address", "/run/containerd.sock", "--namespace", "k8s.io"]
    space.call(*words, "images", "import", archive, limit=300)


def write_kubeconfig(home: Path, cluster: str, address: str, user: str, groups: list[str]) -> Path:
    """A kubeconfig for `user`, named after it, that reaches the API server of `home` by its address."""
    authority = pki.Authority(home)
    client = authority.issue_client(user, groups)
    path = home / f"{pki.file_name(user)}.kubeconfig"
    return pki.write_kubeconfig(path, cluster, f"https://{address}:{API_PORT}", authority.pair.cert.read_bytes(), client)


def _apiserver(binary: Path, home: Path, address: str) -> list[str | Path]:
    return [
        *apiserver_command(binary, home, ETCD[0], API_PORT),
        "--bind-address=0.0.0.0",
        f"--advertise-address={address}",
        f"--kubelet-client-certificate={home / 'kubelet-client.crt'}",
        f"--kubelet-client-key={home / 'kubelet-client.key'}",
        f"--kubelet-certificate-authority={home / 'ca.crt'}",
        "--kubelet-preferred-address-types=InternalIP",
    ]


def _containerd_config(home: Path, tools: NodeTools, socket: Path) -> str:
    # Version 2 of the format is read by containerd 1.6 and 2.x alike. The machine gives no right to lower an OOM score.
    return f"""version = 2
root = "{home}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile", "io.containerd.nri.v1.nri"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{tools.plugins}"
    conf_dir = "{home}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{tools.runc}/runc"
"""


def _network(home: Path, pods: str) -> dict[str, object]:
    addresses = {
        "type": "host-local",
        "dataDir": str(home / "pod-addresses"),
        "ranges": [[{"subnet": pods}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "pods", "isGateway": True, "ipMasq": False, "ipam": addresses}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}


def _kubelet_config(home: Path, address: str, cgroup: str, socket: Path, serving: pki.Pair) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "healthzBindAddress": "127.0.0.1",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(home / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(serving.cert),
        "tlsPrivateKeyFile": str(serving.key),
        "containerRuntimeEndpoint": f"unix://{socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "enforceNodeAllocatable": ["pods"],
        "failSwapOn": False,
        "failCgroupV1": False,
        "localStorageCapacityIsolation": False,
        "makeIPTablesUtilChains": False,
        "resolvConf": "",
        "podLogsDir": str(home / "pod-logs"),
        "volumePluginDir": str(home / "volume-plugins"),
        # A lab has no time to wait a minute for what changed in a ConfigMap or Secret.
        "configMapAndSecretChangeDetectionStrategy": "Watch",
        "syncFrequency": "5s",
        "nodeStatusUpdateFrequency": "5s",
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {},
    }


def _answers(space: Namespaces, home: Path, path: str) -> bool:
    return _ask(space, home, "get", "--raw", path) is not None


def _is_node_ready(space: Namespaces, home: Path, node: str) -> bool:
    ready = 'jsonpath={.status.conditions[?(@.type=="Ready")].status} {.spec.taints}'
    return _ask(space, home, "get", "node", node, "-o", ready) == "True "


def _ask(space: Namespaces, home: Path, *words: str) -> str | None:
    config = home / "admin.kubeconfig"
    try:
        return space.call(fetch_kubectl(), "--kubeconfig", config, "--request-timeout=5s", *words, network_only=True)
    except LabError:
        return None
