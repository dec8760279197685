"""A fake model server: the Open Inference Protocol v2 with the repository API, in the test's own process, in a millisecond.

A model is a folder with `weights.json`: {"bias": N} answers x + N, {"broken": true} does not load, {"limit": N} fails from N on.
MLServer itself is tested in test_agent.py and in the demo; here it is who starts it that matters.
"""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from aiohttp import web

Seen = Callable[[str, str, int, int], None]
"""Called with what was done (load, unload, infer), the model's name, the answer's code and the number that was asked."""


class FakeRuntime:
    """One server over one folder of models; `loaded` are those that answer. Use it as an async context manager."""

    def __init__(self, folder: Path, on_call: Seen = lambda what, name, code, x: None) -> None:
        self._folder = folder
        self._on_call = on_call
        self._loaded: dict[str, dict[str, Any]] = {}
        self.url = ""

    @property
    def loaded(self) -> list[str]:
        """The names of the models that answer."""
        return sorted(self._loaded)

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        app = web.Application()
        app.router.add_get("/v2/models/{name}/ready", self._ready)
        app.router.add_post("/v2/models/{name}/infer", self._infer)
        app.router.add_post("/v2/repository/models/{name}/load", self._load)
        app.router.add_post("/v2/repository/models/{name}/unload", self._unload)
        app.router.add_post("/v2/repository/index", self._index)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def forget(self) -> None:
        """As a server that restarts: nothing is loaded any more."""
        self._loaded.clear()

    async def _ready(self, request: web.Request) -> web.Response:
        return self._say("ready", request, 200 if request.match_info["name"] in self._loaded else 404, {})

    async def _load(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        try:
            facts = await asyncio.to_thread(self._read, name)
        except (OSError, ValueError) as error:
            return self._say("load", request, 404, {"error": f"no such model: {error}"})
        if facts.get("broken"):
            return self._say("load", request, 400, {"error": "these weights are broken"})
        self._loaded[name] = facts
        return self._say("load", request, 200, {})

    async def _unload(self, request: web.Request) -> web.Response:
        known = self._loaded.pop(request.match_info["name"], None) is not None
        return self._say("unload", request, 200 if known else 404, {})

    async def _infer(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        facts = self._loaded.get(name)
        if facts is None:
            return self._say("infer", request, 404, {"error": f"no model {name}"})
        x = int((await request.json())["inputs"][0]["data"][0])
        if x >= facts.get("limit", x + 1):
            return self._say("infer", request, 500, {"error": f"{x} is too much"}, x)
        output = {"name": "y", "shape": [1], "datatype": "INT64", "data": [x + facts["bias"]]}
        return self._say("infer", request, 200, {"model_name": name, "outputs": [output]}, x)

    async def _index(self, request: web.Request) -> web.Response:
        return web.json_response([{"name": name, "state": "READY"} for name in self.loaded])

    def _read(self, name: str) -> dict[str, Any]:
        if json.loads((self._folder / name / "model-settings.json").read_bytes())["name"] != name:
            raise ValueError("its settings name another model")
        facts: dict[str, Any] = json.loads((self._folder / name / "weights.json").read_bytes())
        return facts

    def _say(self, what: str, request: web.Request, code: int, body: dict[str, Any], x: int = 0) -> web.Response:
        if what != "ready":
            self._on_call(what, request.match_info["name"], code, x)
        return web.json_response(body, status=code)
