"""What people see of a fleet: commands, Events and metrics of a real hub on a real API server. Its sites are fakes that fail on demand."""

import asyncio
import json
import socket
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgefleet.api.assignment import SiteAssignmentSpec
from edgefleet.cli.app import run
from edgefleet.kube.resources import EVENTS, ROLLOUT_POLICIES
from tests.integration.fakesites import FakeSites, activates
from tests.integration.test_judged import SOAKING, exposed, release, serving_fleet
from tests.integration.world import POLICY, World

pytestmark = pytest.mark.timeout(180)


def troubled(state: str, reason: str, message: str) -> Any:
    """A site that has trouble of its own with version 2."""

    def behave(spec: SiteAssignmentSpec) -> dict[str, Any]:
        told = {"state": state, "fault": "Site", "reason": reason, "message": message}
        return told if spec.version == "2" else activates(spec)

    return behave


async def say(world: World, *words: str, code: int | None = 0) -> str:
    """`edgefleet WORDS`, in this process: a command line takes a second to start, and there are many here. `code` None: any."""

    def type_in() -> tuple[int, str]:
        with redirect_stdout(StringIO()) as out, redirect_stderr(out):
            return run([*words, "-n", world.team, "--kubeconfig", str(world.lab.hub.kubeconfig)]), out.getvalue()

    got, said = await asyncio.to_thread(type_in)
    assert code in (None, got), said
    return said


async def events(world: World, about: str) -> list[dict[str, Any]]:
    """Those of the team, and of what is in no namespace."""
    found = [*await world.api.list(EVENTS, world.team), *await world.api.list(EVENTS, "default")]
    return [one for one in found if one["involvedObject"]["name"] == about]


async def test_commands_say_what_runs_where_and_why_it_differs(world: World, sites: FakeSites) -> None:
    names = await serving_fleet(world, sites)
    fine = (await say(world, "status")).splitlines()
    assert fine[1].split() == [f"{world.team}/plants", "ok", "1", "8/8", fine[1].split()[-1]]
    assert len(fine) == 2, "a fleet that is well takes one line"

    held = await world.add_site("held", hold={"until": "2099-01-01T00:00:00Z", "reason": "stocktaking"})
    await sites.add(held)
    mute = await world.add_site("mute")
    silent, blocked, refused = names[:3]
    sites[silent].silent = True
    sites[blocked].behaviour = troubled("Blocked", "DiskFull", "the store needs 120 MiB, 3 MiB are free")
    sites[refused].behaviour = troubled("Refused", "BundleExpired", "the trust bundle ended")
    await world.apply(ROLLOUT_POLICIES, "careful", {**SOAKING, "waves": [{"name": "all", "percent": 100}]})
    await release(world, "2")

    async def listed() -> dict[str, dict[str, Any]] | None:
        found = {one["site"]: one for one in json.loads(await say(world, "fleet", "sites", "plants", "-o", "json"))}
        states = Counter(one["state"] for one in found.values())
        there = states["UpToDate"] + states["Soaking"] >= 4 and states["Unreachable"] == 2
        return found if there and states["Blocked"] == states["Refused"] == 1 else None

    found = await world.until("the sites are where they will be", listed, 60)
    assert {name: found[name]["state"] for name in (held, mute, silent)} == {held: "OnHold", mute: "Unreachable", silent: "Unreachable"}
    assert (found[blocked]["state"], found[blocked]["runs"], found[blocked]["told"]) == ("Blocked", "1", "2")
    assert (found[refused]["state"], found[refused]["reason"]) == ("Refused", "BundleExpired")
    order = [one["state"] for one in found.values()]
    assert order.index("Blocked") < order.index("Unreachable") < order.index("OnHold") < len(order) - 1

    table = await say(world, "fleet", "sites", "plants")
    assert max(map(len, table.splitlines())) <= 80
    rows = table.partition("\nSITE")[2].splitlines()[1:]
    assert [line.split()[0] for line in rows if not line.startswith(" ")] == list(found)

    said = await say(world, "site", "why", blocked)
    assert f"{world.team}/plants: Blocked" in said
    assert "DiskFull: the store needs 120 MiB" in said
    assert "next it tries again by itself" in said
    assert "stocktaking" in await say(world, "site", "why", held)
    assert "start `edgefleet agent` there" in await say(world, "site", "why", mute)
    assert "it serves what it" in await say(world, "site", "why", silent)
    assert "does not exist" in await say(world, "fleet", "sites", "nowhere", code=1)
    assert "not found" in await say(world, "site", "why", "nowhere", code=1)


