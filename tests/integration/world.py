"""One team's world at the hub for tests: a namespace, a registry, signed releases, a hub process, and what people type."""

import asyncio
import base64
import subprocess
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgefleet.api.model import Variant
from edgefleet.kube.client import Api
from edgefleet.kube.errors import NotFound
from edgefleet.kube.resources import (
    EDGE_FLEETS,
    EDGE_MODELS,
    EDGE_SITES,
    MODEL_ROLLOUTS,
    NAMESPACES,
    ROLLOUT_POLICIES,
    SECRETS,
    Resource,
)
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.push import VariantFiles, attach_bundle, push_model, tag_manifest
from edgefleet.oci.reference import Repository
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.release import RELEASE_PREDICATE, SIGN_PREDICATE, ReleaseFacts, attest_release, sign_digest
from tests.integration.fakesites import FakeSites
from tests.lab.cluster import Lab
from tests.lab.installed import hub_kubeconfig
from tests.lab.registry import Registry

POLICY = {
    "waves": [{"name": "canary", "sites": 1, "perVariant": True}, {"name": "half", "percent": 50}, {"name": "all", "percent": 100}],
    "soak": {"min": "1s", "max": "20s"},
    "hardChecks": {"readyWithin": "30s"},
    "unreachable": {"skipAfter": "4s"},
    "progressDeadline": "1h",
}


