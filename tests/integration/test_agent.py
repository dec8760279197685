"""The site agent on real parts: API servers for hub and site, a registry, MLServer, Envoy; one agent process for each test."""

import asyncio
import itertools
import os
import signal
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.assignment import Order
from edgefleet.api.policy import HardChecks
from edgefleet.api.report import SITE_ANNOTATION, FleetReport, SiteReport, fleet_annotation
from edgefleet.api.site import Storage
from edgefleet.kube.resources import CONFIG_MAPS, LEASES, ROLE_BINDINGS, SITE_ASSIGNMENTS
from edgefleet.site.gateway_config import gateway_folder
from edgefleet.site.gateway_process import GatewayProcess
from edgefleet.trust.keys import PrivateKey
from tests.integration.site_rig import (
    ASSIGNMENT,
    FLEET,
    Cable,
    Client,
    Rig,
    count_writes,
    grant,
    open_rig,
    wait_until,
)
from tests.lab.cluster import Lab
from tests.lab.registry import Fault, Registry, Request
from tests.lab.server import ModelServer

_names = itertools.count(1)


@pytest.fixture
async def rig(kinds: Lab, registry: Registry, model_server: ModelServer, tmp_path: Path) -> AsyncIterator[Rig]:
    """A site of its own for each test; its agent is not started yet."""
    async with open_rig(tmp_path, kinds, registry, model_server, f"plant-{next(_names)}") as running:
        yield running


def forget(rig: Rig, revision: str) -> None:
    """As a model server that restarts: the revision is not loaded any more."""
    url = f"{rig.server.url}/v2/repository/models/{rig.model}--{revision[:8]}/unload"
    with urllib.request.urlopen(urllib.request.Request(url, data=b"{}", method="POST"), timeout=10) as answer:
        assert answer.status == 200


async def test_first_activation_and_a_second_revision_beside_it(rig: Rig) -> None:
    rig.push_golden()
    first = rig.push("1.0", 1)
    rig.start_agent()
    await rig.assign(first)
    status = await rig.wait_for("Active")
    assert status.golden_score == "100.0%"
    assert status.active is not None
    assert (status.active.revision, status.active.version, status.active.variant) == (first.hash, "1.0", "cpu")
    assert rig.serving() == f"{rig.model}--{first.hash[:8]}"

    second = rig.push("1.1", 2)
    with Client(rig) as client:
        await client.answered(20)
        await rig.assign(second)
        await rig.wait_for("Active")
        await client.answered(20)
    assert client.lost == []
    assert set(client.answers) == {f"{rig.model}--{first.hash[:8]}", f"{rig.model}--{second.hash[:8]}"}


async def test_a_quick_activation_costs_one_status_write_and_one_lease_write(rig: Rig) -> None:
    revision = rig.push("1.0", 1)
    async with count_writes(rig) as writes:
        rig.start_agent(renew="60s")
        await wait_until(writes.lease_at_least(1), rig.log)
        await rig.assign(revision)
        await rig.wait_for("Active")
        await wait_until(writes.lease_at_least(2), rig.log)
        lease = await rig.lease()
        report = FleetReport.model_validate_json(lease["metadata"]["annotations"][fleet_annotation(FLEET)])
        assert (report.revision, report.sequence, report.floor) == (revision.hash, 1, 1)
        assert (writes.leases, writes.statuses) == (2, 1)

        # A renewal is one Lease write and nothing else; the order's own renewal costs the site nothing.
        rig.kill_agent()
        rig.start_agent(renew="1s")
        rig.sequence = 0
        await rig.assign(revision)
        await wait_until(writes.lease_at_least(6), rig.log)
        assert writes.statuses == 1
    assert lease["spec"]["leaseDurationSeconds"] == 180
    site = SiteReport.model_validate_json(lease["metadata"]["annotations"][SITE_ANNOTATION])
    assert site.hardware.declared == ("arch",)


async def test_what_may_not_be_believed_is_refused_with_a_reason(rig: Rig) -> None:
    good = rig.push("1.0", 1)
    unsigned = rig.push("1.1", 2, signed=False)
    rig.start_agent()
    rig.sequence = 4
    await rig.assign(good)
    await rig.wait_for("Active")
    serving = rig.serving()
    now = datetime.now(UTC).replace(microsecond=0)

    async def refused(order: Order, reason: str, *, key: PrivateKey | None = None, **copy: Any) -> None:
        await rig.write(order, key=key, **copy)
        status = await rig.wait_for("Refused", reason, sequence=copy.get("sequence", order.sequence))
        assert status.fault == "Site"
        assert status.active is not None
        assert status.active.revision == good.hash

    await refused(rig.order(good, site="elsewhere"), "WrongSite")
    await refused(rig.order(good, fleet="vision/others"), "WrongFleet")
    await refused(rig.order(good, sequence=3), "SequenceTooLow")
    await refused(rig.order(unsigned, sequence=5), "SequenceReused")
    await refused(rig.order(good, sequence=5000), "SequenceJump")
    await refused(rig.order(good), "OrderSignatureInvalid", key=PrivateKey.generate())
    await refused(rig.order(good), "CopyMismatch", version="9.9")
    await refused(rig.order(unsigned, expires_at=now - timedelta(minutes=1)), "TrustStale")
    await refused(rig.order(unsigned), "SignatureMissing")
    assert rig.serving() == serving


