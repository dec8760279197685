"""Plays the kubelet where the lab has no nodes: the containers of Deployments run as processes, under their own ServiceAccounts.

What a container is told stands in its arguments, as the chart wrote them; what differs outside of a pod (paths, ports, the way to the API
server) is in one table. Probes and restarts are left out.
"""

import base64
import json
import sys
from pathlib import Path

from tests.lab.cluster import Cluster
from tests.lab.manifests import HUB_NAMESPACE
from tests.lab.processes import Process, free_ports, start_process, stop_processes

VOLUME = "/var/lib/edgefleet"
KUBECONFIG_FLAGS = {"edgefleet-hub": "--kubeconfig", "edgefleet-agent": "--site-kubeconfig"}
"""How a process that is no pod is told its API server; the gateway asks none."""


class Kubelet:
    """Runs what Deployments of one cluster ask for. `models` is the model server's folder, which a site's volume holds in a cluster."""

    def __init__(self, cluster: Cluster, folder: Path, models: Path | None = None) -> None:
        self.folder, self.port = folder, free_ports(1)[0]
        self._cluster, self._models = cluster, models
        self._running: dict[str, tuple[list[str], Process]] = {}
        folder.mkdir()

    @property
    def state(self) -> Path:
        """The agent's state folder."""
        return self.folder / "volume" / "state"

    def sync(self) -> list[str]:
        """Starts what is new, and starts again what is told something else than before; names of all that run."""
        found = json.loads(self._cluster.kubectl("get", "deployments", "-n", HUB_NAMESPACE, "-o", "json"))["items"]
        for body in found:
            name, pod = body["metadata"]["name"], body["spec"]["template"]["spec"]
            # Of two hubs one works, so one is enough here.
            arguments: list[str] = pod["containers"][0]["args"] if body["spec"]["replicas"] else []
            told, process = self._running.get(name, ([], None))
            if told == arguments:
                continue
            if process is not None:
                stop_processes([process], grace=15)
                del self._running[name]
            if arguments:
                self._running[name] = arguments, self._start(name, arguments)
        return sorted(self._running)

    def arguments(self, name: str) -> list[str]:
        """What the container of a running Deployment was told by its chart."""
        return self._running[name][0]

    def stop(self) -> None:
        """Ends all of them."""
        stop_processes([process for _, process in self._running.values()], grace=15)

    def log(self) -> str:
        """The end of each log."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def _start(self, name: str, arguments: list[str]) -> Process:
        self.state.mkdir(parents=True, exist_ok=True)
        stand_ins = {
            "$(POD_NAME)": f"{name}-0",
            f"{VOLUME}/models": str(self._models),
            VOLUME: str(self.folder / "volume"),
            "/join/": f"{self._write_join_file()}/",
            "0.0.0.0": "127.0.0.1",  # noqa: S104 - what is replaced
            "port=8080": f"port={free_ports(1)[0]}",
            "port=8000": f"port={self.port}",
        }
        command = [sys.executable, "-m", "edgefleet"]
        for argument in arguments:
            for there, here in stand_ins.items():
                argument = argument.replace(there, here)
            command.append(argument)
        if flag := KUBECONFIG_FLAGS.get(name):
            command.append(f"{flag}={self._cluster.account_kubeconfig(HUB_NAMESPACE, name)}")
        return start_process(self.folder, name, command)

    def _write_join_file(self) -> Path:
        folder = self.folder / "join"
        folder.mkdir(exist_ok=True)
        found = self._cluster.kubectl("get", "secret", "edgefleet-join", "-n", HUB_NAMESPACE, "-o", "json", "--ignore-not-found")
        for name, data in json.loads(found or "{}").get("data", {}).items():
            (folder / name).write_bytes(base64.b64decode(data))
            (folder / name).chmod(0o600)
        return folder
