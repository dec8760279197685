"""A hub and its sites: one etcd, an API server each, a controller-manager for the hub; started, described and ended.

The sites are API servers of their own on the same etcd, with their own CA and prefix. There are no nodes: pods stay Pending.
What is running stands in files of the lab's folder, so that `down` works after the starter crashed.
"""

import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import LabError, pki
from tests.lab.binaries import fetch_control_plane, fetch_kubectl
from tests.lab.cache import locked
from tests.lab.control_plane import HUB, start_servers
from tests.lab.processes import (
    POLL,
    Process,
    free_ports,
    is_alive,
    list_processes,
    own_identity,
    stop_processes,
)
from tests.lab.progress import say

DEFAULT_SITES = ("east", "west")
# Lock of a lab's folder, and the sign that it is one: nothing is deleted in a folder without it.
_MARK = ".edgefleet-lab"
_DATA = ("etcd", "clusters", "run")


@dataclass(frozen=True)
class Cluster:
    """One API server: its URL and an administrator's kubeconfig. `authority` is None for an existing cluster."""

    name: str
    url: str
    folder: Path
    kubeconfig: Path
    authority: pki.Authority | None

    def kubectl(self, *arguments: str, stdin: str | None = None, limit: float = 60) -> str:
        """Output of `kubectl ARGUMENTS` as administrator. Raises LabError with what kubectl said."""
        command = [str(fetch_kubectl()), "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=limit)
        if done.returncode:
            raise LabError(f"{self.name}: kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def client_kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig (0600) whose client certificate says `user` and `groups`; it has the rights RBAC gives these."""
        path = self.folder / f"{pki.file_name(user)}.kubeconfig"
        if self.authority is not None:
            client = self.authority.issue_client(user, groups)
            ca = self.authority.pair.cert.read_bytes()
        else:
            client, ca = self._request_client(user, groups), _authority_of(self.kubeconfig)
        return pki.write_kubeconfig(path, self.name, self.url, ca, client)

    def account_kubeconfig(self, namespace: str, account: str) -> Path:
        """A kubeconfig (0600) with a token of this ServiceAccount, good for a day, or until the account is deleted."""
        token = self.kubectl("create", "token", account, "--namespace", namespace, "--duration", "24h").strip()
        ca = self.authority.pair.cert.read_bytes() if self.authority is not None else _authority_of(self.kubeconfig)
        path = self.folder / f"{namespace}.{account}.kubeconfig"
        return pki.write_kubeconfig(path, self.name, self.url, ca, token)

    def _request_client(self, user: str, groups: Sequence[str]) -> pki.Pair:
        pair = pki.Pair(self.folder / f"{pki.file_name(user)}.crt", self.folder / f"{pki.file_name(user)}.key")
        request = {
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"generateName": "edgefleet-lab-"},
            "spec": {
                "request": base64.b64encode(pki.make_request(user, groups, pair.key)).decode(),
                "signerName": "kubernetes.io/kube-apiserver-client",
                "expirationSeconds": 86400,
                "usages": ["client auth"],
            },
        }
        name = self.kubectl("create", "-f", "-", "-o", "jsonpath={.metadata.name}", stdin=json.dumps(request))
        self.kubectl("certificate", "approve", name)
        deadline = time.monotonic() + 30
        while not (issued := self.kubectl("get", "csr", name, "-o", "jsonpath={.status.certificate}")):
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: CertificateSigningRequest {name} was approved but not signed within 30 s")
            time.sleep(POLL)
        self.kubectl("delete", "csr", name)
        pair.cert.write_bytes(base64.b64decode(issued))
        return pair


@dataclass(frozen=True)
class Lab:
    """A running lab. `sites` by name; `controllers` is False only where KUBEBUILDER_ASSETS brings no controller-manager."""

    folder: Path
    hub: Cluster
    sites: Mapping[str, Cluster]
    controllers: bool

    @classmethod
    def start(
        cls,
        folder: Path,
        sites: Sequence[str] = DEFAULT_SITES,
        existing: Path | None = None,
        detached: bool = False,
    ) -> "Lab":
        """Starts all servers under `folder` and waits until they are ready; about 6 s once built.

        `existing` is the kubeconfig of a cluster that is used as hub instead. A `detached` lab outlives this process.
        Raises LabError if a lab already runs there, or a server does not come up (with the end of its log).
        """
        folder = folder.resolve()
        plane = fetch_control_plane()
        _check_folder(folder)
        with locked(folder / _MARK):
            running = list_processes(folder / "run")
            if running:
                raise LabError(
                    f"a lab already runs in {folder} ({', '.join(p.name for p in running)}): end it with "
                    f"`python -m tests.lab down --dir {folder}`, or choose another --dir"
                )
            _remove_data(folder)
            names = [*([] if existing else [HUB]), *sites]
            _check_names(sites)
            urls = {name: f"https://127.0.0.1:{port}" for name, port in zip(names, free_ports(len(names)), strict=True)}
            state = {
                "owner": None if detached else own_identity(),
                "existing": str(existing.resolve()) if existing else None,
                "clusters": urls,
                "controllers": existing is not None or plane.controller_manager is not None,
            }
            (folder / "lab.json").write_text(json.dumps(state, indent=1))
            try:
                start_servers(folder, plane, urls)
                return cls.attach(folder)
            except BaseException:
                _end(folder)
                raise

    @classmethod
    def attach(cls, folder: Path) -> "Lab":
        """The lab that runs in `folder`, whoever started it. Raises LabError if there is none."""
        folder = folder.resolve()
        try:
            state: dict[str, Any] = json.loads((folder / "lab.json").read_text())
        except (FileNotFoundError, ValueError):
            raise LabError(f"no lab in {folder}: start one with `python -m tests.lab up --dir {folder}`") from None
        existing = state["existing"]
        clusters = {name: _describe(folder, name, url) for name, url in state["clusters"].items()}
        hub = _describe_existing(folder, Path(existing)) if existing else clusters.pop(HUB)
        return cls(folder, hub, clusters, state["controllers"])

    def cluster(self, name: str) -> Cluster:
        """The hub or a site by name. Raises LabError naming those that exist."""
        known = {HUB: self.hub, **self.sites}
        if name not in known:
            raise LabError(f"no cluster {name!r} in this lab: it has {', '.join(known)}")
        return known[name]

    def client_kubeconfig(self, cluster: str, user: str, groups: Sequence[str] = ()) -> Path:
        """`Cluster.client_kubeconfig` of the named cluster."""
        return self.cluster(cluster).client_kubeconfig(user, groups)

    def processes(self) -> list[Process]:
        """What runs now, with what others registered in `<folder>/run`."""
        return list_processes(self.folder / "run")

    def require_controllers(self) -> None:
        """Raises LabError where the hub has no controller-manager (see binaries.py)."""
        if not self.controllers:
            raise LabError("the hub has no kube-controller-manager: add it to KUBEBUILDER_ASSETS, or unset that to build it")

    def stop(self) -> list[str]:
        """Ends everything registered in this lab; names of what was ended. Logs stay, data and keys go."""
        return down(self.folder)


def name_sites(count: int) -> list[str]:
    """`count` site names: east, west, north, south, site5, ..."""
    return [("east", "west", "north", "south")[n] if n < 4 else f"site{n + 1}" for n in range(count)]


def down(folder: Path) -> list[str]:
    """Ends the lab in `folder`, also one whose starter crashed; names of the processes ended, empty if none ran."""
    folder = folder.resolve()
    if not (folder / _MARK).exists():
        return []
    with locked(folder / _MARK):
        ended = _end(folder)
        _remove_data(folder, keep_logs=True)
        return ended


def sweep(parent: Path) -> None:
    """Ends and removes the labs right below `parent` whose owner is dead (killed tests); detached ones are left alone."""
    for file in parent.glob("*/lab.json"):
        try:
            owner = json.loads(file.read_text())["owner"]
        except (OSError, ValueError, KeyError):
            continue
        if owner is not None and not is_alive(*owner):
            say(f"ending the lab that a dead test session left in {file.parent}")
            down(file.parent)
            shutil.rmtree(file.parent, ignore_errors=True)


def _describe(folder: Path, name: str, url: str) -> Cluster:
    home = folder / "clusters" / name
    return Cluster(name, url, home, home / "admin.kubeconfig", pki.Authority(home))


def _describe_existing(folder: Path, kubeconfig: Path) -> Cluster:
    home = folder / "clusters" / HUB
    home.mkdir(parents=True, exist_ok=True)
    server = _view(kubeconfig)["server"]
    if not isinstance(server, str):
        raise LabError(f"{kubeconfig}: its current context names no cluster.server: choose a context with one")
    return Cluster(HUB, server, home, kubeconfig, None)


def _authority_of(kubeconfig: Path) -> bytes:
    return base64.b64decode(_view(kubeconfig).get("certificate-authority-data") or "")


def _view(kubeconfig: Path) -> dict[str, Any]:
    command = [str(fetch_kubectl()), "--kubeconfig", str(kubeconfig), "config", "view"]
    command += ["--minify", "--flatten", "--raw", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise LabError(f"{kubeconfig} is no usable kubeconfig: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)["clusters"][0]["cluster"]
    return found


def _check_names(sites: Sequence[str]) -> None:
    well_formed = all(re.fullmatch("[a-z][a-z0-9]{0,19}", name) for name in sites)
    if len(set(sites)) != len(sites) or HUB in sites or not well_formed:
        raise LabError(f"sites {list(sites)}: allowed are different names of lower-case letters and digits other than {HUB!r}")


def _check_folder(folder: Path) -> None:
    foreign = [] if (folder / _MARK).exists() else [name for name in _DATA if (folder / name).exists()]
    if foreign:
        raise LabError(f"{folder} is no lab, but holds {', '.join(foreign)}, which a lab would overwrite: choose another --dir")


def _end(folder: Path) -> list[str]:
    running = list_processes(folder / "run")
    # etcd goes last: an API server that has lost it waits for it instead of ending.
    stop_processes(process for process in running if process.name != "etcd")
    stop_processes(process for process in running if process.name == "etcd")
    return [process.name for process in running]


def _remove_data(folder: Path, keep_logs: bool = False) -> None:
    for name in _DATA:
        if not (keep_logs and name == "run"):
            shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "lab.json").unlink(missing_ok=True)