async def test_a_flipped_byte_blocks_the_site_until_it_is_healed(rig: Rig) -> None:
    revision = rig.push("1.0", 1)
    rig.registry.corrupt_blob(rig.weights_digest(revision))
    rig.start_agent()
    await rig.assign(revision)
    status = await rig.wait_for("Blocked", "DigestMismatch")
    assert (status.fault, status.active) == ("Site", None)
    assert rig.ask()[0] == 404
    rig.registry.restore()
    await rig.wait_for("Active")


async def test_a_failed_golden_set_leaves_the_old_revision_serving(rig: Rig) -> None:
    rig.push_golden()
    good, bad = rig.push("1.0", 1), rig.push("1.1", 2, bias=1)
    rig.start_agent()
    await rig.assign(good)
    await rig.wait_for("Active")
    serving = rig.serving()
    await rig.assign(bad)
    status = await rig.wait_for("Failed", "GoldenSetFailed")
    assert (status.fault, status.golden_score) == ("Revision", "0.0%")
    assert "0/20" in status.message
    assert status.active is not None
    assert status.active.revision == good.hash
    assert rig.serving() == serving

    # The hub sends the site back to what serves already: nothing is fetched or switched.
    requests = len(rig.registry.requests)
    await rig.assign(good)
    await rig.wait_for("Active")
    assert len(rig.registry.requests) == requests


async def test_a_revision_that_does_not_load_is_its_own_fault(rig: Rig) -> None:
    broken, bare = rig.push("1.0", 1, broken=True), rig.push("1.1", 2, settings=False)
    slow = rig.push("1.2", 3, load_seconds=2)
    rig.start_agent()
    for revision, reason in ((broken, "LoadFailed"), (bare, "ServingConfigMissing")):
        await rig.assign(revision)
        assert (await rig.wait_for("Failed", reason)).fault == "Revision"
    await rig.assign(slow, checks=HardChecks(ready_within="500ms"))
    assert (await rig.wait_for("Failed", "NotReadyInTime")).fault == "Revision"


async def test_an_agent_that_is_killed_goes_on_where_it_was(rig: Rig) -> None:
    first, second = rig.push("1.0", 1), rig.push("1.1", 2, padding="x" * 200_000)
    rig.start_agent()
    await rig.assign(first)
    await rig.wait_for("Active")
    with Client(rig) as client:
        reached = asyncio.Event()
        loop = asyncio.get_running_loop()

        def stall(request: Request) -> Fault | None:
            if request.method == "GET" and "/blobs/" in request.path:
                loop.call_soon_threadsafe(reached.set)
                return Fault(stall=60, stall_after=100_000)
            return None

        rig.registry.fault = stall
        await rig.assign(second)
        await asyncio.wait_for(reached.wait(), 20)
        rig.kill_agent()
        rig.registry.fault = None
        await client.answered(20)
        rig.start_agent()
        await rig.wait_for("Active")
        await client.answered(20)
        requests = len(rig.registry.requests)

        # Killed at rest: neither a download nor a switch.
        rig.kill_agent()
        rig.start_agent()
        await rig.assign(second)
        await rig.wait_for("Active")
        assert len(rig.registry.requests) == requests
    assert client.lost == []


async def test_without_the_hub_the_site_serves_and_changes_nothing(rig: Rig) -> None:
    revision = rig.push("1.0", 1)
    rig.start_agent(renew="1s")
    await rig.assign(revision)
    await rig.wait_for("Active")
    with Client(rig) as client:
        await rig.admin.delete(SITE_ASSIGNMENTS, ASSIGNMENT, rig.namespace)
        await rig.admin.delete(ROLE_BINDINGS, "edgefleet-site", rig.namespace)
        await rig.admin.delete(CONFIG_MAPS, "trust-bundle", rig.namespace)
        await client.answered(50)
    assert client.lost == []

    # A new agent finds neither rights nor objects at the hub, and its model server has forgotten everything.
    rig.kill_agent()
    await asyncio.to_thread(forget, rig, revision.hash)
    rig.start_agent(renew="1s")

    async def serves() -> bool:
        return rig.ask()[0] == 200

    await wait_until(serves, rig.log)
    held = await rig.local.get(SITE_ASSIGNMENTS, ASSIGNMENT, rig.namespace)
    assert held["spec"]["sequence"] == 1

    # The hub is back: the same order under the same sequence, and the status is written again.
    await grant(rig)
    rig.sequence = 0
    await rig.assign(revision)
    await rig.wait_for("Active")


async def test_a_withdrawal_takes_the_model_out(rig: Rig) -> None:
    revision = rig.push("1.0", 1)
    rig.start_agent()
    await rig.assign(revision)
    await rig.wait_for("Active")
    await rig.assign(None)
    status = await rig.wait_for("Withdrawn")
    assert status.active is None
    code, body = rig.ask()
    assert code == 404
    assert "no such model" in body["error"]
    await rig.assign(revision)
    await rig.wait_for("Active")


