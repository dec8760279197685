"""The client and the list-watch against a real API server."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from edgefleet.kube.client import Api
from edgefleet.kube.errors import Conflict, Denied, Invalid, NotFound, Unavailable
from edgefleet.kube.resources import CONFIG_MAPS, NAMESPACES
from edgefleet.kube.watch import ListWatch, Record
from tests.lab.cluster import Lab


class Map(Record):
    data: dict[str, str] = {}


@pytest.fixture
async def api(lab: Lab) -> AsyncIterator[Api]:
    async with Api.connect(lab.hub.kubeconfig, user_agent="test") as client:
        yield client


@pytest.fixture
async def namespace(api: Api) -> AsyncIterator[str]:
    name = f"kube-{uuid.uuid4().hex[:8]}"
    await api.create(NAMESPACES, {"metadata": {"name": name}})
    yield name
    await api.delete(NAMESPACES, name)


def config_map(namespace: str, name: str, **data: str) -> dict[str, object]:
    return {"metadata": {"name": name, "namespace": namespace, "labels": {"test": namespace}}, "data": data}


async def eventually(check: object, limit: float = 10) -> None:
    async with asyncio.timeout(limit):
        while not check():  # type: ignore[operator]
            await asyncio.sleep(0.02)


async def test_errors_have_names(api: Api, namespace: str, lab: Lab) -> None:
    with pytest.raises(NotFound):
        await api.get(CONFIG_MAPS, "none", namespace)
    created = await api.create(CONFIG_MAPS, config_map(namespace, "a", x="1"))
    with pytest.raises(Conflict):
        await api.create(CONFIG_MAPS, config_map(namespace, "a"))
    with pytest.raises(Invalid, match="Invalid value"):
        await api.create(CONFIG_MAPS, config_map(namespace, "UPPER"))
    await api.patch(CONFIG_MAPS, "a", namespace, {"data": {"x": "2"}})
    stale = config_map(namespace, "a", x="3")
    stale["metadata"] = {**stale["metadata"], "resourceVersion": created["metadata"]["resourceVersion"]}  # type: ignore[dict-item]
    with pytest.raises(Conflict):
        await api.apply(CONFIG_MAPS, stale, manager="test")
    assert (await api.get(CONFIG_MAPS, "a", namespace))["data"] == {"x": "2"}
    async with Api.connect(lab.client_kubeconfig("hub", "nobody"), user_agent="test") as stranger:
        with pytest.raises(Denied):
            await stranger.get(CONFIG_MAPS, "a", namespace)


async def test_an_api_server_that_is_not_there_is_unavailable(lab: Lab, tmp_path: object) -> None:
    text = lab.hub.kubeconfig.read_text().replace(lab.hub.url, "https://127.0.0.1:1")
    path = tmp_path / "nowhere.kubeconfig"  # type: ignore[operator]
    path.write_text(text)
    async with Api.connect(path, user_agent="test", attempts=2) as nowhere:
        assert "Cannot connect" in await nowhere.fetch_trouble()
        with pytest.raises(Unavailable, match="does not answer"):
            await nowhere.get(NAMESPACES, "default")


async def test_applied_fields_that_are_left_out_go_away(api: Api, namespace: str) -> None:
    await api.apply(CONFIG_MAPS, config_map(namespace, "a", x="1", y="2"), manager="test")
    await api.apply(CONFIG_MAPS, config_map(namespace, "a", x="1"), manager="test")
    assert (await api.get(CONFIG_MAPS, "a", namespace))["data"] == {"x": "1"}


async def test_a_list_watch_follows_and_lists_in_pages(api: Api, namespace: str) -> None:
    for n in range(3):
        await api.create(CONFIG_MAPS, config_map(namespace, f"old-{n}"))
    seen: list[tuple[str, bool, bool]] = []
    watch = ListWatch(
        api, CONFIG_MAPS, Map, namespace=namespace, on_change=lambda key, old, new: seen.append((key[1], old is None, new is None))
    )
    task = asyncio.create_task(watch.run())
    try:
        async with asyncio.timeout(10):
            await watch.synced.wait()
        assert {record.metadata.name for record in watch} >= {"old-0", "old-1", "old-2"}
        await api.create(CONFIG_MAPS, config_map(namespace, "new", x="1"))
        await eventually(lambda: watch.get(namespace, "new"))
        await api.patch(CONFIG_MAPS, "new", namespace, {"data": {"x": "2"}})
        await eventually(lambda: watch.get(namespace, "new").data == {"x": "2"})  # type: ignore[union-attr]
        await api.delete(CONFIG_MAPS, "old-1", namespace)
        await eventually(lambda: watch.get(namespace, "old-1") is None)
        assert watch.lists == 1
        assert [event for event in seen if event[0] == "new"] == [("new", True, False), ("new", False, False)]
        assert ("old-1", False, True) in seen
    finally:
        await end(task)


async def test_what_was_deleted_during_a_gap_is_no_ghost(api: Api, namespace: str) -> None:
    for name in ("stays", "goes"):
        await api.create(CONFIG_MAPS, config_map(namespace, name))
    gone: list[str] = []
    watch = ListWatch(
        api, CONFIG_MAPS, Map, namespace=namespace, on_change=lambda key, old, new: gone.append(key[1]) if new is None else None
    )
    task = asyncio.create_task(watch.run())
    async with asyncio.timeout(10):
        await watch.synced.wait()
    await end(task)
    await api.delete(CONFIG_MAPS, "goes", namespace)
    task = asyncio.create_task(watch.run())
    try:
        await eventually(lambda: watch.get(namespace, "goes") is None)
        assert gone == ["goes"]
        assert watch.get(namespace, "stays")
    finally:
        await end(task)


async def test_our_own_write_is_seen_before_the_watch_brings_it_and_never_stepped_back(api: Api, namespace: str) -> None:
    watch = ListWatch(api, CONFIG_MAPS, Map, namespace=namespace)
    first = await api.create(CONFIG_MAPS, config_map(namespace, "a", x="1"))
    second = await api.patch(CONFIG_MAPS, "a", namespace, {"data": {"x": "2"}})
    watch.observe(second)
    watch.observe(first)
    assert watch.get(namespace, "a").data == {"x": "2"}  # type: ignore[union-attr]


async def test_an_object_that_does_not_fit_hurts_only_itself(api: Api, namespace: str) -> None:
    class Strict(Record):
        data: dict[str, int]

    await api.create(CONFIG_MAPS, config_map(namespace, "good", x="1"))
    await api.create(CONFIG_MAPS, config_map(namespace, "bad", x="one"))
    watch = ListWatch(api, CONFIG_MAPS, Strict, namespace=namespace, labels=f"test={namespace}")
    task = asyncio.create_task(watch.run())
    try:
        async with asyncio.timeout(10):
            await watch.synced.wait()
        assert [record.metadata.name for record in watch] == ["good"]
        assert "integer" in watch.unreadable[namespace, "bad"]
    finally:
        await end(task)


async def test_secrets_are_not_in_errors(lab: Lab, tmp_path: object) -> None:
    path = tmp_path / "broken.kubeconfig"  # type: ignore[operator]
    path.write_text(json.dumps({"clusters": "topsecret"}))
    with pytest.raises(ValueError, match="cannot use .*broken.kubeconfig"):
        Api.connect(path, user_agent="test")


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
