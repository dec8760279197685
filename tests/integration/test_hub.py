"""The hub on a real API server, with real signed artifacts from a real registry; its sites are fakes that fail on demand."""

import asyncio
import base64
import copy
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.assignment import SiteAssignmentSpec
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
    SITE_ASSIGNMENTS,
    Resource,
)
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.push import VariantFiles, attach_bundle, push_model, tag_manifest
from edgefleet.oci.reference import Repository
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.release import RELEASE_PREDICATE, SIGN_PREDICATE, ReleaseFacts, attest_release, sign_digest
from tests.integration.fakesites import FakeSites, activates
from tests.lab.cluster import Cluster, Lab
from tests.lab.installed import install_hub
from tests.lab.registry import Registry

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(90)

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

    def start_hub(self) -> subprocess.Popen[bytes]:
        kubeconfig = self.lab.client_kubeconfig("hub", "edgefleet:hub")
        command = [sys.executable, "-m", "edgefleet", "hub", "--kubeconfig", str(kubeconfig), "--namespace", self.system]
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


@pytest.fixture(scope="module")
def hub_cluster(lab: Lab) -> Cluster:
    return install_hub(lab.hub)


@pytest.fixture
async def world(lab: Lab, hub_cluster: Cluster, registry: Registry, tmp_path: Path) -> AsyncIterator[World]:
    async with Api.connect(hub_cluster.kubeconfig, user_agent="person") as api:
        one = World(lab, api, registry, tmp_path)
        await one.set_up()
        one.start_hub()
        yield one
        one.kill_hub()
        one.close()
        for body in await api.list(EDGE_SITES, labels=f"line={one.mark}"):
            await api.delete(EDGE_SITES, body["metadata"]["name"])
        for namespace in (one.team, one.system):
            await api.delete(NAMESPACES, namespace)


@pytest.fixture
async def sites(world: World) -> AsyncIterator[FakeSites]:
    async with FakeSites(world.lab, world.hub_key.public) as fakes:
        yield fakes


async def four_sites(world: World, sites: FakeSites, **behaviour: Any) -> list[str]:
    """Four sites that the hub has heard: a run freezes the sites that it knows at its start."""
    names = [await world.add_site(f"s{n}") for n in range(4)]
    for n, name in enumerate(names):
        await sites.add(name, *(["vnni"] if n == 3 else []), **behaviour)

    async def all_heard() -> bool:
        bodies = await world.api.list(EDGE_SITES, labels=f"line={world.mark}")
        return len([body for body in bodies if body.get("status", {}).get("hardware")]) == len(names)

    await world.until("all four sites are heard", all_heard)
    return names


def versions(sites: FakeSites) -> list[str]:
    return sorted(site.orders[-1].version if site.orders else "-" for site in sites.sites.values())


async def test_a_signed_release_goes_through_the_waves_and_is_promoted(world: World, sites: FakeSites) -> None:
    names = await four_sites(world, sites)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    run = await world.until_ended(1, "Promoted")
    assert versions(sites) == ["1"] * 4
    assert [wave["name"] for wave in run["status"]["waves"]][:3] == ["canary", "half", "all"]

    world.push("2", int8=True)
    await world.name_release("2")
    await world.until_ended(2, "Promoted")
    assert {name: sites[name].orders[-1].variant for name in names} == {**dict.fromkeys(names, "fp32"), names[3]: "int8"}
    fleet = await world.until("the fleet is settled", lambda: settled(world, "2"))
    assert fleet["status"]["sites"] | {"desired": 4, "updated": 4, "ready": 4, "failed": 0} == fleet["status"]["sites"]
    for name in names:
        assert [order.sequence for order in sites[name].orders] == [1, 2], "one order per site and release"


async def settled(world: World, version: str) -> dict[str, Any] | None:
    fleet = await world.fleet()
    status = fleet.get("status", {})
    ready = {c["type"]: c["status"] for c in status.get("conditions", [])}
    done = status.get("stableVersion") == version and status["sites"]["updated"] == status["sites"]["desired"] and ready["Ready"] == "True"
    return fleet if done else None


