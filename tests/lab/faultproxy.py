"""A proxy between processes and their API servers: ends TLS with a certificate of the cluster's own CA, goes on with the caller's client
certificate, writes everything down (history.py) and does to it what a plan of faults says (faults.py).

Each process has an address of its own for each server, so who asks needs no guessing. The API servers are real; nothing is answered
here but faults.
"""

import asyncio
import json
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web

from edgefleet.kube.connection import load_connection
from tests.lab.cluster import Cluster
from tests.lab.faults import SILENT_SECONDS, FaultPlan, WatchFault, WriteFault
from tests.lab.history import WRITES, Entry, History, Where, parse_path
from tests.lab.nursery import CALLER_HEADER

_PASSED_ON = ("Content-Type", "Accept", "User-Agent", "Authorization")
_PASSED_BACK = ("Content-Type", "Retry-After", "Warning")
_EXPIRED = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old (fault)"}
_REASONS = {409: "Conflict", 429: "TooManyRequests", 500: "InternalError"}


@dataclass
class _Line:
    """One actor's way to one server."""

    actor: str
    server: str
    url: str
    session: aiohttp.ClientSession
    runner: web.ServerRunner
    silent: bool = False
    streams: set["_Stream"] = field(default_factory=set)


class FaultProxy:
    """`kill(actor)` ends that actor's process at once. Use it as an async context manager."""

    def __init__(self, history: History, plan: FaultPlan, kill: Callable[[str], None]) -> None:
        self._history = history
        self._plan = plan
        self._kill = kill
        self._lines: list[_Line] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(line.runner.cleanup() for line in self._lines))
        for line in self._lines:
            await line.session.close()

    async def open_line(self, actor: str, server: str, cluster: Cluster, kubeconfig: Path) -> Path:
        """A copy of `kubeconfig` with which `actor` reaches `cluster` through here; `server` is its name in the history."""
        tls = load_connection(kubeconfig).tls
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls or False, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            trust_env=False,
            auto_decompress=False,
            read_bufsize=1 << 21,
        )
        line: _Line

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            return await self._handle(line, request)

        runner = web.ServerRunner(web.Server(handle, handler_cancellation=True), shutdown_timeout=0.1)
        line = _Line(actor, server, cluster.url, session, runner)
        self._lines.append(line)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=_serving(cluster))
        await site.start()
        port = runner.addresses[0][1]
        copy = kubeconfig.with_name(f"proxied-{kubeconfig.name}")
        copy.write_text(kubeconfig.read_text().replace(cluster.url, f"https://127.0.0.1:{port}"))
        copy.chmod(0o600)
        return copy

    async def _handle(self, line: _Line, request: web.BaseRequest) -> web.StreamResponse:
        where = parse_path(request.path)
        data = await request.read()
        if line.silent:
            await _never()
        if "watch=1" in request.query_string or request.query.get("watch") == "true":
            return await self._watch(line, request, where)
        if request.method not in WRITES:
            # A read that is cut short by its caller's end is cut short there too.
            return await self._forward(line, request, data)
        caller = request.headers.get(CALLER_HEADER, "")
        fault = self._plan.at_write(line.actor, line.server, caller)
        said = {**_naming(line, where), "method": request.method, "path": request.path_qs, "caller": caller, "body": _decode(data)}
        if fault is not None and fault.when == "before":
            self._history.add("request", line.actor, text=f"fault: {fault}", **said)
            return await self._strike(line, fault)
        # What has been sent is done, and must be written down, whether or not its caller lives to hear of it.
        answer = await asyncio.shield(asyncio.create_task(self._write(line, request, data, said, fault)))
        if fault is not None:
            return await self._strike(line, fault)
        return answer

    async def _write(
        self, line: _Line, request: web.BaseRequest, data: bytes, said: dict[str, Any], fault: WriteFault | None
    ) -> web.Response:
        answer = await self._forward(line, request, data)
        body = _decode(answer.body if isinstance(answer.body, bytes) else b"")
        version = str((body.get("metadata") or {}).get("resourceVersion") or "0")
        text = f"fault: {fault}" if fault else "" if answer.status < 300 else str(body.get("message", ""))[:300]
        self._history.add("request", line.actor, code=answer.status, version=int(version) if version.isdigit() else 0, text=text, **said)
        return answer

    async def _forward(self, line: _Line, request: web.BaseRequest, data: bytes) -> web.Response:
        try:
            async with line.session.request(
                request.method, line.url + request.path_qs, data=data or None, headers=_headers(request), allow_redirects=False
            ) as answer:
                body = await answer.read()
                kept = {name: answer.headers[name] for name in _PASSED_BACK if name in answer.headers}
                return web.Response(status=answer.status, body=body, headers=kept)
        except aiohttp.ClientError as error:
            return web.Response(status=502, text=str(error))

    async def _strike(self, line: _Line, fault: WriteFault) -> web.Response:
        match fault.what:
            case "kill":
                self._kill(line.actor)
                await _never()
            case "hang":
                await _never()
            case "answer":
                pass
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": fault.code, "reason": _REASONS.get(fault.code, "")}
        return web.json_response({**status, "message": f"{fault.code} made up by the fault proxy"}, status=fault.code)

    async def _watch(self, line: _Line, request: web.BaseRequest, where: Where) -> web.StreamResponse:
        url = line.url + request.path_qs
        async with line.session.get(url, headers=_headers(request), allow_redirects=False) as answer:
            if answer.status != 200:
                return web.Response(status=answer.status, body=await answer.read(), content_type="application/json")
            stream = _Stream(line, request)
            line.streams.add(stream)
            try:
                await stream.open()
                async for raw in answer.content:
                    if raw.strip() and not await self._pass_event(line, stream, where, raw):
                        break
                await stream.end()
            except (ConnectionError, aiohttp.ClientError):
                pass  # one of the two ends is gone
            finally:
                line.streams.discard(stream)
                stream.drop()
            return stream.response

    async def _pass_event(self, line: _Line, stream: "_Stream", where: Where, raw: bytes) -> bool:
        """Whether the stream goes on."""
        event = json.loads(raw)
        if event["type"] == "BOOKMARK" or event["type"] == "ERROR":
            await stream.send(raw)
            return True
        meta = event["object"].get("metadata") or {}
        fault = self._plan.at_event(line.actor, line.server, where.resource)
        self._note_event(line, where, event["type"], meta, f"fault: {fault}" if fault else "")
        if fault is None:
            await stream.send(raw, key=(meta.get("namespace"), meta.get("name")))
            return True
        return await self._break_watch(line, stream, fault, raw, (meta.get("namespace"), meta.get("name")))

    async def _break_watch(self, line: _Line, stream: "_Stream", fault: WatchFault, raw: bytes, key: Any) -> bool:
        match fault.what:
            case "cut":
                return False
            case "expire":
                await stream.expire()
                return False
            case "merge":
                stream.hold()
                await stream.send(raw, key=key)
            case "swallow":
                stream.hold(losing=True)
            case "silent":
                line.silent = True
                for one in line.streams:
                    one.silent = True
                asyncio.get_running_loop().call_later(SILENT_SECONDS, setattr, line, "silent", False)
        return True

    def _note_event(self, line: _Line, where: Where, kind: str, meta: dict[str, Any], text: str) -> Entry:
        version = str(meta.get("resourceVersion") or "0")
        return self._history.add(
            "event",
            line.actor,
            server=line.server,
            method=kind,
            resource=where.resource,
            namespace=meta.get("namespace") or "",
            name=meta.get("name") or "",
            version=int(version) if version.isdigit() else 0,
            text=text,
        )


