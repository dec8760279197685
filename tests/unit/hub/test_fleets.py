"""A site that cannot be written to holds up nothing but itself; a hostile one cannot fill the hub with fleets that do not exist."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from edgefleet.api.fleet import EdgeFleet
from edgefleet.api.policy import RolloutPolicySpec
from edgefleet.core.actions import WithdrawSite
from edgefleet.core.facts import FleetKey
from edgefleet.hub.assignments import Task
from edgefleet.hub.fleets import CONFLICT_RETRY, SITE_RETRY, Fleets, _run_task
from edgefleet.hub.process import Hub
from edgefleet.hub.registries import Registries
from edgefleet.hub.settings import Settings
from edgefleet.kube.errors import Conflict, NotFound, Unavailable
from edgefleet.trust.keys import PrivateKey
from tests.unit.core import facts_of

TROUBLE: dict[str, Exception] = {
    "gone": NotFound(404, "no such namespace"),
    "unfit": LookupError("no variant fits"),
    "absurd": ValueError("sequence is too large"),
    "changed": Conflict(409, "it changed"),
    "down": Unavailable(0, "no answer"),
}


class Writer:
    """Fails at sites that are named after a trouble."""

    def __init__(self) -> None:
        self.written: list[str] = []

    async def apply(self, fleet: FleetKey, model: str, task: Task) -> None:
        if task.site in TROUBLE:
            raise TROUBLE[task.site]
        self.written.append(task.site)


async def act(*sites: str) -> tuple[timedelta | None, list[str]]:
    writer: Any = Writer()
    nothing: Any = None
    fleets = Fleets(nothing, nothing, writer, nothing, nothing, nothing, Settings())
    return await fleets._act(facts_of.fleet(None), [WithdrawSite(site) for site in sites]), writer.written


async def test_one_sites_trouble_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    assert await act("berlin", "gone", "oslo", "unfit", "absurd") == (SITE_RETRY, ["berlin", "oslo"])
    assert "site unfit: not assigned: no variant fits" in caplog.text


async def test_a_site_that_changed_meanwhile_is_looked_at_again_soon_but_not_at_once() -> None:
    assert await act("changed", "gone", "oslo") == (CONFLICT_RETRY, ["oslo"])
    assert await act("oslo") == (None, ["oslo"])


async def test_an_api_server_that_does_not_answer_ends_the_pass() -> None:
    with pytest.raises(Unavailable):
        await act("down", "oslo")


def test_a_site_cannot_make_the_hub_look_at_fleets_that_do_not_exist() -> None:
    nothing: Any = None
    with Registries(nothing) as registries:
        hub = Hub(nothing, PrivateKey.generate(), registries, Settings())
    known = FleetKey("vision", "plants")
    spec = {"siteSelector": {}, "modelRef": {"name": "weld"}}
    hub._known[known] = EdgeFleet.parse({"metadata": {"name": "plants", "namespace": "vision"}, "spec": spec})
    for fleet in (known, *(FleetKey("vision", f"made-up-{n}") for n in range(100))):
        hub._fleet_touched(fleet)
    assert list(hub.fleet_queue._dirty) == [known]


async def test_an_end_that_a_dying_hub_recorded_by_half_is_completed() -> None:
    ended = facts_of.run(1, facts_of.revision("1"), outcome="Promoted")
    completed: list[tuple[str, str]] = []

    class Runs:
        async def complete(self, fleet: FleetKey, run: str, outcome: str) -> None:
            completed.append((run, outcome))

    class Gatherer:
        async def gather(self, key: FleetKey) -> Any:
            body = {"metadata": {"name": key.name, "namespace": key.namespace}, "spec": {"siteSelector": {}, "modelRef": {"name": "weld"}}}
            return EdgeFleet.parse(body), facts_of.fleet(None, runs=[replace(ended, recorded=False), facts_of.run(2, ended.revision)])

    parts: list[Any] = [None, Gatherer(), None, Runs(), None, None, Settings()]
    with pytest.raises(AttributeError):  # what comes after needs an API server
        await Fleets(*parts).reconcile(facts_of.KEY)
    assert completed == [("weld-1", "Promoted")]


def test_an_order_says_how_long_its_site_soaks_as_its_wave_the_policy_or_nobody_says() -> None:
    waves = [{"name": "canary", "sites": 1, "soak": {"min": "5m", "max": "1h"}}, {"name": "ten", "percent": 10}]
    under = RolloutPolicySpec.model_validate({"waves": waves, "soak": {"min": "20m", "max": "1h"}})
    plan = [("a", 0), ("b", 1), ("c", 2)]
    rolling = facts_of.fleet(facts_of.B, runs=[facts_of.run(1, facts_of.B, plan=plan, under=under)])
    assert [_run_task(rolling, site, facts_of.B, "fp32").soak for site in ("a", "b", "c", "late")] == ["5m", "20m", "20m", "20m"]
    assert _run_task(facts_of.fleet(facts_of.B), "a", facts_of.B, "fp32").soak is None
