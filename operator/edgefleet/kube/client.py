"""A thin API client: get, list, create, apply, patch, delete. Who calls decides what an error means.

Answers 429 and 5xx, and broken connections, are tried again a few times with jitter; a write that may have happened twice is
safe, since all our writes are server-side applies, merge patches, or creates of named objects.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from edgefleet.kube.connection import Connection, load_connection
from edgefleet.kube.errors import ApiError, Throttled, Unavailable, error_from_status
from edgefleet.kube.resources import SERVICE_ACCOUNTS, Resource

REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)
WATCH_SILENCE_SECONDS = 90  # API servers send a bookmark about once a minute; silence beyond this is a dead connection
PAGE = 500
ATTEMPTS = 4


class Api:
    """One API server. Use it as an async context manager; it is safe for many tasks at once."""

    def __init__(self, connection: Connection, *, user_agent: str, attempts: int = ATTEMPTS) -> None:
        self._connection = connection
        self._user_agent = user_agent
        self._attempts = attempts
        self._session: aiohttp.ClientSession | None = None
        self.clock_skew = 0.0
        """Our clock minus the server's, in seconds, by the Date header of its last answer."""

    @classmethod
    def connect(cls, kubeconfig: Path | None, *, user_agent: str, attempts: int = ATTEMPTS) -> Self:
        """A client for a kubeconfig, or for the pod's service account. `attempts` = 1 never retries."""
        return cls(load_connection(kubeconfig), user_agent=user_agent, attempts=attempts)

    @property
    def server(self) -> str:
        """The address, for messages."""
        return self._connection.server

    def authority(self) -> bytes:
        """Who vouches for that address: PEM, empty if the machine's own authorities do. Raises OSError."""
        return self._connection.authority()

    async def __aenter__(self) -> Self:
        self._session = self._make_session()
        return self

    async def switch(self, connection: Connection) -> None:
        """Go on with other credentials, or at another address. What is under way ends as Unavailable, watches too: an API server goes on
        to take a connection for whoever opened it."""
        old, self._connection = self._session, connection
        self._session = self._make_session()
        if old is not None:
            await old.close()

    def _make_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=self._connection.tls if self._connection.tls else False, limit=100)
        return aiohttp.ClientSession(
            connector=connector, headers={"User-Agent": self._user_agent}, trust_env=False, timeout=REQUEST_TIMEOUT
        )

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> dict[str, Any]:
        """One object. Raises NotFound."""
        return await self._call("GET", resource.path(namespace, name))

    async def get_raw(self, path: str) -> dict[str, Any]:
        """Any path that answers JSON, e.g. `/apis/edgefleet.io/v1alpha1`."""
        return await self._call("GET", path)

    async def get_bytes(self, path: str) -> bytes:
        """Any path, as it comes, e.g. `/metrics`."""
        return await self._call_raw("GET", path)

    async def fetch_trouble(self) -> str:
        """Why /readyz does not say ok now; empty if it does."""
        try:
            async with self._open("GET", "/readyz") as answer:
                return "" if answer.status == 200 else f"/readyz says {answer.status}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return str(error) or type(error).__name__

    async def list_pages(
        self, resource: Resource, namespace: str | None = None, *, labels: str | None = None, fields: str | None = None
    ) -> AsyncIterator[bytes]:
        """The collection as raw pages of at most 500 objects, so that a typed reader need not build dicts first."""
        params = {"limit": str(PAGE)}
        if labels:
            params["labelSelector"] = labels
        if fields:
            params["fieldSelector"] = fields
        while True:
            page = await self._call_raw("GET", resource.path(namespace), params=params)
            yield page
            meta = self._read(page).get("metadata") if b'"continue"' in page else None
            token = meta.get("continue") if isinstance(meta, dict) else None
            if not token:
                return
            params["continue"] = str(token)

    async def list(self, resource: Resource, namespace: str | None = None, *, labels: str | None = None) -> list[dict[str, Any]]:
        """The whole collection as dicts. For the hot path use watch.ListWatch."""
        items: list[dict[str, Any]] = []
        async for page in self.list_pages(resource, namespace, labels=labels):
            items += self._read(page).get("items") or []
        return items

    async def watch_lines(
        self,
        resource: Resource,
        namespace: str | None,
        resource_version: str,
        *,
        labels: str | None = None,
        fields: str | None = None,
        seconds: int = 290,
    ) -> AsyncIterator[bytes]:
        """Watch events as JSON lines, until the server ends the watch after `seconds`. Raises ApiError."""
        params = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(seconds),
        }
        if labels:
            params["labelSelector"] = labels
        if fields:
            params["fieldSelector"] = fields
        timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=WATCH_SILENCE_SECONDS)
        try:
            async with self._open("GET", resource.path(namespace), params=params, timeout=timeout, read_bufsize=1 << 21) as answer:
                if answer.status != 200:
                    raise error_from_status(answer.status, await _json(answer))
                async for line in answer.content:
                    if line.strip():
                        yield line
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise Unavailable(0, f"watch of {resource.plural} at {self.server} broke: {error or type(error).__name__}") from error

    async def create(self, resource: Resource, body: dict[str, Any]) -> dict[str, Any]:
        """Create. Raises Conflict when it exists."""
        return await self._call("POST", resource.path(body["metadata"].get("namespace")), body=_typed(resource, body))

    async def create_token(self, account: str, namespace: str, *, seconds: int) -> tuple[str, str]:
        """A token of a ServiceAccount, and until when it is good (RFC 3339). The server may choose another time."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": seconds}}
        status = (await self._call("POST", SERVICE_ACCOUNTS.path(namespace, account, "token"), body=body))["status"]
        return str(status["token"]), str(status["expirationTimestamp"])

    async def apply(self, resource: Resource, body: dict[str, Any], *, manager: str, subresource: str | None = None) -> dict[str, Any]:
        """Server-side apply: fields in `body` become `manager`'s; fields it owned before and left out go away.

        With `metadata.resourceVersion` in the body, it applies only to that state (Conflict otherwise).
        """
        meta = body["metadata"]
        return await self._call(
            "PATCH",
            resource.path(meta.get("namespace"), meta["name"], subresource),
            params={"fieldManager": manager, "force": "true"},
            body=_typed(resource, body),
            content_type="application/apply-patch+yaml",
        )

    async def patch(
        self, resource: Resource, name: str, namespace: str | None, body: dict[str, Any], *, subresource: str | None = None
    ) -> dict[str, Any]:
        """JSON merge patch."""
        return await self._call(
            "PATCH", resource.path(namespace, name, subresource), body=body, content_type="application/merge-patch+json"
        )

    async def delete(self, resource: Resource, name: str, namespace: str | None = None, *, uid: str | None = None) -> None:
        """Delete; it is fine if it is gone already."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}  # type: ignore[assignment]
        try:
            await self._call("DELETE", resource.path(namespace, name), body=body)
        except ApiError as error:
            if error.status != 404:
                raise

    def _open(self, method: str, path: str, **options: Any) -> Any:
        if self._session is None:
            raise RuntimeError("Api must be entered with `async with` first")
        headers = {**self._connection.headers(), **options.pop("headers", {})}
        # API servers do not redirect; one that did could send an agent's requests to any address inside its site.
        return self._session.request(method, self._connection.server + path, headers=headers, allow_redirects=False, **options)

    async def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        return self._read(await self._call_raw(method, path, **options))

    def _read(self, raw: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(raw)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            # A proxy's page, or an answer that was cut off.
            raise Unavailable(0, f"{self.server} does not answer with a JSON object: {raw[:60]!r}")
        return answer

    async def _call_raw(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type((Throttled, Unavailable)),
            stop=stop_after_attempt(self._attempts),
            wait=wait_random_exponential(multiplier=0.1, max=5),
            reraise=True,
        ):
            with attempt:
                return await self._once(method, path, params, data, content_type)
        raise AssertionError("unreachable: tenacity re-raises")

    async def _once(self, method: str, path: str, params: dict[str, str] | None, data: bytes | None, content_type: str) -> bytes:
        try:
            async with self._open(method, path, params=params, data=data, headers={"Content-Type": content_type}) as answer:
                self.clock_skew = _skew(answer.headers.get("Date"), self.clock_skew)
                if answer.status >= 300:
                    error = error_from_status(answer.status, await _json(answer), answer.headers.get("Retry-After"))
                    if error.retry_after:
                        await asyncio.sleep(min(error.retry_after, 5))
                    raise error
                raw: bytes = await answer.read()
                return raw
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(0, f"{self.server} does not answer: {error or type(error).__name__}") from error


def _skew(date: str | None, before: float) -> float:
    try:
        return time.time() - parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError):
        return before


def _typed(resource: Resource, body: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": resource.api_version, "kind": resource.kind, **body}


async def _json(answer: aiohttp.ClientResponse) -> Any:
    try:
        return await answer.json(content_type=None)
    except (ValueError, aiohttp.ClientError):
        return None
