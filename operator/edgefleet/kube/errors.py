"""What an API server can answer, named once.

ApiError
├── NotFound       404: the object, or its kind, is not there
├── Conflict       409: it exists already, or changed since it was read
├── Gone           410: the watch is too old; list again
├── Denied         401 and 403: who we are may not do this (RBAC or an admission policy)
├── Invalid        400, 413 and 422: the object is not acceptable as it is
├── Throttled      429: later
└── Unavailable    5xx, refused or broken connection, timeout: the write may or may not have happened
"""

from typing import Any


class ApiError(Exception):
    """Base. `status` is the HTTP code, 0 where there was no answer."""

    def __init__(self, status: int, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


class NotFound(ApiError):
    """404."""


class Conflict(ApiError):
    """409."""


class Gone(ApiError):
    """410."""


class Denied(ApiError):
    """401, 403."""


class Invalid(ApiError):
    """400, 413, 422."""


class Throttled(ApiError):
    """429."""


class Unavailable(ApiError):
    """5xx or no answer."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: Invalid,
    401: Denied,
    403: Denied,
    404: NotFound,
    409: Conflict,
    410: Gone,
    413: Invalid,
    422: Invalid,
    429: Throttled,
}


def error_from_status(status: int, body: Any, retry_after: str | None = None) -> ApiError:
    """The error for an HTTP answer; `body` is the decoded Status object, or whatever came instead."""
    message = body.get("message") if isinstance(body, dict) else None
    seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
    return _BY_STATUS.get(status, Unavailable)(status, message or f"HTTP {status}", retry_after=seconds)
