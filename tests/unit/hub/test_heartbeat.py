"""A hub that does not hear itself ends; the API is a fake, because a deaf watch cannot be had on demand."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from edgefleet.hub.heartbeat import BEAT_ANNOTATION, DeafError, Heartbeat
from edgefleet.hub.settings import Settings
from edgefleet.kube.errors import Unavailable

SETTINGS = Settings(heartbeat_every=timedelta(milliseconds=20), heartbeat_lost_after=timedelta(milliseconds=200))


class FakeApi:
    """Takes beats; brings them back to the channels named in `echo`; numbers writes from `version`."""

    def __init__(self, *echo: str) -> None:
        self.echo = echo
        self.version = 100
        self.down = False
        self.beats = 0
        self.heartbeat: Heartbeat

    async def apply(self, _: Any, body: dict[str, Any], *, manager: str) -> dict[str, Any]:
        if self.down:
            raise Unavailable(503, "etcd has no leader")
        self.beats += 1
        for channel in self.echo:
            self.heartbeat.heard(channel, body["metadata"]["annotations"][BEAT_ANNOTATION])
        return {"metadata": {"resourceVersion": str(self.version)}}


def beating(*echo: str) -> tuple[FakeApi, Heartbeat]:
    api = FakeApi(*echo)
    api.heartbeat = Heartbeat(api, SETTINGS)  # type: ignore[arg-type]
    return api, api.heartbeat


async def test_a_hub_that_hears_itself_goes_on() -> None:
    api, heartbeat = beating("kopf", "list-watch")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.6):
            await heartbeat.run()
    assert api.beats > 10


@pytest.mark.parametrize(("hears", "lacks"), [("kopf", "list-watch"), ("list-watch", "kopf")])
async def test_one_deaf_channel_ends_it(hears: str, lacks: str) -> None:
    _, heartbeat = beating(hears)
    with pytest.raises(DeafError, match=f"not seen by {lacks}"):
        async with asyncio.timeout(5):
            await heartbeat.run()


async def test_an_api_server_that_stays_away_ends_it() -> None:
    api, heartbeat = beating("kopf", "list-watch")
    api.down = True
    with pytest.raises(DeafError):
        async with asyncio.timeout(5):
            await heartbeat.run()


async def test_a_resource_version_that_falls_ends_it() -> None:
    api, heartbeat = beating("kopf", "list-watch")
    task = asyncio.create_task(heartbeat.run())
    await asyncio.sleep(0.05)
    api.version = 50
    with pytest.raises(DeafError, match="fell from 100 to 50"):
        async with asyncio.timeout(5):
            await task


async def test_beats_of_another_process_do_not_count() -> None:
    _, heartbeat = beating("kopf")
    heartbeat.heard("list-watch", "another@2026-01-01T00:00:00")
    task = asyncio.create_task(heartbeat.run())
    async with asyncio.timeout(5):
        while not task.done():
            heartbeat.heard("list-watch", "another@2026-01-01T00:00:00")
            await asyncio.sleep(0.01)
    with pytest.raises(DeafError, match="list-watch"):
        task.result()
