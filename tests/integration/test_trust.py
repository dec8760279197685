"""The trust bundle at real agents: roots that change while a site sleeps, bundles that are refused, hub keys that are replaced."""

import asyncio
import base64
import itertools
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.assignment import SiteAssignmentSpec
from edgefleet.api.meta import site_namespace
from edgefleet.api.report import SITE_ANNOTATION, SiteReport, TrustReport
from edgefleet.kube.resources import CONFIG_MAPS, EDGE_SITES, MODEL_ROLLOUTS, SECRETS, SITE_ASSIGNMENTS
from edgefleet.trust.bundle import make_bundle, make_root
from edgefleet.trust.bundle_content import BundleContent
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.orders import read_signer
from edgefleet.trust.publishers import Publisher
from tests.integration.fakesites import FakeSites
from tests.integration.site_rig import Cable, Client, Rig, open_rig, start_tiny_server, wait_until
from tests.integration.world import World, four_sites, settled
from tests.lab.cluster import Lab
from tests.lab.registry import Registry
from tests.lab.server import ModelServer, ServerEnvironment

_names = itertools.count(1)
ENDS = datetime.now(UTC) + timedelta(days=365)
A, B, C, D, STRANGER = (PrivateKey.generate() for _ in range(5))


def root_of(version: int, keys: Sequence[PrivateKey], signers: Sequence[PrivateKey]) -> bytes:
    """Two of its keys must sign."""
    return make_root([key.public for key in keys], signers=signers, threshold=2, version=version, expires_at=ENDS)


FIRST, SECOND, THIRD = root_of(1, [A, B], [A, B]), root_of(2, [B, C], [A, B, C]), root_of(3, [C, D], [B, C, D])
"""A is lost, then B: each root has one key of the last."""


@pytest.fixture
async def rig(kinds: Lab, registry: Registry, model_server: ModelServer, tmp_path: Path) -> AsyncIterator[Rig]:
    """A site that pins the first root, over a cable; its agent is not started yet."""
    async with open_rig(tmp_path, kinds, registry, model_server, f"trusting-{next(_names)}") as running:
        (tmp_path / "root.json").write_bytes(FIRST)
        running.cable = Cable(kinds.hub.url)
        await running.cable.mend()
        yield running
        await running.admin.delete(EDGE_SITES, running.site)


def bundle(
    rig: Rig,
    version: int,
    roots: Sequence[bytes],
    signers: Sequence[PrivateKey],
    *,
    hub_keys: Sequence[PrivateKey] = (),
    ends: datetime = ENDS,
) -> bytes:
    keys = tuple(key.public for key in hub_keys or [rig.hub_key])
    content = BundleContent({rig.model: Publisher((rig.publisher.public,))}, keys)
    return make_bundle(roots=roots, signers=signers, version=version, content=content, expires_at=ends)


async def hand_out(rig: Rig, data: bytes) -> None:
    """As the hub does it."""
    body = {"metadata": {"name": "trust-bundle", "namespace": rig.namespace}, "data": {"bundle.json": data.decode()}}
    await rig.admin.apply(CONFIG_MAPS, body, manager="test")


async def told(rig: Rig) -> TrustReport:
    """What the site's Lease says of its trust."""
    annotations = (await rig.lease())["metadata"]["annotations"]
    trust = SiteReport.model_validate_json(annotations[SITE_ANNOTATION]).trust
    assert trust is not None
    return trust


async def wait_told(rig: Rig, version: int, refused: str) -> None:
    """Wait until the hub is told this version, and a refusal that begins so (none: empty)."""
    last: list[TrustReport] = []

    async def said() -> bool:
        last[:] = [await told(rig)]
        return last[0].version == version and (last[0].refused.startswith(refused) if refused else not last[0].refused)

    await wait_until(said, lambda: f"{version} {refused!r}; told was {last}\n{rig.log()}")


