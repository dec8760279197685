"""One site on real parts for the agent's tests: rights at two real API servers, MLServer, keys, releases, and a client that counts.

The hub is played by the test: it signs orders with the hub's key and writes them under the hub's name and rights.
"""

import asyncio
import http.client
import json
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgefleet.api.assignment import FrozenRevision, Order, SiteAssignmentStatus
from edgefleet.api.meta import format_time, site_namespace
from edgefleet.api.model import Golden, Serving, Slo, Variant
from edgefleet.api.policy import HardChecks
from edgefleet.api.report import HealthReport, health_annotation
from edgefleet.api.site import Storage
from edgefleet.kube.client import Api
from edgefleet.kube.errors import NotFound
from edgefleet.kube.resources import CONFIG_MAPS, LEASES, NAMESPACES, ROLE_BINDINGS, SITE_ASSIGNMENTS, Resource
from edgefleet.kube.watch import Key, ListWatch, Record
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.index import fetch_index
from edgefleet.oci.push import VariantFiles, attach_bundle, push_golden, push_model
from edgefleet.oci.reference import Repository
from edgefleet.site.status import AssignmentRecord
from edgefleet.trust.bundle import make_bundle, make_root
from edgefleet.trust.bundle_content import BundleContent
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.orders import sign_order
from edgefleet.trust.publishers import Publisher
from edgefleet.trust.release import GoldenFacts, ReleaseFacts, attest_golden, attest_release, sign_digest
from tests.lab.cluster import Lab
from tests.lab.installed import hub_kubeconfig, site_rules
from tests.lab.processes import Process, free_ports, start_process, stop_processes
from tests.lab.registry import Registry
from tests.lab.server import ModelServer, ServerEnvironment, start_model_server

ROOT = Path(__file__).parents[2]
ROLES = Resource("rbac.authorization.k8s.io/v1", "Role", "roles", True)
FLEET = "vision/plants"
ASSIGNMENT = "vision.plants"
LIMIT = 30.0

RUNTIME = '''
import asyncio, json, time
from pathlib import Path
from mlserver import MLModel
from mlserver.errors import MLServerError
from mlserver.types import InferenceResponse, ResponseOutput
from mlserver.utils import get_model_uri
from tiny_confidence import CONFIDENCE


class Tiny(MLModel):
    """Answers x + bias; a bias makes every golden line wrong. Fails for the x in `fail`, is late for those in `slow`, and is as sure of
    its answer as `sure` says of x, else wholly."""

    async def load(self):
        CONFIDENCE.labels(self.name)
        self._facts = json.loads(Path(await get_model_uri(self._settings)).read_text())
        time.sleep(self._facts.get("load_seconds", 0))
        if self._facts.get("broken"):
            raise ValueError("these weights are broken")
        return True

    async def predict(self, payload):
        x = int(payload.inputs[0].data[0])
        if x in self._facts.get("fail", ()):
            raise MLServerError("not this one", 500)
        if x in self._facts.get("slow", ()):
            await asyncio.sleep(self._facts["slow_seconds"])
        CONFIDENCE.labels(self.name).observe(self._facts.get("sure", {}).get(str(x), 1.0))
        output = ResponseOutput(name="y", shape=[1], datatype="INT64", data=[x + self._facts["bias"]])
        return InferenceResponse(model_name=self.name, outputs=[output])
'''


# A module of its own: MLServer loads the one with the model anew for each model, and a metric can be made only once.
RUNTIME_METRICS = """
from prometheus_client import Histogram

CONFIDENCE = Histogram("edgefleet_confidence", "How sure", ["model_name"], buckets=[tenth / 10 for tenth in range(1, 11)])
"""


def start_tiny_server(environment: ServerEnvironment, folder: Path) -> ModelServer:
    """An MLServer that can serve what `Rig.push` pushes."""
    runtime = folder / "runtime"
    runtime.mkdir()
    (runtime / "tiny_model.py").write_text(RUNTIME)
    (runtime / "tiny_confidence.py").write_text(RUNTIME_METRICS)
    return start_model_server(environment, folder / "run", "mlserver", folder / "models", runtime)


def tensor(x: int) -> dict[str, Any]:
    """An Open Inference tensor of one integer."""
    return {"name": "x", "datatype": "INT64", "shape": [1], "data": [x]}


