"""Trying a revision on a runtime that is a fake: the real one is in tests/integration."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.model import Golden
from edgefleet.api.policy import HardChecks
from edgefleet.core.golden import GoldenLine
from edgefleet.core.pods import Trouble
from edgefleet.core.site import Cause
from edgefleet.site.faults import StepFailed
from edgefleet.site.gateway_config import Upstream
from edgefleet.site.runtimes import LoadFailed, ServerUnreachable
from edgefleet.site.trial import verify_golden_set, verify_ready

NAME = "weld--aaaaaaaa"
LINES = [GoldenLine(({"name": "x", "datatype": "INT64", "shape": [1], "data": [i]},), "y", i) for i in range(10)]


class FakeRuntime:
    """Answers x, but for what a test takes away from it."""

    def __init__(self) -> None:
        self.ready = True
        self.trouble: Trouble | None = None
        self.at_once = True
        self.load_error: Exception | None = None
        self.gone_after = 1000
        self.wrong = 0
        self.silent = 0

    async def place(self, name: str, files: Mapping[str, Path]) -> None:
        """Nothing to do."""

    async def load(self, name: str) -> None:
        """Fails as told."""
        if self.load_error:
            raise self.load_error

    async def is_ready(self, name: str) -> bool:
        """As told."""
        return self.ready

    async def infer(self, name: str, request: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Right, wrong, silent or gone."""
        x = request["inputs"][0]["data"][0]
        if x >= self.gone_after:
            raise ServerUnreachable("connection refused")
        if x < self.silent:
            return None
        return {"outputs": [{"name": "y", "datatype": "INT64", "shape": [1], "data": [x + 1 if x < self.wrong else x]}]}

    def find_upstream(self, name: str) -> Upstream | None:
        """At the server."""
        return None

    def judge(self, name: str, checks: HardChecks, *, beside: bool, patient: bool = True) -> Trouble | None:
        """As told, at once or only when patience has ended."""
        return self.trouble if self.at_once or not patient else None

    async def unload(self, name: str) -> None:
        """Nothing to do."""

    def placed(self) -> set[str]:
        """Nothing."""
        return set()


def golden(minimum: str) -> Golden:
    return Golden(repository="registry.example/golden", digest="sha256:" + "0" * 64, min=minimum)


async def test_a_ready_revision_passes() -> None:
    await verify_ready(FakeRuntime(), NAME, {}, checks=HardChecks(ready_within="1s"))


@pytest.mark.parametrize("error", [None, ServerUnreachable("it went away while loading")])
async def test_one_that_does_not_become_ready_is_the_revisions_fault(error: Exception | None) -> None:
    runtime = FakeRuntime()
    runtime.ready, runtime.load_error = False, error
    with pytest.raises(StepFailed, match="readyWithin 300ms") as caught:
        await verify_ready(runtime, NAME, {}, checks=HardChecks(ready_within="300ms"))
    assert (caught.value.cause, caught.value.reason) == (Cause.READINESS, "NotReadyInTime")
    if error:
        assert str(error) in caught.value.message


async def test_what_the_server_says_of_a_failed_load_is_passed_on() -> None:
    runtime = FakeRuntime()
    runtime.load_error = LoadFailed("the server answers 400")
    with pytest.raises(LoadFailed):
        await verify_ready(runtime, NAME, {}, checks=HardChecks(ready_within="1s"))


async def test_a_server_that_was_away_before_is_the_sites_fault() -> None:
    class Away(FakeRuntime):
        async def is_ready(self, name: str) -> bool:
            raise ServerUnreachable("connection refused")

    with pytest.raises(ServerUnreachable):
        await verify_ready(Away(), NAME, {}, checks=HardChecks(ready_within="1s"))


async def test_waiting_for_readiness_can_be_cancelled() -> None:
    runtime = FakeRuntime()
    runtime.ready = False
    task = asyncio.create_task(verify_ready(runtime, NAME, {}, checks=HardChecks(ready_within="10m")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(("wrong", "minimum", "score"), [(0, "100%", "100.0%"), (1, "90%", "90.0%")])
async def test_a_score_at_the_minimum_passes(wrong: int, minimum: str, score: str) -> None:
    runtime = FakeRuntime()
    runtime.wrong = wrong
    assert await verify_golden_set(runtime, NAME, golden(minimum), LINES) == score


@pytest.mark.parametrize(("wrong", "silent", "said"), [(2, 0, "8/10"), (0, 3, "3 got no answer")])
async def test_a_score_below_it_fails_the_revision(wrong: int, silent: int, said: str) -> None:
    runtime = FakeRuntime()
    runtime.wrong, runtime.silent = wrong, silent
    with pytest.raises(StepFailed) as caught:
        await verify_golden_set(runtime, NAME, golden("90%"), LINES)
    assert (caught.value.cause, caught.value.reason) == (Cause.GOLDEN, "GoldenSetFailed")
    assert caught.value.golden_score == f"{10 - wrong - silent}0.0%"
    assert said in caught.value.message


async def test_a_model_that_takes_the_server_down_fails() -> None:
    runtime = FakeRuntime()
    runtime.gone_after = 4
    with pytest.raises(StepFailed, match="golden line 5 of 10") as caught:
        await verify_golden_set(runtime, NAME, golden("10%"), LINES)
    assert (caught.value.cause, caught.value.reason) == (Cause.GOLDEN, "ServerLost")


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_is_known_against_it_is_told_instead(at_once: bool) -> None:
    runtime = FakeRuntime()
    runtime.ready, runtime.at_once = at_once, at_once
    runtime.trouble = Trouble(Cause.POD, "OOMKilled", "killed once")
    with pytest.raises(StepFailed, match="OOMKilled: killed once") as caught:
        await verify_ready(runtime, NAME, {}, checks=HardChecks(ready_within="300ms"))
    assert caught.value.cause is Cause.POD