@pytest.mark.timeout(120)
async def test_a_site_that_slept_follows_and_what_does_not_follow_is_refused_by_name(rig: Rig) -> None:
    first, second, third = (rig.push(f"1.{number}", number + 1) for number in range(3))
    await hand_out(rig, bundle(rig, 1, [FIRST], [A, B]))
    rig.start_agent(renew="1s")
    await rig.assign(first)
    await rig.wait_for("Active")
    assert rig.cable is not None

    # Off line while two roots and two versions pass by.
    with Client(rig) as client:
        await rig.cable.cut()
        await hand_out(rig, bundle(rig, 2, [FIRST, SECOND], [B, C]))
        await hand_out(rig, bundle(rig, 3, [FIRST, SECOND, THIRD], [C, D]))
        await rig.assign(second)
        await client.answered(20)
        await rig.cable.mend()
        await rig.wait_for("Active")
        await client.answered(5)
    assert client.lost == []
    state = json.loads((rig.state / "state.json").read_bytes())
    assert (state["bundleVersion"], state["rootVersion"]) == (3, 3)
    await wait_told(rig, 3, "")

    await rig.admin.apply(EDGE_SITES, {"metadata": {"name": rig.site}, "spec": {"region": "kz"}}, manager="test")
    foreign = make_root([STRANGER.public], signers=[STRANGER], threshold=1, version=1, expires_at=ENDS)
    all_roots = [FIRST, SECOND, THIRD]
    refused = {
        "a root left out": (bundle(rig, 4, [FIRST, THIRD], [C, D]), "BundleRootMismatch: root 3 does not follow root 1"),
        "a root that its predecessor's keys did not sign": (
            bundle(rig, 4, [*all_roots, root_of(4, [D, STRANGER], [D, STRANGER])], [D, STRANGER]),
            "BundleUnderSigned: root 4 is not signed by enough keys of root 3",
        ),
        "an older version": (bundle(rig, 2, all_roots, [C, D]), "BundleRollback: the trust bundle has version 2"),
        "an older root, whose keys were dropped": (
            bundle(rig, 4, [FIRST, SECOND], [B, C]),
            "BundleRollback: the trust bundle ends with root 2",
        ),
        "one key of two and a stranger's": (bundle(rig, 4, all_roots, [C, STRANGER]), "BundleUnderSigned: targets 4 is signed by 1"),
        "another installation's": (bundle(rig, 4, [foreign], [STRANGER]), "BundleRootMismatch: the trust bundle's root 1 is not"),
        "past its end": (bundle(rig, 4, all_roots, [C, D], ends=datetime.now(UTC) - timedelta(hours=1)), "BundleExpired"),
        "no bundle at all": (b"{}", "BundleFormatUnknown"),
    }
    held = (rig.state / "bundle.json").read_bytes()
    with Client(rig) as client:
        for data, reason in refused.values():
            await hand_out(rig, data)
            await wait_told(rig, 3, reason)
        await client.answered(5)
    assert client.lost == []
    state = json.loads((rig.state / "state.json").read_bytes())
    assert (state["bundleVersion"], state["rootVersion"]) == (3, 3)
    said = await run_edgefleet(rig, "site", "why", rig.site)
    assert "refuses the hub's bundle: BundleFormatUnknown" in said
    assert "bundle version 3, until" in said

    # It goes on with what it has, also after a restart: new orders are obeyed.
    rig.kill_agent()
    rig.start_agent(renew="1s")
    await rig.assign(third)
    await rig.wait_for("Active")
    assert third.hash[:8] in rig.serving()
    assert json.loads((rig.state / "bundle.json").read_bytes())["trust"] == json.loads(held)["trust"]
    await hand_out(rig, bundle(rig, 4, all_roots, [C, D]))
    await wait_told(rig, 4, "")


