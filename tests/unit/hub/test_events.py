"""Writing Events: the same step twice is one Event, a flood is bounded, and no failure reaches the pass."""

import asyncio
from typing import Any

import pytest

from edgefleet.api.meta import ObjectMeta
from edgefleet.core.events import Note
from edgefleet.hub import events as module
from edgefleet.hub.events import BURST, Allowance, Events
from edgefleet.kube.errors import Conflict, Denied
from edgefleet.kube.resources import EDGE_FLEETS, EDGE_SITES, Resource

FLEET = ObjectMeta(name="plants", namespace="team", uid="u-1", resource_version="7")
NOTE = Note("Normal", "WaveOpened", "plants-2: wave canary opened", "opened/canary")


class Server:
    """Keeps what is created, by name."""

    def __init__(self, error: Exception | None = None) -> None:
        self.held: dict[str, dict[str, Any]] = {}
        self.error = error

    async def create(self, resource: Resource, body: dict[str, Any]) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        if body["metadata"]["name"] in self.held:
            raise Conflict(409, "it exists")
        self.held[body["metadata"]["name"]] = body
        return body


def events(server: Any) -> Events:
    return Events(server, {})


async def test_the_same_step_is_told_once_also_by_another_hub() -> None:
    server = Server()
    one, other = events(server), events(server)
    await one.tell(EDGE_FLEETS, FLEET, [NOTE])
    await other.tell(EDGE_FLEETS, FLEET, [NOTE])
    assert len(server.held) == 1
    assert other.counts == {"known": 1, "written": 0, "dropped": 0, "failed": 0}
    (body,) = server.held.values()
    assert body["involvedObject"] == {
        "apiVersion": "edgefleet.io/v1alpha1",
        "kind": "EdgeFleet",
        "name": "plants",
        "namespace": "team",
        "uid": "u-1",
    }
    await one.tell(EDGE_FLEETS, FLEET.model_copy(update={"resource_version": "8"}), [NOTE])
    assert len(server.held) == 2, "the same note from another state is another step"


async def test_an_event_about_a_site_lies_where_the_api_server_wants_it() -> None:
    server = Server()
    await events(server).tell(EDGE_SITES, ObjectMeta(name="berlin", uid="u-2", resource_version="1"), [NOTE])
    (body,) = server.held.values()
    assert body["metadata"]["namespace"] == "default"
    assert "namespace" not in body["involvedObject"]


async def test_a_long_message_is_cut_where_the_api_server_cuts_it() -> None:
    server = Server()
    await events(server).tell(EDGE_FLEETS, FLEET, [Note("Normal", "X", "ü" * 1000, "x")])
    (body,) = server.held.values()
    assert body["message"] == "ü" * 512


async def test_no_failure_reaches_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    denied = events(Server(Denied(403, "no")))
    await denied.tell(EDGE_FLEETS, FLEET, [NOTE, NOTE])
    assert denied.counts["failed"] == 1

    class Deaf(Server):
        async def create(self, resource: Resource, body: dict[str, Any]) -> dict[str, Any]:
            await asyncio.Event().wait()
            return body

    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
    deaf = events(Deaf())
    async with asyncio.timeout(5):
        await deaf.tell(EDGE_FLEETS, FLEET, [NOTE])
    assert deaf.counts["failed"] == 1


async def test_a_flood_about_sites_is_bounded_and_leaves_room_for_fleets() -> None:
    server = Server()
    one = events(server)
    for number in range(1000):
        await one.tell(EDGE_SITES, ObjectMeta(name=f"s{number}", uid=str(number)), [NOTE])
    assert one.counts["written"] < BURST + 50
    assert one.counts["dropped"] == 1000 - one.counts["written"]
    await one.tell(EDGE_FLEETS, FLEET, [NOTE])
    assert any(body["involvedObject"]["kind"] == "EdgeFleet" for body in server.held.values())


def test_an_allowance_fills_again() -> None:
    one = Allowance(burst=2, per_second=1000.0)
    assert [one.take(), one.take()] == [True, True]
    one._left, one._at = 0.0, one._at - 1
    assert one.take()
