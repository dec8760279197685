"""What a hub process answers over HTTP, before it may work and when it does."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Gauge

from edgefleet.hub.leadership import Leadership
from edgefleet.hub.probes import Probes
from tests.lab.processes import free_ports

nothing: Any = None


@pytest.fixture
async def served() -> AsyncIterator[tuple[Probes, str]]:
    probes = Probes(Leadership(nothing, "edgefleet-system", "a"))
    (port,) = free_ports(1)
    task = asyncio.create_task(probes.serve("127.0.0.1", port))
    yield probes, f"http://127.0.0.1:{port}"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def ask(url: str) -> tuple[int, str, str]:
    async with asyncio.timeout(5), aiohttp.ClientSession() as client:
        while True:
            try:
                async with client.get(url) as answer:
                    return answer.status, await answer.text(), answer.headers["Content-Type"]
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.01)


async def test_a_hub_that_waits_is_alive_and_not_ready(served: tuple[Probes, str]) -> None:
    probes, url = served
    probes.waits_for = "the Secret edgefleet-system/hub-key"
    assert (await ask(f"{url}/healthz"))[0] == 200
    assert (await ask(f"{url}/readyz"))[:2] == (503, "waiting for the Secret edgefleet-system/hub-key\n")


async def test_a_standby_is_ready_and_says_nothing_of_others(served: tuple[Probes, str]) -> None:
    probes, url = served
    probes.waits_for = ""
    assert (await ask(f"{url}/readyz"))[:2] == (200, "stands by, nobody leads\n")
    status, page, kind = await ask(f"{url}/metrics")
    assert (status, kind.split("=")[0]) == (200, "text/plain; version")
    samples = [line for line in page.splitlines() if not line.startswith("#")]
    assert samples == ["edgefleet_leader 0.0"]


async def test_the_metrics_of_a_hub_at_work_are_shown(served: tuple[Probes, str]) -> None:
    probes, url = served
    probes.work = CollectorRegistry()
    Gauge("edgefleet_sites", "EdgeSites.", registry=probes.work).set(3)
    assert "edgefleet_sites 3.0" in (await ask(f"{url}/metrics"))[1]
