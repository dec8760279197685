"""`edgefleet check` on real parts: silent where all is well, and for each thing that is broken a line that says what to do."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edgefleet.kube.resources import CONFIG_MAPS, EDGE_MODELS, SITE_ASSIGNMENTS
from edgefleet.oci.reference import Repository
from edgefleet.site.gateway_config import gateway_folder
from edgefleet.site.gateway_process import GatewayProcess
from edgefleet.trust.bundle import make_bundle, make_root
from edgefleet.trust.bundle_content import BundleContent
from edgefleet.trust.keys import PrivateKey, PublicKey
from edgefleet.trust.publishers import Publisher
from tests.integration.fakesites import FakeSites
from tests.integration.site_rig import Rig, open_rig, wait_until
from tests.integration.world import World
from tests.lab import pki
from tests.lab.cluster import Cluster, Lab
from tests.lab.helm import render
from tests.lab.manifests import HUB_CHART, HUB_NAMESPACE
from tests.lab.registry import Registry
from tests.lab.server import ModelServer

DAY = timedelta(days=1)


async def check(*words: str, code: int | None = 0, limit: float = 60) -> list[dict[str, Any]]:
    """`edgefleet check WORDS -o json`: its lines."""
    command = [sys.executable, "-m", "edgefleet", "check", *words, "-o", "json"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=limit, check=False)
    assert code in (None, done.returncode), done.stdout + done.stderr
    lines: list[dict[str, Any]] = json.loads(done.stdout)["lines"]
    for line in lines:
        assert (line["level"] == "OK") == (line["remedy"] is None), f"what is not OK says what to do: {line}"
    return lines


def wrong(lines: list[dict[str, Any]]) -> dict[str, str]:
    """What is not OK: level and found, by check."""
    return {line["check"]: f"{line['level']} {line['found']}" for line in lines if line["level"] != "OK"}


async def publish(world: World, *, hub_key: PublicKey | None = None, ends: datetime | None = None) -> None:
    """A trust bundle at the hub."""
    key, until = PrivateKey.generate(), ends or datetime.now(UTC) + 90 * DAY
    root = make_root([key.public], signers=[key], threshold=1, version=1, expires_at=datetime.now(UTC) + 900 * DAY)
    bundle = make_bundle(
        roots=[root],
        signers=[key],
        version=1,
        content=BundleContent({"weld": Publisher((world.key.public,))}, (hub_key or world.hub_key.public,)),
        expires_at=until,
    )
    meta = {"name": "trust-bundle", "namespace": world.system}
    await world.api.apply(CONFIG_MAPS, {"metadata": meta, "data": {"bundle.json": bundle.decode()}}, manager="person")


@pytest.fixture
def words(world: World) -> list[str]:
    """How this world's hub is asked."""
    return ["--kubeconfig", str(world.lab.hub.kubeconfig), "-n", world.system]


