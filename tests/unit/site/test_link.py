"""The link copies what it can: trouble with one assignment, or with the disk, neither ends it nor keeps back the others."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from edgefleet.api.meta import TRUST_BUNDLE, TRUST_BUNDLE_ENTRY
from edgefleet.kube.errors import Invalid
from edgefleet.kube.resources import SITE_ASSIGNMENTS
from edgefleet.kube.watch import ListWatch
from edgefleet.site import link as module
from edgefleet.site.link import Link
from edgefleet.site.status import AssignmentRecord

NAMESPACE = "edgesite-plant-7"


class LocalApi:
    """A cluster that takes no assignment named `bad`."""

    server = "https://site.example"

    def __init__(self) -> None:
        self.taken: list[str] = []

    async def apply(self, resource: object, body: dict[str, Any], *, manager: str) -> dict[str, Any]:
        if body["metadata"]["name"] == "vision.bad":
            raise Invalid(422, "spec.model: too new")
        self.taken.append(body["metadata"]["name"])
        return {**body, "metadata": {**body["metadata"], "resourceVersion": "1"}}


class HubApi:
    """A hub with a trust bundle, which nobody has watched yet."""

    server = "https://hub.example"

    async def list_pages(self, *_: object, **__: object) -> AsyncIterator[bytes]:
        record = {"metadata": {"name": TRUST_BUNDLE, "namespace": NAMESPACE, "resourceVersion": "7"}, "data": {TRUST_BUNDLE_ENTRY: "{}"}}
        yield json.dumps({"metadata": {"resourceVersion": "7"}, "items": [record]}).encode()


class Trust:
    """A keeper whose disk is full the first time."""

    def __init__(self) -> None:
        self.offers = 0

    async def offer(self, data: bytes) -> None:
        self.offers += 1
        if self.offers == 1:
            raise OSError(28, "No space left on device")


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not fact():
            await asyncio.sleep(0.005)


async def test_trouble_with_one_thing_keeps_back_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "plan_delay", lambda *_: timedelta(milliseconds=5))
    nothing: Any = None
    api: Any = LocalApi()
    trust: Any = Trust()
    watches = [ListWatch(nothing, SITE_ASSIGNMENTS, AssignmentRecord, namespace=NAMESPACE) for _ in range(2)]
    for name in ("vision.bad", "vision.good"):
        spec = {"site": "plant-7", "fleet": name.replace(".", "/"), "sequence": 1, "action": "Withdraw", "model": "weld"}
        spec |= {"expiresAt": "2030-01-01T00:00:00Z", "envelope": "x"}
        watches[0].observe({"metadata": {"name": name, "namespace": NAMESPACE, "resourceVersion": "1"}, "spec": spec})
    link = Link(hub=HubApi(), local_api=api, assignments=watches[0], local=watches[1], namespace=NAMESPACE, trust=trust)  # type: ignore[arg-type]
    link.bundles.synced.set()
    watches[1].synced.set()
    task = asyncio.create_task(link.run())
    await until(lambda: task.done() or bool(api.taken))
    assert api.taken == ["vision.good"]
    await until(lambda: task.done() or trust.offers > 2)
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
