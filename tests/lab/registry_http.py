"""The HTTP of the registry: routes of the distribution API, answered from Registry.content and spoilt by Registry.fault."""

import json
import re
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.lab.registry_content import OCI_INDEX, Refused
from tests.lab.registry_fault import Answer, Fault, Request, Served
from tests.lab.registry_tokens import PULL, PUSH, TokenAuth

if TYPE_CHECKING:
    from tests.lab.registry import Registry

_T = TypeVar("_T")
_CHUNK = 256 * 1024
_NAME = "[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
_ROUTE = re.compile(f"/v2/(?P<name>{_NAME})/(?P<kind>blobs/uploads|blobs|manifests|referrers|tags)(?:/(?P<rest>.*))?")


class RegistryServer(ThreadingHTTPServer):
    """Listens on 127.0.0.1; knows its open connections, so that stopping ends their threads too."""

    daemon_threads = False  # server_close() joins only such threads
    request_queue_size = 128

    def __init__(self, registry: "Registry", port: int) -> None:
        self.registry = registry
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """Ends every connection; its thread ends with it."""
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            self.registry.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: RegistryServer

    def log_message(self, *_: object) -> None:
        """Silent: the request log is `Registry.requests`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        registry = self.server.registry
        body = self._read_body()
        headers = {name.lower(): value for name, value in self.headers.items()}
        hook = registry.fault
        fault = (hook(Request(self.command, self.path, headers)) if hook else None) or Fault()
        own = Answer(fault.status, fault.headers, fault.body or b"") if fault.status is not None else None
        self._send(own or self._answer(body), fault)

    def _answer(self, body: bytes) -> Answer:
        try:
            return self._route(body)
        except Refused as refused:
            text = {"errors": [{"code": refused.code, "message": str(refused)}]}
            return Answer(refused.status, {"Content-Type": "application/json"}, json.dumps(text).encode())

    def _route(self, body: bytes) -> Answer:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        registry = self.server.registry
        if url.path == "/token" and registry.auth:
            return self._login(registry.auth, query)
        match = _ROUTE.fullmatch(url.path)
        if url.path not in ("/v2", "/v2/") and match is None:
            raise Refused(404, "NAME_INVALID", f"{url.path} names no repository")
        name = match["name"] if match else None
        action = PULL if self.command in ("GET", "HEAD") else PUSH
        if registry.auth and not registry.auth.allows(self.headers.get("Authorization", ""), name, action):
            return self._challenge(name, action)
        if match is None or name is None:
            return Answer(200, {"Content-Type": "application/json"}, b"{}")
        rest = match["rest"] or ""
        match match["kind"]:
            case "blobs/uploads":
                return self._upload(name, rest, query, body)
            case "blobs":
                return self._blob(name, rest)
            case "manifests":
                return self._manifest(name, rest, body)
            case "referrers" if registry.referrers:
                return self._referrers(name, rest, query)
            case "tags" if rest == "list":
                tags, more = self._page(registry.content.list_tags(name), query, str)
                return Answer(200, {"Content-Type": "application/json", **more}, _json({"name": name, "tags": tags}))
        raise Refused(404, "UNSUPPORTED", f"{self.command} {url.path} is not known here")

    def _blob(self, name: str, digest: str) -> Answer:
        self._allow("GET", "HEAD")
        data = self.server.registry.content.find_blob(name, digest)
        headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest}
        wanted = self.headers.get("Range")
        if not self.server.registry.ranges or wanted is None:
            return Answer(200, headers, data)
        headers["Accept-Ranges"] = "bytes"
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted)
        if found is None or found[0] == "bytes=-":
            return Answer(200, headers, data)
        size = len(data)
        start = int(found[1]) if found[1] else max(0, size - int(found[2]))
        end = min(int(found[2]), size - 1) if found[1] and found[2] else size - 1
        if start >= size or start > end:
            return Answer(416, {**headers, "Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        return Answer(206, headers, memoryview(data)[start : end + 1])

    def _upload(self, name: str, session: str, query: dict[str, list[str]], body: bytes) -> Answer:
        content = self.server.registry.content
        digest = query.get("digest", [""])[0]
        if self.command == "POST" and not session:
            if "mount" in query and content.mount(name, query.get("from", [""])[0], query["mount"][0]):
                return self._created(name, "blobs", query["mount"][0])
            session = content.begin_upload(name)
            if not digest:
                return self._uploading(202, name, session, 0)
        else:
            self._allow("PATCH", "PUT", "GET")
        span = re.match(r"(\d+)-", self.headers.get("Content-Range", ""))
        size = content.append_upload(name, session, body, int(span[1]) if span else None)
        if self.command in ("PATCH", "GET"):
            return self._uploading(202 if self.command == "PATCH" else 204, name, session, size)
        content.finish_upload(name, session, digest)
        return self._created(name, "blobs", digest)

    def _manifest(self, name: str, reference: str, body: bytes) -> Answer:
        self._allow("GET", "HEAD", "PUT", "DELETE")
        registry = self.server.registry
        if self.command == "DELETE":
            registry.content.delete_manifest(name, reference)
            return Answer(202)
        if self.command == "PUT":
            kind = self.headers.get("Content-Type", "")
            manifest = registry.content.store_manifest(name, reference, body, kind)
            subject = manifest.parsed.get("subject")
            extra = {"OCI-Subject": subject["digest"]} if subject and registry.referrers else {}
            return self._created(name, "manifests", manifest.digest, extra)
        manifest = registry.content.find_manifest(name, reference)
        headers = {"Content-Type": manifest.media_type, "Docker-Content-Digest": manifest.digest}
        return Answer(200, headers, manifest.data)

    def _referrers(self, name: str, digest: str, query: dict[str, list[str]]) -> Answer:
        self._allow("GET")
        kind = query.get("artifactType", [""])[0]
        found = self.server.registry.content.list_referrers(name, digest, kind or None)
        listed, headers = self._page(found, query, lambda descriptor: str(descriptor["digest"]))
        headers |= {"Content-Type": OCI_INDEX, **({"OCI-Filters-Applied": "artifactType"} if kind else {})}
        return Answer(200, headers, _json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}))

    def _page(self, found: list[_T], query: dict[str, list[str]], key: Callable[[_T], str]) -> tuple[list[_T], dict[str, str]]:
        last = query.get("last", [""])[0]
        keys = [key(entry) for entry in found]
        rest = found[keys.index(last) + 1 :] if last in keys else found
        size = min(int(query.get("n", [self.server.registry.page])[0]), self.server.registry.page)
        if len(rest) <= size:
            return rest, {}
        following = urlencode({**{name: values[0] for name, values in query.items()}, "last": key(rest[size - 1])})
        return rest[:size], {"Link": f'<{urlsplit(self.path).path}?{following}>; rel="next"'}

    def _login(self, auth: TokenAuth, query: dict[str, list[str]]) -> Answer:
        scopes = [scope for given in query.get("scope", []) for scope in given.split(" ")]
        token = auth.issue(self.headers.get("Authorization", ""), scopes)
        if token is None:
            raise Refused(401, "UNAUTHORIZED", "user name or password is wrong")
        return Answer(200, {"Content-Type": "application/json"}, _json({"token": token, "expires_in": int(auth.lifetime)}))

    def _challenge(self, name: str | None, action: str) -> Answer:
        actions = PULL if action == PULL else f"{PULL},{PUSH}"
        scope = f',scope="repository:{name}:{actions}"' if name else ""
        registry = self.server.registry
        # Under the name by which it was asked: through a proxy that is another than its own address.
        base = f"{registry.url.partition('://')[0]}://{self.headers.get('Host', registry.host)}"
        realm = f'Bearer realm="{base}/token",service="lab"{scope}'
        body = _json({"errors": [{"code": "UNAUTHORIZED", "message": f"a token for {action} is needed"}]})
        return Answer(401, {"WWW-Authenticate": realm, "Content-Type": "application/json"}, body)

    def _created(self, name: str, kind: str, digest: str, extra: Mapping[str, str] | None = None) -> Answer:
        headers = {"Location": f"/v2/{name}/{kind}/{digest}", "Docker-Content-Digest": digest}
        return Answer(201, {**headers, **(extra or {})})

    def _uploading(self, status: int, name: str, session: str, size: int) -> Answer:
        place = f"/v2/{name}/blobs/uploads/{session}"
        return Answer(status, {"Location": place, "Range": f"0-{max(0, size - 1)}", "Docker-Upload-UUID": session})

    def _allow(self, *methods: str) -> None:
        if self.command not in methods:
            raise Refused(405, "UNSUPPORTED", f"{self.command} is not allowed here")

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            continue  # trailers
        return bytes(body)

    def _send(self, answer: Answer, fault: Fault) -> None:
        registry = self.server.registry
        served = Served(self.command, self.path, 0 if fault.close else answer.status)
        registry.requests.append(served)
        if fault.stall and not fault.stall_after:
            self._wait(fault.stall)
        if fault.close or fault.raw is not None:
            self.close_connection = True
            for piece in fault.raw() if fault.raw else ():
                self._write(memoryview(piece), served)
                if self.server.registry.stopping.wait(fault.pause):
                    return
            return
        body = memoryview(answer.body)
        if fault.status is None and (fault.body is not None or fault.extra or fault.corrupt):
            spoilt = bytearray(body if fault.body is None else fault.body) + fault.extra
            if fault.corrupt and spoilt:
                spoilt[len(spoilt) // 2] ^= 1
            body = memoryview(bytes(spoilt))
        self.send_response(answer.status)
        for name, value in {**answer.headers, **fault.headers}.items():
            self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault.cut_after is not None and fault.cut_after < len(body):
            body = body[: fault.cut_after]
            self.close_connection = True
        split = fault.stall_after if fault.stall else 0
        self._write(body[:split], served)
        if split:
            self._wait(fault.stall)
        self._write(body[split:], served)

    def _write(self, body: memoryview, served: Served) -> None:
        for start in range(0, len(body), _CHUNK):
            part = body[start : start + _CHUNK]
            served.sent += len(part)  # before the write: who has read the last byte finds it counted
            self.wfile.write(part)

    def _wait(self, seconds: float) -> None:
        """Waits, but not longer than the registry runs."""
        self.server.registry.stopping.wait(seconds)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
