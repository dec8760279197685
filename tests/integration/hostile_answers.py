"""What a hostile registry does on the wire, by name: for each request that it picks, how the answer is spoilt.

`elsewhere` is another host that it may send a client to; it holds the same and notes what it is told.
"""

import gzip
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgefleet.oci.client import digest_of
from tests.integration.hostile_releases import SETTINGS, WEIGHTS
from tests.lab.registry import Fault, Request


@dataclass(frozen=True)
class Asked:
    """A request that is picked; `number` tells chances apart."""

    request: Request
    elsewhere: str
    number: int


Spoil = Callable[[Asked], Fault]


DRIP = 0.02
"""Seconds between two bytes of a drip: no silence that a client would hear."""
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def then(head: bytes, forever: bytes) -> Callable[[], Iterator[bytes]]:
    """Bytes, and others after them without end."""
    return lambda: itertools.chain([head], itertools.repeat(forever))


def _drip(data: bytes) -> Fault:
    return Fault(raw=lambda: (bytes([letter]) for letter in data), pause=DRIP)


def _drip_body(_: Asked) -> Fault:
    return Fault(raw=then(OK + b"Content-Length: %d\r\n\r\n" % len(WEIGHTS), b"x"), pause=DRIP)


def _lie_about_range(asked: Asked) -> Fault:
    if "range" not in asked.request.headers:
        return Fault(cut_after=1000)
    return Fault(headers={"Content-Range": f"bytes 7-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"})


def _lie_in_range(asked: Asked) -> Fault:
    return Fault(corrupt=True) if "range" in asked.request.headers else Fault(cut_after=1000)


def _redirect(target: Callable[[Asked], str]) -> Spoil:
    return lambda asked: Fault(status=307, headers={"Location": target(asked)})


def _garble(asked: Asked) -> Fault:
    chance = random.Random(asked.number)
    head = bytearray(
        OK + b"Content-Type: application/json\r\nContent-Length: 20\r\nConnection: close\r\n"
        b'Link: </v2/?last=1>; rel="next"\r\nContent-Range: bytes 0-19/20\r\nContent-Encoding: gzip\r\n\r\n' + b"{}" * 10
    )
    for _ in range(chance.randint(1, 12)):
        head[chance.randrange(len(head))] = chance.choice(b'\r\n :;,=<>\x00\xff09aZ-/"')
    return Fault(raw=lambda: iter([bytes(head)]))


def _fault(fault: Fault) -> Spoil:
    return lambda _: fault


BOMB = gzip.compress(bytes(64 << 20))

