"""Live traffic decides: a real hub and API server, fake sites that report what a gateway would have counted."""

import asyncio
from typing import Any

import pytest

from edgefleet.kube.resources import CONFIG_MAPS, EDGE_FLEETS, EDGE_SITES, MODEL_ROLLOUTS, ROLLOUT_POLICIES, SITE_ASSIGNMENTS
from tests.integration.fakesites import FakeSites, FakeTraffic
from tests.integration.world import POLICY, World, versions

pytestmark = pytest.mark.timeout(240)

SLO = {"latency": {"le": "50ms", "share": "99%"}, "errorRate": "1%"}
SOAKING = {**POLICY, "soak": {"min": "6s", "max": "1h", "minRequests": 100}}


async def serving_fleet(world: World, sites: FakeSites, count: int = 8, *, policy: dict[str, Any] | None = None, **slo: Any) -> list[str]:
    """A fleet on version 1, promoted; its model has an SLO."""
    names = [await world.add_site(f"s{n}") for n in range(count)]
    for name in names:
        (await sites.add(name)).traffic = FakeTraffic()

    async def all_heard() -> bool:
        bodies = await world.api.list(EDGE_SITES, labels=f"line={world.mark}")
        return len([body for body in bodies if body.get("status", {}).get("hardware")]) == count

    await world.until("all sites are heard", all_heard, 90)
    await world.apply(ROLLOUT_POLICIES, "careful", {**SOAKING, "soak": {**SOAKING["soak"], "min": "1s"}})  # type: ignore[dict-item]
    world.push("1")
    await world.name_release("1", slo=slo or SLO)
    await world.add_fleet()
    await world.until_ended(1, "Promoted", 60)
    await world.apply(ROLLOUT_POLICIES, "careful", policy or SOAKING)
    return names


def exposed(sites: FakeSites, version: str) -> list[str]:
    return sorted(name for name, site in sites.sites.items() if any(order.version == version for order in site.orders))


async def release(world: World, version: str, slo: dict[str, Any] | None = None) -> None:
    world.push(version)
    await world.name_release(version, slo=slo or SLO)


async def test_a_healthy_release_is_promoted_by_gates_that_passed(world: World, sites: FakeSites) -> None:
    await serving_fleet(world, sites)
    for site in sites.sites.values():
        assert site.traffic is not None
        site.traffic.failed["2"] = site.traffic.slow["2"] = 0.001
    await release(world, "2")
    run = await world.until_ended(2, "Promoted", 60)
    gates = {gate["name"]: gate for gate in run["status"]["gates"]}
    assert set(gates) == {"errors", "latency"}
    assert all(gate["verdict"] == "Quiet" and gate["requests"] >= 100 and gate["bound"] == "40.0" for gate in gates.values())
    healthy = next(one for one in run["status"]["conditions"] if one["type"] == "Healthy")
    assert (healthy["status"], healthy["reason"]) == ("True", "GatesPassed")


@pytest.mark.parametrize(("bad", "reason"), [("slow", "LatencyRegression"), ("failed", "ErrorRegression")])
async def test_a_release_that_is_worse_on_live_traffic_stops_at_its_canary(
    world: World,
    sites: FakeSites,
    bad: str,
    reason: str,
) -> None:
    await serving_fleet(world, sites)
    for site in sites.sites.values():
        getattr(site.traffic, bad)["2"] = 0.2
    await release(world, "2")
    run = await world.until_ended(2, "RolledBack", 60)
    assert run["status"]["reason"] == reason
    assert len(exposed(sites, "2")) == 1, "only the canary"
    assert versions(sites) == ["1"] * 8
    gate = next(one for one in run["status"]["gates"] if one["verdict"] == "Fail")
    assert float(gate["evidence"]) >= float(gate["bound"]) == 40.0, "the evidence that decided stays in the record"
    assert "evidence" in run["status"]["message"]
    stored = await world.api.list(CONFIG_MAPS, world.team, labels="edgefleet.io/evidence=plants-2")
    assert len(stored) == 1


async def test_no_traffic_is_no_success(world: World, sites: FakeSites) -> None:
    """Its canary answers nobody: the wave waits and says for what. A person who can do without lowers soak.minRequests."""
    await serving_fleet(world, sites)
    for site in sites.sites.values():
        assert site.traffic is not None
        site.traffic.rate = 0.0
    await release(world, "2")

    async def waits() -> bool:
        return bool((await world.run(2)).get("status", {}).get("waitingFor") == "TooFewRequests")

    await world.until("the wave waits for requests", waits)
    assert len(exposed(sites, "2")) == 1


