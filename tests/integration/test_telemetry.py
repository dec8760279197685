"""What sites tell of live traffic, on a real Envoy: first before a server of the test, with a clock that is turned by hand; then the whole
agent on real API servers and MLServer. What a client saw is counted by the client."""

import asyncio
import http.client
import itertools
import os
import signal
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from edgefleet.api.model import ConfidenceSlo, LatencySlo, Slo
from edgefleet.api.report import MAX_BACKLOG_BYTES, MAX_HEALTH_BYTES, HealthCounts, HealthReport, health_annotation
from edgefleet.core.health import read_stream
from edgefleet.site.gateway import Gateway
from edgefleet.site.gateway_config import REVISION_HEADER, Endpoint, Target, gateway_folder
from edgefleet.site.gateway_process import GatewayProcess
from edgefleet.site.state import StateFile
from edgefleet.site.telemetry.events import Edges, Events
from edgefleet.site.telemetry.ledger import decode, encode
from edgefleet.site.telemetry.meter import Meter
from tests.integration.site_rig import FLEET, Cable, Rig, count_writes, open_rig, wait_until
from tests.lab.cluster import Lab
from tests.lab.processes import free_ports, stop_processes
from tests.lab.registry import Registry
from tests.lab.server import ModelServer

A, B = "a" * 64, "b" * 64
START = 1_790_000_100.0
SLOW_SECONDS = 0.4
_names = itertools.count(1)