class Cable:
    """A TCP line to the hub, or to the model server, that can be cut; the agent is given its address."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        (self.port,) = free_ports(1)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def mend(self) -> None:
        """Let connections through."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)

    async def cut(self) -> None:
        """End all connections and refuse new ones."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._open):
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    def through(self, kubeconfig: Path) -> Path:
        """A copy of a kubeconfig that goes through the cable."""
        copy = kubeconfig.with_name("cable-" + kubeconfig.name)
        copy.write_text(kubeconfig.read_text().replace(self._target.geturl(), f"https://127.0.0.1:{self.port}"))
        copy.chmod(0o600)
        return copy

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._target.hostname, self._target.port)
        self._open |= {writer, back}
        await asyncio.gather(_pump(reader, back), _pump(there, writer), return_exceptions=True)
        self._open -= {writer, back}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


@dataclass
class Rig:
    """A site, its keys and its registry. `sequence` is the last one that this hub gave out."""

    folder: Path
    lab: Lab
    registry: Registry
    server: ModelServer
    site: str
    model: str
    hub: Api
    admin: Api
    local: Api
    port: int
    root: PrivateKey = field(default_factory=PrivateKey.generate)
    hub_key: PrivateKey = field(default_factory=PrivateKey.generate)
    publisher: PrivateKey = field(default_factory=PrivateKey.generate)
    sequence: int = 0
    agent: Process | None = None
    cable: Cable | None = None
    golden: Golden | None = None
    slo: Slo = field(default_factory=Slo)

    @property
    def namespace(self) -> str:
        """The site's namespace, at hub and site."""
        return site_namespace(self.site)

    @property
    def state(self) -> Path:
        """The agent's state folder."""
        return self.folder / "state"

    @property
    def repository(self) -> Repository:
        """Where the model's releases are."""
        return Repository.parse(f"{self.registry.host}/{self.model}")

    # ---- publisher

    def push(self, version: str, seq: int, *, settings: bool = True, signed: bool = True, **facts: Any) -> FrozenRevision:
        """Push a release whose weights are `facts`, sign it, and freeze it as the hub would."""
        folder = self.folder / f"release-{version}"
        folder.mkdir()
        (folder / "weights.json").write_text(json.dumps({"bias": 0, "version": version, **facts}))
        config = {"name": self.model, "implementation": "tiny_model.Tiny", "parameters": {"uri": "./weights.json"}}
        (folder / "model-settings.json").write_text(json.dumps(config))
        names = ["weights.json", "model-settings.json"] if settings else ["weights.json"]
        return self.push_files(version, seq, {name: folder / name for name in names}, signed=signed)

    def push_files(self, version: str, seq: int, files: Mapping[str, Path], *, signed: bool = True) -> FrozenRevision:
        """Push a release of these files, by their path in the model's folder."""
        variant = Variant(name="cpu", digest="sha256:" + "0" * 64, size=0, arch="amd64")
        with RegistryClient() as client:
            digest = push_model(client, self.repository, name=self.model, version=version, variants=[VariantFiles(variant, files)])
            if signed:
                facts_ = ReleaseFacts(model=self.model, version=version, release_seq=seq, created_at=datetime.now(UTC))
                attach_bundle(client, self.repository, digest, sign_digest(self.publisher, digest), "sign")
                attach_bundle(client, self.repository, digest, attest_release(self.publisher, digest, facts_), "release")
            found = fetch_index(client, self.repository, digest).variants[0]
        return FrozenRevision(
            hash=digest.removeprefix("sha256:"),
            model=self.model,
            repository=str(self.repository),
            digest=digest,
            version=version,
            seq=seq,
            variant=found,
            serving=Serving(repository={}),
            golden=self.golden,
            slo=self.slo,
        )

    def push_golden(self, minimum: str = "90%", lines: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Let every later release be examined."""
        lines = lines or [{"inputs": [tensor(x)], "expect": {"output": "y", "label": x}} for x in range(20)]
        data = "\n".join(map(json.dumps, lines)).encode()
        repository = Repository.parse(f"{self.registry.host}/{self.model}-golden")
        with RegistryClient() as client:
            digest = push_golden(client, repository, data)
            facts = GoldenFacts(model=self.model, created_at=datetime.now(UTC))
            attach_bundle(client, repository, digest, sign_digest(self.publisher, digest), "sign")
            attach_bundle(client, repository, digest, attest_golden(self.publisher, digest, facts), "golden")
        self.golden = Golden(repository=str(repository), digest=digest, min=minimum)

    def weights_digest(self, revision: FrozenRevision) -> str:
        """The digest of a release's weights."""
        with RegistryClient() as client:
            manifest = json.loads(client.fetch_manifest(self.repository, revision.variant.digest))
        return next(str(layer["digest"]) for layer in manifest["layers"] if "weights" in layer["annotations"]["org.cncf.model.filepath"])

    # ---- hub

    async def write_bundle(self, version: int = 1, *, lifetime: timedelta = timedelta(days=30)) -> datetime:
        """The trust bundle, as the hub copies it to the site's namespace; returns when it ends."""
        ends = datetime.now(UTC).replace(microsecond=0) + lifetime
        data = make_bundle(
            roots=[self.root_document],
            signers=[self.root],
            version=version,
            content=BundleContent({self.model: Publisher((self.publisher.public,), 1, 0)}, (self.hub_key.public,)),
            expires_at=ends,
        )
        body = {"metadata": {"name": "trust-bundle", "namespace": self.namespace}, "data": {"bundle.json": data.decode()}}
        await self.admin.apply(CONFIG_MAPS, body, manager="test")
        return ends

    async def wait_for_bundle(self, version: int) -> None:
        """Wait until the site acts on this version of the trust bundle."""

        async def acted_on() -> bool:
            state = json.loads((self.state / "state.json").read_bytes())
            return bool(state["bundleVersion"] == version)

        await wait_until(acted_on, self.log)

    root_document: bytes = b""

    def order(self, revision: FrozenRevision | None, **changes: Any) -> Order:
        """The next order for this site."""
        self.sequence += 1
        now = datetime.now(UTC).replace(microsecond=0)
        order = Order(
            site=self.site,
            fleet=FLEET,
            sequence=self.sequence,
            action="Run" if revision else "Withdraw",
            model=self.model,
            revision=revision,
            checks=HardChecks(ready_within="20s"),
            storage=Storage(),
            issued_at=now,
            expires_at=now + timedelta(days=14),
        )
        return order.model_copy(update=changes)

    async def write(self, order: Order, *, key: PrivateKey | None = None, **copy: Any) -> None:
        """Write an order to the hub; `copy` spoils the readable fields."""
        spec = {
            "site": order.site,
            "fleet": order.fleet,
            "sequence": order.sequence,
            "action": order.action,
            "model": order.model,
            "expiresAt": format_time(order.expires_at),
            "envelope": sign_order(order, key or self.hub_key),
        }
        if order.revision:
            spec |= {"revision": order.revision.hash, "version": order.revision.version, "variant": order.revision.variant.name}
        body = {"metadata": {"name": ASSIGNMENT, "namespace": self.namespace}, "spec": {**spec, **copy}}
        await self.hub.apply(SITE_ASSIGNMENTS, body, manager="edgefleet-hub")

    async def assign(self, revision: FrozenRevision | None, **changes: Any) -> Order:
        """Sign and write the next order."""
        order = self.order(revision, **changes)
        await self.write(order)
        return order

    async def status(self) -> SiteAssignmentStatus:
        """What the site says, at the hub."""
        try:
            body = await self.admin.get(SITE_ASSIGNMENTS, ASSIGNMENT, self.namespace)
        except NotFound:
            return SiteAssignmentStatus()
        return SiteAssignmentStatus.model_validate(body.get("status") or {})

    async def wait_for(self, state: str, reason: str = "", *, sequence: int | None = None, limit: float = LIMIT) -> SiteAssignmentStatus:
        """The status at the hub, as soon as it says this of the newest sequence."""
        wanted = self.sequence if sequence is None else sequence
        last = SiteAssignmentStatus()

        async def said() -> bool:
            nonlocal last
            last = await self.status()
            return last.sequence == wanted and last.state == state and reason in ("", last.reason)

        await wait_until(said, lambda: f"{state} {reason} of {wanted}; the last word was {last}\n{self.log()}", limit)
        return last

    async def lease(self) -> dict[str, Any]:
        """The site's Lease."""
        return await self.admin.get(LEASES, "agent", self.namespace)

    async def health(self) -> tuple[HealthReport | None, int]:
        """What the Lease says of live traffic, and in how many bytes."""
        try:
            text = (await self.lease())["metadata"]["annotations"].get(health_annotation(FLEET), "")
        except NotFound:
            text = ""
        return (HealthReport.model_validate_json(text) if text else None), len(text)

    # ---- site

    def start_agent(self, *, renew: str = "60s", join: Path | None = None, **more: object) -> Process:
        """Start the agent process under the site's two identities; `metrics_port=1` is `--metrics-port 1`. With a join file, it gets
        the one at the hub by itself."""
        hub = self.lab.client_kubeconfig("hub", f"edgefleet:site:{self.site}", ["edgefleet:sites"])
        given = {
            "--site": self.site,
            "--hub-kubeconfig": self.cable.through(hub) if self.cable else hub,
            "--trusted-root": self.folder / "root.json",
        }
        options = {
            **({"--join": join} if join else given),
            "--site-kubeconfig": self.lab.client_kubeconfig("east", f"edgefleet:agent:{self.site}"),
            "--state": self.state,
            "--server-url": self.server.url,
            "--server-models": self.server.repository,
            "--gateway-port": self.port,
            "--hardware": self.folder / "hardware.yaml",
            "--renew": renew,
            "--server-metrics": self.server.metrics_url,
            **{f"--{name.replace('_', '-')}": value for name, value in more.items()},
        }
        words = [str(word) for option in options.items() for word in option]
        command = [sys.executable, "-m", "edgefleet", "agent", *words]
        self.agent = start_process(self.folder, "agent", command, env={**os.environ, "PYTHONPATH": str(ROOT / "operator")})
        return self.agent

    def kill_agent(self) -> None:
        """As the kernel would: no farewell."""
        if self.agent is not None:
            os.kill(self.agent.pid, signal.SIGKILL)
            stop_processes([self.agent])

    def log(self) -> str:
        """The end of the agent's log."""
        file = self.folder / "agent.log"
        return "\n".join(file.read_text().splitlines()[-25:]) if file.exists() else ""

    def ask(self, x: int = 1) -> tuple[int, dict[str, Any]]:
        """One request through the gateway."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("POST", f"/v2/models/{self.model}/infer", json.dumps({"inputs": [tensor(x)]}))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        finally:
            connection.close()

    def serving(self) -> str:
        """The name under which the server that answers clients knows the revision, or what came instead."""
        try:
            status, body = self.ask()
        except OSError as error:
            return repr(error)
        return str(body["model_name"]) if status == 200 else f"status {status}"


@asynccontextmanager
async def open_rig(folder: Path, lab: Lab, registry: Registry, server: ModelServer, site: str, model: str = "") -> AsyncIterator[Rig]:
    """A site with all its rights, nothing running yet; ends its agent and its gateway."""
    hub_config = hub_kubeconfig(lab.hub)
    async with (
        Api.connect(hub_config, user_agent="test-hub") as hub,
        Api.connect(lab.hub.kubeconfig, user_agent="test") as admin,
        Api.connect(lab.sites["east"].kubeconfig, user_agent="test") as local,
    ):
        (port,) = free_ports(1)
        rig = Rig(folder, lab, registry, server, site, model or f"m-{site}", hub, admin, local, port)
        ends = datetime.now(UTC) + timedelta(days=365)
        rig.root_document = make_root([rig.root.public], signers=[rig.root], threshold=1, version=1, expires_at=ends)
        (folder / "root.json").write_bytes(rig.root_document)
        (folder / "hardware.yaml").write_text("arch: amd64\n")
        await grant(rig)
        await rig.write_bundle()
        try:
            yield rig
        finally:
            if rig.agent is not None:
                stop_processes([rig.agent])
            if rig.cable is not None:
                await rig.cable.cut()
            await _stop_gateway(rig)
            for api in (admin, local):
                await api.delete(NAMESPACES, rig.namespace)


async def grant(rig: Rig) -> None:
    """The site's rights in its two namespaces, as the hub and the site's owner give them."""
    for api, user, kind, name in (
        (rig.admin, f"edgefleet:site:{rig.site}", "ClusterRole", "edgefleet-site"),
        (rig.local, f"edgefleet:agent:{rig.site}", "Role", "edgefleet-agent"),
    ):
        await api.apply(NAMESPACES, {"metadata": {"name": rig.namespace}}, manager="test")
        if kind == "Role":
            rules = site_rules(name)
            await api.apply(ROLES, {"metadata": {"name": name, "namespace": rig.namespace}, "rules": rules}, manager="test")
        binding = {
            "metadata": {"name": name, "namespace": rig.namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        }
        await api.apply(ROLE_BINDINGS, binding, manager="test")


async def _stop_gateway(rig: Rig) -> None:
    command = [sys.executable, "-m", "edgefleet", "gateway", "stop", "--state", str(rig.state)]
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, "PYTHONPATH": str(ROOT / "operator")}, stdout=asyncio.subprocess.DEVNULL
    )
    if await process.wait():
        raise AssertionError("the gateway could not be stopped")


async def wait_until(fact: Callable[[], Awaitable[bool]], otherwise: Callable[[], str], limit: float = LIMIT) -> None:
    """Wait for a fact, at most `limit` seconds. Raises AssertionError saying what was waited for."""
    deadline = time.monotonic() + limit
    while not await fact():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit:g} s: {otherwise()}")
        await asyncio.sleep(0.05)


class Writes:
    """What was written to the site's namespace at the hub."""

    def __init__(self) -> None:
        self.leases = 0
        self.statuses = 0

    def lease_at_least(self, count: int) -> Callable[[], Awaitable[bool]]:
        """A fact to wait for."""

        async def reached() -> bool:
            return self.leases >= count

        return reached


@asynccontextmanager
async def count_writes(rig: Rig) -> AsyncIterator[Writes]:
    """Counts every write of a Lease, and those of assignments' status, from now on."""
    writes = Writes()

    def lease(_: Key, __: Record | None, ___: Record | None) -> None:
        writes.leases += 1

    def assignment(_: Key, old: AssignmentRecord | None, new: AssignmentRecord | None) -> None:
        if new is not None and new.status != (old.status if old else SiteAssignmentStatus()):
            writes.statuses += 1

    watches = (
        ListWatch(rig.admin, LEASES, Record, namespace=rig.namespace, on_change=lease),
        ListWatch(rig.admin, SITE_ASSIGNMENTS, AssignmentRecord, namespace=rig.namespace, on_change=assignment),
    )
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(watch.run()) for watch in watches]
        for watch in watches:
            await asyncio.wait_for(watch.synced.wait(), LIMIT)
        yield writes
        for task in tasks:
            task.cancel()