async def test_gates_go_on_while_the_run_is_paused(world: World, sites: FakeSites) -> None:
    await serving_fleet(world, sites)
    await release(world, "2")

    async def begun() -> bool:
        return bool(exposed(sites, "2"))

    await world.until("the canary runs 2", begun)
    await world.say("rollout", "pause", "plants-2")
    for site in sites.sites.values():
        assert site.traffic is not None
        site.traffic.slow["2"] = 0.5
    run = await world.until_ended(2, "RolledBack", 60)
    assert run["status"]["reason"] == "LatencyRegression"


async def test_one_site_that_proves_it_worse_alone_goes_back_alone(world: World, sites: FakeSites) -> None:
    """A tenth of the sites may fail: the run goes on without the one, and does not send the revision there again."""
    lenient = {**SOAKING, "maxFailed": {"firstWave": 0, "later": "30%"}}
    names = await serving_fleet(world, sites, policy=lenient)
    await release(world, "2")

    async def canaried() -> list[str]:
        return exposed(sites, "2")

    (canary,) = await world.until("the canary runs 2", canaried)
    odd = next(name for name in names if name != canary)
    traffic = sites[odd].traffic
    assert traffic is not None
    traffic.slow["2"] = 0.5
    run = await world.until_ended(2, "Promoted", 90)
    assert sites[odd].orders[-1].version == "1"
    assert [order.version for order in sites[odd].orders] == ["1", "2", "1"]
    assert versions(sites) == ["1"] + ["2"] * 7
    assert run["status"]["sites"]["failed"] == 1
    body = await world.api.get(SITE_ASSIGNMENTS, f"{world.team}.plants", f"edgesite-{odd}")
    assert body["metadata"]["labels"]["edgefleet.io/quarantined"] == "LatencyRegression"
    fleet = await world.until("the fleet is settled without it", lambda: settled_without(world, 7))
    placed = next(one for one in fleet["status"]["conditions"] if one["type"] == "PlacementSatisfied")
    assert f"Quarantined: {odd}" in placed["message"]
    # The next release goes there again.
    await world.apply(ROLLOUT_POLICIES, "careful", {**SOAKING, "soak": {"min": "1s", "max": "1h", "minRequests": 10}})
    await release(world, "3")
    await world.until_ended(3, "Promoted", 60)
    assert versions(sites) == ["3"] * 8


async def settled_without(world: World, count: int) -> dict[str, Any] | None:
    fleet = await world.fleet()
    found = fleet.get("status", {}).get("sites", {})
    return fleet if found.get("desired") == found.get("updated") == count else None


async def test_a_hub_killed_again_and_again_comes_to_the_same_verdict(world: World, sites: FakeSites) -> None:
    await serving_fleet(world, sites)
    for site in sites.sites.values():
        assert site.traffic is not None
        site.traffic.failed["2"] = 0.03
    await release(world, "2")

    async def evidence_grows() -> bool:
        return any(float(gate["evidence"]) > 1.5 for gate in (await world.run(2)).get("status", {}).get("gates", ()))

    await world.until("evidence grows", evidence_grows, 60)
    for _ in range(2):
        world.kill_hub()
        world.start_hub()
        await asyncio.sleep(1)  # killed at any moment of its start
    run = await world.until_ended(2, "RolledBack", 90)
    assert run["status"]["reason"] == "ErrorRegression"
    assert versions(sites) == ["1"] * 8


async def test_a_policy_whose_gate_no_site_can_deliver_is_refused_with_both_names(world: World, sites: FakeSites) -> None:
    await serving_fleet(world, sites, count=1, errorRate="1%")
    await world.apply(ROLLOUT_POLICIES, "careful", {**SOAKING, "analysis": {"gates": [{"name": "latency", "maxIncrease": "25%"}]}})
    await release(world, "2", {"errorRate": "1%"})
    found = await world.until_condition(EDGE_FLEETS, "plants", "Stalled", "GateInputMissing")
    assert "RolloutPolicy careful" in found["message"]
    assert "EdgeModel weld" in found["message"]
    assert len(await world.api.list(MODEL_ROLLOUTS, world.team)) == 1
