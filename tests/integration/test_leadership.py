"""Of two real hub processes one works, whatever happens to it; what each wrote is read from the history of a proxy."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from edgefleet.hub.leadership import LEASE
from edgefleet.kube.client import Api
from edgefleet.kube.resources import NAMESPACES
from tests.integration.site_rig import Cable
from tests.integration.world import World
from tests.lab.cluster import Cluster, Lab
from tests.lab.faultproxy import FaultProxy
from tests.lab.faults import FaultPlan
from tests.lab.history import Entry, History, accepted_writes
from tests.lab.installed import hub_kubeconfig
from tests.lab.processes import free_ports
from tests.lab.registry import Registry

pytestmark = pytest.mark.timeout(120)


@dataclass
class OneHub:
    """A hub process, with a line of its own to the API server that can be cut."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    cable: Cable
    log: Path

    async def ask(self, path: str) -> tuple[int, str]:
        """What its probes answer; 0 while nobody does."""
        async with aiohttp.ClientSession(trust_env=False, timeout=aiohttp.ClientTimeout(total=2)) as session:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(f"http://127.0.0.1:{self.port}{path}") as answer:
                    return answer.status, await answer.text()
        return 0, ""


class TwoHubs:
    """Hubs `a` and `b` of one namespace. `a` is started first."""

    def __init__(self, world: World, proxy: FaultProxy, history: History, folder: Path) -> None:
        self.world, self._proxy, self.history, self._folder = world, proxy, history, folder
        self.hubs: dict[str, OneHub] = {}

    async def start(self, name: str) -> OneHub:
        """Start one; its line exists from here on."""
        config = await self._proxy.open_line(name, "hub", self.world.lab.hub, hub_kubeconfig(self.world.lab.hub))
        config = config.rename(self._folder / f"{name}.kubeconfig")
        url = next(line.split()[-1] for line in config.read_text().splitlines() if "server:" in line)
        cable = Cable(url)
        await cable.mend()
        (port,) = free_ports(1)
        words = ["--kubeconfig", cable.through(config), "--namespace", self.world.system, "--heartbeat", "1s"]
        words += ["--identity", name, "--metrics-port", port]
        log = self._folder / f"{name}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "edgefleet", "hub", *map(str, words)], stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
        self.hubs[name] = OneHub(name, process, port, cable, log)
        return self.hubs[name]

    async def stop(self) -> None:
        """End all."""
        for hub in self.hubs.values():
            hub.process.kill()
            hub.process.wait()
            await hub.cable.cut()

    def takings(self) -> list[Entry]:
        """The writes by which one took the lead."""
        return [one for one in self._writes() if one.name == LEASE and "acquireTime" in one.body.get("spec", {})] + [
            one for one in self._writes() if one.method == "POST" and one.resource == "leases" and one.body["metadata"]["name"] == LEASE
        ]

    async def until_led_by(self, name: str, limit: float = 30) -> Entry:
        """The taking by which `name` leads."""

        async def led() -> bool:
            return any(one.actor == name for one in self.takings())

        await self.until(led, f"{name} leads", limit)
        return next(one for one in self.takings() if one.actor == name)

    async def until(self, fact: Callable[[], object], what: str, limit: float = 30) -> None:
        """Wait for a fact; on failure show both logs."""
        deadline = time.monotonic() + limit
        while not await fact():  # type: ignore[misc]
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {hub.name}\n{hub.log.read_text()[-2000:]}" for hub in self.hubs.values())
                raise AssertionError(f"{what}: not within {limit:.0f} s\n{logs}")
            await asyncio.sleep(0.05)

    async def until_at_work(self, name: str) -> None:
        """Wait until it wrote something, and its metrics say that it leads."""

        async def works() -> bool:
            wrote = any(one.actor == name and one.resource == "rolloutpolicies" for one in self._writes())
            return wrote and "edgefleet_leader 1.0" in (await self.hubs[name].ask("/metrics"))[1]

        await self.until(works, f"{name} is at work")

    def require_one_at_work(self) -> int:
        """Every write was by the hub that led then, in the API server's own order; how many there were."""
        leader, seen = "", 0
        for one in accepted_writes(list(self._writes())):
            if one.resource == "leases" and LEASE in (one.name, one.body.get("metadata", {}).get("name")):
                leader = one.actor if one.method == "POST" or "acquireTime" in one.body["spec"] else leader
            else:
                seen += 1
                assert one.actor == leader, f"{one.actor} wrote {one.resource} {one.name} while {leader or 'nobody'} led"
        return seen

    def _writes(self) -> list[Entry]:
        return [one for one in self.history if one.accepted and one.actor in self.hubs]