async def test_a_newer_order_ends_one_that_is_stuck(rig: Rig) -> None:
    first, stuck = rig.push("1.0", 1), rig.push("1.1", 2, padding="x" * 200_000)
    rig.start_agent()
    await rig.assign(first)
    await rig.wait_for("Active")
    rig.registry.fault = lambda request: Fault(stall=60, stall_after=1000) if "/blobs/" in request.path else None
    await rig.assign(stuck)
    await rig.wait_for("Progressing", "Fetching")  # told because it lasts
    await rig.assign(first)
    status = await rig.wait_for("Active")
    assert status.active is not None
    assert status.active.revision == first.hash


async def test_the_gateway_comes_back_by_itself(rig: Rig) -> None:
    revision = rig.push("1.0", 1)
    rig.start_agent()
    await rig.assign(revision)
    await rig.wait_for("Active")
    process = GatewayProcess(gateway_folder(rig.state))
    pid = process.find()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    async def other_serves() -> bool:
        found = process.find()
        return found is not None and found != pid and rig.serving().endswith(revision.hash[:8])

    await wait_until(other_serves, rig.log)


async def test_a_model_server_that_is_gone_is_told_of_until_it_is_back(rig: Rig) -> None:
    revision = rig.push("1.0", 1)
    line = Cable(rig.server.url)
    await line.mend()
    rig.server = replace(rig.server, url=f"http://127.0.0.1:{line.port}")
    rig.start_agent()
    await rig.assign(revision)
    before = await rig.wait_for("Active", "Serving")
    await line.cut()
    blocked = await rig.wait_for("Blocked", "ServerUnreachable")
    assert (blocked.fault, blocked.active) == ("Site", before.active)
    await line.mend()
    again = await rig.wait_for("Active", "Serving")
    assert (again.since, again.golden_score) == (before.since, before.golden_score)
    assert (await asyncio.to_thread(rig.serving)).endswith(revision.hash[:8])
    await line.cut()


async def test_a_hub_that_cannot_be_reached_is_not_needed(rig: Rig) -> None:
    first, second = rig.push("1.0", 1), rig.push("1.1", 2)
    rig.cable = Cable(rig.lab.hub.url)
    await rig.cable.mend()
    rig.start_agent(renew="1s")
    await rig.assign(first)
    await rig.wait_for("Active")
    with Client(rig) as client:
        await rig.cable.cut()
        await rig.assign(second)
        await client.answered(50)
        rig.kill_agent()
        await asyncio.to_thread(forget, rig, first.hash)
    assert all(first.hash[:8] in name for name in client.answers)
    rig.start_agent(renew="1s")

    async def serves() -> bool:
        return first.hash[:8] in rig.serving()

    await wait_until(serves, rig.log)
    assert (await rig.status()).sequence == 1
    await rig.cable.mend()
    await rig.wait_for("Active")
    assert second.hash[:8] in rig.serving()


async def test_a_renewed_order_costs_nothing_and_an_expired_one_takes_nothing_away(rig: Rig) -> None:
    first, second = rig.push("1.0", 1), rig.push("1.1", 2)
    rig.start_agent()

    async def reported() -> bool:
        return bool(await rig.admin.list(LEASES, rig.namespace))

    await wait_until(reported, rig.log)
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=6)
    order = await rig.assign(first, expires_at=soon)
    await rig.wait_for("Active", "Serving")
    await rig.wait_for("Active", "TrustStale")
    assert first.hash[:8] in rig.serving()
    requests = len(rig.registry.requests)
    await rig.write(order.model_copy(update={"expires_at": soon + timedelta(days=14)}))
    await rig.wait_for("Active", "Serving")
    assert len(rig.registry.requests) == requests

    # So with the trust bundle: past its end it takes nothing away, and a new one heals by itself.
    ends = await rig.write_bundle(2, lifetime=timedelta(seconds=3))
    await rig.wait_for_bundle(2)

    async def ended() -> bool:
        return datetime.now(UTC) >= ends

    await wait_until(ended, rig.log)
    await rig.assign(second)
    assert (await rig.wait_for("Refused", "TrustStale")).active is not None
    assert first.hash[:8] in rig.serving()
    await rig.write_bundle(3)
    await rig.wait_for("Active", "Serving")
    assert second.hash[:8] in rig.serving()


async def test_a_store_that_is_full_blocks_and_keeps_what_serves(rig: Rig) -> None:
    first, second = rig.push("1.0", 1), rig.push("1.1", 2, padding="x" * 20_000)
    rig.start_agent()
    await rig.assign(first)
    await rig.wait_for("Active")
    await rig.assign(second, storage=Storage(limit="15Ki"))
    status = await rig.wait_for("Blocked", "StoreFull")
    assert status.fault == "Site"
    assert first.hash[:8] in rig.serving()
    await rig.assign(second)
    await rig.wait_for("Active")
