"""Taking back a release, or those who signed it: at a real hub with fake sites, and at a real agent. The root's word outranks the hub's."""

import base64
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.meta import format_time, parse_time, site_namespace
from edgefleet.kube.client import Api
from edgefleet.kube.resources import CONFIG_MAPS, EDGE_FLEETS, EDGE_MODELS, ROLLOUT_POLICIES, SECRETS, SITE_ASSIGNMENTS
from edgefleet.trust.bundle import make_bundle
from edgefleet.trust.bundle_content import BundleContent
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.orders import open_order
from edgefleet.trust.publishers import Publisher, Revoked
from tests.integration.fakesites import FakeSites
from tests.integration.site_rig import ASSIGNMENT, Cable, Rig, open_rig, wait_until
from tests.integration.world import POLICY, World, versions
from tests.lab.cluster import Lab
from tests.lab.registry import Registry
from tests.lab.server import ModelServer

_names = itertools.count(1)


@pytest.fixture
async def world(kinds: Lab, registry: Registry, tmp_path: Path) -> AsyncIterator[World]:
    """A hub that runs."""
    async with Api.connect(kinds.hub.kubeconfig, user_agent="test") as api:
        made = World(kinds, api, registry, tmp_path)
        try:
            await made.set_up()
            made.start_hub()
            yield made
        finally:
            made.kill_hub()
            made.close()


async def until_ordered(world: World, sites: FakeSites, version: str) -> None:
    async def ordered() -> bool:
        return set(versions(sites)) == {version}

    await world.until(f"all are told to run {version}", ordered)


async def test_the_hub_takes_back_what_nobody_vouches_for_and_what_is_revoked(world: World) -> None:
    async with FakeSites(world.lab, world.hub_key.public) as sites:
        names = [await world.add_site(f"s{n}") for n in range(2)]
        for name in names:
            await sites.add(name)
        first = world.push("1")
        world.push("2")
        await world.name_release("1")
        await world.add_fleet()
        await world.until_ended(1, "Promoted")
        await until_ordered(world, sites, "1")

        # A run that watches its canary for an hour, of a release whose only publisher is taken out of the Secret.
        await world.apply(ROLLOUT_POLICIES, "careful", {**POLICY, "soak": {"min": "1h", "max": "2h"}})
        await world.name_release("2")

        async def exposed() -> bool:
            return "2" in versions(sites)

        await world.until("a canary runs 2", exposed)
        new = PrivateKey.generate()
        data = {"weld.pub": base64.b64encode(new.public.to_pem().encode()).decode()}
        await world.api.patch(SECRETS, "publishers", world.team, {"data": data})
        ended = await world.until_ended(2, "RolledBack")
        assert ended["status"]["reason"] == "TrustWithdrawn"
        assert "0 are still believed" in ended["status"]["message"]
        await until_ordered(world, sites, "1")
        assert (await world.fleet())["status"]["stableVersion"] == "1", "what serves is not taken away with its publisher"

        # The only release to go back to is revoked: it serves on, for an hour at most.
        revoked = {"revoked": [{"digest": first, "reason": "reads the wrong line", "stopServingAfter": "1h"}]}
        await world.name_release("2", **revoked)
        found = await world.until_condition(EDGE_FLEETS, "plants", "Paused", "NoSafeTarget")
        assert "nothing to go back to" in found["message"]

        async def told() -> list[datetime]:
            ends = []
            for name in names:
                held = await world.api.get(SITE_ASSIGNMENTS, f"{world.team}.plants", site_namespace(name))
                order = open_order(held["spec"]["envelope"], [world.hub_key.public])
                ends += [one.by for one in order.stop_serving or () if one.digest == first]
            return ends if len(ends) == len(names) else []

        ends = await world.until("both are told until when", told)
        (said,) = (await world.api.get(EDGE_MODELS, "weld", world.team))["status"]["revoked"]
        assert {format_time(by) for by in ends} == {said["stopServingBy"]}
        assert parse_time(said["stopServingBy"]) - parse_time(said["since"]) == timedelta(hours=1)
        assert versions(sites) == ["1", "1"]

        # A good release is the way out.
        await world.apply(ROLLOUT_POLICIES, "careful", POLICY)
        world.push("3", key=new)
        await world.name_release("3", **revoked)
        await world.until_ended(3, "Promoted")
        await until_ordered(world, sites, "3")


@pytest.fixture
async def rig(kinds: Lab, registry: Registry, model_server: ModelServer, tmp_path: Path) -> AsyncIterator[Rig]:
    """A site whose line to the hub can be cut; its agent is not started yet."""
    async with open_rig(tmp_path, kinds, registry, model_server, f"revoked-{next(_names)}") as running:
        running.cable = Cable(kinds.hub.url)
        await running.cable.mend()
        yield running


async def believe(rig: Rig, version: int, *digests: str, stops: dict[str, datetime] | None = None, key: PrivateKey | None = None) -> None:
    """The next trust bundle: what it revokes, and whose signatures count."""
    revoked = Revoked(digests=frozenset(digests), stops=stops or {})
    publisher = Publisher(((key or rig.publisher).public,), revoked=revoked)
    data = make_bundle(
        roots=[rig.root_document],
        signers=[rig.root],
        version=version,
        content=BundleContent({rig.model: publisher}, (rig.hub_key.public,), revoked),
        expires_at=datetime.now(UTC) + timedelta(days=30),
    )
    body = {"metadata": {"name": "trust-bundle", "namespace": rig.namespace}, "data": {"bundle.json": data.decode()}}
    await rig.admin.apply(CONFIG_MAPS, body, manager="test")


