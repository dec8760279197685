"""Requests to a registry: over oras, which neither times out nor retries, refreshes tokens or bounds answers as we need.

`RegistryClient` is synchronous and may be shared by threads; asyncio callers use `asyncio.to_thread`. It checks digests of
manifests and bounds everything that it reads into memory. Large blobs are left to fetch.py, writing to push.py.
"""

import base64
import hashlib
import io
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import oras.provider
import requests
import tenacity

from edgefleet.api.quantities import DIGEST_PATTERN
from edgefleet.oci import media
from edgefleet.oci.answers import describe_cause, error_for, join_address, read_token, require_allowed, without_query
from edgefleet.oci.body import Watchdog, read_whole
from edgefleet.oci.errors import (
    DigestMismatch,
    NotFound,
    RateLimited,
    RegistryRefused,
    SizeMismatch,
    Stalled,
    Unauthorised,
    Unreachable,
)
from edgefleet.oci.reference import Reference, Repository

MAX_MANIFEST_BYTES = 4 << 20
MAX_TOKEN_BYTES = 64 << 10
MAX_REDIRECTS = 5
MAX_WAIT_SECONDS = 60.0

PULL = "pull"
PUSH = "pull,push"

Body = bytes | Path | None


@dataclass(frozen=True)
class Credentials:
    """A user of one registry."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Patience:
    """How long a client waits, in seconds, and how often it tries.

    `attempts` counts the first try. Waits between tries are drawn evenly from 0 to a bound that doubles from `backoff` up to
    `max_backoff`; a Retry-After is obeyed up to one minute, beyond that the error goes to the caller at once.
    """

    connect: float = 5.0
    read: float = 20.0
    attempts: int = 4
    backoff: float = 0.25
    max_backoff: float = 8.0
    watchdog: Watchdog = field(default_factory=Watchdog)
    sleep: Callable[[float], None] = time.sleep

    def draw_wait(self, attempt: int) -> float:
        """Seconds to wait after failed attempt number `attempt` (from 1), if the registry said nothing."""
        return random.uniform(0, min(self.max_backoff, self.backoff * 2 ** (attempt - 1)))  # noqa: S311 (spreads load)


class RegistryClient:
    """Reads from and writes to registries. `credentials` are by registry (`host` or `host:port`); `ca` is a PEM file."""

    def __init__(
        self,
        *,
        credentials: Mapping[str, Credentials] | None = None,
        ca: Path | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.patience = patience or Patience()
        self._provider = _Provider(credentials or {}, ca, self.patience)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._provider.session.close()

    def resolve(self, reference: Reference) -> str:
        """The digest that a tag names now; a reference by digest is answered without asking. Raises RegistryError."""
        if reference.digest:
            return reference.digest
        url = f"{reference.repository.url}/manifests/{reference.tag}"
        with closing(self.request("HEAD", reference.repository, url, headers=_ACCEPT)) as response:
            digest = str(response.headers.get("Docker-Content-Digest", ""))
        if re.fullmatch(DIGEST_PATTERN.strip("^$"), digest):
            return digest
        with closing(self.request("GET", reference.repository, url, headers=_ACCEPT)) as response:
            data = read_whole(response, str(reference), MAX_MANIFEST_BYTES, self.patience.watchdog)
        return digest_of(data)

    def fetch_manifest(self, repository: Repository, digest: str) -> bytes:
        """The manifest or index with this digest: checked, at most 4 MiB. Raises RegistryError."""
        what = f"{repository}@{digest}"
        with closing(self.request("GET", repository, f"{repository.url}/manifests/{digest}", headers=_ACCEPT)) as response:
            data = read_whole(response, what, MAX_MANIFEST_BYTES, self.patience.watchdog)
        return _checked(data, digest, what)

    def fetch_tagged(self, repository: Repository, tag: str) -> bytes | None:
        """The manifest or index that a tag names now, or None. Nothing vouches for its content. Raises RegistryError."""
        url = f"{repository.url}/manifests/{tag}"
        try:
            with closing(self.request("GET", repository, url, headers=_ACCEPT)) as response:
                return read_whole(response, f"{repository}:{tag}", MAX_MANIFEST_BYTES, self.patience.watchdog)
        except NotFound:
            return None

    def fetch_small_blob(self, repository: Repository, digest: str, size: int, limit: int) -> bytes:
        """A blob of `size` bytes, which must not exceed `limit`, in memory. Raises RegistryError."""
        what = f"{repository}@{digest}"
        if size > limit:
            raise SizeMismatch(f"{what}: {size} bytes, at most {limit} are read here")
        with closing(self.open_blob(repository, digest)) as response:
            data = read_whole(response, what, size, self.patience.watchdog)
        if len(data) != size:
            raise SizeMismatch(f"{what}: {len(data)} bytes came, the descriptor says {size}")
        return _checked(data, digest, what)

    def open_blob(self, repository: Repository, digest: str, *, start: int = 0) -> requests.Response:
        """An open answer with the blob's bytes from `start`: status 206, or 200 if the registry sends all, or 416. Raises RegistryError."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        url = f"{repository.url}/blobs/{digest}"
        return self.request("GET", repository, url, headers=headers, accept=(416,) if start else ())

    def request(
        self,
        method: str,
        repository: Repository,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Body = None,
        action: str = PULL,
        accept: tuple[int, ...] = (),
    ) -> requests.Response:
        """One request with retries; an answer with status below 400, or one of `accept`, whose body is still unread.

        The caller closes it. A Path as `data` is opened anew for each try. Raises RegistryError.
        """
        response: requests.Response = self._provider.do_request(
            url, method, data=data, headers=dict(headers or {}), repository=repository, action=action, accept=accept
        )
        return response


