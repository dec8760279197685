"""A gateway that is a process of its own, as it is a pod in a cluster, on a real Envoy: `edgefleet gateway run`, `drain`, and what
an agent sees of it through the folder that both share."""

import asyncio
import http.client
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import aiohttp
import pytest
from aiohttp import web

from edgefleet.site.external_gateway import ExternalGateway
from edgefleet.site.gateway import GatewayDown
from edgefleet.site.gateway_config import REVISION_HEADER, Endpoint
from edgefleet.site.gateway_lives import list_lives
from edgefleet.site.state import StateFile
from edgefleet.site.telemetry.meter import Meter
from edgefleet.site.telemetry.stats import STATS_QUERY
from tests.lab.processes import Process, free_ports, start_process, stop_processes

A, B = "a" * 64, "b" * 64
FLEET = "vision/plants"
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(600)


@dataclass
class Pod:
    """What a kubelet does for a gateway pod: starts it, runs the hook before its end, ends it. Each has an address of its own."""

    state: Path
    port: int
    host: str = "127.0.0.1"
    runs: list[Process] = field(default_factory=list)

    def start(self) -> None:
        words = ["gateway", "run", "--state", self.state, "--host", self.host, "--port", self.port]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator")}
        name = f"gateway-{self.host}-{len(self.runs)}"
        command = [sys.executable, "-m", "edgefleet", *map(str, words)]
        self.runs.append(start_process(self.state.parent, name, command, env=environment))

    async def come_up(self) -> None:
        """Start it, and wait until clients may be sent to it."""
        self.start()
        await until(self.is_ready, f"{self.host} is ready")

    async def drain(self, seconds: float = 0.2) -> None:
        # In a pod there is one to see; here all are, and it is named by its process.
        words = ["gateway", "drain", "--state", self.state, "--seconds", seconds, "--limit", 40, "--pid", self.runs[-1].pid]
        command = [sys.executable, "-m", "edgefleet", *map(str, words)]
        done = await asyncio.to_thread(subprocess.run, command, timeout=120, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "no request is under way\n"), done.stdout + done.stderr

    async def stop(self, seconds: float = 0.2) -> None:
        await self.drain(seconds)
        await self.end()

    async def end(self, number: int = signal.SIGTERM) -> None:
        os.kill(self.runs[-1].pid, number)
        await asyncio.to_thread(stop_processes, self.runs[-1:])

    async def is_ready(self) -> bool:
        """The probe of the chart."""
        async with aiohttp.ClientSession(trust_env=False) as session:
            with suppress(aiohttp.ClientConnectorError):
                async with session.get(f"http://{self.host}:{self.port}/edgefleet/routes") as answer:
                    return answer.status == 200
        return False


@pytest.fixture
async def server() -> AsyncIterator[Endpoint]:
    """A model server that answers everything, slowly where it is asked to."""

    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(float(request.query.get("seconds", 0)))
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    (port,) = free_ports(1)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield Endpoint("127.0.0.1", port)
    await runner.cleanup()


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    one = Pod(tmp_path / ("long" * 30) / "state", free_ports(1)[0])
    yield one
    stop_processes(one.runs)


async def ask(pod: Pod, query: str = "") -> tuple[int, str]:
    """Status and revision of one request; 0 where nobody listens."""
    async with aiohttp.ClientSession(trust_env=False) as session:
        with suppress(aiohttp.ClientConnectorError):
            async with session.get(f"http://{pod.host}:{pod.port}/v2/models/weld/infer{query}") as answer:
                return answer.status, answer.headers.get(REVISION_HEADER, "")
    return 0, ""


async def until(fact: Callable[[], Awaitable[bool]], what: str, limit: float = 90) -> None:
    deadline = time.monotonic() + limit
    while not await fact():
        assert time.monotonic() < deadline, f"{what}: not within {limit:.0f} s"
        await asyncio.sleep(0.02)


async def test_it_answers_without_an_agent_and_routes_what_one_writes(pod: Pod, server: Endpoint) -> None:
    pod.start()

    async def up() -> bool:
        return (await ask(pod))[0] == 404

    await until(up, "a gateway that no agent knows answers that it has no model")
    async with ExternalGateway(pod.state / "gateway", server=server) as agent:
        await agent.start()
        await agent.switch("weld", A)
        assert await ask(pod) == (200, A)
        await agent.switch("weld", B)
        assert await ask(pod) == (200, B)
        await agent.drain(f"weld--{A[:8]}")


