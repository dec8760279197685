"""HTTP connections whose answers must get on: no answer can hold a reader by bytes that are not content.

A read timeout bounds each silence only. A header that comes letter by letter, interim answers without end and trailers without end keep
the line busy and bring nothing; so the head of an answer, and each piece of its body, must be there within ALLOWED_SILENCES read timeouts,
whatever comes meanwhile. How much content must come in which time is body.py's matter.
"""

import http.client
import io
import socket
import time
from typing import Any

import urllib3

ALLOWED_SILENCES = 2


class _Line(io.RawIOBase):
    """What comes on a socket, until its time is over."""

    def __init__(self, raw: Any) -> None:
        super().__init__()
        self._raw = raw
        self._until = float("inf")

    def allow(self, seconds: float) -> None:
        """From now on reads are answered for this long."""
        self._until = time.monotonic() + seconds

    def readable(self) -> bool:
        """See RawIOBase."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """See RawIOBase. Raises TimeoutError."""
        if time.monotonic() > self._until:
            raise TimeoutError("timed out")
        count: int | None = self._raw.readinto(buffer)
        return count

    def close(self) -> None:
        """See RawIOBase."""
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An answer on a _Line."""

    def __init__(self, sock: socket.socket, *arguments: Any, **more: Any) -> None:
        super().__init__(sock, *arguments, **more)
        silence = sock.gettimeout()
        self._seconds = float("inf") if silence is None else ALLOWED_SILENCES * silence
        self._line = _Line(self.fp.detach())
        self.fp = io.BufferedReader(self._line)

    def begin(self) -> None:
        """Read the head. Raises TimeoutError."""
        self._line.allow(self._seconds)
        super().begin()

    def read1(self, n: int = -1) -> bytes:
        """The next piece of the body. Raises TimeoutError."""
        self._line.allow(self._seconds)
        return super().read1(n)


class _Connection(urllib3.connection.HTTPConnection):
    response_class = _Answer


class _SecureConnection(urllib3.connection.HTTPSConnection):
    response_class = _Answer


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


POOLS = {"http": _Pool, "https": _SecurePool}
"""What a urllib3 PoolManager takes as `pool_classes_by_scheme`."""
