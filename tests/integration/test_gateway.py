"""The gateway with a real Envoy in front of a server of the test: switching under load, and what clients cannot reach."""

import asyncio
import http.client
import os
import signal
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from edgefleet.site.gateway import Gateway, GatewayDown, read_status
from edgefleet.site.gateway_config import REVISION_HEADER, Endpoint, Target
from edgefleet.site.gateway_config import Upstream as Pod
from edgefleet.site.gateway_process import GatewayProcess
from tests.lab.processes import free_ports

A, B = "a" * 64, "b" * 64
SWITCHES = 300


@dataclass
class Upstream:
    """A model server that answers with the path that it was asked; a path in `held` is answered only when told."""

    endpoint: Endpoint
    seen: list[str] = field(default_factory=list)
    held: asyncio.Event | None = None


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """Listens on a free port."""
    (port,) = free_ports(1)
    found = Upstream(Endpoint("127.0.0.1", port))

    async def answer(request: web.Request) -> web.Response:
        found.seen.append(request.path)
        if found.held is not None and request.query.get("hold"):
            await found.held.wait()
        return web.json_response({"path": request.path})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield found
    await runner.cleanup()


@pytest.fixture
async def gateway(upstream: Upstream, tmp_path: Path) -> AsyncIterator[Gateway]:
    """Started; a folder whose path is longer than a Unix address may be."""
    (port,) = free_ports(1)
    folder = tmp_path / ("long" * 30) / "gateway"
    async with Gateway(folder, address=Endpoint("127.0.0.1", port), server=upstream.endpoint) as running:
        await running.start()
        yield running
        await GatewayProcess(folder).stop()


def url(gateway: Gateway, path: str) -> URL:
    return URL(f"{gateway.address.url}{path}", encoded=True)


async def ask(gateway: Gateway, path: str) -> tuple[int, str, str]:
    async with aiohttp.ClientSession() as session, session.get(url(gateway, path)) as answer:
        return answer.status, await answer.text(), answer.headers.get(REVISION_HEADER, "")


class Customer:
    """Asks without retries on one kept connection."""

    def __init__(self, gateway: Gateway) -> None:
        self._port = gateway.address.port
        self.ok = 0
        self.lost: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    async def leave(self) -> None:
        """Stop asking; the loop goes on meanwhile, so that the last answer comes."""
        self._stop.set()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        while not self._stop.is_set():
            try:
                connection.request("POST", "/v2/models/weld/infer", b"x" * 1000)
                answer = connection.getresponse()
                body = answer.read()
                if answer.status == 200:
                    self.ok += 1
                else:
                    self.lost.append(f"{answer.status} {body!r}")
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(repr(error))
                connection.close()
        connection.close()


@pytest.mark.timeout(120)
async def test_switching_under_load_loses_no_request(gateway: Gateway) -> None:
    await gateway.switch("weld", A)
    customers = [Customer(gateway) for _ in range(2)]
    now, other = A, B
    for _ in range(SWITCHES):
        await gateway.switch("weld", other)
        _, _, revision = await ask(gateway, "/v2/models/weld/ready")
        assert revision == other, "a request after the switch met the old revision"
        await gateway.drain(Target("weld", now).served_name)
        now, other = other, now
    for customer in customers:
        await customer.leave()
    assert [lost for customer in customers for lost in customer.lost] == []
    assert sum(customer.ok for customer in customers) > SWITCHES


async def test_clients_see_their_models_and_nothing_else(gateway: Gateway, upstream: Upstream) -> None:
    status, body, _ = await ask(gateway, "/v2/models/weld/ready")
    assert (status, "no such model" in body) == (404, True)
    await gateway.switch("weld", A)
    status, body, revision = await ask(gateway, "/v2/models/weld/versions/1/ready")
    assert (status, revision) == (200, A)
    assert "/v2/models/weld--aaaaaaaa/versions/1/ready" in body
    assert (await ask(gateway, "/v2/models/weld"))[0] == 200
    upstream.seen.clear()
    for path in ("/v2/models/welding/ready", "/v2/repository/index", "/v2/models/weld/../../repository/models/x/unload", "/", "//v2/x"):
        assert (await ask(gateway, path))[0] == 404, path
    assert (await ask(gateway, "/v2/models/weld/..%2f..%2frepository/index"))[0] == 400
    assert upstream.seen == []
    await gateway.switch("weld", None)
    assert (await ask(gateway, "/v2/models/weld/ready"))[0] == 404