async def test_a_bad_release_is_taken_back_after_its_canary_and_not_tried_again(world: World, sites: FakeSites) -> None:
    names = await four_sites(world, sites)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    await world.until_ended(1, "Promoted")

    def fails_the_exam(spec: SiteAssignmentSpec) -> dict[str, Any]:
        if spec.version == "2":
            return {"state": "Failed", "fault": "Revision", "reason": "GoldenSetFailed", "message": "31 % of 100 answers are right"}
        return activates(spec)

    for name in names:
        sites[name].behaviour = fails_the_exam
    world.push("2")
    await world.name_release("2")
    run = await world.until_ended(2, "RolledBack")
    assert run["status"]["reason"] == "GoldenSetFailed"
    touched = [name for name in names if any(order.version == "2" for order in sites[name].orders)]
    assert len(touched) == 1, "only the canary"
    assert versions(sites) == ["1"] * 4
    found = await world.until_condition(EDGE_FLEETS, "plants", "Stalled", "RolledBack")
    assert "GoldenSetFailed" in found["message"]
    assert "rollout forget plants-2" in found["message"]
    await asyncio.sleep(2)  # it must not try again, which only time can show
    assert len(await world.api.list(MODEL_ROLLOUTS, world.team)) == 2

    world.push("3")
    await world.name_release("3")
    await world.until_ended(3, "Promoted")
    assert versions(sites) == ["3"] * 4


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("unsigned", "SignatureMissing"),
        ("stranger", "SignatureInvalid"),
        ("other model", "ModelMismatch"),
        ("old", "SeqTooLow"),
        ("absent", "NotFound"),
        ("revoked", "Revoked"),
    ],
)
async def test_a_release_that_cannot_be_believed_starts_nothing(world: World, sites: FakeSites, case: str, reason: str) -> None:
    name = await world.add_site("s0")
    await sites.add(name)
    world.push("5")
    await world.name_release("5")
    await world.add_fleet()
    await world.until_ended(1, "Promoted")
    more: dict[str, Any] = {}
    if case == "unsigned":
        world.push("6", signed=False)
    elif case == "stranger":
        world.push("6", key=PrivateKey.generate())
    elif case == "other model":
        world.push("6", model="paint")
    elif case == "old":
        world.push("6")
        more["verify"] = {"keys": {"secretRef": "publishers"}, "minReleaseSeq": 7}
    elif case == "revoked":
        more["revoked"] = [{"digest": world.push("6"), "reason": "wrong labels"}]
    await world.name_release("6", **more)
    refusal = await world.until_condition(EDGE_MODELS, "weld", "SourceVerified", reason)
    assert case != "revoked" or "wrong labels" in refusal["message"]
    found = await world.until_condition(EDGE_FLEETS, "plants", "Ready", reason)
    assert found["status"] == "False"
    assert [order.version for order in sites[name].orders] == ["5"]
    assert (await world.api.get(EDGE_MODELS, "weld", world.team))["status"]["release"]["version"] == "5"
    assert len(await world.api.list(MODEL_ROLLOUTS, world.team)) == 1


async def test_every_site_that_may_not_be_used_says_why(world: World, sites: FakeSites) -> None:
    allowed = await world.add_site("allowed")
    refused = {
        await world.add_site("us", region="us"): "ResidencyDenied",
        await world.add_site("nowhere", region=None): "ResidencyDenied",
        await world.add_site("closed", allowedNamespaces=None): "NamespaceNotAllowed",
        await world.add_site("tainted", taints=[{"key": "maintenance"}]): "Tainted",
        await world.add_site("held", hold={"until": "2099-01-01T00:00:00Z", "reason": "stocktaking"}): "OnHold",
        await world.add_site("mute"): "HardwareUnknown",
    }
    for name in [allowed, *refused]:
        if "mute" not in name:
            await sites.add(name)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet(residency={"allowedRegions": ["de"]})
    await world.until_ended(1, "Promoted")
    assert {site.name for site in sites.sites.values() if site.orders} == {allowed}

    async def told() -> bool:
        conditions = (await world.fleet())["status"]["conditions"]
        message = next(c["message"] for c in conditions if c["type"] == "PlacementSatisfied")
        return all(name in message and reason in message for name, reason in refused.items())

    await world.until("each refused site is named with its reason", told)


