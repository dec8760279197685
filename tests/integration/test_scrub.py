"""A byte that flips in the store of a site: found, healed, and never handed to a model server. On real parts."""

import asyncio
import hashlib
import itertools
import json
import os
import urllib.request
from collections.abc import AsyncIterator

import pytest

from edgefleet.api.assignment import FrozenRevision
from edgefleet.cli.app import run
from tests.integration.site_rig import Client, Rig, free_ports, open_rig, wait_until
from tests.lab.cluster import Lab
from tests.lab.registry import Fault, Registry, Request
from tests.lab.server import ModelServer

_names = itertools.count(1)


@pytest.fixture
async def rig(kinds: Lab, registry: Registry, model_server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path_factory.mktemp("scrub"), kinds, registry, model_server, f"rusty-{next(_names)}") as running:
        yield running
        running.registry.fault = None


def weights(rig: Rig, revision: FrozenRevision) -> str:
    """The digest of its weights, without asking the registry."""
    record = json.loads((rig.state / "store" / "revisions" / f"{revision.hash}.json").read_bytes())
    return next(str(blob["digest"]) for blob in record["files"] if blob["name"] == "weights.json")


def rot(rig: Rig, revision: FrozenRevision) -> None:
    """One bit of the weights, in place: whatever loads them answers x + 1."""
    path = rig.state / "store" / "blobs" / weights(rig, revision).removeprefix("sha256:")
    whole, was = path.read_bytes(), path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(whole.index(b'"bias": 0') + 8)
        file.write(b"1")
    # A disk that rots tells nobody.
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def is_good(rig: Rig, revision: FrozenRevision) -> bool:
    digest = weights(rig, revision).removeprefix("sha256:")
    path = rig.state / "store" / "blobs" / digest
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def forget(rig: Rig, revision: FrozenRevision) -> None:
    """As a model server that restarts: the revision is not loaded any more."""
    url = f"{rig.server.url}/v2/repository/models/{name_of(rig, revision)}/unload"
    with urllib.request.urlopen(urllib.request.Request(url, data=b"{}", method="POST"), timeout=10) as answer:
        assert answer.status == 200


def read_page(port: int) -> str:
    """The agent's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        return str(page.read().decode())


def name_of(rig: Rig, revision: FrozenRevision) -> str:
    return f"{rig.model}--{revision.hash[:8]}"


def refuse(_: Request) -> Fault:
    return Fault(status=503)


def answer(rig: Rig) -> tuple[str, list[int]]:
    """Who answers 20, and what; the status where nobody does."""
    try:
        status, body = rig.ask(20)
    except OSError as error:
        return repr(error), []
    return (str(body["model_name"]), body["outputs"][0]["data"]) if status == 200 else (f"status {status}", [])


async def serve(rig: Rig, *revisions: FrozenRevision) -> None:
    rig.start_agent()
    for revision in revisions:
        await rig.assign(revision)
        await rig.wait_for("Active")


async def answers(rig: Rig, revision: FrozenRevision) -> None:
    """Wait until this revision answers; whoever answers before it answers right."""

    async def right() -> bool:
        who, said = await asyncio.to_thread(answer, rig)
        assert said in ([], [20]), f"{who} answers {said}: it was given a damaged file\n{rig.log()}"
        return who == name_of(rig, revision)

    await wait_until(right, lambda: f"{name_of(rig, revision)} answers\n{rig.log()}")


async def healed(rig: Rig, revision: FrozenRevision) -> None:
    async def good() -> bool:
        return await asyncio.to_thread(is_good, rig, revision)

    await wait_until(good, lambda: f"{revision.version} is healed\n{rig.log()}")


async def test_what_must_be_loaded_is_read_first_and_healed(rig: Rig) -> None:
    only = rig.push("1.0", 1)
    await serve(rig, only)
    rig.kill_agent()
    rot(rig, only)
    forget(rig, only)
    rig.start_agent()
    await answers(rig, only)
    assert is_good(rig, only)
    assert "StoreDamaged" in (rig.folder / "agent.log").read_text()

    # The same with an agent that goes on, and a server that starts anew.
    rot(rig, only)
    forget(rig, only)
    await answers(rig, only)
    assert is_good(rig, only)


async def test_what_serves_from_memory_goes_on_and_is_healed_beside(rig: Rig) -> None:
    first, second = rig.push("1.0", 1), rig.push("1.1", 2)
    await serve(rig, first, second)
    rig.kill_agent()
    (port,) = free_ports(1)
    with Client(rig) as client:
        for revision in (first, second):
            rot(rig, revision)
        rig.registry.fault = refuse
        rig.start_agent(metrics_port=port)
        status = await rig.wait_for("Blocked", "StoreDamaged")
        assert "1.1 serves from memory" in status.message
        assert status.active is not None
        assert status.active.revision == second.hash
        verify = ["site", "verify", "--state", str(rig.state), "--root", str(rig.folder / "root.json")]
        assert await asyncio.to_thread(run, verify) == 1
        rig.registry.fault = None
        await rig.wait_for("Active")
        for revision in (second, first):
            await healed(rig, revision)
        assert await asyncio.to_thread(run, verify) == 0
        await client.answered(20)
    assert client.lost == []
    assert set(client.answers) == {name_of(rig, second)}
    assert "edgefleet_agent_store_damaged_blobs_total 2.0" in await asyncio.to_thread(read_page, port)
    # The server finds the good bytes whenever it starts, with or without an agent.
    placed = rig.server.repository / name_of(rig, second) / "weights.json"
    assert "sha256:" + hashlib.sha256(placed.read_bytes()).hexdigest() == weights(rig, second)


async def test_what_serves_goes_on_when_its_record_rots_and_the_record_is_written_anew(rig: Rig) -> None:
    only = rig.push("1.0", 1)
    await serve(rig, only)
    rig.kill_agent()
    path = rig.state / "store" / "revisions" / f"{only.hash}.json"
    good = json.loads(path.read_bytes())
    with Client(rig) as client:
        path.write_bytes(b"\0" + path.read_bytes()[1:])
        rig.registry.fault = refuse
        rig.start_agent()
        status = await rig.wait_for("Blocked", "StoreDamaged")
        assert "1.0 serves from memory; its record is damaged" in status.message
        rig.registry.fault = None
        await rig.wait_for("Active")
        await client.answered(20)
    assert client.lost == []
    found = json.loads(path.read_bytes())
    assert {**found, "usedAt": None} == {**good, "usedAt": None}


async def test_without_a_registry_what_served_before_serves_and_nothing_damaged_does(rig: Rig) -> None:
    first, second = rig.push("1.0", 1), rig.push("1.1", 2)
    await serve(rig, first, second)
    rig.kill_agent()
    rig.registry.fault = refuse
    rot(rig, second)
    forget(rig, second)
    rig.start_agent()
    status = await rig.wait_for("Blocked", "StoreDamaged")
    await answers(rig, first)
    assert "weights.json" in status.message

    # Now neither is good: nothing is loaded, and that is said.
    rig.kill_agent()
    rot(rig, first)
    forget(rig, first)
    rig.start_agent()

    async def says_both() -> bool:
        found = await rig.status()
        _, said = await asyncio.to_thread(answer, rig)
        assert said in ([], [20]), "it was given a damaged file"
        return (found.state, found.reason) == ("Blocked", "StoreDamaged") and "1.0, which should serve" in found.message and not said

    await wait_until(says_both, lambda: f"neither serves; {answer(rig)}\n{rig.log()}")
    rig.registry.fault = None
    await answers(rig, second)
    await rig.wait_for("Active")
    await healed(rig, first)
