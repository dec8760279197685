"""A whole fleet that lives for ten seconds: a real hub and three real agents with real gateways, on real API servers behind a proxy that
writes down and breaks; the model servers are fakes. One point of test_killed.py is one such fleet.

Several fleets live side by side, each with an API server of its own for its hub (a lane); all share one for the sites, one registry and
the process that forks theirs.
"""

import asyncio
import base64
import json
import os
import signal
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import aiohttp

from edgefleet.api.meta import OUTCOME_LABEL
from edgefleet.kube.client import Api
from edgefleet.kube.errors import NotFound
from edgefleet.kube.resources import (
    CONFIG_MAPS,
    EDGE_FLEETS,
    EDGE_MODELS,
    EDGE_SITES,
    LEASES,
    MODEL_ROLLOUTS,
    NAMESPACES,
    ROLLOUT_POLICIES,
    SECRETS,
    SITE_ASSIGNMENTS,
    Resource,
)
from edgefleet.site.gateway_config import gateway_folder
from edgefleet.site.gateway_process import GatewayProcess
from edgefleet.trust.bundle import make_bundle, make_root
from edgefleet.trust.bundle_content import BundleContent
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.publishers import Publisher
from tests.integration.endstate import FLEET, is_tidy, read_state
from tests.integration.ground import MODEL, Actor, Ground, Lane, tensor
from tests.lab.checker import Final
from tests.lab.fakeruntime import FakeRuntime
from tests.lab.faultproxy import FaultProxy
from tests.lab.faults import FaultPlan
from tests.lab.history import History
from tests.lab.installed import hub_kubeconfig
from tests.lab.nursery import Knobs
from tests.lab.processes import free_ports

PROBE_SECONDS = 0.2
PROBED = 1000  # what the client asks; golden lines are smaller
QUIET_SECONDS = 0.8
POLL_SECONDS = 0.1
POLICY = {
    "waves": [
        {"name": "canary", "sites": 1, "selector": {"matchLabels": {"first": "yes"}}},
        {"name": "all", "percent": 100},
    ],
    "soak": {"min": "200ms", "max": "30s"},
    "hardChecks": {"readyWithin": "20s"},
    "unreachable": {"skipAfter": "30s"},
    "progressDeadline": "1h",
}