async def test_another_teams_fleet_with_an_empty_selector_gets_nothing(world: World, sites: FakeSites) -> None:
    name = await world.add_site("s0")
    await sites.add(name)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    await world.until_ended(1, "Promoted")
    other = f"other-{world.mark}"
    await world.api.create(NAMESPACES, {"metadata": {"name": other}})
    try:
        for kind, named in ((EDGE_MODELS, "weld"), (SECRETS, "publishers")):
            body = await world.api.get(kind, named, world.team)
            copied = {key: copy.deepcopy(value) for key, value in body.items() if key in ("spec", "data")}
            await world.api.create(kind, {"metadata": {"name": named, "namespace": other}, **copied})
        fleet = {"siteSelector": {}, "modelRef": {"name": "weld"}}
        await world.api.create(EDGE_FLEETS, {"metadata": {"name": "greedy", "namespace": other}, "spec": fleet})

        async def refused() -> bool:
            body = await world.api.get(EDGE_FLEETS, "greedy", other)
            return any(c["reason"] == "NoSiteMatched" for c in body.get("status", {}).get("conditions", []))

        await world.until("the other team's fleet is refused", refused)
        assert [a["metadata"]["name"] for a in await world.api.list(SITE_ASSIGNMENTS, f"edgesite-{name}")] == [f"{world.team}.plants"]
    finally:
        await world.api.delete(NAMESPACES, other)


async def test_a_person_pauses_resumes_and_aborts(world: World, sites: FakeSites) -> None:
    await four_sites(world, sites)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    await world.until_ended(1, "Promoted")
    # The second wave soaks for long: the person must be able to abort before it has passed.
    second = {"name": "all", "percent": 100, "approval": {"required": 1}, "soak": {"min": "5m", "max": "10m"}}
    held = {**POLICY, "waves": [{"name": "canary", "sites": 1}, second]}
    await world.apply(ROLLOUT_POLICIES, "careful", held)
    world.push("2")
    await world.name_release("2")

    async def waits() -> bool:
        return bool((await world.run(2)).get("status", {}).get("waitingFor") == "AwaitingApproval")

    await world.until("the run waits for a person", waits)
    assert versions(sites) == ["1", "1", "1", "2"]
    assert "AwaitingApproval" in await world.say("rollout", "list")
    assert f"edgefleet rollout approve plants-2 all -n {world.team}" in await world.say("rollout", "show", "plants-2")
    assert "NoSuchWave" in await world.say("rollout", "approve", "plants-2", "second", fails=True)
    await world.say("rollout", "pause", "plants-2")
    for _ in range(2):  # every verb may be said twice
        await world.say("rollout", "approve", "plants-2", "all", "--reason", "looks fine")
    approvals = (await world.run(2))["spec"]["control"]["approvals"]
    assert [(one["wave"], one["by"]) for one in approvals] == [("all", "lab-admin")]
    await world.until_condition(MODEL_ROLLOUTS, "plants-2", "Paused", "UserPaused")
    assert versions(sites) == ["1", "1", "1", "2"], "paused: approved, but nothing goes out"
    assert "UserPaused" in await world.say("rollout", "show", "plants-2")
    await world.say("rollout", "resume", "plants-2")
    await world.until("the second wave goes out", lambda: caught_up_all(sites, "2"))
    await world.say("rollout", "abort", "plants-2")
    await world.until_ended(2, "AbortedByUser")
    assert versions(sites) == ["1"] * 4
    for verb in (["pause", "plants-2"], ["approve", "plants-2", "all"]):
        assert "RunEnded" in await world.say("rollout", *verb, fails=True)
    assert "NotBarring" in await world.say("rollout", "forget", "plants-1", fails=True)
    listed = json.loads(await world.say("rollout", "list", "plants", "-o", "json"))
    assert [(one["name"], one["status"]["outcome"]) for one in listed] == [("plants-2", "AbortedByUser"), ("plants-1", "Promoted")]
    await world.say("rollout", "forget", "plants-2")

    async def tried_again() -> bool:
        return bool((await world.run(3)).get("status", {}).get("waitingFor") == "AwaitingApproval")

    await world.until("what was forgotten is tried again", tried_again)


async def caught_up_all(sites: FakeSites, version: str) -> bool:
    return versions(sites) == [version] * len(sites.sites)


async def test_a_silent_site_is_skipped_and_catches_up(world: World, sites: FakeSites) -> None:
    # One wave: which site is drawn into which is a hash of names, and a wave of the silent one alone would rightly never pass.
    one_wave = {"waves": [{"name": "all", "percent": 100}], "soak": {"min": "1s", "max": "20s", "minReported": "50%"}}
    await world.apply(ROLLOUT_POLICIES, "careful", {**POLICY, **one_wave})
    names = await four_sites(world, sites)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    await world.until_ended(1, "Promoted")
    sites[names[0]].silent = True
    world.push("2")
    await world.name_release("2")
    await world.until_ended(2, "Promoted")
    assert [order.version for order in sites[names[0]].orders] == ["1"]
    sites[names[0]].silent = False
    await world.until("the site caught up", lambda: caught_up(sites, names[0], "2"))
    await world.until("the fleet is whole", lambda: settled(world, "2"))