class Clock:
    """Turned by hand."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@dataclass
class Place:
    """A gateway and a meter, with what a client has seen of them by revision: answers by status, 0 for none."""

    folder: Path
    gateway: Gateway
    state: StateFile
    clock: Clock
    meter: Meter
    seen: dict[str, Counter[int]] = field(default_factory=dict)

    @property
    def active(self) -> str:
        return self.state.fleet(FLEET).active or ""

    async def serve(self, revision: str, *, le: str = "200ms") -> None:
        """Switch, as the agent does."""
        slo = Slo(latency=LatencySlo(le=le, share="99%"))
        since = datetime.fromtimestamp(self.clock(), UTC)
        self.state.change_fleet(FLEET, active=revision, active_since=since, model="weld", served_sequence=1, slo=slo)
        await self.gateway.switch("weld", revision)
        await self.meter.look()

    async def ask(self, count: int = 1, query: str = "") -> None:
        """So many requests, one after the other, each on a connection of its own."""
        for _ in range(count):
            await asyncio.to_thread(self._ask, query)

    def _ask(self, query: str) -> None:
        revision, status = self.active, 0
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.address.port, timeout=10)
        try:
            connection.request("POST", f"/v2/models/weld/infer?{query}", b"{}")
            answer = connection.getresponse()
            revision = answer.headers.get(REVISION_HEADER, revision)
            answer.read()
            status = answer.status
        except (OSError, http.client.HTTPException):
            status = 0
        finally:
            connection.close()
        self.seen.setdefault(revision, Counter())[status] += 1

    async def leave(self, server: "Server") -> None:
        """A client that does not wait for its answer."""
        arrived = server.arrived
        with socket.create_connection(("127.0.0.1", self.gateway.address.port)) as client:
            client.sendall(b"GET /v2/models/weld/infer?seconds=30 HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(10):
                while server.arrived == arrived:
                    await asyncio.sleep(0.01)
        self.seen.setdefault(self.active, Counter())[0] += 1

    async def counted(self, *, slow: int) -> HealthReport:
        """The report, as soon as it says of all revisions what their clients saw, and so many slow answers of the one that serves."""
        last: Any = None
        try:
            async with asyncio.timeout(10):
                while True:
                    await self.meter.look()
                    text = self.meter.reports(skew=0)[health_annotation(FLEET)]
                    assert len(text) <= MAX_HEALTH_BYTES
                    report = HealthReport.model_validate_json(text)
                    seen = self.seen.get(self.active, Counter())
                    last = read_stream(report).total
                    if last == HealthCounts(seen.total(), failures(seen), slow):
                        return report
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"told {last}, seen {self.seen}, slow {slow}") from None


def failures(seen: Counter[int]) -> int:
    return sum(count for status, count in seen.items() if status == 0 or status >= 500)


@dataclass
class Server:
    """A model server that answers as the query says; `arrived` counts what it was asked."""

    arrived: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.arrived += 1
        query, transport = request.query, request.transport
        assert transport is not None
        await asyncio.sleep(float(query.get("seconds", 0)))
        if "drop" in query:
            transport.abort()
        if "broken" in query:
            answer = web.StreamResponse(headers={"Content-Length": "1000"})
            await answer.prepare(request)
            await answer.write(b"x" * 10)
            transport.abort()
            return answer
        return web.Response(status=int(query.get("code", 200)), text="{}")


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def place(tmp_path: Path, server: Server) -> AsyncIterator[Place]:
    """Nothing is routed yet."""
    behind, port = free_ports(2)
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", behind).start()
    folder = tmp_path / "gateway"
    state, clock = StateFile.open(tmp_path / "state.json", site="plant-7"), Clock()
    async with Gateway(folder, address=Endpoint("127.0.0.1", port), server=Endpoint("127.0.0.1", behind)) as gateway:
        await gateway.start()
        async with Meter(tmp_path / "telemetry", state=state, gateway=gateway, metrics_url=None, clock=clock) as meter:
            gateway.before_removal = meter.settle
            yield Place(tmp_path, gateway, state, clock, meter)
        await GatewayProcess(folder).stop()
    await runner.cleanup()


async def test_every_outcome_is_counted_once_as_the_client_saw_it(place: Place, server: Server) -> None:
    await place.serve(A)
    await place.counted(slow=0)
    for query in ("", "code=404", "code=500", "drop=1", "broken=1"):
        await place.ask(3, query)
        # A look in between, as it would be: what happens in one span must not explain away what happened in another.
        await place.counted(slow=0)
    await place.leave(server)
    await place.counted(slow=1)
    await place.ask(3, "code=503")
    report = await place.counted(slow=1)
    assert place.seen[A] == {200: 3, 404: 3, 500: 3, 503: 6, 0: 4}
    assert read_stream(report).total == HealthCounts(19, 13, 1)


async def test_what_the_agent_asks_itself_is_not_counted(place: Place) -> None:
    await place.serve(A)
    for _ in range(3):
        await place.gateway.switch("weld", A)
        await place.gateway.start()
    async with asyncio.timeout(5):
        await place.meter.look()
    await place.ask(1)
    await place.counted(slow=0)


async def test_slow_is_exact_at_edges_that_nobody_knew_when_envoy_started(place: Place) -> None:
    process = GatewayProcess(place.gateway.folder)
    life = process.find_life()
    await place.serve(A, le="200ms")
    await place.ask(20)
    await place.ask(5, f"seconds={SLOW_SECONDS}")
    report = await place.counted(slow=5)
    assert (report.le_ms, report.before) == (200, None)

    # Another SLO, another edge, and the same process: the past is counted at the new edge as well.
    place.clock.now += 1000
    await place.serve(B, le="370ms")
    await place.ask(3, "seconds=0.34")
    await place.ask(2, f"seconds={SLOW_SECONDS}")
    report = await place.counted(slow=2)
    assert report.le_ms == 370
    assert report.before is not None
    assert tuple(report.before)[:3] == (25, 0, 5)
    place.clock.now += 1000
    await place.serve("c" * 64, le="1234ms")
    await place.ask(1, f"seconds={SLOW_SECONDS}")
    report = await place.counted(slow=0)
    assert report.le_ms == 1300
    assert process.find_life() == life


async def test_switching_under_load_counts_each_request_under_the_revision_that_answered(place: Place) -> None:
    await place.serve(A)
    going = True

    async def load() -> None:
        while going:
            await place.ask()

    clients = [asyncio.create_task(load()) for _ in range(2)]
    for number in range(20):
        place.clock.now += 10
        await place.ask(3)
        await place.serve(B if number % 2 == 0 else A)
    going = False
    await asyncio.gather(*clients)
    await place.meter.look()
    found = place.meter.find(FLEET)
    assert found is not None
    told: Counter[str] = Counter()
    for activation in found[0].activations:
        told[activation.revision] += activation.total.requests
    assert dict(told) == {revision: seen.total() for revision, seen in place.seen.items()}
    assert failures(place.seen[A] + place.seen[B]) == 0
    assert min(told.values()) > 20


async def test_a_revision_that_is_taken_away_keeps_its_last_slow_answer(place: Place) -> None:
    await place.serve(A)
    await place.ask(3, f"seconds={SLOW_SECONDS}")
    place.clock.now += 10
    await place.serve(B)
    # Its counters go now, and the histogram that Envoy shows may be a second old.
    await place.gateway.drain(Target("weld", A).served_name)
    found = place.meter.find(FLEET)
    assert found is not None
    assert found[0].activations[0].total.measure(Edges(200)) == HealthCounts(3, 0, 3)


async def test_a_gateway_that_is_killed_is_another_epoch_and_what_was_checkpointed_stays(place: Place) -> None:
    await place.serve(A)
    await place.ask(20)
    await place.counted(slow=0)
    place.clock.now += 300
    await place.ask(5)
    await place.counted(slow=0)
    pid = GatewayProcess(place.gateway.folder).find()
    assert pid is not None
    keeping = asyncio.create_task(place.gateway.run())
    os.kill(pid, signal.SIGKILL)
    await wait_until(lambda: back(place, pid), lambda: "the gateway does not come back")
    await place.ask(7)
    report = await place.counted(slow=0)
    assert len(report.epochs) == 2
    assert read_stream(report).total.requests == 32
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)

    # And the agent: another meter reads the file and the counters, and says the same.
    async with Meter(place.folder / "telemetry", state=place.state, gateway=place.gateway, metrics_url=None, clock=place.clock) as again:
        place.meter = again
        report = await place.counted(slow=0)
        assert len(report.epochs) == 2


async def back(place: Place, old: int) -> bool:
    """Whether another Envoy has taken the routes."""
    if GatewayProcess(place.gateway.folder).find() in (None, old):
        return False
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{place.gateway.address.url}/edgefleet/routes") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


# ---- the whole agent


@pytest.fixture
async def rig(kinds: Lab, registry: Registry, model_server: ModelServer, tmp_path: Path) -> AsyncIterator[Rig]:
    """A site of its own for each test; its agent is not started yet."""
    async with open_rig(tmp_path, kinds, registry, model_server, f"meter-{next(_names)}") as running:
        running.slo = Slo(latency=LatencySlo(le="200ms", share="95%"), confidence=ConfidenceSlo(ge="0.5", share="90%"), error_rate="1%")
        yield running


async def ask(rig: Rig, count: int, x: int = 1) -> list[int]:
    """So many requests for x; their statuses."""
    return [(await asyncio.to_thread(rig.ask, x))[0] for _ in range(count)]


async def told(rig: Rig, counts: HealthCounts, *, revision: str) -> HealthReport:
    """The report in the Lease, as soon as it says this of a revision."""
    last: HealthReport | None = None

    async def said() -> bool:
        nonlocal last
        last, _ = await rig.health()
        return last is not None and last.revision == revision and read_stream(last).total == counts

    await wait_until(said, lambda: f"{counts}; the last word was {last and read_stream(last).total}: {last}\n{rig.log()}")
    assert last is not None
    return last


TROUBLED = {"slow": [2], "slow_seconds": 0.3, "fail": [3], "sure": {"4": 0.45}}
"""Slow for 2, failing for 3, unsure of 4: good enough for the golden set."""


def page(port: int) -> dict[str, float]:
    """The agent's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


