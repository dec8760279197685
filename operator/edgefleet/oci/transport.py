"""One request to a registry: over oras, with timeouts, retries, fresh tokens, private authorities, and a proxy only where one was named.

Which requests make a pull is decided in client.py, what an answer means in answers.py.
"""

import base64
import io
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import oras.provider
import requests
import tenacity
import urllib3
from requests.adapters import HTTPAdapter

from edgefleet.oci.answers import describe_cause, error_for, join_address, read_token, require_allowed, without_query
from edgefleet.oci.body import Watchdog, read_whole
from edgefleet.oci.connections import POOLS
from edgefleet.oci.errors import RateLimited, RegistryRefused, Stalled, Unauthorised, Unreachable
from edgefleet.oci.reference import Repository, is_loopback

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


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy for HTTPS, asked by CONNECT: `address` is `http://host:port`, without a user. Hosts of `direct` are reached without
    it: `registry.example`, or `.example` for all below. Loopback always is."""

    address: str
    direct: tuple[str, ...] = ()

    def settings_for(self, url: str) -> dict[str, str] | None:
        """What requests takes as `proxies` for this address."""
        host = (urlsplit(url).hostname or "").lower()
        passed_by = any(host == name.lower() or (name.startswith(".") and host.endswith(name.lower())) for name in self.direct)
        return None if passed_by or is_loopback(host) else {"https": self.address}


class _Adapter(HTTPAdapter):
    """Makes connections that cannot be held up. `authorities` (PEM) are believed beside the public ones: a registry may send us on to a
    public store."""

    def __init__(self, authorities: str) -> None:
        self._context = None
        if authorities:
            self._context = ssl.create_default_context()
            self._context.load_verify_locations(cadata=authorities)
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:
        """See HTTPAdapter."""
        super().init_poolmanager(*arguments, **more, ssl_context=self._context)
        self.poolmanager.pool_classes_by_scheme = POOLS

    def proxy_manager_for(self, proxy: str, **more: Any) -> Any:
        """See HTTPAdapter."""
        manager = super().proxy_manager_for(proxy, **more, ssl_context=self._context)
        manager.pool_classes_by_scheme = POOLS
        return manager


class _Session(requests.Session):
    """Follows nothing by itself: requests would read the whole body of a redirect, however long, to look where it goes."""

    def __init__(self, authorities: str) -> None:
        super().__init__()
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter(authorities))
        # Proxies and .netrc must come from configuration that someone decided on, not from the environment.
        self.trust_env = False
        # Harbor takes a client with cookies for a browser.
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def get_redirect_target(self, resp: requests.Response) -> None:
        """See the class: client.py follows redirects under its own rules."""
        return


class Provider(oras.provider.Registry):  # type: ignore[misc]
    """oras' registry with our own request: see the module's docstring. The other methods of oras are not used."""

    def __init__(self, credentials: Mapping[str, Credentials], ca: Path | str | None, proxy: Proxy | None, patience: Patience) -> None:
        super().__init__(tls_verify=str(ca) if isinstance(ca, Path) else True)
        self.session = _Session(ca if isinstance(ca, str) else "")
        self._proxy = proxy
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
        if response.status_code in (401, 403) and (host := urlsplit(response.url).netloc) != repository.registry:
            # Only the registry may ask for its login: another host would have the login sent where it likes.
            response.close()
            raise RegistryRefused(
                f"{method} {without_query(url)}: {host}, to which the registry sends us, refuses with status {response.status_code}"
            )
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
                    proxies=self._proxy.settings_for(url) if self._proxy else None,
                )
                return response
        except requests.ReadTimeout as error:
            raise Stalled(f"{what}: no answer within {self._patience.read:g} s") from error
        except requests.ConnectTimeout as error:
            raise Unreachable(f"{what}: no connection within {self._patience.connect:g} s") from error
        except requests.exceptions.ProxyError as error:
            asked = self._proxy.address if self._proxy else "proxy"
            raise Unreachable(f"{what}: the proxy {asked} does not let us through: {describe_cause(error)}") from error
        except requests.exceptions.SSLError as error:
            raise Unreachable(f"{what}: TLS failed: {describe_cause(error)}") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
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