@pytest.fixture
async def two(lab: Lab, hub_cluster: Cluster, registry: Registry, tmp_path: Path) -> AsyncIterator[TwoHubs]:
    history = History(tmp_path / "history.jsonl")
    async with (
        Api.connect(hub_cluster.kubeconfig, user_agent="person") as api,
        FaultProxy(history, FaultPlan(()), lambda _: None) as proxy,
    ):
        world = World(lab, api, registry, tmp_path)
        await world.set_up()
        both = TwoHubs(world, proxy, history, tmp_path)
        await both.start("a")
        await both.until_at_work("a")
        await both.start("b")

        async def stands_by() -> bool:
            return await both.hubs["b"].ask("/readyz") == (200, "stands by, a leads\n")

        await both.until(stands_by, "b stands by, and is ready")
        yield both
        await both.stop()
        world.close()
        history.close()
        for namespace in (world.team, world.system):
            await api.delete(NAMESPACES, namespace)


async def test_a_standby_is_ready_and_does_nothing(two: TwoHubs) -> None:
    beats = len([one for one in two.history if one.actor == "a" and one.resource == "rolloutpolicies"])

    async def three_more() -> bool:
        return len([one for one in two.history if one.actor == "a" and one.resource == "rolloutpolicies"]) >= beats + 3

    await two.until(three_more, "a works on")
    assert not [one for one in two.history if one.actor == "b" and one.is_write]
    assert await two.hubs["a"].ask("/readyz") == (200, "leads\n")
    assert (await two.hubs["b"].ask("/healthz"))[0] == 200
    assert "edgefleet_leader 0.0" in (await two.hubs["b"].ask("/metrics"))[1]


async def test_a_hub_that_is_told_to_stop_hands_over_at_once(two: TwoHubs) -> None:
    began = time.time()
    two.hubs["a"].process.terminate()
    taken = await two.until_led_by("b")
    print(f"handover after SIGTERM: {taken.at - began:.1f} s")
    assert two.hubs["a"].process.wait(10) == 0
    await two.until_at_work("b")
    two.require_one_at_work()
    assert taken.at - began < 5


async def test_a_hub_that_is_killed_is_followed_within_the_time_of_the_lease(two: TwoHubs) -> None:
    began = time.time()
    two.hubs["a"].process.kill()
    taken = await two.until_led_by("b")
    print(f"handover after SIGKILL: {taken.at - began:.1f} s")
    await two.until_at_work("b")
    two.require_one_at_work()
    assert taken.at - began <= 15


async def test_the_same_pods_next_hub_need_not_wait_for_its_own_lease(two: TwoHubs) -> None:
    two.hubs["a"].process.kill()
    two.hubs["a"].process.wait()
    await two.hubs["a"].cable.cut()
    before, began = len(two.takings()), time.time()
    await two.start("a")

    async def again() -> bool:
        return len(two.takings()) > before

    await two.until(again, "a leads again")
    assert [one.actor for one in two.takings()][-1] == "a" or {one.actor for one in two.takings()} == {"a"}
    assert time.time() - began < 10


async def test_a_hub_that_stood_still_writes_nothing_when_it_wakes_up(two: TwoHubs) -> None:
    asleep = two.hubs["a"].process
    asleep.send_signal(signal.SIGSTOP)
    await two.until_led_by("b")
    await two.until_at_work("b")
    asleep.send_signal(signal.SIGCONT)

    async def ended() -> bool:
        return asleep.poll() is not None

    await two.until(ended, "the sleeper ends")
    assert asleep.returncode == 1
    assert two.require_one_at_work() > 0


async def test_a_hub_that_cannot_renew_ends_before_the_other_works(two: TwoHubs) -> None:
    began, cut_off = time.time(), two.hubs["a"]
    await cut_off.cable.cut()

    async def ended() -> bool:
        return cut_off.process.poll() is not None

    await two.until(ended, "the one that is cut off ends", 15)
    assert cut_off.process.returncode == 1
    lasted = time.time() - began
    assert not [one for one in two.takings() if one.actor == "b"]
    taken = await two.until_led_by("b")
    print(f"cut off: ended after {lasted:.1f} s, followed after {taken.at - began:.1f} s")
    two.require_one_at_work()