_ACCEPT = {"Accept": f"{media.INDEX}, {media.MANIFEST}"}


def digest_of(data: bytes) -> str:
    """`sha256:<hex>` of these bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


class _Session(requests.Session):
    """Follows nothing by itself: requests would read the whole body of a redirect, however long, to look where it goes."""

    def __init__(self) -> None:
        super().__init__()
        # Proxies and .netrc must come from configuration that someone decided on, not from the environment.
        self.trust_env = False
        # Harbor takes a client with cookies for a browser.
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def get_redirect_target(self, resp: requests.Response) -> None:
        """See the class: client.py follows redirects under its own rules."""
        return


class _Provider(oras.provider.Registry):  # type: ignore[misc]
    """oras' registry with our own request: see the module's docstring. The other methods of oras are not used."""

    def __init__(self, credentials: Mapping[str, Credentials], ca: Path | None, patience: Patience) -> None:
        super().__init__(tls_verify=str(ca) if ca else True)
        self.session = _Session()
        self._credentials = credentials
        self._patience = patience
        self._authorisations: dict[tuple[str, str, str], str] = {}
        self._lock = threading.Lock()

    def do_request(
        self,
        url: str,
        method: str = "GET",
        data: Body = None,
        headers: dict[str, str] | None = None,
        json: Any = None,
        stream: bool = True,
        *,
        repository: Repository,
        action: str = PULL,
        accept: tuple[int, ...] = (),
    ) -> requests.Response:
        """See RegistryClient.request. `json` and `stream` are of oras' signature; bodies are always streamed."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            stop=tenacity.stop_after_attempt(self._patience.attempts),
            wait=self._wait,
            sleep=self._patience.sleep,
            reraise=True,
        )
        return retrying(self._authorised, method, url, data, headers or {}, repository, action, accept)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        told: float | None = getattr(error, "retry_after", None)
        return told if told is not None else self._patience.draw_wait(state.attempt_number)

    def _authorised(
        self,
        method: str,
        url: str,
        data: Body,
        headers: dict[str, str],
        repository: Repository,
        action: str,
        accept: tuple[int, ...],
    ) -> requests.Response:
        slot = (repository.registry, repository.path, action)
        with self._lock:
            authorisation = self._authorisations.get(slot)
        response = self._follow(method, url, data, headers, repository, authorisation)
        if response.status_code == 401:
            response.close()
            authorisation = self._fetch_authorisation(response, repository, action)
            with self._lock:
                self._authorisations[slot] = authorisation
            response = self._follow(method, url, data, headers, repository, authorisation)
        if response.status_code < 400 or response.status_code in accept:
            return response
        with closing(response):
            raise error_for(response, f"{method} {without_query(url)}")

    def _follow(
        self, method: str, url: str, data: Body, headers: dict[str, str], repository: Repository, authorisation: str | None
    ) -> requests.Response:
        for _ in range(MAX_REDIRECTS + 1):
            require_allowed(url, repository)
            sent = {**headers, "Accept-Encoding": "identity"}
            # A token is for the registry, never for the host that it redirects to.
            if authorisation and urlsplit(url).netloc == repository.registry:
                sent["Authorization"] = authorisation
            response = self._send(method, url, data, sent)
            if response.status_code not in (301, 302, 303, 307, 308) or method not in ("GET", "HEAD"):
                return response
            response.close()
            target = response.headers.get("Location", "")
            if not target:
                raise RegistryRefused(f"{method} {without_query(url)}: status {response.status_code} without a Location")
            url = join_address(url, target)
        raise RegistryRefused(f"{method} {without_query(url)}: more than {MAX_REDIRECTS} redirects")

    def _send(self, method: str, url: str, data: Body, headers: dict[str, str]) -> requests.Response:
        what = f"{method} {without_query(url)}"
        try:
            with data.open("rb") if isinstance(data, Path) else io.BytesIO(data or b"") as stream:
                # An empty stream would be sent in chunks, which registries refuse.
                body = stream if isinstance(data, Path) and data.stat().st_size else data if isinstance(data, bytes) else None
                response: requests.Response = self.session.request(
                    method,
                    url,
                    data=body,
                    headers=headers,
                    stream=True,
                    allow_redirects=False,
                    timeout=(self._patience.connect, self._patience.read),
                    verify=self._tls_verify,
                )
                return response
        except requests.ReadTimeout as error:
            raise Stalled(f"{what}: no answer within {self._patience.read:g} s") from error
        except requests.ConnectTimeout as error:
            raise Unreachable(f"{what}: no connection within {self._patience.connect:g} s") from error
        except requests.exceptions.SSLError as error:
            raise Unreachable(f"{what}: TLS failed: {describe_cause(error)}") from error
        except requests.RequestException as error:
            raise Unreachable(f"{what}: {describe_cause(error)}") from error

    def _fetch_authorisation(self, challenge: requests.Response, repository: Repository, action: str) -> str:
        header = challenge.headers.get("WWW-Authenticate", "")
        scheme = header.partition(" ")[0].lower()
        credentials = self._credentials.get(repository.registry)
        basic = _basic(credentials) if credentials else None
        if scheme == "basic":
            if basic is None:
                raise Unauthorised(f"{repository}: the registry wants a user and password, none is configured for it")
            return basic
        parameters = {name.lower(): value for name, value in re.findall(r'([A-Za-z]+)="([^"]*)"', header)}
        realm = parameters.get("realm", "")
        if scheme != "bearer" or not realm:
            raise Unauthorised(f"{repository}: the registry refuses, and names no way to authenticate that we know ({scheme or 'none'})")
        require_allowed(realm, repository)
        named = parameters.get("scope", "")
        # The challenge to the first read of a push names only pull: what the push needs is known here.
        own = f"repository:{repository.path}:"
        query = {"scope": own + action if not named or named.startswith(own) else named}
        if "service" in parameters:
            query["service"] = parameters["service"]
        url = requests.Request("GET", realm, params=query).prepare().url or realm
        response = self._send("GET", url, None, {"Authorization": basic} if basic else {})
        what = f"{repository}: token from {urlsplit(realm).netloc}"
        with closing(response):
            if response.status_code != 200:
                raise error_for(response, what)
            data = read_whole(response, what, MAX_TOKEN_BYTES, self._patience.watchdog)
        return f"Bearer {read_token(data, what)}"


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return "Basic " + base64.b64encode(pair).decode("ascii")


def _is_transient(error: BaseException) -> bool:
    told = getattr(error, "retry_after", None)
    return isinstance(error, (Unreachable, Stalled, RateLimited)) and (told is None or told <= MAX_WAIT_SECONDS)


def _checked(data: bytes, digest: str, what: str) -> bytes:
    found = digest_of(data)
    if found != digest:
        raise DigestMismatch(f"{what}: the registry sent {found}")
    return data
