"""Each alert fires in a real Prometheus that looks at a real hub in trouble, and keeps quiet before.

The hub, its API server and its registry are real; its sites are fakes that fail on demand. What an agent says by itself comes from the
agent's real page with its facts set, as a full disk or a month of waiting cannot be had here. Waiting times (`for`) are taken out for
this; they, and the thresholds, are played over hours by `promtool test rules` on the file as it is shipped.
"""

import asyncio
import copy
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgefleet.api.assignment import SiteAssignmentSpec
from edgefleet.kube.resources import CONFIG_MAPS, ROLLOUT_POLICIES
from edgefleet.site.gateway_config import Endpoint
from edgefleet.site.metrics import AgentMetrics, serving_metrics
from edgefleet.trust.bundle import make_bundle, make_root
from edgefleet.trust.bundle_content import BundleContent
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.publishers import Publisher
from tests.integration.fakesites import FakeSites
from tests.integration.world import POLICY, World
from tests.lab.debian import fetch_prometheus
from tests.lab.processes import free_ports
from tests.lab.prometheus import Prometheus, promtool, start_prometheus

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "charts" / "edgefleet" / "alerts.yaml"
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def prometheus() -> Path:
    """The folder of the binaries: asked for by name, so that it is fetched before the first test."""
    return fetch_prometheus()


def without_waiting() -> dict[str, Any]:
    """The rules with no `for`."""
    rules: dict[str, Any] = copy.deepcopy(yaml.safe_load(ALERTS.read_text()))
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["for"] = "0s"
    return rules


def test_the_rules_are_accepted_and_wait_as_long_as_they_say(prometheus: Path, tmp_path: Path) -> None:
    assert "SUCCESS: 8 rules found" in promtool("check", "rules", ALERTS)
    shutil.copy(ALERTS, tmp_path)
    shutil.copy(Path(__file__).parent / "alert_cases.yaml", tmp_path)
    assert "SUCCESS" in promtool("test", "rules", tmp_path / "alert_cases.yaml")


def names(watcher: Prometheus) -> set[str]:
    return {alert["labels"]["alertname"] for alert in watcher.firing()}


async def fires(world: World, watcher: Prometheus, name: str, limit: float = 60, **labels: str) -> dict[str, Any]:
    """Wait until the alert fires with these labels."""

    async def found() -> dict[str, Any] | None:
        for alert in await asyncio.to_thread(watcher.firing):
            if alert["labels"]["alertname"] == name and labels.items() <= alert["labels"].items():
                return dict(alert)
        return None

    alert: dict[str, Any] = await world.until(f"{name} fires", found, limit)
    assert alert["annotations"]["summary"]
    return alert


@pytest.fixture
def hub_port() -> int:
    return free_ports(1)[0]


@pytest.fixture
async def watcher(world: World, hub_port: int, prometheus: Path, tmp_path: Path) -> AsyncIterator[Prometheus]:
    """Prometheus looking at a real hub."""
    world.kill_hub()
    world.start_hub("--metrics-port", str(hub_port))
    running = start_prometheus(tmp_path / "prometheus", without_waiting(), {"hub": [f"127.0.0.1:{hub_port}"]})
    try:

        async def up() -> bool:
            with suppress(OSError):
                return bool(await asyncio.to_thread(running.query, "edgefleet_heartbeat_age_seconds"))
            return False

        await world.until("the hub is scraped", up, 90)
        yield running
    finally:
        running.stop()


def fails_the_exam(spec: SiteAssignmentSpec) -> dict[str, Any]:
    return (
        {"state": "Failed", "fault": "Revision", "reason": "GoldenBelowMinimum", "message": "61% of 90%"}
        if spec.version == "2"
        else {"state": "Active"}
    )


def has_no_room(spec: SiteAssignmentSpec) -> dict[str, Any]:
    return {"state": "Blocked", "fault": "Site", "reason": "StoreFull", "message": "raise the limit of this site"}


def refuses(spec: SiteAssignmentSpec) -> dict[str, Any]:
    return {"state": "Refused", "reason": "SignatureInvalid", "message": "no key of the bundle signed it"}


async def publish_bundle(world: World, ends: datetime) -> None:
    key = PrivateKey.generate()
    root = make_root([key.public], signers=[key], threshold=1, version=1, expires_at=ends + 24 * HOUR)
    publisher = Publisher((world.key.public,))
    bundle = make_bundle(
        roots=[root], signers=[key], version=1, content=BundleContent({"weld": publisher}, (world.hub_key.public,)), expires_at=ends
    )
    meta = {"name": "trust-bundle", "namespace": world.system}
    await world.api.apply(CONFIG_MAPS, {"metadata": meta, "data": {"bundle.json": bundle.decode()}}, manager="person")


