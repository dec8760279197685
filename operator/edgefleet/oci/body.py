"""The body of a registry's answer, read with a watch on it: silence, a trickle and a broken line are errors, never a wait for ever.

Bytes are taken as they are on the wire, without content decoding: digests are over these, and a small answer cannot unpack into a
large one. Whether they are the right bytes is left to the callers.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import requests
import urllib3

from edgefleet.oci.errors import Stalled, TooLarge, Unreachable

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Watchdog:
    """At least `min_bytes` must come in each `window` of seconds. Silence alone is caught earlier, by the read timeout."""

    min_bytes: int = 8 * 1024
    window: float = 30.0
    clock: Callable[[], float] = time.monotonic


def read_chunks(response: requests.Response, what: str, watchdog: Watchdog) -> Iterator[bytes]:
    """Yield the body as it comes, in pieces of at most 1 MiB. Raises Stalled and Unreachable, naming `what`."""
    started, counted = watchdog.clock(), 0
    total = 0
    while True:
        try:
            chunk: bytes = response.raw.read1(CHUNK_BYTES, decode_content=False)
        except urllib3.exceptions.ReadTimeoutError as error:
            raise Stalled(f"{what}: nothing came any more after {total} bytes") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(f"{what}: the connection broke after {total} bytes: {type(error).__name__}") from error
        if not chunk:
            return
        total += len(chunk)
        yield chunk
        now = watchdog.clock()
        if now - started >= watchdog.window:
            if total - counted < watchdog.min_bytes:
                raise Stalled(
                    f"{what}: only {total - counted} bytes came in {now - started:.0f} s, at least {watchdog.min_bytes} are expected"
                )
            started, counted = now, total


def read_whole(response: requests.Response, what: str, limit: int, watchdog: Watchdog) -> bytes:
    """The body, if it has at most `limit` bytes. Raises TooLarge, Stalled and Unreachable, naming `what`."""
    pieces, total = [], 0
    for chunk in read_chunks(response, what, watchdog):
        total += len(chunk)
        if total > limit:
            raise TooLarge(f"{what}: more than the {limit} bytes that are read")
        pieces.append(chunk)
    return b"".join(pieces)
