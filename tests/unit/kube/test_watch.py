"""A list-watch against a server that says anything: it never ends by that, does not hammer, and brings no ghosts back."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from edgefleet.kube.errors import Gone
from edgefleet.kube.resources import CONFIG_MAPS
from edgefleet.kube.watch import Key, ListWatch, Record

PAGE = json.dumps({"metadata": {"resourceVersion": "5"}, "items": []}).encode()
NONSENSE_PAGES = [
    b"<html>",
    b"[]",
    b'{"items": 3}',
    b'{"metadata": {"resourceVersion": 7}}',
    b'{"items": [{"metadata": 1}]}',
    b'{"items": [{}]}',
]
NONSENSE_LINES = [
    b"<html>",
    b'{"type": "ADDED", "object": {}}',
    b'{"type": "MODIFIED", "object": {"metadata": 1}}',
    b'{"type": "BOOKMARK", "object": {"metadata": []}}',
    b'{"type": "ERROR", "object": {"code": "x"}}',
]


class Server:
    """Stands for an Api: says `page` and `lines`, and counts what it is asked. It never waits."""

    server = "https://hub.example"

    def __init__(self, page: bytes = PAGE, lines: list[bytes] | None = None, error: Exception | None = None) -> None:
        self.page, self.lines, self.error = page, lines or [], error
        self.asked = 0

    async def list_pages(self, *_: Any, **__: Any) -> AsyncIterator[bytes]:
        self.asked += 1
        yield self.page

    async def watch_lines(self, *_: Any, **__: Any) -> AsyncIterator[bytes]:
        self.asked += 1
        for line in self.lines:
            yield line
        if self.error is not None:
            raise self.error


def watch_of(server: Server, changes: list[Key] | None = None) -> ListWatch[Record]:
    return ListWatch(server, CONFIG_MAPS, Record, on_change=lambda key, old, new: (changes if changes is not None else []).append(key))  # type: ignore[arg-type]


async def asked_within_a_moment(server: Server) -> int:
    task = asyncio.create_task(watch_of(server).run())
    await asyncio.wait([task], timeout=0.25)
    assert not task.done(), task.exception()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return server.asked


@pytest.mark.parametrize("page", NONSENSE_PAGES)
async def test_a_list_that_cannot_be_read_is_waited_out(page: bytes) -> None:
    assert await asked_within_a_moment(Server(page)) < 30


@pytest.mark.parametrize("line", NONSENSE_LINES)
async def test_an_event_that_cannot_be_read_is_waited_out(line: bytes) -> None:
    assert await asked_within_a_moment(Server(lines=[line])) < 30


@pytest.mark.parametrize("server", [Server(), Server(error=Gone(410, "too old"))], ids=["ends watches at once", "says Gone each time"])
async def test_a_server_that_ends_watches_is_not_hammered(server: Server) -> None:
    assert await asked_within_a_moment(server) < 30


def body(version: int, name: str = "a") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "b", "resourceVersion": str(version)}}


async def test_an_answer_to_a_write_of_ours_brings_nothing_deleted_back() -> None:
    lines = [{"type": "ADDED", "object": body(6)}, {"type": "DELETED", "object": body(8)}]
    watch = watch_of(Server(lines=[json.dumps(line).encode() for line in lines]))
    await watch._watch()
    watch.observe(body(7))
    assert len(watch) == 0
    watch.observe(body(9))
    assert len(watch) == 1


def test_what_is_known_already_is_no_news() -> None:
    changes: list[Key] = []
    watch = watch_of(Server(), changes)
    watch.observe(body(6))
    watch.observe(body(6))
    assert changes == [("b", "a")]
    watch.observe(body(7))
    assert len(changes) == 2
