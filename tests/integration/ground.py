"""What ten-second fleets share: clusters with rights, one publisher's releases, and processes that are started again when they end."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgefleet.api.model import Variant
from edgefleet.kube.client import Api
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.push import VariantFiles, attach_bundle, push_golden, push_model, tag_manifest
from edgefleet.oci.reference import Repository
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.release import GoldenFacts, ReleaseFacts, attest_golden, attest_release, sign_digest
from tests.lab.cluster import Cluster, Lab
from tests.lab.history import History
from tests.lab.installed import install_hub, install_site, site_rules
from tests.lab.nursery import Knobs, Nursery
from tests.lab.registry import Registry

MODEL = "weld"
GOLDEN_LINES = 4
RESTART_SECONDS = 0.1  # a kubelet starts what ended for the first time at once
LAB_AGENTS = "edgefleet-lab-agents"


class Releases:
    """One publisher's releases: each version pushed, signed and examined by the same golden set, once for all fleets."""

    def __init__(self, registry: Registry, folder: Path) -> None:
        self.key = PrivateKey.generate()
        self.repository = Repository.parse(f"{registry.host}/{MODEL}")
        self._folder = folder
        lines = [{"inputs": [tensor(x)], "expect": {"output": "y", "label": x}} for x in range(GOLDEN_LINES)]
        golden = Repository.parse(f"{registry.host}/{MODEL}-golden")
        with RegistryClient() as client:
            digest = push_golden(client, golden, "\n".join(map(json.dumps, lines)).encode())
            facts = GoldenFacts(model=MODEL, created_at=datetime.now(UTC))
            attach_bundle(client, golden, digest, sign_digest(self.key, digest), "sign")
            attach_bundle(client, golden, digest, attest_golden(self.key, digest, facts), "golden")
        self.golden = {"repository": str(golden), "digest": digest, "min": "90%"}

    def push(self, version: str, **facts: Any) -> None:
        """Push a release whose weights are `facts`; `bias=1` fails the golden set, `limit=PROBED` fails at clients only."""
        folder = self._folder / version
        folder.mkdir()
        (folder / "weights.json").write_text(json.dumps({"bias": 0, "version": version, **facts}))
        (folder / "model-settings.json").write_text(json.dumps({"name": MODEL, "implementation": "fake"}))
        files = {name: folder / name for name in ("weights.json", "model-settings.json")}
        variant = Variant(name="cpu", digest="sha256:" + "0" * 64, size=0, arch="amd64")
        with RegistryClient() as client:
            digest = push_model(client, self.repository, name=MODEL, version=version, variants=[VariantFiles(variant, files)])
            said = ReleaseFacts(model=MODEL, version=version, release_seq=int(version), created_at=datetime.now(UTC))
            attach_bundle(client, self.repository, digest, sign_digest(self.key, digest), "sign")
            attach_bundle(client, self.repository, digest, attest_release(self.key, digest, said), "release")
            tag_manifest(client, self.repository, digest, version)


def tensor(x: int) -> dict[str, Any]:
    """An Open Inference tensor of one integer."""
    return {"name": "x", "datatype": "INT64", "shape": [1], "data": [x]}


@dataclass
class Lane:
    """One hub's API server, and the one of all sites; `admin` and `local` are a person's access to them."""

    hub: Cluster
    sites: Cluster
    admin: Api
    local: Api


@dataclass
class Ground:
    """What all fleets share."""

    folder: Path
    releases: Releases
    lanes: list[Lane]
    nursery: Nursery
    ended: dict[int, Callable[[int], None]] = field(default_factory=dict)


def prepare_clusters(lab: Lab) -> list[Cluster]:
    """Install what hubs and agents need; the lanes' hub clusters. Cluster `east` is for the sites, all others are hubs'."""
    rbac: dict[str, Any] = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    role = {**rbac, "kind": "ClusterRole", "metadata": {"name": LAB_AGENTS}, "rules": site_rules("edgefleet-agent")}
    binding = {
        **rbac,
        "kind": "ClusterRoleBinding",
        "metadata": {"name": LAB_AGENTS},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": LAB_AGENTS},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "edgefleet:lab-agents"}],
    }
    install_site(lab.sites["east"])
    for body in (role, binding):
        lab.sites["east"].kubectl("apply", "-f", "-", stdin=json.dumps(body))
    return [install_hub(cluster) for cluster in (lab.hub, *(one for name, one in lab.sites.items() if name != "east"))]


@asynccontextmanager
async def open_ground(lab: Lab, hubs: Sequence[Cluster], releases: Releases, folder: Path) -> AsyncIterator[Ground]:
    """Access to the clusters and the nursery, for one test."""
    async with AsyncExitStack() as stack:
        local = await stack.enter_async_context(Api.connect(lab.sites["east"].kubeconfig, user_agent="person"))
        lanes = [
            Lane(hub, lab.sites["east"], await stack.enter_async_context(Api.connect(hub.kubeconfig, user_agent="person")), local)
            for hub in hubs
        ]
        ended: dict[int, Callable[[int], None]] = {}
        nursery = await stack.enter_async_context(Nursery(lambda pid, code: ended.pop(pid)(code)))
        yield Ground(folder, releases, lanes, nursery, ended)


class Actor:
    """One process that is started again whenever it ends, as a kubelet would."""

    def __init__(self, name: str, argv: Sequence[str], log: Path, ground: Ground, history: History, knobs: Knobs) -> None:
        self.name, self.argv, self.log = name, argv, log
        self._ground, self._history, self._knobs = ground, history, knobs
        self._pid: int | None = None
        self._ours = False
        self._stopping = False
        self._gone = asyncio.Event()
        self._restart: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it."""
        self._gone.clear()
        self._ours = False
        self._pid = await self._ground.nursery.start(self.argv, self.log, self._knobs)
        self._ground.ended[self._pid] = self._on_end
        self._history.add("start", self.name, text=f"pid {self._pid}")

    def kill(self) -> None:
        """SIGKILL, on purpose."""
        if self._pid is not None and not self._gone.is_set():
            self._ours = True
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def move(self, ground: Ground, argv: Sequence[str]) -> None:
        """From its next start on it is this ground's nursery that runs it, with this command line."""
        self._ground, self.argv = ground, argv

    async def pause(self) -> None:
        """End it until the next start."""
        await self.stop()
        self._stopping = False

    async def stop(self) -> None:
        """End it for good."""
        self._stopping = True
        if self._restart is not None:
            await self._restart
        self.kill()
        if self._pid is not None:
            async with asyncio.timeout(10):
                await self._gone.wait()

    def _on_end(self, code: int) -> None:
        self._gone.set()
        if not self._stopping:
            self._history.add("end", self.name, code=code, text="ours" if self._ours else "")
            self._restart = asyncio.create_task(self._start_again())

    async def _start_again(self) -> None:
        await asyncio.sleep(RESTART_SECONDS)
        if not self._stopping:
            await self.start()
