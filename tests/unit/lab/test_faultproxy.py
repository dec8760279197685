"""The proxy in front of a tiny server over TLS: what passes, what is written down, and each thing that it breaks."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from edgefleet.kube.client import Api
from edgefleet.kube.errors import Conflict, Unavailable
from edgefleet.kube.resources import CONFIG_MAPS
from tests.lab import pki
from tests.lab.cluster import Cluster
from tests.lab.faultproxy import FaultProxy
from tests.lab.faults import Fault, FaultPlan, WatchFault, WriteFault
from tests.lab.history import History
from tests.lab.nursery import CALLER_HEADER

BODY: dict[str, Any] = {"metadata": {"name": "one", "namespace": "team"}, "data": {"key": "value"}}
WRITER = "hub/runs.py:1 create"


class Upstream:
    """Takes config maps, tells who wrote them, and sends `events` to whoever watches, one each time that `go` is set."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.headers: list[str] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch"):
            return await self._watch(request)
        assert request.transport is not None
        subject = dict(pair for part in request.transport.get_extra_info("peercert")["subject"] for pair in part)
        self.headers += list(request.headers)
        self.written.append(await request.json())
        meta = {"name": "one", "resourceVersion": str(40 + len(self.written)), "annotations": {"by": subject["commonName"]}}
        return web.json_response({"metadata": meta}, status=201)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(json.dumps(await self.events.get()).encode() + b"\n")

    def send(self, name: str, version: int) -> None:
        meta = {"namespace": "team", "name": name, "resourceVersion": str(version)}
        self.events.put_nowait({"type": "MODIFIED", "object": {"metadata": meta}})


class Stage:
    def __init__(self, upstream: Upstream, history: History, plan: FaultPlan, api: Api, killed: list[str]) -> None:
        self.upstream, self.history, self.plan, self.api, self.killed = upstream, history, plan, api, killed

    async def write(self) -> dict[str, Any]:
        return await self.api.create(CONFIG_MAPS, BODY)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[Callable[[], Any]]:
        """Yields what gives the next line of a watch: a name and version, or the code of an error."""
        lines = self.api.watch_lines(CONFIG_MAPS, "team", "0")

        async def step() -> Any:
            event = json.loads(await anext(lines))
            if event["type"] == "ERROR":
                return event["object"]["code"]
            return event["object"]["metadata"]["name"], int(event["object"]["metadata"]["resourceVersion"])

        try:
            yield step
        finally:
            await lines.aclose()  # type: ignore[attr-defined]


@asynccontextmanager
async def open_stage(folder: Path, *faults: Fault) -> AsyncIterator[Stage]:
    authority = pki.Authority.make(folder / "ca", "test")
    serving = authority.issue_server("upstream")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(serving.cert, serving.key)
    context.load_verify_locations(authority.pair.cert)
    context.verify_mode = ssl.CERT_REQUIRED
    upstream, history, plan, killed = Upstream(), History(), FaultPlan(*faults), []
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", upstream.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    client = authority.issue_client("edgefleet:hub")
    kubeconfig = pki.write_kubeconfig(folder / "kubeconfig", "test", url, authority.pair.cert.read_bytes(), client)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(runner.cleanup)
        proxy = await stack.enter_async_context(FaultProxy(history, plan, killed.append))
        through = await proxy.open_line("hub", "hub", Cluster("test", url, folder, kubeconfig, authority), kubeconfig)
        api = await stack.enter_async_context(Api.connect(through, user_agent="test", attempts=1))
        assert api._session is not None
        api._session.headers[CALLER_HEADER] = WRITER
        yield Stage(upstream, history, plan, api, killed)


def fault(what: Any, when: Any, code: int = 0, nth: int = 1) -> WriteFault:
    return WriteFault("hub", "hub", WRITER, nth, what, when, code)