async def test_what_clients_saw_is_in_the_lease_and_survives_the_agent(rig: Rig) -> None:
    rig.push_golden()
    first, second = rig.push("1.0", 1, **TROUBLED), rig.push("1.1", 2)
    (port,) = free_ports(1)
    rig.start_agent(renew="1s", metrics_port=port)
    await rig.assign(first)
    assert (await rig.wait_for("Active")).golden_score == "95.0%"
    report = await told(rig, HealthCounts(), revision=first.hash)
    assert (report.sequence, report.before, report.le_ms) == (1, None, 200)
    assert abs(report.skew) < 5
    # The golden set is not traffic; the agent has seen it by now, as its first look was at the switch.
    await ask(rig, 20, 1)
    await ask(rig, 4, 2)
    assert await ask(rig, 3, 3) == [500] * 3
    await ask(rig, 5, 4)
    report = await told(rig, HealthCounts(32, 3, 4, 29, 5), revision=first.hash)
    assert report.ge == "0.5"

    # Killed, and asked while it is away: nothing is lost, as the gateway counts on.
    rig.kill_agent()
    await ask(rig, 10, 1)
    rig.start_agent(renew="1s", metrics_port=port)
    report = await told(rig, HealthCounts(42, 3, 4, 39, 5), revision=first.hash)
    assert len(report.epochs) == 1

    # The gateway killed: another epoch.
    pid = GatewayProcess(gateway_folder(rig.state)).find()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    async def serves_again() -> bool:
        return first.hash[:8] in await asyncio.to_thread(rig.serving)

    await wait_until(serves_again, rig.log)
    await told_at_least(rig, 43, revision=first.hash)
    report, size = await rig.health()
    assert report is not None
    assert len(report.epochs) == 2
    assert size <= MAX_HEALTH_BYTES

    total = read_stream(report).total
    await rig.assign(second)
    await rig.wait_for("Active")
    # The first look at a revision takes what its server predicted until then for the golden set.
    await told(rig, HealthCounts(), revision=second.hash)
    await ask(rig, 2)
    report = await told(rig, HealthCounts(2, 0, 0, 2, 0), revision=second.hash)
    assert report.before is not None
    assert tuple(report.before)[:5] == tuple(total)
    shown = page(port)
    fleet = f'fleet="{FLEET}"'
    assert shown[f'edgefleet_agent_requests_total{{{fleet},role="current"}}'] == 2
    assert shown[f'edgefleet_agent_assignment_state{{{fleet},reason="Serving",state="Active"}}'] == 1
    assert shown["edgefleet_agent_gateway_restarts_total"] == 1
    assert shown["edgefleet_agent_store_bytes"] > 0
    assert shown["edgefleet_agent_hub_last_contact_timestamp_seconds"] > datetime.now(UTC).timestamp() - 60