async def caught_up(sites: FakeSites, name: str, version: str) -> bool:
    return bool(sites[name].orders[-1].version == version)


async def test_a_sites_own_fault_never_rejects_a_release(world: World, sites: FakeSites) -> None:
    def blocked(spec: SiteAssignmentSpec) -> dict[str, Any]:
        if spec.version == "2":
            return {"state": "Blocked", "fault": "Site", "reason": "DigestMismatch", "message": "blob sha256:... is corrupt"}
        return activates(spec)

    await four_sites(world, sites, behaviour=blocked)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    await world.until_ended(1, "Promoted")
    world.push("2")
    await world.name_release("2")

    async def waits() -> dict[str, Any] | None:
        run = await world.run(2)
        return run if run.get("status", {}).get("waitingFor") == "SilentWave" else None

    run = await world.until("the run says that its wave has nobody left", waits)
    assert "DigestMismatch" in json.dumps(run["status"])
    assert run["status"].get("outcome") is None
    await world.name_release("1")
    await world.until_ended(2, "TargetChanged")
    await world.until("its site is back on 1", lambda: caught_up_all(sites, "1"))


async def test_a_hub_that_is_replaced_at_any_time_goes_on(world: World, sites: FakeSites) -> None:
    await four_sites(world, sites)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    for _ in range(5):
        await asyncio.sleep(0.7)
        world.kill_hub()
        world.start_hub()
    await world.until_ended(1, "Promoted")
    assert versions(sites) == ["1"] * 4
    for site in sites.sites.values():
        assert [order.sequence for order in site.orders] == [1], "no order was given twice"


async def test_a_deleted_fleet_leaves_its_sites_alone_and_comes_back_adopted(world: World, sites: FakeSites) -> None:
    names = await four_sites(world, sites)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    await world.until_ended(1, "Promoted")
    await world.api.delete(EDGE_FLEETS, "plants", world.team)
    world.kill_hub()
    for body in await world.api.list(MODEL_ROLLOUTS, world.team):
        await world.api.delete(MODEL_ROLLOUTS, body["metadata"]["name"], world.team)
    for name in names:
        await world.api.delete(SITE_ASSIGNMENTS, f"{world.team}.plants", f"edgesite-{name}")
    world.start_hub()
    await world.add_fleet()
    run = await world.until_ended(1, "Promoted")
    assert run["status"]["reason"] == "Adopted"
    await world.until("the fleet is whole", lambda: held_by_all(world, names))
    assert all(len(site.orders) == 1 for site in sites.sites.values()), "no site was told anything new"


async def held_by_all(world: World, names: list[str]) -> bool:
    held = [await world.api.get(SITE_ASSIGNMENTS, f"{world.team}.plants", f"edgesite-{name}") for name in names]
    return all(body["spec"]["sequence"] == 1 for body in held)


async def test_another_fleet_is_told_of_what_a_deleted_one_left(world: World, sites: FakeSites) -> None:
    name = await world.add_site("s0")
    await sites.add(name)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet("old")

    async def serving() -> bool:
        return bool(sites[name].orders)

    await world.until("the old fleet's model is there", serving)
    await world.api.delete(EDGE_FLEETS, "old", world.team)
    await world.add_fleet("new")

    async def told() -> bool:
        return f"fleet {world.team}/old does not exist" in json.dumps(await world.fleet("new"))

    await world.until("the new fleet is told what the old one left", told)
    await world.add_fleet("old", onDelete="Withdraw")

    async def guarded() -> bool:
        return bool((await world.fleet("old"))["metadata"].get("finalizers"))

    await world.until("the hub guards the deletion", guarded)
    await world.api.delete(EDGE_FLEETS, "old", world.team)

    async def taken_over() -> bool:
        return bool(sites[name].orders[-1].fleet == f"{world.team}/new")

    await world.until("the new fleet has the site", taken_over)
    assert [order.action for order in sites[name].orders] == ["Run", "Withdraw", "Run"]


async def test_deleting_with_withdraw_unloads_the_model_and_then_ends(world: World, sites: FakeSites) -> None:
    await four_sites(world, sites)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet(onDelete="Withdraw")
    await world.until_ended(1, "Promoted")
    await world.api.delete(EDGE_FLEETS, "plants", world.team)

    async def gone() -> bool:
        try:
            await world.fleet()
        except NotFound:
            return True
        return False

    await world.until("the fleet is gone", gone)
    assert {site.orders[-1].action for site in sites.sites.values()} == {"Withdraw"}