class _Stream:
    """A watch as its client sees it."""

    def __init__(self, line: _Line, request: web.BaseRequest) -> None:
        self._request = request
        self._held: dict[Any, bytes] | None = None
        self._losing = False
        self._timer: asyncio.Task[None] | None = None
        self.silent = False
        self.response = web.StreamResponse(headers={"Content-Type": "application/json"})

    async def open(self) -> None:
        self.response.enable_chunked_encoding()
        await self.response.prepare(self._request)

    async def send(self, raw: bytes, key: Any = None) -> None:
        if self.silent or self._losing:
            return
        if self._held is not None and key is not None:
            # The newest of each object, in the order of the newest.
            self._held.pop(key, None)
            self._held[key] = raw
        else:
            await self.response.write(raw)

    def hold(self, *, losing: bool = False) -> None:
        """Keep events back, or lose them, for a while."""
        self._held, self._losing = {}, losing
        self._timer = asyncio.create_task(self._let_go())

    async def _let_go(self) -> None:
        await asyncio.sleep(SILENT_SECONDS)
        held, self._held = self._held or {}, None
        with suppress(ConnectionError):
            if self._losing:
                self._losing = False
                await self.expire()
                self.silent = True
                if self._request.transport is not None:
                    self._request.transport.close()
            for raw in held.values():
                await self.send(raw)

    async def expire(self) -> None:
        await self.response.write(json.dumps({"type": "ERROR", "object": _EXPIRED}).encode() + b"\n")

    async def end(self) -> None:
        if self.silent:
            await _never()
        await self.response.write_eof()

    def drop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


async def _never() -> None:
    """Until the client goes away: its handler is cancelled then."""
    await asyncio.Event().wait()


def _naming(line: _Line, where: Where) -> dict[str, str]:
    return {
        "server": line.server,
        "resource": where.resource,
        "subresource": where.subresource,
        "namespace": where.namespace,
        "name": where.name,
    }


def _headers(request: web.BaseRequest) -> dict[str, str]:
    return {**{name: request.headers[name] for name in _PASSED_ON if name in request.headers}, "Accept-Encoding": "identity"}


def _decode(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data) if data else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _serving(cluster: Cluster) -> ssl.SSLContext:
    if cluster.authority is None:
        raise ValueError(f"{cluster.name}: the proxy needs the cluster's own CA, which an existing cluster does not give")
    pair = cluster.authority.issue_server("faultproxy")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    return context