async def told_at_least(rig: Rig, requests: int, *, revision: str) -> None:
    """Wait until the Lease tells of so many requests."""

    async def said() -> bool:
        report, _ = await rig.health()
        return report is not None and report.revision == revision and read_stream(report).total.requests >= requests

    await wait_until(said, rig.log)


async def test_bad_answers_of_a_young_revision_do_not_wait_for_the_renewal(rig: Rig) -> None:
    revision = rig.push("1.0", 1, **TROUBLED)
    rig.start_agent(renew="40s")
    await rig.assign(revision)
    await rig.wait_for("Active")
    await told(rig, HealthCounts(), revision=revision.hash)
    async with count_writes(rig) as writes:
        held, began = writes.leases, time.monotonic()
        await ask(rig, 3, 3)
        await told(rig, HealthCounts(3, 3, 0, 0, 0), revision=revision.hash)
        assert time.monotonic() - began < 30, "it waited for the renewal"
        assert writes.leases - held <= 2


async def test_after_a_cut_the_backlog_comes_and_the_hub_sees_when_it_happened(rig: Rig) -> None:
    revision = rig.push("1.0", 1)
    rig.cable = Cable(rig.lab.hub.url)
    await rig.cable.mend()
    rig.start_agent(renew="1s")
    await rig.assign(revision)
    await rig.wait_for("Active")
    await told(rig, HealthCounts(), revision=revision.hash)
    await ask(rig, 5)
    await told(rig, HealthCounts(5, 0, 0, 5, 0), revision=revision.hash)
    await rig.cable.cut()
    assert rig.agent is not None
    stop_processes([rig.agent])
    # Two days pass: as an agent that was cut off for so long would have written them.
    ledger = decode((rig.state / "telemetry").read_bytes())
    history = ledger.fleets[FLEET]
    activation = history.latest
    assert activation is not None
    (epoch,) = activation.epochs
    now = max(epoch.marks)
    history.told = now - 576
    epoch.marks = {mark: Events(60, 1, {5: 59}) for mark in range(now - 576, now)} | epoch.marks
    history.thin(now)
    (rig.state / "telemetry").write_bytes(encode(ledger))
    rig.start_agent(renew="1s")
    await rig.cable.mend()
    await told_at_least(rig, 5 + 576 * 60, revision=revision.hash)
    report, size = await rig.health()
    assert report is not None
    assert MAX_HEALTH_BYTES < size <= MAX_BACKLOG_BYTES
    marks = [record[0] for record in report.epochs[0].records]
    assert len(marks) >= 288 + 24
    assert marks == sorted(marks)

    # It stays at the next renewals, for a hub that starts again meanwhile.
    async with count_writes(rig) as writes:
        await wait_until(writes.lease_at_least(3), rig.log)
    assert (await rig.health())[1] > MAX_HEALTH_BYTES