def served(rig: Rig, revision: Any) -> str:
    return f"{rig.model}--{revision.hash[:8]}"


async def until_serving(rig: Rig, wanted: str) -> None:
    async def serves() -> bool:
        return rig.serving() == wanted

    await wait_until(serves, lambda: f"{wanted} instead of {rig.serving()}\n{rig.log()}")


async def test_a_site_goes_back_by_itself_and_serves_nothing_once_the_time_is_over(rig: Rig) -> None:
    first, second, third = (rig.push(f"1.{n}", n + 1) for n in range(3))
    rig.start_agent()
    for one in (first, second):
        await rig.assign(one)
        await rig.wait_for("Active", "Serving")

    # Revoked by the root while it serves: back to what served before, although the hub still orders it; and so after a restart.
    await believe(rig, 2, second.digest)
    status = await rig.wait_for("Failed", "Revoked")
    assert (status.fault, status.active and status.active.revision) == ("Revision", first.hash)
    assert rig.serving() == served(rig, first)
    rig.kill_agent()
    rig.start_agent()
    await rig.assign(second)
    assert "revoked by the trust bundle" in (await rig.wait_for("Refused", "Revoked")).message
    assert rig.serving() == served(rig, first)

    # Nothing else is left: it serves on, says so, and ends when the bundle says; nor does it begin again after that.
    await rig.assign(first)
    await rig.wait_for("Active", "Serving")
    await believe(rig, 3, first.digest, second.digest, stops={first.digest: datetime.now(UTC) + timedelta(hours=1)})
    assert "then nothing serves" in (await rig.wait_for("Active", "Revoked")).message
    assert rig.serving() == served(rig, first)
    await believe(rig, 4, first.digest, second.digest, stops={first.digest: datetime.now(UTC)})
    status = await rig.wait_for("Failed", "Revoked")
    assert "time to be served is over" in status.message or "revoked by the trust bundle" in status.message
    assert status.active is None
    await until_serving(rig, "status 404")
    rig.kill_agent()
    rig.start_agent()
    await rig.assign(third)
    await rig.wait_for("Active", "Serving")
    assert rig.serving() == served(rig, third)


async def test_a_site_that_was_cut_off_learns_it_before_it_obeys(rig: Rig) -> None:
    first, second = rig.push("1.0", 1), rig.push("1.1", 2)
    rig.start_agent()
    await rig.assign(first)
    await rig.wait_for("Active", "Serving")
    assert rig.cable is not None
    await rig.cable.cut()
    await rig.assign(second)
    await believe(rig, 2, second.digest)
    await rig.cable.mend()
    status = await rig.wait_for("Refused", "Revoked")
    assert (status.active and status.active.revision) == first.hash
    assert f"{second.hash[:8]}: the model server loads" not in rig.log()

    # The same while a revision loads: it was believed when its turn began, and is not when it ends.
    slow = rig.push("1.2", 3, load_seconds=3)
    await rig.assign(slow)

    async def loading() -> bool:
        return "sequence 3: Progressing Starting" in rig.log()

    await wait_until(loading, rig.log)
    await believe(rig, 3, slow.digest)
    status = await rig.wait_for("Refused", "Revoked")
    assert (status.active and status.active.revision, rig.serving()) == (first.hash, served(rig, first))

    # Its publisher is not believed any more: what serves goes on, over a restart too; nothing of it is activated anew.
    await believe(rig, 4, key=PrivateKey.generate())
    await rig.wait_for("Refused", "SignatureInvalid")
    rig.kill_agent()
    rig.start_agent()
    await rig.assign(first)
    await rig.wait_for("Active", "Serving")
    assert rig.serving() == served(rig, first)
    await rig.assign(None)
    await rig.wait_for("Withdrawn")
    await rig.assign(first)
    await rig.wait_for("Refused", "SignatureInvalid")
    assert rig.serving() == "status 404"


async def test_an_order_that_says_until_when_is_obeyed_without_the_hub(rig: Rig) -> None:
    from edgefleet.api.assignment import StopServing

    only = rig.push("1.0", 1)
    rig.start_agent()
    order = await rig.assign(only)
    await rig.wait_for("Active", "Serving")
    ends = datetime.now(UTC) + timedelta(seconds=6)
    await rig.write(order.model_copy(update={"stop_serving": (StopServing(digest=only.digest, by=ends),)}))
    assert "is revoked, and serves until" in (await rig.wait_for("Active", "Revoked")).message
    assert rig.cable is not None
    await rig.cable.cut()
    rig.kill_agent()
    rig.start_agent()
    await until_serving(rig, "status 404")
    assert datetime.now(UTC) >= ends
    await rig.cable.mend()
    status = await rig.wait_for("Failed", "Revoked")
    assert status.active is None
    held = await rig.admin.get(SITE_ASSIGNMENTS, ASSIGNMENT, rig.namespace)
    assert held["status"]["sequence"] == order.sequence
