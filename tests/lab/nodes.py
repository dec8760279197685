"""Clusters with real nodes: each in namespaces of its own, all joined by a bridge that leads nowhere else.

A pod reaches the API servers and pods of all clusters by address, and nothing outside. `cut` takes the link of one cluster away. The
machine is left as it was: what a kubelet changes is shielded (namespaces.py, node_servers.py), and its control groups are removed.
"""

import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.lab import LabError, node_servers
from tests.lab.binaries import NEWEST, fetch_control_plane, fetch_kubectl, fetch_node_binaries
from tests.lab.cgroups import list_cgroups, make_cgroup, remove_cgroup
from tests.lab.debian import NodeTools, fetch_node_tools
from tests.lab.namespaces import Namespaces
from tests.lab.pod_images import busybox_image

NETWORK = "10.77.0"
GROUP = "edgefleet-lab-"
MAX_SOCKET_BYTES = 107
INOTIFY_PER_NODE = 16  # API server 3, controllers 5, kubelet 6, containerd 2
_numbers = itertools.count()


@dataclass(frozen=True)
class NodeCluster:
    """One cluster and its node. `address` is that of its API server and node, `pods` the range its pods are in."""

    name: str
    number: int
    space: Namespaces
    home: Path
    tools: NodeTools

    @property
    def address(self) -> str:
        """Where the other clusters find it."""
        return f"{NETWORK}.{self.number + 10}"

    @property
    def pods(self) -> str:
        """The range of its pods' addresses."""
        return f"10.201.{self.number}.0/24"

    @property
    def kubeconfig(self) -> Path:
        """An administrator's; of use only inside of the lab's network."""
        return self.home / "admin.kubeconfig"

    def kubectl(self, *arguments: str, stdin: str | None = None, limit: float = 60) -> str:
        """Output of `kubectl ARGUMENTS` as administrator, called at the cluster itself, so a cut link is no hindrance. Raises LabError."""
        command = [fetch_kubectl(), "--kubeconfig", self.kubeconfig, *arguments]
        return self.space.call(*command, network_only=True, stdin=stdin, limit=limit)

    def client_kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig whose certificate says `user` and `groups`; also for pods of other clusters."""
        return node_servers.write_kubeconfig(self.home, self.name, self.address, user, list(groups))

    def import_image(self, archive: Path) -> None:
        """Gives the node an OCI archive."""
        node_servers.import_image(self.space, self.tools, archive)

    def make_volume(self, name: str, size: str = "2Gi") -> Path:
        """A local PersistentVolume on the node, of the StorageClass `lab`; its folder."""
        folder = self.home / "volumes" / name
        folder.mkdir(parents=True, mode=0o755)
        self.kubectl("apply", "-f", "-", stdin=_VOLUME.format(name=name, size=size, folder=folder, node=f"{self.name}-node"))
        return folder


@dataclass
class NodeLab:
    """Clusters with nodes, by name. Ends with the thread that started it, at the latest."""

    folder: Path
    outer: Namespaces
    clusters: Mapping[str, NodeCluster]

    @classmethod
    def start(cls, folder: Path, names: Sequence[str]) -> Self:
        """Starts them below `folder`, which nothing else uses, and returns when each node is Ready. Raises LabError."""
        _check_machine(folder, len(names))
        require_short(folder, names)
        # A kubelet may not be newer than its API server, and there is only the newest.
        plane, binaries, tools = fetch_control_plane(NEWEST), fetch_node_binaries(), fetch_node_tools()
        pause = busybox_image(node_servers.PAUSE, "sleep", "infinity")
        _remove_groups_of_the_dead()
        outer = Namespaces.make(folder / "run", "lab")
        lab = cls(folder, outer, {})
        try:
            _make_bridge(outer)
            made = [_make_cluster(lab, number, name, tools) for number, name in enumerate(names, 1)]
            _route(outer, made)
            lab.clusters = {cluster.name: cluster for cluster in made}

            def start(cluster: NodeCluster) -> None:
                node_servers.start_control_plane(cluster.space, cluster.home, cluster.address, plane, binaries.scheduler)
                group = f"{GROUP}{os.getpid()}-{next(_numbers)}"
                make_cgroup(group)
                node_servers.start_node(cluster.space, cluster.home, cluster.address, cluster.pods, group, tools, binaries)
                cluster.import_image(pause)
                cluster.kubectl("apply", "-f", "-", stdin=_STORAGE_CLASS)

            with ThreadPoolExecutor(len(made)) as pool:
                list(pool.map(start, made))
        except BaseException:
            lab.stop()
            raise
        return lab

    @property
    def hub(self) -> NodeCluster:
        """The cluster called `hub`."""
        return self.clusters["hub"]

    @property
    def sites(self) -> dict[str, NodeCluster]:
        """All others."""
        return {name: cluster for name, cluster in self.clusters.items() if name != "hub"}

    def cut(self, name: str) -> None:
        """Takes the link of a cluster down: nobody outside of it is reached from there, nor it from outside."""
        self.outer.call("ip", "link", "set", f"to-{name}", "down")

    def mend(self, name: str) -> None:
        """Takes the link up again."""
        self.outer.call("ip", "link", "set", f"to-{name}", "up")

    def stop(self) -> None:
        """Ends everything and removes what it kept; the servers' logs stay in `run`. Raises LabError for what would not go."""
        self.outer.end()
        for group in {path.name for path in list_cgroups(f"{GROUP}{os.getpid()}-")}:
            remove_cgroup(group)
        shutil.rmtree(self.folder / "clusters", ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def count_inotify() -> int:
    """How many inotify instances processes of this user hold."""
    found = 0
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # what ended meanwhile
            found += handle.parents[1].stat().st_uid == os.geteuid() and str(handle.readlink()) == "anon_inode:inotify"
    return found


def require_inotify(nodes: int, limit: int) -> None:
    """What a node's servers watch files with is scarce, and who gets none more of it fails late and says little. Raises LabError."""
    used, needed = count_inotify(), nodes * INOTIFY_PER_NODE
    if used + needed > limit:
        raise LabError(
            f"{nodes} nodes need {needed} inotify instances, and {used} of the {limit} of this user are taken: end another lab of nodes "
            "(`python -m tests.lab down`), or raise the sysctl fs.inotify.max_user_instances"
        )


def require_short(folder: Path, names: Sequence[str]) -> None:
    """A kubelet makes Unix sockets below its folder, and the address of one has 107 bytes. Raises LabError."""
    for name in names:
        socket = folder.resolve() / "clusters" / name / "kubelet" / "pod-resources" / "4294967295"
        over = len(os.fsencode(socket)) - MAX_SOCKET_BYTES
        if over > 0:
            raise LabError(f"{folder} is too long by {over} for the sockets of the kubelet of {name!r}: choose another folder")


def _check_machine(folder: Path, nodes: int) -> None:
    if os.geteuid():
        raise LabError("clusters with nodes need root on Linux: namespaces and control groups are made")
    hidden = [top for top in ("/run", "/opt", "/var/lib", "/var/log") if folder.resolve().is_relative_to(top)]
    if hidden:
        raise LabError(f"{folder} lies below {hidden[0]}, which nodes see as an empty folder: choose another folder")
    require_inotify(nodes, int(Path("/proc/sys/fs/inotify/max_user_instances").read_text()))


def _make_bridge(outer: Namespaces) -> None:
    outer.call("ip", "link", "add", "lab", "type", "bridge")
    outer.call("ip", "address", "add", f"{NETWORK}.1/24", "dev", "lab")
    outer.call("ip", "link", "set", "lab", "up")


def _make_cluster(lab: NodeLab, number: int, name: str, tools: NodeTools) -> NodeCluster:
    home = lab.folder / "clusters" / name
    home.mkdir(parents=True)
    space = Namespaces.make(lab.folder / "run", name, inside=lab.outer)
    cluster = NodeCluster(name, number, space, home, tools)
    link = f"to-{name}"
    # The peer is named by its process as the machine counts, so this command sees the machine's processes.
    lab.outer.call("ip", "link", "add", link, "type", "veth", "peer", "name", "out", "netns", str(space.pid), network_only=True)
    lab.outer.call("ip", "link", "set", link, "master", "lab")
    lab.outer.call("ip", "link", "set", link, "up")
    space.call("ip", "address", "add", f"{cluster.address}/24", "dev", "out")
    space.call("ip", "address", "add", f"{node_servers.API_SERVICE}/32", "dev", "lo")
    space.call("ip", "link", "set", "out", "up")
    return cluster


def _route(outer: Namespaces, clusters: Sequence[NodeCluster]) -> None:
    for target in clusters:
        for space in (outer, *(other.space for other in clusters if other is not target)):
            space.call("ip", "route", "add", target.pods, "via", target.address)


def _remove_groups_of_the_dead() -> None:
    """A lab whose starter was killed went with it, but for its control groups."""
    for name in {path.name for path in list_cgroups(GROUP)}:
        owner = name.removeprefix(GROUP).split("-")[0]
        if not Path(f"/proc/{owner}").exists():
            remove_cgroup(name)


_STORAGE_CLASS = """
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: lab}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
"""
_VOLUME = """
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}}}
spec:
  capacity: {{storage: {size}}}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: lab
  local: {{path: {folder}}}
  nodeAffinity:
    required:
      nodeSelectorTerms: [{{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [{node}]}}]}}]
"""