async def test_what_a_bad_release_leaves_behind_is_told_and_can_be_judged_again(
    world: World, sites: FakeSites, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await serving_fleet(world, sites)
    await world.apply(ROLLOUT_POLICIES, "careful", {**SOAKING, "soak": {**SOAKING["soak"], "min": "1h"}})  # type: ignore[dict-item]
    await release(world, "2")

    async def judged() -> dict[str, Any] | None:
        if not exposed(sites, "2"):
            return None
        found = json.loads(await say(world, "rollout", "explain", "plants-2", "-o", "json"))
        return found if all(gate["requests"] > 0 for gate in found["gates"]) else None

    now = await world.until("the canary's traffic is judged", judged, 60)
    assert now["source"] == "what sites report now"
    latency = next(gate for gate in now["gates"] if gate["name"] == "latency")
    assert (latency["verdict"], latency["bound"]) == ("Quiet", "40.0")
    assert latency["outlook"]["moreBad"] > 0
    # Nothing is told of a rate before a whole mark is over, and this run may have seen the end of one.
    assert latency["outlook"]["answersPerMinute"] is None or latency["outlook"]["minutesIfFourTimesAsBad"] < 7 * 24 * 60
    assert [one["site"] for one in latency["worstSites"]] == exposed(sites, "2")

    for site in sites.sites.values():
        assert site.traffic is not None
        site.traffic.slow["2"] = 0.5
    ended = await world.until_ended(2, "RolledBack", 60)
    said = await say(world, "rollout", "explain", "plants-2")
    assert "latency, absolute: Fail" in said
    assert f"worst    {exposed(sites, '2')[0]}:" in said
    assert "the stored record" in said

    async def stands() -> str | None:
        text = await say(world, "status", code=1)
        return text if "RolledBack" in text else None

    status = await world.until("the status says so", stands)
    assert f"next edgefleet rollout explain plants-2 -n {world.team}" in status
    assert max(map(len, status.splitlines())) <= 80

    record = tmp_path / "record.jsonl"
    await say(world, "rollout", "export", "plants-2", "-o", str(record))
    assert run(["judge", "replay", str(record), "-o", "json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["equal"], again["whole"]) == (True, True)
    assert again["gates"] == ended["status"]["gates"], "bit for bit what the run's status holds"
    record.write_text(record.read_text().replace('"verdict":"Fail"', '"verdict":"Quiet"'))
    assert run(["judge", "replay", str(record)]) == 1
    assert "VerdictDiffers: latency Absolute: verdict was Quiet, is Fail" in capsys.readouterr().err

    described = world.lab.hub.kubectl("describe", "edgefleet", "plants", "-n", world.team).partition("Events:")[2]
    told = [line.split()[1] for line in described.splitlines()[3:] if line.strip()]
    assert told.index("Planned") < told.index("Promoted") < told.index("LatencyRegression") < len(told)
    assert "plants-2: its sites go back: " in described
    assert "Verified" in world.lab.hub.kubectl("describe", "edgemodel", "weld", "-n", world.team)


async def test_a_hub_that_is_killed_tells_nothing_twice_and_nothing_too_little(world: World, sites: FakeSites) -> None:
    name = await world.add_site("s0")
    await sites.add(name)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    for version in ("1", "2", "3"):
        world.kill_hub()
        world.start_hub()
        world.push(version)
        await world.name_release(version)
        await world.until_ended(int(version), "Promoted", 60)
    world.kill_hub()
    sites[name].silent = True
    world.start_hub()

    async def lost() -> bool:
        return any(one["reason"] == "HeartbeatLost" for one in await events(world, name))

    await world.until("the site is lost", lost)
    found = [one for about in ("plants", "weld", name) for one in await events(world, about)]
    said = Counter((one["reason"], one["message"]) for one in found)
    assert [text for text, count in said.items() if count > 1] == []
    for number in (1, 2, 3):
        reasons = Counter(one["reason"] for one in found if one["message"].startswith(f"plants-{number}"))
        assert (reasons["Planned"], reasons["Promoted"]) == (1, 1)
        assert reasons["WaveOpened"] == reasons["WavePassed"] > 0
    assert {one["related"]["name"] for one in found if "related" in one} == {"plants-1", "plants-2", "plants-3"}
    assert all(one["involvedObject"]["uid"] for one in found)


async def test_a_hub_answers_prometheus_and_status_says_when_it_is_gone(world: World, sites: FakeSites) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world.kill_hub()
    world.start_hub("--metrics-port", str(port))
    await sites.add(await world.add_site("s0"))
    world.push("1")
    await world.name_release("1")
    await world.apply(ROLLOUT_POLICIES, "careful", {**POLICY, "soak": {"min": "1h", "max": "2h"}})
    await world.add_fleet()
    seen: dict[str, Any] = {}

    async def soaking() -> bool:
        with suppress(aiohttp.ClientConnectorError):  # not up yet
            async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{port}/metrics") as answer:
                families = text_string_to_metric_families(await answer.text())
                seen.update({(sample.name, *sorted(sample.labels.values())): sample.value for one in families for sample in one.samples})
        return ("edgefleet_rollout_info", *sorted(("Rolling", "Soaking", "plants", world.team))) in seen

    await world.until("the rollout soaks", soaking, 60)
    assert seen["edgefleet_fleet_sites", *sorted(("desired", "plants", world.team))] == 1
    assert seen["edgefleet_reconcile_duration_seconds_count", "EdgeFleet"] > 0
    assert seen["edgefleet_api_writes_total", "ModelRollout", "create"] == 1
    assert seen["edgefleet_watch_lists_total", "Lease"] == 1
    assert seen["edgefleet_heartbeat_age_seconds", "kopf"] < 30
    assert seen["edgefleet_events_total", "written"] > 0
    assert not any(world.site("s0") in part for key in seen for part in key)

    assert "Soaking" in await say(world, "status")
    world.kill_hub()

    async def gone() -> bool:
        said = await say(world, "status", "-o", "json", code=None)
        return any(
            one["kind"] == "Hub" and one["state"] == "HeartbeatLost" for one in json.loads(said.partition("\n}\n")[0] + "}")["needsPerson"]
        )

    await world.until("status says that no hub is there", gone)
