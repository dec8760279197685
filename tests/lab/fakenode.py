"""A fake of scheduler, node and kubelet, for a real API server with a real controller-manager: it binds pods, "runs" them, writes status.

What a pod runs is a small server in this process on a loopback address of its own, which answers for the files that the pod mounts: the
Open Inference Protocol v2 for `weights.json` with `bias`. A pod whose image is given by name runs for real (containers.py): its probe says
when it is ready, and what ends is started again. Pods on real nodes are tests/lab/nodes.py's matter; here it is what the site's agent makes
of pods, also of those that no test could break on purpose on a real node.
"""

import asyncio
import contextlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from aiohttp import web
from pydantic import Field

from edgefleet.api.meta import format_time
from edgefleet.core.pods import SERVED_LABEL
from edgefleet.kube.client import Api
from edgefleet.kube.errors import Conflict, NotFound
from edgefleet.kube.resources import PODS
from edgefleet.kube.watch import Key, ListWatch, Record
from tests.lab.containers import Container, Image

NODE = "fake-node"
_addresses = itertools.count(2)
_GONE: dict[str, Any] = {"gracePeriodSeconds": 0}


class PodBody(Record):
    """What a node reads of a pod."""

    spec: dict[str, Any] = Field(default_factory=dict)

    @property
    def served(self) -> str:
        """`<model>--<rev8>`."""
        return self.metadata.labels.get(SERVED_LABEL, "")

    @property
    def memory(self) -> int:
        """The bytes that its first container asks for, written in Mi or Gi."""
        asked = self.spec["containers"][0].get("resources", {}).get("requests", {}).get("memory", "0Mi")
        return int(asked[:-2]) << {"Mi": 20, "Gi": 30}[asked[-2:]]


@dataclass
class _Running:
    runner: web.AppRunner | Container
    ip: str
    memory: int
    restarts: int = 0
    last: dict[str, Any] | None = None
    ready: bool = True
    attended: asyncio.Task[None] | None = None

    async def end(self) -> None:
        if self.attended is not None:
            self.attended.cancel()
            await asyncio.gather(self.attended, return_exceptions=True)
        await (self.runner.stop() if isinstance(self.runner, Container) else self.runner.cleanup())


