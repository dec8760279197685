"""What a hostile hub, or a proxy in front of it, could answer: it is an error with a name, and leads nowhere else."""

import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from edgefleet.kube.client import Api
from edgefleet.kube.connection import Connection
from edgefleet.kube.errors import Unavailable
from edgefleet.kube.resources import CONFIG_MAPS


class Hostile:
    """A server that redirects writes to `/inside`, and answers reads with `page`."""

    def __init__(self) -> None:
        self.inside = 0
        self.page = "<html>please log in</html>"
        self.headers: dict[str, str] = {}

    async def answer(self, request: web.Request) -> web.Response:
        if request.path == "/inside":
            self.inside += 1
            return web.json_response({"metadata": {}})
        if request.method == "PATCH":
            raise web.HTTPTemporaryRedirect("/inside")
        return web.Response(text=self.page, headers=self.headers)


@pytest.fixture
def hostile() -> Hostile:
    return Hostile()


@pytest.fixture
async def api(hostile: Hostile) -> AsyncIterator[Api]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", hostile.answer)
    async with TestServer(app, host="127.0.0.1") as server:
        anonymous: Any = type("Anonymous", (), {"get_api_key_with_prefix": lambda self, name: None})()
        async with Api(Connection(str(server.make_url("")).rstrip("/"), None, anonymous), user_agent="test", attempts=1) as client:
            yield client


async def test_redirects_are_not_followed(api: Api, hostile: Hostile) -> None:
    with pytest.raises(Unavailable):
        await api.apply(CONFIG_MAPS, {"metadata": {"name": "a", "namespace": "b"}}, manager="test")
    assert hostile.inside == 0


@pytest.mark.parametrize("page", ["<html>please log in</html>", '["continue"]', '"continue"', '{"metadata":'])
async def test_an_answer_that_is_no_object_is_unavailable(api: Api, hostile: Hostile, page: str) -> None:
    hostile.page = page
    with pytest.raises(Unavailable, match="does not answer with a JSON object"):
        await api.get(CONFIG_MAPS, "a", "b")
    with pytest.raises(Unavailable, match="does not answer with a JSON object"):
        await api.list(CONFIG_MAPS, "b")


@pytest.mark.parametrize(("seconds", "shown"), [(-3600, 3600), (90, -90)])
async def test_the_clock_is_compared_with_the_servers(api: Api, hostile: Hostile, seconds: int, shown: int) -> None:
    hostile.page = "{}"
    hostile.headers = {"Date": formatdate(time.time() + seconds, usegmt=True)}
    await api.get(CONFIG_MAPS, "a", "b")
    assert abs(api.clock_skew - shown) < 3
    held = api.clock_skew
    for date in ("yesterday", "Mon, 99 Nov 2026 00:00:00 GMT"):
        hostile.headers = {"Date": date}
        await api.get(CONFIG_MAPS, "a", "b")
        assert api.clock_skew == held