async def test_an_agent_that_comes_first_waits_for_no_gateway(pod: Pod, server: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgefleet.site.external_gateway.START_SECONDS", 0.2)
    monkeypatch.setattr("edgefleet.site.gateway.SWITCH_SECONDS", 0.2)
    async with ExternalGateway(pod.state / "gateway", server=server) as agent:
        await agent.start()
        with pytest.raises(GatewayDown):
            await agent.switch("weld", A)
        monkeypatch.setattr("edgefleet.site.gateway.SWITCH_SECONDS", 90)
        pod.start()
        await agent.switch("weld", A)
        assert await ask(pod) == (200, A)


async def test_each_life_of_its_counters_is_known_from_the_next(pod: Pod, server: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgefleet.site.external_gateway.RESTART_PAUSE_SECONDS", 0.05)
    await pod.come_up()
    async with ExternalGateway(pod.state / "gateway", server=server) as agent:
        await agent.start()
        await agent.switch("weld", A)
        watching = asyncio.create_task(agent.run())
        (first,) = await agent.fetch_stats(STATS_QUERY)
        assert list(await agent.fetch_stats(STATS_QUERY)) == [first]
        began = time.monotonic()
        await pod.stop()
        told = (await agent.fetch_stats(STATS_QUERY))[first]
        assert (told.ended, bool(told.stats)) == (True, True)
        agent.forget(first)
        with pytest.raises(GatewayDown):
            await agent.fetch_stats(STATS_QUERY)
        pod.start()

        async def serves() -> bool:
            return await ask(pod) == (200, A)

        await until(serves, "the next one routes what is on disk, by itself")
        print(f"drained, ended and started again in {time.monotonic() - began:.1f} s")
        (second,) = await agent.fetch_stats(STATS_QUERY)
        assert second != first
        assert not (pod.state / "gateway" / "lives" / first).exists()

        async def noticed() -> bool:
            return agent.restarts == 1

        await until(noticed, "the agent counts the restart")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_a_request_under_way_is_answered_before_it_ends(pod: Pod, server: Endpoint) -> None:
    await pod.come_up()
    async with ExternalGateway(pod.state / "gateway", server=server) as agent:
        await agent.start()
        await agent.switch("weld", A)
        slow = asyncio.create_task(ask(pod, "?seconds=15"))

        async def under_way() -> bool:
            looks = await agent.fetch_stats({"format": "json", "filter": "^cluster.weld.*upstream_rq_active$"})
            return any(entry.get("value") for look in looks.values() if look.stats for entry in look.stats["stats"])

        await until(under_way, "the request is under way")
        await pod.drain()
        assert slow.done()
        assert await slow == (200, A)


class FakeService:
    """Stands for a Service and kube-proxy: each connection goes to one of the ready pods, and stays there."""

    def __init__(self) -> None:
        self.ready: list[Pod] = []
        self.sent: Counter[str] = Counter()
        self._next = itertools.count()
        (self.port,) = free_ports(1)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pod = self.ready[next(self._next) % len(self.ready)]
        self.sent[pod.host] += 1
        there, back = await asyncio.open_connection(pod.host, pod.port)
        await asyncio.gather(_pump(reader, back), _pump(there, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@dataclass
class Customer:
    """Asks without retries: on one connection for as long as it is kept open, or on a new one each time. `pause` is between requests."""

    port: int
    keeps: bool
    pause: float = 0.0
    answers: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    connections: int = 0
    going: bool = True

    def run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while self.going:
            if connection is None or connection.sock is None:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
                self.connections += 1
            try:
                connection.request("POST", "/v2/models/weld/infer", b"x" * 1000)
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    self.answers[answer.headers[REVISION_HEADER]] += 1
                else:
                    self.lost.append(f"HTTP {answer.status}")
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(repr(error))
                connection.close()
            if not self.keeps:
                connection.close()
            time.sleep(self.pause)
        if connection is not None:
            connection.close()


@dataclass
class Site:
    """An agent's gateway, what it counts, and the pods that take each other's place behind a Service."""

    state: StateFile
    folder: Path
    port: int
    agent: ExternalGateway
    service: FakeService
    clock: list[float]
    pods: list[Pod] = field(default_factory=list)

    def meter(self) -> Meter:
        return Meter(self.folder / "telemetry", state=self.state, gateway=self.agent, metrics_url=None, clock=lambda: self.clock[0])

    async def serve(self, revision: str) -> None:
        self.clock[0] += 10
        since = datetime.fromtimestamp(self.clock[0], UTC)
        self.state.change_fleet(FLEET, active=revision, active_since=since, model="weld", served_sequence=1)
        await self.agent.switch("weld", revision)

    async def add_pod(self) -> None:
        """As a Deployment with maxSurge 1: the next pod, and clients come when it is ready."""
        pod = Pod(self.folder, self.port, f"127.0.0.{2 + len(self.pods)}")
        self.pods.append(pod)
        await pod.come_up()
        self.service.ready.append(pod)

    async def take_oldest(self) -> None:
        """Drained while clients still come for a while, as the word that a pod ends does not reach all at once; then TERM."""
        oldest = self.service.ready[0]
        ending = asyncio.create_task(oldest.stop(seconds=2))
        await asyncio.sleep(0.5)
        self.service.ready.remove(oldest)
        await ending


@pytest.fixture
async def site(tmp_path: Path, server: Endpoint) -> AsyncIterator[Site]:
    """Nothing runs yet."""
    folder = tmp_path / "state"
    folder.mkdir()
    state = StateFile.open(folder / "state.json", site="plant-7")
    (port,) = free_ports(1)
    async with FakeService() as service, ExternalGateway(folder / "gateway", server=server) as agent:
        one = Site(state, folder, port, agent, service, [1_790_000_100.0])
        yield one
        stop_processes([run for pod in one.pods for run in pod.runs])


def told(meter: Meter) -> dict[str, int]:
    """Requests by revision, as the meter knows them; none failed."""
    found = meter.find(FLEET)
    assert found is not None
    counts: Counter[str] = Counter()
    for activation in found[0].activations:
        assert activation.total.failed == 0
        counts[activation.revision] += activation.total.requests
    return dict(counts)


async def test_upgrades_lose_no_request_and_each_is_counted_once(site: Site) -> None:
    """Three upgrades and a switch in the middle of each, under a client that keeps its connection, one that keeps it and seldom asks,
    and one that opens a new one for each request."""
    await site.add_pod()
    await site.agent.start()
    async with site.meter() as meter:
        site.agent.before_removal = meter.settle
        await site.serve(A)
        await meter.look()
        customers = [Customer(site.service.port, keeps, pause) for keeps, pause in ((True, 0.01), (False, 0.01), (True, 0.3))]
        asking = [asyncio.create_task(asyncio.to_thread(one.run)) for one in customers]
        try:
            for revision, old in ((B, A), (A, B), (B, A)):
                await site.add_pod()
                await site.serve(revision)
                await meter.look()
                await site.take_oldest()
                await site.agent.drain(f"weld--{old[:8]}")
                await meter.look()
        finally:
            for one in customers:
                one.going = False
            await asyncio.gather(*asking)
        await site.agent.drain("weld--none")  # all answers have come
        await meter.settle()
        assert [lost for one in customers for lost in one.lost] == []
        seen = sum((one.answers for one in customers), Counter[str]())
        assert told(meter) == dict(seen)
        print(f"{seen.total()} requests in 3 upgrades, by revision {dict(seen)}, 0 lost; connections by pod {dict(site.service.sent)}")
        # Each pod had clients, and who keeps a connection was sent away from each but the last by its own answers.
        assert set(site.service.sent) == {pod.host for pod in site.pods}
        assert min(one.answers.total() for one in customers) > 10
        assert customers[0].connections >= 4
        assert len(list_lives(site.folder / "gateway")) == 1


async def test_an_upgrade_while_no_agent_runs_is_counted_when_one_comes(site: Site) -> None:
    await site.add_pod()
    await site.agent.start()
    async with site.meter() as meter:
        await site.serve(A)
        await meter.look()
    for _ in range(5):
        assert await ask(site.pods[0]) == (200, A)
    await site.add_pod()
    assert await ask(site.pods[1]) == (200, A)
    await site.take_oldest()
    await asyncio.sleep(1.1)  # Envoy shows times a second late
    async with site.meter() as meter:
        await meter.look()
        assert told(meter) == {A: 6}


async def test_one_that_is_killed_costs_what_nobody_had_read_and_no_more(site: Site) -> None:
    await site.add_pod()
    await site.agent.start()
    async with site.meter() as meter:
        await site.serve(A)
        for _ in range(5):
            await ask(site.pods[0])
        await meter.settle()
        await ask(site.pods[0])  # not read
        await site.pods[0].end(signal.SIGKILL)
        await site.add_pod()
        await site.agent.switch("weld", A)
        await ask(site.pods[1])
        await meter.settle()
        assert told(meter) == {A: 6}
        assert len(list_lives(site.folder / "gateway")) == 1


async def test_a_switch_is_done_when_all_that_live_have_taken_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgefleet.site.gateway.SWITCH_SECONDS", 1.0)
    await site.add_pod()
    await site.agent.start()
    await site.add_pod()
    stuck = site.pods[1].runs[-1].pid
    os.kill(stuck, signal.SIGSTOP)
    try:
        with pytest.raises(GatewayDown, match="does not take"):
            await site.agent.switch("weld", A)
    finally:
        os.kill(stuck, signal.SIGCONT)
    monkeypatch.setattr("edgefleet.site.gateway.SWITCH_SECONDS", 30.0)
    await site.agent.switch("weld", A)
    assert [await ask(pod) for pod in site.pods] == [(200, A), (200, A)]