@pytest.mark.timeout(300)
async def test_releases_that_fail_or_are_not_believed_and_sites_without_room(world: World, sites: FakeSites, watcher: Prometheus) -> None:
    await sites.add(await world.add_site("s0"), behaviour=fails_the_exam)
    world.push("1")
    world.push("2")
    await world.name_release("1")
    await world.add_fleet()
    await world.until_ended(1, "Promoted")
    # Other worlds' sites stand in the same API server, so only what is about this team may be asked for.
    assert not {alert["labels"].get("namespace") for alert in watcher.firing()} & {world.team}
    assert "EdgefleetHubDeaf" not in names(watcher)

    await world.name_release("2")
    await world.until_ended(2, "RolledBack")
    alert = await fires(world, watcher, "EdgefleetRolledBack", namespace=world.team, fleet="plants")
    assert alert["annotations"]["runbook_url"] == "docs/runbooks/rolled-back.md"
    assert "EdgefleetRolloutStalled" not in names(watcher), "one alert for one trouble"

    world.push("3", signed=False)
    await world.name_release("3")
    await fires(world, watcher, "EdgefleetVerificationFailing", namespace=world.team, model="weld", reason="SignatureMissing")

    sites[world.site("s0")].behaviour = has_no_room
    world.push("4")
    await world.name_release("4")
    await fires(world, watcher, "EdgefleetStoreFull", reason="StoreFull")
    sites[world.site("s0")].behaviour = refuses
    world.push("5")
    await world.name_release("5")
    await fires(world, watcher, "EdgefleetVerificationFailing", state="Refused")


@pytest.mark.timeout(300)
async def test_a_rollout_past_its_deadline_silent_sites_old_agents_and_a_bundle_that_ends(
    world: World, sites: FakeSites, watcher: Prometheus
) -> None:
    region = f"r-{world.mark}"
    site = await sites.add(await world.add_site("s0", region=region))
    await world.add_site("s1", region=region)
    await sites.add(world.site("s1"), behaviour=lambda spec: {"state": "Progressing", "reason": "Fetching"})
    # A fake's agent says of its version only "fake".
    await fires(world, watcher, "EdgefleetAgentSkew", skew="unreadable")
    assert "EdgefleetTrustExpiring" not in names(watcher)
    await publish_bundle(world, datetime.now(UTC) + 15 * 24 * HOUR)
    await world.until("the bundle is seen", lambda: asyncio.to_thread(watcher.query, "edgefleet_trust_bundle_expiry_timestamp_seconds"))
    assert "EdgefleetTrustExpiring" not in names(watcher)
    await publish_bundle(world, datetime.now(UTC) + 3 * 24 * HOUR)
    await fires(world, watcher, "EdgefleetTrustExpiring")

    world.push("1")
    await world.apply(ROLLOUT_POLICIES, "careful", {**POLICY, "hardChecks": {"readyWithin": "10m"}, "progressDeadline": "2s"})
    await world.name_release("1")
    await world.add_fleet()
    await fires(world, watcher, "EdgefleetRolloutStalled", namespace=world.team, fleet="plants")

    assert not any(alert["labels"].get("region") == region for alert in watcher.firing())
    site.silent = True
    alert = await fires(world, watcher, "EdgefleetSitesUnreachable", region=region)
    assert alert["annotations"]["summary"] == f"50% of the sites of region {region} cannot be reached."


@pytest.mark.timeout(300)
async def test_a_hub_that_hangs_is_called_deaf(world: World, watcher: Prometheus) -> None:
    async def calm() -> bool:
        return "EdgefleetHubDeaf" not in await asyncio.to_thread(names, watcher)

    await world.until("no alert while the hub answers", calm)
    hub = world._hub
    assert hub is not None
    os.kill(hub.pid, signal.SIGSTOP)
    try:
        await fires(world, watcher, "EdgefleetHubDeaf")
    finally:
        os.kill(hub.pid, signal.SIGCONT)
    await world.until("the alert ends with its cause", calm)


@pytest.fixture
def facts() -> list[AgentMetrics]:
    """What an agent's page says now, in a list of one."""
    return [AgentMetrics(datetime.now(UTC), 1, 0, 0, {}, 1 << 40, datetime.now(UTC) + 365 * 24 * HOUR)]


@pytest.fixture
def agent(facts: list[AgentMetrics], prometheus: Path, tmp_path: Path) -> Iterator[Prometheus]:
    """Prometheus looking at an agent's page."""
    (port,) = free_ports(1)
    with serving_metrics(Endpoint("127.0.0.1", port), lambda: facts[0]):
        running = start_prometheus(tmp_path / "prometheus", without_waiting(), {"agent": [f"127.0.0.1:{port}"]})
        try:
            yield running
        finally:
            running.stop()


@pytest.mark.timeout(180)
async def test_an_agent_tells_of_its_own_disk_and_trust(agent: Prometheus, facts: list[AgentMetrics]) -> None:
    async def until(query: Any) -> None:
        async with asyncio.timeout(60):
            while not await asyncio.to_thread(query):
                await asyncio.sleep(0.2)

    wanted = {"EdgefleetStoreFull", "EdgefleetTrustExpiring"}
    await until(lambda: agent.query("edgefleet_agent_store_free_bytes"))
    await until(lambda: [rule for rule in agent.rules() if rule["lastEvaluation"] > "1"])
    assert not wanted & names(agent)
    facts[0] = AgentMetrics(datetime.now(UTC), 1, 0, 0, {}, 1 << 20, datetime.now(UTC) + HOUR)
    await until(lambda: wanted <= names(agent))
    facts[0] = AgentMetrics(datetime.now(UTC), 1, 0, 0, {}, 1 << 40, None)
    await until(lambda: not wanted & names(agent))
