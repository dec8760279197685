"""Requests as the fault hook of the registry sees them, the ways to spoil an answer, and the lines of the request log."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """What a fault hook sees; `path` is with query, header names are lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Fault:
    """How one answer is spoilt. Fields combine; sizes are bytes of the body.

    `status` (with `headers`) answers in place of the registry; alone, `headers` are added to its own answer. `body` is
    sent instead of the right one, `extra` after it (Content-Length grows with it), `corrupt` flips a bit in its middle.
    `cut_after` sends that many bytes under the full Content-Length and closes. `stall` waits that many seconds after
    `stall_after` bytes (0: before the status line), less if the registry stops. `close` closes without an answer. `raw` makes
    all that goes on the wire in place of an answer, head included, one piece each `pause` seconds until it or the client ends.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    extra: bytes = b""
    corrupt: bool = False
    cut_after: int | None = None
    stall: float = 0
    stall_after: int = 0
    close: bool = False
    raw: Callable[[], Iterator[bytes]] | None = None
    pause: float = 0


@dataclass
class Served:
    """One line of the request log. `status` is 0 where the connection was closed; `sent` grows while the body goes out."""

    method: str
    path: str
    status: int
    sent: int = 0


@dataclass(frozen=True)
class Answer:
    """What the registry means to say, before any fault."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | memoryview = b""