async def run_edgefleet(rig: Rig, *words: str) -> str:
    """A command as a person at the hub types it; what it printed."""
    command = [sys.executable, "-m", "edgefleet", *words, "--kubeconfig", str(rig.lab.hub.kubeconfig)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
async def pair(
    kinds: Lab, registry: Registry, model_server: ModelServer, server_env: ServerEnvironment, tmp_path: Path
) -> AsyncIterator[tuple[Rig, Rig]]:
    """Two sites under the same keys, with a model server each: an agent unloads what is not its own."""
    folders = [tmp_path / name for name in ("near", "far")]
    for folder in folders:
        folder.mkdir()
    number = next(_names)
    other = start_tiny_server(server_env, folders[1])
    async with (
        open_rig(folders[0], kinds, registry, model_server, f"near-{number}") as near,
        open_rig(folders[1], kinds, registry, other, f"far-{number}") as far,
    ):
        for one in (near, far):
            (one.folder / "root.json").write_bytes(FIRST)
            one.hub_key, one.cable = near.hub_key, Cable(kinds.hub.url)
            await one.cable.mend()
        yield near, far
    other.stop()


async def test_a_stolen_hub_key_is_replaced_while_half_of_the_sites_are_off_line(pair: tuple[Rig, Rig]) -> None:
    near, far = pair
    stolen, new = near.hub_key, PrivateKey.generate()
    orders, theirs = {}, {}
    for one in pair:
        await hand_out(one, bundle(one, 1, [FIRST], [A, B]))
        one.start_agent(renew="1s")
        orders[one.site] = await one.assign(one.push("1.0", 1))
        theirs[one.site] = one.push("1.1", 2)
    for one in pair:
        await one.wait_for("Active")
    serving = {one.site: one.serving() for one in pair}
    assert far.cable is not None
    await far.cable.cut()
    requests = len(near.registry.requests)
    with Client(near) as at_near, Client(far) as at_far:
        for one in pair:
            await hand_out(one, bundle(one, 2, [FIRST], [A, B], hub_keys=[new]))
        # What serves was ordered by a key that is believed no more: it goes on.
        await near.wait_for("Refused", "OrderSignatureInvalid")
        await near.write(orders[near.site], key=new)
        await near.wait_for("Active")
        # The thief: his orders wait at the hub for the site that knows of nothing yet.
        for one in pair:
            await one.write(one.order(theirs[one.site]), key=stolen)
        await near.wait_for("Refused", "OrderSignatureInvalid")
        await at_far.answered(20)
        await far.cable.mend()
        await far.wait_for("Refused", "OrderSignatureInvalid")
        for one in pair:
            one.sequence = 1
            await one.write(orders[one.site], key=new)
            status = await one.wait_for("Active")
            assert status.active is not None
            assert status.active.version == "1.0"
        await at_near.answered(5)
        await at_far.answered(5)
    assert {one.site: one.serving() for one in pair} == serving
    assert (at_near.lost, at_far.lost) == ([], [])
    assert len(near.registry.requests) == requests, "nothing was fetched for the thief"
    for one in pair:
        assert json.loads((one.state / "state.json").read_bytes())["fleets"]["vision/plants"]["floor"] == 1


@pytest.mark.timeout(120)
async def test_a_hub_with_another_key_signs_every_order_anew_and_once(world: World, sites: FakeSites) -> None:
    names = await four_sites(world, sites)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    await world.until("release 1 is everywhere", lambda: settled(world, "1"), 90)
    before = {name: await order_at(world, name) for name in names}
    new = PrivateKey.generate()
    world.kill_hub()
    data = {"hub.key": base64.b64encode(new.to_pem().encode()).decode()}
    await world.api.patch(SECRETS, "hub-key", world.system, {"data": data})
    world.start_hub()

    async def signed_anew() -> bool:
        return all([read_signer((await order_at(world, name))[0].envelope) == new.public.id for name in names])

    await world.until("every order is signed by the new key", signed_anew, 60)
    for name, (spec, generation) in before.items():
        found, now = await order_at(world, name)
        assert (found.sequence, found.revision, now) == (spec.sequence, spec.revision, generation + 1)
        assert read_signer(spec.envelope) == world.hub_key.public.id
    runs = await world.api.list(MODEL_ROLLOUTS, world.team)
    assert len(runs) == 1


async def order_at(world: World, site: str) -> tuple[SiteAssignmentSpec, int]:
    """A site's order, and how often its spec was written."""
    (body,) = await world.api.list(SITE_ASSIGNMENTS, site_namespace(site))
    found: dict[str, Any] = body
    return SiteAssignmentSpec.model_validate(found["spec"]), found["metadata"]["generation"]
