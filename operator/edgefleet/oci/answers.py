"""What a registry's answer means: a status as a named error, a Retry-After in seconds, a token, and where we let it send us.

Requests are made in client.py; nothing here touches the network.
"""

import json
import re
import time
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit

import requests

from edgefleet.oci.errors import NotFound, RateLimited, RegistryError, RegistryRefused, Unauthorised, Unreachable
from edgefleet.oci.reference import Repository, is_loopback


def require_allowed(url: str, repository: Repository) -> None:
    """Raises RegistryRefused for an address that a registry must not send us to."""
    # A registry elsewhere must neither lower us to plain HTTP nor point us at services of this machine.
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise RegistryRefused(f"{repository}: it sends us to {without_query(url)[:200]!r}, which is no address") from error
    local = is_loopback(parts.hostname or "")
    if local and repository.is_loopback and parts.scheme in ("http", "https"):
        return
    if parts.scheme != "https" or not parts.hostname or (local and not repository.is_loopback):
        raise RegistryRefused(f"{repository}: it sends us to {without_query(url)[:200]}; only https to another host is followed")


def join_address(url: str, target: str) -> str:
    """Where `target`, an address out of an answer to `url`, points to. Raises RegistryRefused."""
    try:
        return urljoin(url, target)
    except ValueError as error:
        raise RegistryRefused(f"{without_query(url)}: it names {without_query(target)[:200]!r}, which is no address") from error


def error_for(response: requests.Response, what: str) -> RegistryError:
    """The error that a status of 400 or above stands for. `what` names the request."""
    status = response.status_code
    if status in (401, 403):
        return Unauthorised(f"{what}: status {status}: these credentials do not suffice, or none are configured")
    if status == 404:
        return NotFound(f"{what}: not found")
    if status == 429:
        return RateLimited(f"{what}: too many requests", _retry_after(response))
    if status >= 500:
        return Unreachable(f"{what}: status {status}", _retry_after(response))
    return RegistryRefused(f"{what}: status {status}")


def _retry_after(response: requests.Response) -> float | None:
    text = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def read_token(data: bytes, what: str) -> str:
    """The bearer token in a token server's answer. Raises Unauthorised."""
    try:
        answer = json.loads(data)
        token = answer.get("token") or answer.get("access_token")
    except (ValueError, AttributeError, RecursionError) as error:
        raise Unauthorised(f"{what}: the answer is not a JSON object") from error
    if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
        raise Unauthorised(f"{what}: the answer holds no token")
    return token


def without_query(url: str) -> str:
    """An address as it may stand in messages."""
    # Upload addresses and redirects carry secrets in their query.
    return url.partition("?")[0]


def describe_cause(error: BaseException) -> str:
    """The first cause of a failed request, which says more than its wrappers."""
    while error.__context__ is not None:
        error = error.__context__
    return without_query(f"{type(error).__name__}: {error}")[:200]
