"""Real Flux: source-controller and kustomize-controller as processes beside a lab's API server, built once from their Go modules.

They run with less than `flux install` gives them: kustomize-controller may only act as the accounts that Kustomizations name. What those
may do, and what is applied, is the matter of who starts this.
"""

import os
import subprocess
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.lab.binaries import fetch_go, go_environment
from tests.lab.cache import key_of, provide
from tests.lab.cluster import Cluster
from tests.lab.processes import Process, free_ports, start_process, stop_processes
from tests.lab.progress import run_shown

MODULES = Path(__file__).parent / "flux-modules"
NAMESPACE = "flux-system"
SOURCE, KUSTOMIZE = "source-controller", "kustomize-controller"
# (controller, seconds when nothing is cached, measured on two cores). The second shares much of what the first compiles.
BUILDS = ((SOURCE, 260), (KUSTOMIZE, 170))
IMPERSONATE = {"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["impersonate"]}


@dataclass(frozen=True)
class Flux:
    """Both controllers, running."""

    processes: Sequence[Process]

    def stop(self) -> None:
        """Ends them; what they applied stays."""
        stop_processes(self.processes)


def fetch_flux() -> dict[str, Path]:
    """A folder for each controller, with the binary of its name, its `kinds/` and its `role.yaml`: from the cache, else built (7 minutes
    on two cores). Raises LabError.
    """
    return {name: _provide_built(name, seconds) for name, seconds in BUILDS}


def start_flux(folder: Path, cluster: Cluster) -> Flux:
    """Applies Flux's kinds, accounts and rights to `cluster`, and starts both controllers with their storage under `folder`.

    Raises LabError with the end of the log of the one that does not come up.
    """
    built = fetch_flux()
    objects: list[dict[str, Any]] = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}]
    for name, parts in built.items():
        cluster.kubectl("apply", "--server-side", "-f", str(parts / "kinds"))
        cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(parts / "kinds"), limit=70)
        objects += _account(name, yaml.safe_load((parts / "role.yaml").read_text())["rules"])
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(objects))
    storage = f"127.0.0.1:{free_ports(1)[0]}"
    options = [f"--storage-addr={storage}", f"--storage-adv-addr={storage}", f"--storage-path={folder / 'storage'}"]
    (folder / "storage").mkdir(parents=True)
    started: list[Process] = []
    try:
        for name, more in ((SOURCE, options), (KUSTOMIZE, ["--no-cross-namespace-refs=true", "--default-service-account=default"])):
            started.append(_start(folder, built[name] / name, cluster.account_kubeconfig(NAMESPACE, name), more))
    except BaseException:
        stop_processes(started)
        raise
    return Flux(started)


def _account(name: str, rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    role, subject = f"flux-{name}", {"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": role}}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": NAMESPACE}},
        {**rbac, "kind": "ClusterRole", "rules": [*rules, *([IMPERSONATE] if name == KUSTOMIZE else [])]},
        {**rbac, "kind": "ClusterRoleBinding", "roleRef": reference, "subjects": [subject]},
    ]


def _start(folder: Path, binary: Path, kubeconfig: Path, more: Sequence[str]) -> Process:
    health, metrics = (f"127.0.0.1:{port}" for port in free_ports(2))
    command: list[str | Path] = [binary, f"--health-addr={health}", f"--metrics-addr={metrics}", "--enable-leader-election=false", *more]
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "RUNTIME_NAMESPACE": NAMESPACE}
    process = start_process(folder / "run", binary.name, command, env=environment, cwd=folder)
    try:
        process.wait_until(lambda: _answers(f"http://{health}/readyz"), "ready", 90)
    except BaseException:
        stop_processes([process])
        raise
    return process


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def _provide_built(name: str, seconds: int) -> Path:
    go, module = fetch_go(), MODULES / name
    facts = subprocess.run([go, "env", "GOVERSION", "GOARCH"], check=True, capture_output=True, text=True, env=go_environment()).stdout
    key = key_of((module / "go.mod").read_bytes(), (module / "go.sum").read_bytes(), facts)
    return provide(name, key, lambda draft: _build(go, module, seconds, draft))


def _build(go: str, module: Path, seconds: int, draft: Path) -> None:
    name, package = module.name, f"github.com/fluxcd/{module.name}"
    command = [go, "build", "-mod=readonly", "-trimpath", "-ldflags", "-s -w", "-o", str(draft / name), package]
    run_shown(command, f"building {name}", seconds, draft / "build.log", env=go_environment(), cwd=module)
    where = [go, "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", package]
    listed = subprocess.run(where, check=True, capture_output=True, text=True, env=go_environment(), cwd=module).stdout
    config = Path(listed.strip()) / "config"
    # Copied as bytes: the files of Go's module cache are read-only, and a cache entry must be easy to delete.
    (draft / "kinds").mkdir()
    for kind in (config / "crd" / "bases").glob("*.yaml"):
        (draft / "kinds" / kind.name).write_bytes(kind.read_bytes())
    (draft / "role.yaml").write_bytes((config / "rbac" / "role.yaml").read_bytes())