class World:
    """One team's namespace, a registry and a hub; people's verbs."""

    def __init__(self, lab: Lab, api: Api, registry: Registry, folder: Path) -> None:
        self.lab, self.api, self.registry, self.folder = lab, api, registry, folder
        self.mark = uuid.uuid4().hex[:6]
        self.team = f"team-{self.mark}"
        self.system = f"system-{self.mark}"
        self.key = PrivateKey.generate()
        self.hub_key = PrivateKey.generate()
        self.client = RegistryClient()
        self.repository = Repository.parse(f"{registry.host}/vision/weld-{self.mark}")
        self._hub: subprocess.Popen[bytes] | None = None
        self._log = (folder / "hub.log").open("ab")

    def site(self, name: str) -> str:
        """Site names are cluster-wide: each test has its own."""
        return f"{name}-{self.mark}"

    async def set_up(self) -> None:
        for name in (self.team, self.system):
            await self.api.create(NAMESPACES, {"metadata": {"name": name, "labels": {"team": self.team}}})
        await self._secret(self.system, "hub-key", {"hub.key": self.hub_key.to_pem()})
        await self._secret(self.team, "publishers", {"weld.pub": self.key.public.to_pem()})
        await self.apply(ROLLOUT_POLICIES, "careful", POLICY)

    async def _secret(self, namespace: str, name: str, entries: dict[str, str]) -> None:
        data = {entry: base64.b64encode(text.encode()).decode() for entry, text in entries.items()}
        await self.api.create(SECRETS, {"metadata": {"name": name, "namespace": namespace}, "data": data})

    async def apply(self, kind: Resource, name: str, spec: dict[str, Any], *, labels: dict[str, str] | None = None) -> None:
        meta: dict[str, Any] = {"name": name, "labels": labels or {}}
        if kind.namespaced:
            meta["namespace"] = self.team
        await self.api.apply(kind, {"metadata": meta, "spec": spec}, manager="person")

    async def add_site(self, name: str, **spec: Any) -> str:
        body = {"region": "de", "allowedNamespaces": {"matchLabels": {"team": self.team}}, **spec}
        body = {field: value for field, value in body.items() if value is not None}
        await self.apply(EDGE_SITES, self.site(name), body, labels={"line": self.mark})
        return self.site(name)

    def push(self, version: str, *, key: PrivateKey | None = None, signed: bool = True, int8: bool = False, model: str = "weld") -> str:
        """Push a release and tag it with its version; its digest."""
        weights = self.folder / f"{version}.onnx"
        weights.write_bytes(version.encode() * 100)
        variants = [Variant(name="fp32", digest="sha256:" + "0" * 64, size=0, arch="amd64")]
        if int8:
            variants.append(variants[0].model_copy(update={"name": "int8", "features": ("vnni",), "priority": 1}))
        files = [VariantFiles(variant, {"model.onnx": weights}) for variant in variants]
        digest = push_model(self.client, self.repository, name=model, version=version, variants=files)
        if signed:
            signer = key or self.key
            facts = ReleaseFacts(model=model, version=version, release_seq=int(version), created_at=datetime.now(UTC))
            attach_bundle(self.client, self.repository, digest, sign_digest(signer, digest), SIGN_PREDICATE)
            attach_bundle(self.client, self.repository, digest, attest_release(signer, digest, facts), RELEASE_PREDICATE)
        tag_manifest(self.client, self.repository, digest, version)
        return digest

    async def name_release(self, version: str, **more: Any) -> None:
        """What a person does in Git."""
        source = {"repository": str(self.repository), "tag": version, "interval": "1s"}
        spec = {"source": source, "verify": {"keys": {"secretRef": "publishers"}}, "serving": [{"repository": {}}], **more}
        await self.apply(EDGE_MODELS, "weld", spec)

    async def add_fleet(self, name: str = "plants", **spec: Any) -> None:
        selector = {"matchLabels": {"line": self.mark}}
        await self.apply(
            EDGE_FLEETS,
            name,
            {"siteSelector": selector, "modelRef": {"name": "weld"}, "rolloutPolicyRef": {"name": "careful"}, **spec},
        )

    def start_hub(self, *options: str) -> subprocess.Popen[bytes]:
        kubeconfig = hub_kubeconfig(self.lab.hub)
        command = [sys.executable, "-m", "edgefleet", "hub", "--kubeconfig", str(kubeconfig), "--namespace", self.system, *options]
        # One hub after another, as in one pod: the next need not wait for the Lease of one that was killed.
        command += [] if "--identity" in options else ["--identity", "world"]
        self._hub = subprocess.Popen([*command, "--heartbeat", "1s"], stdout=self._log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        return self._hub

    async def say(self, *words: str, fails: bool = False) -> str:
        """`edgefleet WORDS` as a person types it; what it printed."""
        command = [sys.executable, "-m", "edgefleet", *words, "-n", self.team, "--kubeconfig", str(self.lab.hub.kubeconfig)]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == int(fails), done.stderr
        return done.stdout + done.stderr if fails else done.stdout

    def kill_hub(self) -> None:
        """SIGKILL: nothing is said, nothing is finished."""
        if self._hub is not None:
            self._hub.kill()
            self._hub.wait()
            self._hub = None

    async def fleet(self, name: str = "plants") -> dict[str, Any]:
        return await self.api.get(EDGE_FLEETS, name, self.team)

    async def run(self, number: int, fleet: str = "plants") -> dict[str, Any]:
        return await self.api.get(MODEL_ROLLOUTS, f"{fleet}-{number}", self.team)

    async def until(self, what: str, check: Callable[[], Any], limit: float = 30) -> Any:
        """Wait until `check()` (awaited) is true and return it; on failure show what kubectl shows."""
        try:
            async with asyncio.timeout(limit):
                while True:
                    if self._hub is not None and self._hub.poll() is not None:
                        raise AssertionError(f"the hub ended with {self._hub.returncode}:\n{self.log()}")
                    with suppress(NotFound):
                        if found := await check():
                            return found
                    await asyncio.sleep(0.1)
        except TimeoutError:
            tables = self.lab.hub.kubectl("get", "edgemodels,edgefleets,modelrollouts,siteassignments", "-A", "-o", "wide")
            raise AssertionError(f"{what} did not happen within {limit:.0f} s:\n{tables}\n{self.log()}") from None

    def close(self) -> None:
        self.client.close()
        self._log.close()

    def log(self) -> str:
        """The end of the hub's log."""
        return (self.folder / "hub.log").read_text()[-4000:]

    async def until_ended(self, number: int, outcome: str, limit: float = 30) -> dict[str, Any]:
        async def ended() -> dict[str, Any] | None:
            run = await self.run(number)
            found = run.get("status", {}).get("outcome")
            assert found in (None, outcome), f"run {number} ended {found}: {run['status']}"
            # An adopted run is made with its label and gets its status after it; any other ends the other way round.
            return run if found == run["metadata"]["labels"].get("edgefleet.io/outcome") == outcome else None

        run: dict[str, Any] = await self.until(f"run {number} ends {outcome}", ended, limit)
        return run

    async def until_condition(self, kind: Resource, name: str, kind_of: str, reason: str) -> dict[str, Any]:
        async def holds() -> dict[str, Any] | None:
            body = await self.api.get(kind, name, None if not kind.namespaced else self.team)
            return next((c for c in body.get("status", {}).get("conditions", []) if c["type"] == kind_of and c["reason"] == reason), None)

        found: dict[str, Any] = await self.until(f"{kind.kind} {name} says {kind_of} {reason}", holds)
        return found


async def four_sites(world: World, sites: FakeSites, **behaviour: Any) -> list[str]:
    """Four sites that the hub has heard: a run freezes the sites that it knows at its start."""
    names = [await world.add_site(f"s{n}") for n in range(4)]
    for n, name in enumerate(names):
        await sites.add(name, *(["vnni"] if n == 3 else []), **behaviour)

    async def all_heard() -> bool:
        bodies = await world.api.list(EDGE_SITES, labels=f"line={world.mark}")
        return len([body for body in bodies if body.get("status", {}).get("hardware")]) == len(names)

    await world.until("all four sites are heard", all_heard, 90)
    return names


def versions(sites: FakeSites) -> list[str]:
    return sorted(site.orders[-1].version if site.orders else "-" for site in sites.sites.values())


async def settled(world: World, version: str) -> dict[str, Any] | None:
    fleet = await world.fleet()
    status = fleet.get("status", {})
    ready = {c["type"]: c["status"] for c in status.get("conditions", [])}
    done = status.get("stableVersion") == version and status["sites"]["updated"] == status["sites"]["desired"] and ready["Ready"] == "True"
    return fleet if done else None