class Client:
    """Asks through the gateway without retries, on one kept connection, from a thread of its own, and counts.

    `question` is what it asks; `who` tells from an answer who gave it: by default the name that the server knows the revision under.
    `pace` is how many seconds it rests after each answer.
    """

    def __init__(
        self,
        rig: Rig,
        question: Mapping[str, Any] | None = None,
        who: Callable[[Any], str] = lambda found: str(found["model_name"]),
        pace: float = 0.01,
    ) -> None:
        self._rig = rig
        self._question = json.dumps(question or {"inputs": [tensor(1)]})
        self._who = who
        self._pace = pace
        self.answers: dict[str, int] = {}
        self.lost: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Client":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def total(self) -> int:
        """How many requests were answered."""
        return sum(self.answers.values())

    async def answered(self, more: int) -> None:
        """Wait for so many further answers."""
        until = self.total + more

        async def enough() -> bool:
            return self.total >= until or bool(self.lost)

        await wait_until(enough, lambda: f"{more} answers: {self.answers}, lost {self.lost}")

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._rig.port, timeout=10)
        while not self._stop.is_set():
            try:
                connection.request("POST", f"/v2/models/{self._rig.model}/infer", self._question, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                found = json.loads(answer.read())
                if answer.status == 200:
                    self.answers[self._who(found)] = self.answers.get(self._who(found), 0) + 1
                else:
                    self.lost.append(f"{answer.status} {found}")
            except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
                self.lost.append(repr(error))
                connection.close()
            time.sleep(self._pace)
        connection.close()