async def test_a_revision_that_moves_is_asked_where_it_is_now(gateway: Gateway, upstream: Upstream) -> None:
    """Each request after the switch goes to the new place: to another pod, and, when there is none any more, to the one model server."""
    asked: list[int] = []

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        asked.append(request.transport.get_extra_info("sockname")[1])
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    pods = free_ports(2)
    for port in pods:
        await web.TCPSite(runner, "127.0.0.1", port).start()
    path = f"/v2/models/{Target('weld', A).served_name}"
    for _ in range(20):
        for port in pods:
            asked.clear()
            await gateway.switch("weld", A, Pod(Endpoint("127.0.0.1", port), path))
            await ask(gateway, "/v2/models/weld/ready")
            assert asked == [port]
        upstream.seen.clear()
        await gateway.switch("weld", A)
        await ask(gateway, "/v2/models/weld/ready")
        assert upstream.seen == [f"{path}/ready"]
    await runner.cleanup()


async def test_a_server_that_is_gone_is_a_503_in_json(tmp_path: Path) -> None:
    port, nobody = free_ports(2)
    async with Gateway(tmp_path, address=Endpoint("127.0.0.1", port), server=Endpoint("127.0.0.1", nobody)) as gateway:
        try:
            await gateway.start()
            await gateway.switch("weld", A)
            status, body, _ = await ask(gateway, "/v2/models/weld/ready")
            assert (status, body.startswith('{"error":')) == (503, True)
        finally:
            await GatewayProcess(tmp_path).stop()


async def test_draining_waits_for_the_last_answer(gateway: Gateway, upstream: Upstream) -> None:
    upstream.held = asyncio.Event()
    await gateway.switch("weld", A)
    slow = asyncio.create_task(ask(gateway, "/v2/models/weld/infer?hold=1"))
    async with asyncio.timeout(10):
        while not upstream.seen:
            await asyncio.sleep(0.01)
    await gateway.switch("weld", B)
    assert (await ask(gateway, "/v2/models/weld/ready"))[2] == B
    draining = asyncio.create_task(gateway.drain(Target("weld", A).served_name))
    done, _ = await asyncio.wait({draining}, timeout=0.3)
    assert not done
    upstream.held.set()
    await asyncio.wait_for(draining, 10)
    assert (await slow)[0] == 200
    with pytest.raises(ValueError, match="routed to"):
        await gateway.drain(Target("weld", B).served_name)


async def test_it_outlives_its_agent_and_is_found_again(gateway: Gateway, upstream: Upstream) -> None:
    await gateway.switch("weld", A)
    folder = gateway.folder
    pid = read_status(folder)["pid"]
    assert os.getsid(pid) == pid, "not in a session of its own"
    async with Gateway(folder, address=gateway.address, server=upstream.endpoint) as second:
        await second.start()
        assert second.table == {"weld": Target("weld", A)}
        assert read_status(folder) == {"pid": pid, "lives": 0, "address": gateway.address.url, "models": {"weld": A}}
    async with Gateway(folder, address=Endpoint("127.0.0.1", 1), server=upstream.endpoint) as other:
        with pytest.raises(GatewayDown, match="gateway stop"):
            await other.start()
    assert read_status(folder)["pid"] == pid


async def test_a_killed_envoy_is_started_again_with_its_routes(gateway: Gateway) -> None:
    await gateway.switch("weld", A)
    pid = read_status(gateway.folder)["pid"]
    keeping = asyncio.create_task(gateway.run())
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while True:
            try:
                if (await ask(gateway, "/v2/models/weld/ready"))[2] == A:
                    break
            except aiohttp.ClientError:
                await asyncio.sleep(0.02)
    assert read_status(gateway.folder)["pid"] not in (None, pid)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_a_pid_that_belongs_to_another_is_never_taken_for_envoy(tmp_path: Path) -> None:
    (tmp_path / "envoy.pid").write_text(f'{{"pid": {os.getpid()}, "started": 1}}')
    process = GatewayProcess(tmp_path)
    assert process.find() is None
    assert await process.stop() is False


async def test_an_envoy_that_cannot_start_says_why(tmp_path: Path) -> None:
    (taken,) = free_ports(1)
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", taken)
    async with server, Gateway(tmp_path, address=Endpoint("127.0.0.1", taken), server=Endpoint("127.0.0.1", 1)) as gateway:
        with pytest.raises(GatewayDown, match=f"{taken}"):
            await gateway.start()
    assert GatewayProcess(tmp_path).find() is None