async def test_a_site_that_is_cut_off_takes_a_worse_revision_back_and_says_so_later(rig: Rig) -> None:
    good, bad = rig.push("1.0", 1), rig.push("1.1", 2, **TROUBLED)
    rig.cable = Cable(rig.lab.hub.url)
    await rig.cable.mend()
    rig.start_agent(renew="1s")
    await rig.assign(good)
    await rig.wait_for("Active")
    await told(rig, HealthCounts(), revision=good.hash)
    await ask(rig, 50)
    await told(rig, HealthCounts(50, 0, 0, 50, 0), revision=good.hash)
    await rig.assign(bad)
    await rig.wait_for("Active")
    await told(rig, HealthCounts(), revision=bad.hash)

    # While the hub is heard, it decides.
    assert await ask(rig, 40, 3) == [500] * 40
    await told(rig, HealthCounts(40, 40, 0, 0, 0), revision=bad.hash)
    assert bad.hash[:8] in rig.serving()
    requests = len(rig.registry.requests)
    await rig.cable.cut()

    async def serves_the_old() -> bool:
        return good.hash[:8] in await asyncio.to_thread(rig.serving)

    await wait_until(serves_the_old, rig.log)
    assert len(rig.registry.requests) == requests, "it needs no registry for what it has"

    # Neither a new agent nor the same order, seen again, tries it again.
    rig.kill_agent()
    rig.start_agent(renew="1s")
    await rig.cable.mend()
    status = await rig.wait_for("Failed", "ErrorRegression")
    assert (status.fault, status.sequence) == ("Revision", 2)
    assert "could not be reached" in status.message
    assert "evidence" in status.message
    assert status.active is not None
    assert status.active.revision == good.hash
    assert await ask(rig, 5) == [200] * 5
    await told_at_least(rig, 5, revision=good.hash)
    report, _ = await rig.health()
    assert report is not None
    assert (report.revision, report.sequence) == (good.hash, 1)
    assert await serves_the_old()
