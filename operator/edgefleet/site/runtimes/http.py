"""Asking a model server over plain HTTP: bounded in time and size, through no proxy. What to ask is left to the runtimes."""

import json
from collections.abc import Mapping
from typing import Any

import aiohttp

from edgefleet.site.runtimes import ServerUnreachable

MAX_ANSWER_BYTES = 16 << 20
REQUEST_SECONDS = 30.0


def open_session() -> aiohttp.ClientSession:
    """A session for `ask`; whoever opens it closes it."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS, connect=5), trust_env=False)


async def ask(
    session: aiohttp.ClientSession,
    method: str,
    server: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    seconds: float = REQUEST_SECONDS,
) -> tuple[int, Any]:
    """The status and the JSON answer, or the beginning of the text in its place. Raises ServerUnreachable."""
    timeout = aiohttp.ClientTimeout(total=seconds, connect=5)
    try:
        async with session.request(method, server + path, json=body, timeout=timeout) as answer:
            data = await answer.content.read(MAX_ANSWER_BYTES)
            while not answer.content.at_eof() and len(data) < MAX_ANSWER_BYTES:
                data += await answer.content.read(MAX_ANSWER_BYTES - len(data))
            return answer.status, _decode(data)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ServerUnreachable(f"{server} does not answer: {error or type(error).__name__}") from error


def _decode(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data[:200].decode(errors="replace")
