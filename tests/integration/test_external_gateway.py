"""A gateway that is a process of its own, as it is a pod in a cluster, on a real Envoy: `edgefleet gateway run`, `drain`, and what
an agent sees of it through the folder that both share."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from edgefleet.site.external_gateway import ExternalGateway
from edgefleet.site.gateway import GatewayDown
from edgefleet.site.gateway_config import REVISION_HEADER, Endpoint
from edgefleet.site.telemetry.meter import STATS_QUERY
from tests.lab.processes import Process, free_ports, start_process, stop_processes

A, B = "a" * 64, "b" * 64
ROOT = Path(__file__).parents[2]


@dataclass
class Pod:
    """What a kubelet does for the gateway: starts it, runs the hook before its end, ends it."""

    state: Path
    port: int
    runs: list[Process] = field(default_factory=list)

    def start(self) -> None:
        command = [sys.executable, "-m", "edgefleet", "gateway", "run", "--state", self.state, "--port", self.port]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator")}
        self.runs.append(start_process(self.state.parent, f"gateway-{len(self.runs)}", [*map(str, command)], env=environment))

    async def drain(self) -> None:
        command = [sys.executable, "-m", "edgefleet", "gateway", "drain", "--state", str(self.state), "--seconds", "0.2", "--limit", "40"]
        done = await asyncio.to_thread(subprocess.run, command, timeout=30, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "no request is under way\n"), done.stdout + done.stderr

    async def stop(self) -> None:
        await self.drain()
        await asyncio.to_thread(stop_processes, self.runs[-1:])


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
            async with session.get(f"http://127.0.0.1:{pod.port}/v2/models/weld/infer{query}") as answer:
                return answer.status, answer.headers.get(REVISION_HEADER, "")
    return 0, ""


async def until(fact: Callable[[], Awaitable[bool]], what: str, limit: float = 30) -> None:
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
        monkeypatch.setattr("edgefleet.site.gateway.SWITCH_SECONDS", 30)
        pod.start()
        await agent.switch("weld", A)
        assert await ask(pod) == (200, A)


async def test_each_life_of_its_counters_is_known_from_the_next(pod: Pod, server: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgefleet.site.external_gateway.RESTART_PAUSE_SECONDS", 0.05)
    pod.start()
    async with ExternalGateway(pod.state / "gateway", server=server) as agent:
        await agent.start()
        await agent.switch("weld", A)
        watching = asyncio.create_task(agent.run())
        first, _ = await agent.fetch_stats(STATS_QUERY)
        assert (await agent.fetch_stats(STATS_QUERY))[0] == first
        began = time.monotonic()
        await pod.stop()
        with pytest.raises(GatewayDown):
            await agent.fetch_stats(STATS_QUERY)
        pod.start()

        async def serves() -> bool:
            return await ask(pod) == (200, A)

        await until(serves, "the next one routes what is on disk, by itself")
        print(f"drained, ended and started again in {time.monotonic() - began:.1f} s")
        second, _ = await agent.fetch_stats(STATS_QUERY)
        assert second != first

        async def noticed() -> bool:
            return agent.restarts == 1

        await until(noticed, "the agent counts the restart")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_a_request_under_way_is_answered_before_it_ends(pod: Pod, server: Endpoint) -> None:
    pod.start()
    async with ExternalGateway(pod.state / "gateway", server=server) as agent:
        await agent.start()
        await agent.switch("weld", A)
        slow = asyncio.create_task(ask(pod, "?seconds=15"))

        async def under_way() -> bool:
            _, stats = await agent.fetch_stats({"format": "json", "filter": "^cluster.weld.*upstream_rq_active$"})
            return any(entry.get("value") for entry in stats["stats"])

        await until(under_way, "the request is under way")
        await pod.drain()
        assert slow.done()
        assert await slow == (200, A)
