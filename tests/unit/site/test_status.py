"""What is written to a cluster, and how often. The API here is a fake that counts; real ones are in tests/integration."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from edgefleet.api.assignment import SiteAssignmentStatus
from edgefleet.kube.client import Api
from edgefleet.kube.connection import Connection
from edgefleet.kube.errors import Denied, NotFound
from edgefleet.kube.resources import SITE_ASSIGNMENTS, Resource
from edgefleet.kube.watch import ListWatch
from edgefleet.site import status as status_module
from edgefleet.site.status import AssignmentRecord, StatusWriter
from edgefleet.site.summary import Finding, summarise_assignment

NAMESPACE, NAME = "edgesite-plant-7", "vision.plants"
SINCE = datetime(2026, 11, 24, tzinfo=UTC)
ACTIVE = Finding(1, "a" * 64, "Active", "Serving", SINCE)
FETCHING = Finding(1, "a" * 64, "Progressing", "Fetching", SINCE, "10 bytes")
BLOCKED = Finding(1, "a" * 64, "Blocked", "DigestMismatch", SINCE, "the registry sent another", "Site")


class FakeApi(Api):
    """Keeps one assignment in memory and counts the writes of its status."""

    def __init__(self) -> None:
        super().__init__(Connection("http://fake", None, None), user_agent="test")
        self.written: list[SiteAssignmentStatus] = []
        self.trouble: list[Exception] = []
        self.body: dict[str, Any] = {
            "metadata": {"name": NAME, "namespace": NAMESPACE, "resourceVersion": "1"},
            "spec": {
                "site": "plant-7",
                "fleet": "vision/plants",
                "sequence": 1,
                "action": "Run",
                "model": "weld",
                "expiresAt": "2026-12-01T00:00:00Z",
                "envelope": "x",
            },
        }

    async def apply(self, resource: Resource, body: dict[str, Any], *, manager: str, subresource: str | None = None) -> dict[str, Any]:
        """Only what a status writer does."""
        assert (resource, manager, subresource) == (SITE_ASSIGNMENTS, "edgefleet-agent", "status")
        if self.trouble:
            raise self.trouble.pop(0)
        version = int(self.body["metadata"]["resourceVersion"]) + 1
        self.body = {**self.body, "metadata": {**self.body["metadata"], "resourceVersion": str(version)}, "status": body["status"]}
        self.written.append(SiteAssignmentStatus.model_validate(body["status"]))
        return self.body


class Bench:
    """A writer at work on the fake."""

    def __init__(self) -> None:
        self.api = FakeApi()
        self.watch = ListWatch(self.api, SITE_ASSIGNMENTS, AssignmentRecord, namespace=NAMESPACE)
        self.watch.observe(self.api.body)
        self.writer = StatusWriter(self.api, self.watch, NAMESPACE)

    async def until(self, fact: Callable[[], bool]) -> None:
        """Wait for a fact, at most 5 s."""
        async with asyncio.timeout(5):
            while not fact():
                await asyncio.sleep(0.005)

    async def quiet(self) -> None:
        """Let the writer do all that it would do now."""
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """A running writer for which 5 s last a fifth of a second."""
    monkeypatch.setattr(status_module, "LASTING_SECONDS", 0.2)
    running = Bench()
    task = asyncio.create_task(running.writer.run())
    yield running
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_quick_activation_costs_one_write(bench: Bench) -> None:
    for reason in ("Fetching", "Starting", "CheckingGolden"):
        bench.writer.offer(NAME, Finding(1, "a" * 64, "Progressing", reason, SINCE), None)
        await bench.quiet()
    bench.writer.offer(NAME, ACTIVE, None)
    await bench.until(lambda: bool(bench.api.written))
    await bench.quiet()
    assert [status.state for status in bench.api.written] == ["Active"]


async def test_a_state_in_between_is_told_when_it_lasts(bench: Bench) -> None:
    bench.writer.offer(NAME, FETCHING, None)
    await bench.quiet()
    assert bench.api.written == []
    bench.writer.offer(NAME, FETCHING, None)  # said again: its time runs on
    await bench.until(lambda: bool(bench.api.written))
    assert bench.api.written[0].reason == "Fetching"


async def test_a_site_that_tries_again_and_again_writes_once(bench: Bench) -> None:
    for _ in range(5):
        bench.writer.offer(NAME, BLOCKED, None)
        await bench.quiet()
        bench.writer.offer(NAME, FETCHING, None)
        await bench.quiet()
    bench.writer.offer(NAME, BLOCKED, None)
    await bench.quiet()
    assert [status.reason for status in bench.api.written] == ["DigestMismatch"]


async def test_a_status_that_was_lost_is_written_again(bench: Bench) -> None:
    bench.writer.offer(NAME, ACTIVE, None)
    await bench.until(lambda: len(bench.api.written) == 1)
    restored = {**bench.api.body, "metadata": {**bench.api.body["metadata"], "resourceVersion": "9"}, "status": {}}
    bench.api.body = restored
    bench.watch.observe(restored)
    bench.writer.look_again()
    await bench.until(lambda: len(bench.api.written) == 2)
    assert bench.api.written[0] == bench.api.written[1]


async def test_trouble_is_waited_out_and_only_the_newest_is_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module.random, "random", lambda: 1.0)  # the shortest pause
    bench.api.trouble = [Denied(403, "no rights"), NotFound(404, "gone")]
    bench.writer.offer(NAME, BLOCKED, None)
    await bench.until(lambda: not bench.api.trouble[1:])
    bench.writer.offer(NAME, ACTIVE, None)
    await bench.until(lambda: bool(bench.api.written))
    assert [status.state for status in bench.api.written] == ["Active"]


async def test_an_assignment_that_is_not_there_is_not_written(bench: Bench) -> None:
    bench.writer.offer("other.fleet", ACTIVE, None)
    await bench.quiet()
    assert bench.api.written == []


def test_conditions_follow_kstatus() -> None:
    def types(finding: Finding) -> dict[str, str]:
        status = summarise_assignment(finding, None, SiteAssignmentStatus())
        return {condition.type: condition.status for condition in status.conditions}

    assert types(ACTIVE) == {"Ready": "True"}
    assert types(FETCHING) == {"Ready": "False", "Reconciling": "True"}
    assert types(BLOCKED) == {"Ready": "False"}
    assert types(Finding(1, None, "Refused", "WrongSite", SINCE)) == {"Ready": "False", "Stalled": "True"}


def test_the_same_finding_is_the_same_status_and_keeps_its_transition_times() -> None:
    first = summarise_assignment(BLOCKED, None, SiteAssignmentStatus())
    assert summarise_assignment(BLOCKED, None, first) == first
    later = Finding(1, "a" * 64, "Failed", "GoldenSetFailed", datetime(2026, 11, 25, tzinfo=UTC))
    ready = next(c for c in summarise_assignment(later, None, first).conditions if c.type == "Ready")
    assert (ready.reason, ready.last_transition_time) == ("GoldenSetFailed", "2026-11-24T00:00:00Z")


def test_long_messages_are_cut() -> None:
    status = summarise_assignment(Finding(1, None, "Refused", "X", SINCE, "m" * 5000), None, SiteAssignmentStatus())
    assert len(status.message) == 1024
    assert all(len(condition.message) <= 1024 for condition in status.conditions)