class FakeNode:
    """`memory` is what it has, in bytes; `volume` is the folder behind the claim that pods mount; `images` are those that run for real, by
    the name before their digest. Use it as an async context manager."""

    def __init__(self, api: Api, namespace: str, volume: Path, *, memory: int = 1 << 30, images: Mapping[str, Image] | None = None) -> None:
        self._api = api
        self._namespace = namespace
        self._volume = volume
        self.memory = memory
        self.images = images or {}
        self._running: dict[str, _Running] = {}
        self._wake = asyncio.Event()
        self._watch = ListWatch(api, PODS, PodBody, namespace=namespace, on_change=self._changed)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._watch.run()), asyncio.create_task(self._run())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in self._running.values():
            await one.end()

    @property
    def served(self) -> set[str]:
        """The revisions that run now."""
        return {pod.served for pod in self._watch if pod.metadata.name in self._running}

    def addresses(self, served: str) -> list[str]:
        """The addresses of a revision's pods."""
        return [self._running[pod.metadata.name].ip for pod in self._pods(served)]

    async def restart(self, served: str, reason: str = "Error") -> None:
        """Let a revision's container end and start again; it is ready at once. `reason` may be OOMKilled."""
        for pod in self._pods(served):
            one = self._running[pod.metadata.name]
            one.restarts += 1
            code = 137 if reason == "OOMKilled" else 1
            one.last = {"reason": reason, "exitCode": code, "finishedAt": format_time(datetime.now(UTC))}
            await self._tell(pod, one)

    async def move(self, served: str) -> None:
        """Take a revision's pods away; the Deployment makes others, with other addresses."""
        for pod in self._pods(served):
            await self._api.delete(PODS, pod.metadata.name, self._namespace)

    def _pods(self, served: str) -> list[PodBody]:
        return [pod for pod in self._watch if pod.served == served and pod.metadata.name in self._running]

    def _changed(self, key: Key, old: PodBody | None, new: PodBody | None) -> None:
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            for pod in sorted(self._watch, key=lambda pod: pod.metadata.name):
                with contextlib.suppress(NotFound):
                    await self._reconcile(pod)
            known = {pod.metadata.name for pod in self._watch}
            for name in set(self._running) - known:
                await self._running.pop(name).end()
                self._wake.set()

    async def _reconcile(self, pod: PodBody) -> None:
        name = pod.metadata.name
        if pod.metadata.deletion_timestamp is not None:
            if name in self._running:
                await self._running.pop(name).end()
            await self._finish(name)
            self._wake.set()
        elif name not in self._running:
            used = sum(one.memory for one in self._running.values())
            if used + pod.memory > self.memory:
                message = "0/1 nodes are available: 1 Insufficient memory."
                condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
                await self._patch(name, {"conditions": [condition]})
                return
            if not pod.spec.get("nodeName"):
                await self._bind(name)
            self._running[name] = one = await self._start(pod)
            await self._tell(pod, one)
            if isinstance(one.runner, Container):
                one.attended = asyncio.create_task(self._attend(pod, one, one.runner))

    async def _start(self, pod: PodBody) -> _Running:
        (container,) = pod.spec["containers"]
        mount = next(one for one in container["volumeMounts"] if one["name"] == "edgefleet-model")
        assert mount["readOnly"] is True
        folder = self._volume / mount["subPath"]
        ip = f"127.0.1.{next(_addresses)}"
        image = self.images.get(container["image"].partition("@")[0])
        if image is not None:
            real = Container(container, image, folder, self._volume / "containers", ip)
            await real.start()
            return _Running(real, ip, pod.memory, ready=False)
        facts = json.loads((folder / "weights.json").read_bytes())

        async def answer(request: web.Request) -> web.Response:
            x = int((await request.json())["inputs"][0]["data"][0])
            output = {"name": "y", "shape": [1], "datatype": "INT64", "data": [x + facts["bias"]]}
            return web.json_response({"model_name": folder.name, "outputs": [output]})

        app = web.Application()
        model = folder.name.rpartition("--")[0]
        app.router.add_post(f"/v2/models/{model}/infer", answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, ip, container["ports"][0]["containerPort"]).start()
        return _Running(runner, ip, pod.memory)

    async def _attend(self, pod: PodBody, one: _Running, container: Container) -> None:
        """Tells what becomes of a container until the pod ends."""
        while True:
            if (code := container.exit_code) is not None:
                one.last = {"reason": "Error" if code else "Completed", "exitCode": code, "finishedAt": format_time(datetime.now(UTC))}
                one.restarts += 1
                one.ready = False
                await container.stop()
                await container.start()
                await self._tell(pod, one)
            elif (ready := await container.is_ready()) != one.ready:
                one.ready = ready
                await self._tell(pod, one)
            await asyncio.sleep(container.period)

    async def _tell(self, pod: PodBody, one: _Running) -> None:
        (container,) = pod.spec["containers"]
        status = {
            "name": container["name"],
            "image": container["image"],
            "imageID": container["image"],
            "ready": one.ready,
            "restartCount": one.restarts,
            "state": {"running": {"startedAt": format_time(datetime.now(UTC))}},
            "lastState": {"terminated": one.last} if one.last else {},
        }
        said = {"PodScheduled": True, "Initialized": True, "ContainersReady": one.ready, "Ready": one.ready}
        conditions = [{"type": kind, "status": str(true)} for kind, true in said.items()]
        body = {"phase": "Running", "podIP": one.ip, "podIPs": [{"ip": one.ip}], "conditions": conditions, "containerStatuses": [status]}
        await self._patch(pod.metadata.name, body)

    async def _patch(self, name: str, status: dict[str, Any]) -> None:
        await self._api.patch(PODS, name, self._namespace, {"status": status}, subresource="status")

    async def _bind(self, name: str) -> None:
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": NODE}}
        with contextlib.suppress(Conflict):  # bound already, before the watch says so
            await self._api._call("POST", PODS.path(self._namespace, name, "binding"), body=body)

    async def _finish(self, name: str) -> None:
        """As a kubelet confirms that a pod has ended."""
        await self._api._call("DELETE", PODS.path(self._namespace, name), body={"apiVersion": "v1", "kind": "DeleteOptions", **_GONE})