SPOILS: dict[str, tuple[str, str, Spoil]] = {
    "wrong bytes": ("weights", "DigestMismatch", _fault(Fault(corrupt=True))),
    "more bytes": ("weights", "SizeMismatch", _fault(Fault(extra=b"x" * 1000))),
    "fewer bytes": ("weights", "SizeMismatch", _fault(Fault(body=b"x" * 10))),
    "as many other bytes": (
        "weights",
        "DigestMismatch",
        lambda asked: Fault(body=bytes(len(WEIGHTS if digest_of(WEIGHTS) in asked.request.path else SETTINGS))),
    ),
    "bytes without end": ("weights", "SizeMismatch", _fault(Fault(raw=then(OK + b"Content-Type: application/json\r\n\r\n", b" " * 65536)))),
    "chunks without end": ("manifests", "TooLarge", _fault(Fault(raw=then(CHUNKED, b"10000\r\n" + b" " * 65536 + b"\r\n")))),
    "trailers without end": (
        "weights",
        "RegistryStalled",
        _fault(Fault(raw=then(CHUNKED + b"0\r\n", b"X: " + b"y" * 60000 + b"\r\n"), pause=DRIP / 4)),
    ),
    "interim answers without end": (
        "manifests",
        "RegistryStalled",
        _fault(Fault(raw=then(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100), pause=DRIP / 4)),
    ),
    "drip of a body": ("weights", "RegistryStalled", _drip_body),
    "drip of a head": ("manifests", "RegistryStalled", _fault(_drip(OK + b"X-Slow: " + b"y" * 60000))),
    "drip of a chunk's size": ("manifests", "RegistryStalled", _fault(Fault(raw=then(CHUNKED, b"0"), pause=DRIP))),
    "silence": ("manifests", "RegistryStalled", _fault(Fault(stall=60))),
    "silence in the middle": ("weights", "RegistryStalled", _fault(Fault(stall=60, stall_after=5))),
    "cut": ("weights", "RegistryUnreachable", _fault(Fault(cut_after=5))),
    "hung up": ("manifests", "RegistryUnreachable", _fault(Fault(close=True))),
    "huge header": ("manifests", "RegistryUnreachable", _fault(Fault(headers={"X-Huge": "x" * 200_000}))),
    "10,000 headers": ("manifests", "RegistryUnreachable", _fault(Fault(raw=lambda: iter([OK + b"X: y\r\n" * 10_000 + b"\r\n"])))),
    "negative length": ("weights", "SizeMismatch", _fault(Fault(raw=lambda: iter([OK + b"Content-Length: -5\r\n\r\n{}"])))),
    "two lengths": (
        "manifests",
        "RegistryUnreachable",
        _fault(Fault(raw=lambda: iter([OK + b"Content-Length: 5\r\nContent-Length: 7\r\n\r\n{}xxxxxx"]))),
    ),
    "length of 10^30": (
        "manifests",
        "RegistryUnreachable",
        _fault(Fault(raw=lambda: iter([OK + b"Content-Length: 1" + b"0" * 30 + b"\r\n\r\n{}"]))),
    ),
    "not HTTP": ("manifests", "RegistryUnreachable", _fault(Fault(raw=lambda: iter([bytes(range(256)) * 40])))),
    "garbled": ("settings", "SizeMismatch", _garble),
    "wrong Content-Range": ("weights", "RegistryUnreachable", _lie_about_range),
    "right Content-Range, wrong bytes": ("weights", "DigestMismatch", _lie_in_range),
    "gzip bomb as encoding": ("manifests", "DigestMismatch", _fault(Fault(body=BOMB, headers={"Content-Encoding": "gzip"}))),
    "redirect loop": ("weights", "RegistryRefused", _redirect(lambda asked: asked.request.path)),
    "redirect to another host": ("weights", "", _redirect(lambda asked: asked.elsewhere + asked.request.path)),
    "redirect to a host that asks for the login": (
        "weights",
        "RegistryRefused",
        _redirect(lambda asked: f"{asked.elsewhere}{asked.request.path}?challenge"),
    ),
    "redirect to the cloud's metadata": ("weights", "RegistryRefused", _redirect(lambda _: "http://169.254.169.254/latest/meta-data/")),
    "redirect to a file": ("weights", "RegistryRefused", _redirect(lambda _: "file:///etc/passwd")),
    "next page without end": ("lists", "", lambda asked: Fault(headers={"Link": f'<{asked.request.path}>; rel="next"'})),
    "next page on another host": (
        "lists",
        "",
        lambda asked: Fault(headers={"Link": f'<{asked.elsewhere}{asked.request.path}>; rel="next"'}),
    ),
    "come back in 10^11 years": (
        "weights",
        "RateLimited",
        _fault(Fault(status=429, headers={"Retry-After": "Mon, 01 Jan 99999999999 00:00:00 GMT"})),
    ),
    "too many requests": ("lists", "RateLimited", _fault(Fault(status=429))),
    "forbidden": ("manifests", "AuthenticationFailed", _fault(Fault(status=403))),
    "broken": ("lists", "RegistryUnreachable", _fault(Fault(status=503))),
    "gone": ("manifests", "NotFound", _fault(Fault(status=404))),
    "status 999": ("lists", "RegistryUnreachable", _fault(Fault(raw=lambda: iter([b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n"])))),
    "list of 10^5 entries": ("lists", "", _fault(Fault(body=b'{"schemaVersion":2,"manifests":[' + b"{}," * 100_000 + b"{}]}"))),
    "as many objects as fit": ("lists", "", _fault(Fault(body=b"[" + b'{"":0},' * 599_000 + b"0]"))),
    "token nested 10^4 deep": ("logins", "AuthenticationFailed", _fault(Fault(status=200, body=b"[" * 10_000))),
    "nested 10^4 deep": ("lists", "", _fault(Fault(body=b"[" * 10_000))),
}
"""By name: which of PARTS it spoils when it is tried alone, the reason that the site gives (none: it gets round it), and what it does."""

PARTS = {
    "weights": digest_of(WEIGHTS),
    "settings": digest_of(SETTINGS),
    "blobs": "/blobs/",
    "manifests": "/manifests/sha256:",
    "lists": "/referrers/",
    "fallback": "/manifests/sha256-",
    "logins": "/token",
    "everything": "/",
}
"""What requests are picked, by a part of their path."""
TIMES = {"always": 1 << 30, "once": 1, "three times": 3}


Plan = list[tuple[str, str, str]]
"""Names of SPOILS, PARTS and TIMES."""


class Hostile:
    """A registry's fault hook that does what a plan says; the first entry that picks a request spoils it. `met` counts, by name."""

    def __init__(self, elsewhere: str, plan: Plan, seed: int = 0) -> None:
        self.plan, self.seed = plan, seed
        self.met: Counter[str] = Counter()
        self._elsewhere = elsewhere

    def __call__(self, request: Request) -> Fault | None:
        for name, part, times in self.plan:
            if PARTS[part] in request.path and self.met[name] < TIMES[times]:
                self.met[name] += 1
                return SPOILS[name][2](Asked(request, self._elsewhere, self.seed * 1000 + self.met.total()))
        return None


def draw_plan(seed: int) -> Plan:
    """Two to four hostilities at once. Most are drawn to let a pull come far: what ends the first request hides all others."""
    chance = random.Random(seed)
    names = chance.sample(sorted(SPOILS), chance.randint(2, 4))
    parts = chance.choices(list(PARTS), [4, 2, 3, 2, 2, 1, 1, 1], k=len(names))
    times = chance.choices(list(TIMES), [1, 3, 2], k=len(names))
    return list(zip(names, parts, times, strict=True))