async def test_a_write_passes_under_its_callers_identity_and_is_written_down(tmp_path: Path) -> None:
    async with open_stage(tmp_path) as stage:
        answer = await stage.write()
    assert answer["metadata"]["annotations"]["by"] == "edgefleet:hub"
    assert CALLER_HEADER not in stage.upstream.headers
    (entry,) = stage.history
    assert (entry.actor, entry.server, entry.caller, entry.code, entry.version) == ("hub", "hub", WRITER, 201, 41)
    assert (entry.method, entry.resource, entry.namespace) == ("POST", "configmaps", "team")
    assert entry.body["data"] == {"key": "value"}
    assert entry.accepted


@pytest.mark.parametrize(("when", "done"), [("before", 0), ("after", 1)])
async def test_a_wrong_answer_comes_instead_of_the_write_or_after_it(tmp_path: Path, when: str, done: int) -> None:
    async with open_stage(tmp_path, fault("answer", when, 409)) as stage:
        with pytest.raises(Conflict):
            await stage.write()
        assert len(stage.upstream.written) == done
        assert [entry.accepted for entry in stage.history] == [bool(done)]
        await stage.write()
    assert len(stage.upstream.written) == done + 1
    assert stage.plan.unmet == []


@pytest.mark.parametrize(("when", "done"), [("before", 0), ("after", 1)])
async def test_a_caller_is_killed_at_the_write_that_was_named(tmp_path: Path, when: str, done: int) -> None:
    async with open_stage(tmp_path, fault("kill", when, nth=2)) as stage:
        await stage.write()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stage.write(), 0.3)  # the test itself is not killed
    assert stage.killed == ["hub"]
    assert len(stage.upstream.written) == 1 + done


async def test_a_hanging_write_is_done_and_never_answered(tmp_path: Path) -> None:
    async with open_stage(tmp_path, fault("hang", "after")) as stage:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stage.write(), 0.3)
    assert len(stage.upstream.written) == 1
    assert [entry.version for entry in stage.history] == [41]


def watch_fault(what: Any, nth: int = 2) -> WatchFault:
    return WatchFault("hub", "hub", "configmaps", nth, what)


async def test_watch_events_pass_and_are_written_down(tmp_path: Path) -> None:
    async with open_stage(tmp_path) as stage, stage.watching() as step:
        stage.upstream.send("one", 5)
        assert await step() == ("one", 5)
    assert [(entry.kind, entry.resource, entry.name, entry.version) for entry in stage.history] == [("event", "configmaps", "one", 5)]


async def test_a_watch_is_cut_or_expires(tmp_path: Path) -> None:
    async with open_stage(tmp_path / "cut", watch_fault("cut")) as stage, stage.watching() as step:
        stage.upstream.send("one", 5)
        stage.upstream.send("one", 6)
        assert await step() == ("one", 5)
        with pytest.raises((StopAsyncIteration, Unavailable)):
            await step()
    async with open_stage(tmp_path / "expire", watch_fault("expire")) as stage, stage.watching() as step:
        stage.upstream.send("one", 5)
        stage.upstream.send("one", 6)
        assert [await step(), await step()] == [("one", 5), 410]


async def test_events_are_merged_or_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.lab.faultproxy.SILENT_SECONDS", 0.2)
    async with open_stage(tmp_path / "merge", watch_fault("merge", 1)) as stage, stage.watching() as step:
        for name, version in (("one", 5), ("two", 6), ("one", 7)):
            stage.upstream.send(name, version)
        assert [await step(), await step()] == [("two", 6), ("one", 7)]
        stage.upstream.send("one", 8)
        assert await step() == ("one", 8)
    async with open_stage(tmp_path / "swallow", watch_fault("swallow")) as stage, stage.watching() as step:
        for version in (5, 6, 7):
            stage.upstream.send("one", version)
        assert [await step(), await step()] == [("one", 5), 410]


async def test_a_half_open_line_says_nothing_until_it_is_opened_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.lab.faultproxy.SILENT_SECONDS", 0.5)
    async with open_stage(tmp_path, watch_fault("silent", 1)) as stage:
        async with stage.watching() as step:
            stage.upstream.send("one", 5)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(step(), 0.2)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stage.write(), 0.1)
        assert stage.upstream.written == []
        await asyncio.sleep(0.5)  # what is half-open stays so for this long
        await stage.write()
        async with stage.watching() as step:
            stage.upstream.send("one", 6)
            assert await step() == ("one", 6)