@pytest.fixture
async def repaired(hub_cluster: Cluster) -> AsyncIterator[Cluster]:
    """The hub's cluster, which a test may break."""
    yield hub_cluster
    rendered = render(HUB_CHART, namespace=HUB_NAMESPACE, settings=["replicas=0"])
    # What the test wrote is taken over by force, so that later installations meet no other manager.
    await asyncio.to_thread(hub_cluster.kubectl, "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=rendered)


async def serving(world: World, sites: FakeSites, **behaviour: Any) -> str:
    """A hub with one site that runs release 1; the site's name."""
    name = await world.add_site("s0")
    await sites.add(name, **behaviour)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    await world.until_ended(1, "Promoted")
    return name


@pytest.mark.timeout(300)
async def test_nothing_is_wrong_where_nothing_is_wrong(world: World, sites: FakeSites, words: list[str]) -> None:
    await publish(world)
    site = await serving(world, sites)
    lines = await check("--site", site, *words)
    # A fake site's agent has no version, and other worlds' sites stand in the same API server.
    assert set(wrong(lines)) <= {"agents", "sites", "site version", "registry"}
    found = {line["check"]: line["found"] for line in lines if line["level"] == "OK"}
    assert found["kinds"].startswith("6 kinds")
    assert "has the" in found["rights"]
    assert "are bound and as the chart has them" in found["policies"]
    assert "the trust bundle names it" in found["hub key"]
    assert found["site orders"] == "1 order(s), all carried out"
    assert found["site rights"].startswith(f"edgefleet:site:{site} has")
    mine = [line["found"] for line in lines if line["check"] == "registry" and world.team in line["found"]]
    assert mine == [f"EdgeModel {world.team}/weld: {world.repository} answers"]


@pytest.mark.timeout(300)
async def test_what_was_taken_from_an_installation_is_named(world: World, words: list[str], repaired: Cluster) -> None:
    hub = repaired
    hub.kubectl("delete", "validatingadmissionpolicybinding", "edgefleet-approvals")
    policy = json.loads(hub.kubectl("get", "validatingadmissionpolicy", "edgefleet-hub-owned", "-o", "json"))
    condition = {"name": "not-me", "expression": "request.userInfo.username != 'mallory'"}
    policy["spec"]["matchConditions"].append(condition)
    hub.kubectl("replace", "-f", "-", stdin=json.dumps(policy))
    role = json.loads(hub.kubectl("get", "clusterrole", "edgefleet-hub", "-o", "json"))
    role["rules"] = [rule for rule in role["rules"] if "events" not in rule["resources"]]
    hub.kubectl("replace", "-f", "-", stdin=json.dumps(role))
    kind = json.loads(hub.kubectl("get", "crd", "edgesites.edgefleet.io", "-o", "json"))
    del kind["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["hold"]
    hub.kubectl("replace", "-f", "-", stdin=json.dumps(kind))
    lines = await check(*words, code=1)
    found = [f"{line['check']}: {line['found']}" for line in lines if line["level"] == "FAIL"]
    assert "policies: ValidatingAdmissionPolicyBinding edgefleet-approvals is not there" in found
    assert any("edgefleet-hub-owned was changed: spec.matchConditions has 3 entries" in one for one in found), found
    assert any("lacks create events" in one for one in found), found
    assert any("edgesites.edgefleet.io is of another version" in one and "hold is missing" in one for one in found), found


@pytest.mark.timeout(300)
async def test_trust_keys_and_a_hub_that_is_gone(world: World, sites: FakeSites, words: list[str]) -> None:
    lines = wrong(await check(*words, code=1))
    assert lines["trust bundle"] == "FAIL there is no trust bundle: sites activate nothing"
    await publish(world, ends=datetime.now(UTC) + 3 * DAY)
    lines = wrong(await check(*words, code=None))
    assert lines["trust bundle"].startswith("WARN good until")
    await publish(world, ends=datetime.now(UTC) - DAY, hub_key=PrivateKey.generate().public)
    await serving(world, sites)
    lines = wrong(await check(*words, code=1))
    assert lines["trust bundle"].startswith("FAIL it ended")
    assert "which the trust bundle does not name" in lines["hub key"]
    assert "hub" not in lines
    world.kill_hub()

    async def noticed() -> bool:
        return "FAIL the hub has not renewed its Lease since" in wrong(await check(*words, code=None)).get("hub", "")

    await world.until("the hub's silence is told", noticed)


@pytest.mark.timeout(300)
async def test_registries_and_sites_in_trouble(world: World, sites: FakeSites, words: list[str]) -> None:
    site = await world.add_site("s0")
    full = {"state": "Blocked", "fault": "Site", "reason": "StoreFull", "message": "raise the limit of this site"}
    await sites.add(site, behaviour=lambda _: full)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()

    async def blocked() -> bool:
        found = await world.api.list(SITE_ASSIGNMENTS, f"edgesite-{site}")
        return bool(found) and found[0].get("status", {}).get("state") == "Blocked"

    await world.until("the order is blocked", blocked, 60)
    said = wrong(await check("--site", site, *words, code=None))["site orders"]
    assert said == f"WARN {world.team}/plants: sequence 1 is Blocked StoreFull: raise the limit of this site"
    lines = wrong(await check("--site", "nowhere", *words, code=1))
    assert lines["site"] == "FAIL there is no EdgeSite nowhere"
    await world.name_release("9")
    await world.until_condition(EDGE_MODELS, "weld", "SourceVerified", "NotFound")
    assert "has no tag 9" in (await sources(world, words))[0]
    world.repository = Repository.parse("127.0.0.1:1/vision/weld")
    await world.name_release("1")
    await world.until_condition(EDGE_MODELS, "weld", "FetchFailed", "RegistryUnreachable")
    assert "the hub cannot fetch 127.0.0.1:1/vision/weld (RegistryUnreachable)" in (await sources(world, words))[0]


async def sources(world: World, words: list[str]) -> list[str]:
    """What is wrong with this team's registries."""
    lines = await check(*words, code=1)
    return [line["found"] for line in lines if (line["check"], line["level"]) == ("registry", "FAIL") and world.team in line["found"]]


@pytest.mark.timeout(180)
async def test_someone_who_may_nothing_is_told_so(world: World, words: list[str]) -> None:
    kubeconfig = world.lab.hub.client_kubeconfig("stranger")
    lines = wrong(await check("--kubeconfig", str(kubeconfig), "-n", world.system, code=0))
    assert all(said.startswith("WARN you may not ask: ") for said in lines.values()), lines
    assert {"kinds", "rights", "policies", "trust bundle", "hub", "registry"} <= set(lines)


@pytest.fixture
async def rig(kinds: Lab, registry: Registry, model_server: ModelServer, tmp_path: Path) -> AsyncIterator[Rig]:
    """A real site, with a real gateway and model server; its agent is not started yet."""
    async with open_rig(tmp_path, kinds, registry, model_server, "checked") as running:
        yield running


@pytest.mark.timeout(300)
async def test_a_site_looks_at_itself(rig: Rig) -> None:
    rig.push_golden()
    revision = rig.push("1.0", 1)
    rig.start_agent(renew="1s")

    async def started() -> bool:
        return (gateway_folder(rig.state) / "bootstrap.json").exists()

    await wait_until(started, rig.log, 120)
    await rig.assign(revision)
    await rig.wait_for("Active")
    words = ["--site-kubeconfig", str(rig.lab.sites["east"].kubeconfig), "--state", str(rig.state)]
    lines = await check(*words)
    assert wrong(lines) == {}, "other sites of these tests share this cluster, and are not looked at"
    found = {f"{line['check']}: {line['found']}" for line in lines}
    assert f"gateway: model {rig.model}, revision {revision.hash[:8]} is ready" in found
    assert "state: site checked: 1 fleet(s) known, 1 served" in found
    assert any(one.startswith("site kinds: siteassignments is served as version") for one in found)
    assert any(one.startswith("trust: good until") for one in found)
    assert any(one.startswith("store: ") and "MiB of models" in one for one in found)

    # The model is gone from its server, behind everybody's back.
    forget(rig.server.url, f"{rig.model}--{revision.hash[:8]}")
    rig.kill_agent()
    said = wrong(await check(*words, code=1))["gateway"]
    assert said.startswith(
        f"FAIL model {rig.model}, revision {revision.hash[:8]} does not answer at http://127.0.0.1:{rig.port}/v2/models/"
    )
    await GatewayProcess(gateway_folder(rig.state)).stop()
    assert wrong(await check(*words, code=1))["gateway"].startswith("FAIL it does not run")
    (rig.state / "state.json").write_text("{}")
    assert "cannot be read" in wrong(await check("--state", str(rig.state), code=1))["state"]


def forget(server: str, served_name: str) -> None:
    """Unload a revision at the model server."""
    url = f"{server}/v2/repository/models/{served_name}/unload"
    with urllib.request.urlopen(urllib.request.Request(url, data=b"{}", method="POST"), timeout=10) as answer:
        assert answer.status == 200


@pytest.mark.timeout(180)
async def test_it_never_hangs(tmp_path: Path) -> None:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        kubeconfig = pki.write_kubeconfig(tmp_path / "silent", "silent", url, b"", "token")
        start = time.monotonic()
        lines = await check("--kubeconfig", str(kubeconfig), "--timeout", "2s", code=1)
        assert time.monotonic() - start < 45, "2 s, and the time to start on a busy machine"
        assert wrong(lines) == {"api server": "FAIL no answer within 2 s"}
        for one in held:
            one.close()