class TenSecondFleet:
    """One fleet on one lane: namespaces, names and keys of its own. Sites are `a` (the canary), `b`, `c`, and `d`, which residency
    shuts out and which has no agent. Use it as an async context manager; `scenario` functions drive it."""

    SITES = ("a", "b", "c")

    def __init__(self, ground: Ground, lane: Lane, plan: FaultPlan, knobs: Knobs, patience: float = 40) -> None:
        self._ground, self._lane, self.plan, self._knobs, self._patience = ground, lane, plan, knobs, patience
        self.mark = uuid.uuid4().hex[:6]
        self.team, self.system = f"team-{self.mark}", f"system-{self.mark}"
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.mark}-", dir=ground.folder))
        self.history = History(self.folder / "history.jsonl")
        self.actors: dict[str, Actor] = {}
        self.runtimes: dict[str, FakeRuntime] = {}
        self._ports = dict(zip(self.SITES, free_ports(len(self.SITES)), strict=True))
        self._stack = AsyncExitStack()
        self._probes: list[asyncio.Task[None]] = []

    @property
    def admin(self) -> Api:
        """A person's access to the hub's API server."""
        return self._lane.admin

    @property
    def local(self) -> Api:
        """A person's access to the API server of the sites."""
        return self._lane.local

    def site(self, letter: str) -> str:
        """The name of a site's EdgeSite."""
        return f"{letter}-{self.mark}"

    def state(self, letter: str) -> Path:
        """The state folder of a site's agent."""
        return self.folder / letter / "state"

    async def __aenter__(self) -> Self:
        self.proxy = await self._stack.enter_async_context(FaultProxy(self.history, self.plan, lambda name: self.actors[name].kill()))
        await self._set_up_hub()
        await asyncio.gather(self._prepare_hub(), *(self._prepare_site(letter) for letter in self.SITES))
        return self

    async def __aexit__(self, *_: object) -> None:
        for probe in self._probes:
            probe.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        await asyncio.gather(*(actor.stop() for actor in self.actors.values()))
        for letter in self.SITES:
            pid = GatewayProcess(gateway_folder(self.state(letter))).find()
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        await self._stack.aclose()
        await self._clear()
        self.history.close()

    # ---- what is there before anything starts

    def publisher(self) -> Publisher:
        """Whom the sites believe."""
        return Publisher((self._ground.releases.key.public,), 1, 0)

    def verify(self) -> dict[str, Any]:
        """Whom the hub believes: `spec.verify`."""
        return {"keys": {"secretRef": "publishers"}}

    async def _set_up_hub(self) -> None:
        """The namespaces, secrets and objects that people make."""
        root, hub_key = PrivateKey.generate(), PrivateKey.generate()
        ends = datetime.now(UTC) + timedelta(days=30)
        root_document = make_root([root.public], signers=[root], threshold=1, version=1, expires_at=ends)
        (self.folder / "root.json").write_bytes(root_document)
        bundle = make_bundle(
            roots=[root_document],
            signers=[root],
            version=1,
            content=BundleContent({MODEL: self.publisher()}, (hub_key.public,)),
            expires_at=ends,
        )
        for name in (self.team, self.system):
            await self.admin.create(NAMESPACES, {"metadata": {"name": name, "labels": {"team": self.team}}})
        await self._secret(self.system, "hub-key", {"hub.key": hub_key.to_pem()})
        await self._secret(self.team, "publishers", {"weld.pub": self._ground.releases.key.public.to_pem()})
        meta = {"name": "trust-bundle", "namespace": self.system}
        await self.admin.create(CONFIG_MAPS, {"metadata": meta, "data": {"bundle.json": bundle.decode()}})
        await self.apply(ROLLOUT_POLICIES, "careful", POLICY)
        for letter in (*self.SITES, "d"):
            labels = {"line": self.mark, **({"first": "yes"} if letter == "a" else {})}
            spec = {"region": "us" if letter == "d" else "de", "allowedNamespaces": {"matchLabels": {"team": self.team}}}
            await self.apply(EDGE_SITES, self.site(letter), spec, labels=labels)

    async def _secret(self, namespace: str, name: str, entries: dict[str, str]) -> None:
        data = {entry: base64.b64encode(text.encode()).decode() for entry, text in entries.items()}
        await self.admin.create(SECRETS, {"metadata": {"name": name, "namespace": namespace}, "data": data})

    async def _prepare_hub(self) -> None:
        kubeconfig = hub_kubeconfig(self._lane.hub)
        through = await self.proxy.open_line("hub", "hub", self._lane.hub, kubeconfig)
        self._add_actor("hub", ["hub", "--kubeconfig", str(through), "--namespace", self.system, "--heartbeat", "1s", "--identity", "hub"])

    async def _prepare_site(self, letter: str) -> None:
        name, actor, folder = self.site(letter), f"agent-{letter}", self.folder / letter
        folder.mkdir()
        (folder / "hardware.yaml").write_text("arch: amd64\n")
        await self._lane.local.apply(NAMESPACES, {"metadata": {"name": f"edgesite-{name}"}}, manager="person")
        runtime = FakeRuntime(folder / "models", lambda what, model, code, x: self._note_model(name, what, model, code, x))
        self.runtimes[letter] = await self._stack.enter_async_context(runtime)
        hub, sites = self._lane.hub, self._lane.sites
        hub_config = await self.proxy.open_line(actor, "hub", hub, hub.client_kubeconfig(f"edgefleet:site:{name}", ["edgefleet:sites"]))
        site_user = sites.client_kubeconfig(f"edgefleet:agent:{name}", ["edgefleet:lab-agents"])
        site_config = await self.proxy.open_line(actor, "site", sites, site_user)
        options = {
            "--site": name,
            "--hub-kubeconfig": hub_config,
            "--site-kubeconfig": site_config,
            "--state": self.state(letter),
            "--trusted-root": self.folder / "root.json",
            "--server-url": runtime.url,
            "--server-models": folder / "models",
            "--gateway-port": self._ports[letter],
            "--hardware": folder / "hardware.yaml",
            "--renew": "1s",
        }
        self._add_actor(actor, ["agent", *(str(word) for option in options.items() for word in option)])

    def _add_actor(self, name: str, argv: Sequence[str]) -> None:
        self.actors[name] = Actor(name, argv, self.folder / f"{name}.log", self._ground, self.history, self._knobs)

    def _note_model(self, site: str, what: str, model: str, code: int, x: int) -> None:
        if x < PROBED:
            self.history.add("model", f"runtime-{site}", method=what, name=model, code=code)

    async def _clear(self) -> None:
        """Leave no object that the next fleet's hub would see. Namespaces stay: their names are never used again."""
        api = self.admin
        spaces = {f"edgesite-{self.site(letter)}" for letter in (*self.SITES, "d")}
        for kind, namespaces in (
            (EDGE_FLEETS, {self.team}),
            (EDGE_MODELS, {self.team}),
            (ROLLOUT_POLICIES, {self.team, self.system}),
            (MODEL_ROLLOUTS, {self.team}),
            (CONFIG_MAPS, {self.team}),
            (SITE_ASSIGNMENTS, spaces),
            (LEASES, {*spaces, self.system}),
        ):
            for namespace in namespaces:
                await self._clear_kind(api, kind, namespace)
        for letter in (*self.SITES, "d"):
            await api.delete(EDGE_SITES, self.site(letter))
            await self._clear_kind(self._lane.local, SITE_ASSIGNMENTS, f"edgesite-{self.site(letter)}")

    async def _clear_kind(self, api: Api, kind: Resource, namespace: str) -> None:
        for body in await api.list(kind, namespace):
            name = body["metadata"]["name"]
            if body["metadata"].get("finalizers"):
                await api.patch(kind, name, namespace, {"metadata": {"finalizers": None}})
            await api.delete(kind, name, namespace)

    # ---- what people do

    async def apply(self, kind: Resource, name: str, spec: dict[str, Any], *, labels: dict[str, str] | None = None) -> None:
        """As kubectl apply."""
        meta: dict[str, Any] = {"name": name, "labels": labels or {}}
        if kind.namespaced:
            meta["namespace"] = self.team
        await self.admin.apply(kind, {"metadata": meta, "spec": spec}, manager="person")

    async def name_release(self, version: str, **more: Any) -> None:
        """What a person does in Git."""
        self.history.add("note", "person", text=f"names release {version}")
        source = {"repository": str(self._ground.releases.repository), "tag": version, "interval": "5s"}
        verify, golden = self.verify(), self._ground.releases.golden
        spec = {"source": source, "verify": verify, "golden": golden, "serving": [{"repository": {}}], **more}
        await self.apply(EDGE_MODELS, MODEL, spec)

    async def add_fleet(self, **more: Any) -> None:
        """The fleet over all sites of this point."""
        spec = {"siteSelector": {"matchLabels": {"line": self.mark}}, "modelRef": {"name": MODEL}}
        residency = {"allowedRegions": ["de"]}
        await self.apply(EDGE_FLEETS, FLEET, {**spec, "rolloutPolicyRef": {"name": "careful"}, "residency": residency, **more})

    async def start(self, *letters: str) -> None:
        """Start the hub and the agents of these sites (all, if none is named), and wait until the hub has heard them."""
        wanted = letters or self.SITES
        await asyncio.gather(*(self.actors[name].start() for name in ("hub", *(f"agent-{letter}" for letter in wanted))))
        session = await self._stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5), trust_env=False))
        self._probes += [asyncio.create_task(self._probe(session, letter)) for letter in wanted]
        names = {self.site(letter) for letter in wanted}

        async def heard() -> bool:
            bodies = await self.admin.list(EDGE_SITES, labels=f"line={self.mark}")
            return names == {body["metadata"]["name"] for body in bodies if body.get("status", {}).get("hardware")}

        await self.until("all sites are heard", heard)

    async def until_ended(self, number: int, outcome: str) -> None:
        """Wait until a run's status and label say this outcome; another one fails."""

        async def ended() -> bool:
            with suppress(NotFound):
                run = await self.admin.get(MODEL_ROLLOUTS, f"{FLEET}-{number}", self.team)
                found = run.get("status", {}).get("outcome")
                assert found in (None, outcome), f"run {number} ended {found}: {run['status']}"
                return bool(found == run["metadata"]["labels"].get(OUTCOME_LABEL) == outcome)
            return False

        await self.until(f"run {number} ends {outcome}", ended)

    async def until(self, what: str, fact: Callable[[], Awaitable[bool]]) -> None:
        """Wait for a fact. Raises AssertionError saying what was waited for."""
        deadline = time.monotonic() + self._patience
        while not await fact():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not within {self._patience:g} s")
            await asyncio.sleep(POLL_SECONDS)

    async def _probe(self, session: aiohttp.ClientSession, letter: str) -> None:
        """A client of one site, without retries, that tells of each change in what it gets."""
        url = f"http://127.0.0.1:{self._ports[letter]}/v2/models/{MODEL}/infer"
        before: tuple[int, str] | None = None
        while True:
            text = ""
            try:
                async with session.post(url, json={"inputs": [tensor(PROBED)]}) as answer:
                    body = await answer.json(content_type=None)
                    found = (answer.status, str(body.get("model_name", "")))
                    text = "" if answer.status == 200 else json.dumps(body)[:200]
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                found, text = (0, ""), repr(error)
            if found != before:
                before = found
                self.history.add("probe", f"client-{self.site(letter)}", code=found[0], name=found[1], text=text)
            await asyncio.sleep(PROBE_SECONDS)

    # ---- the end

    async def settle(self, undisturbed: dict[str, Any] | None, limit: float = 12) -> Final:
        """Wait until nothing is written any more but heartbeats, model servers hold only what is served, and the state is the one wanted,
        if it gets there; then read it."""
        deadline = time.monotonic() + limit
        while True:
            quiet = all(
                time.time() - entry.at > QUIET_SECONDS
                for entry in self.history.entries[-300:]
                if entry.is_write and entry.resource not in ("leases", "rolloutpolicies")
            )
            state = await read_state(self) if quiet else {}
            if (quiet and is_tidy(state) and undisturbed in (None, state)) or time.monotonic() > deadline:
                logs = {name: actor.log.read_text() for name, actor in self.actors.items() if actor.log.exists()}
                return Final(logs, state or await read_state(self), undisturbed)
            await asyncio.sleep(0.2)
