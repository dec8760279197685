"""The hub waits at its gate for what it needs, says what that is, and ends when it goes deaf."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from edgefleet.trust.keys import PrivateKey
from tests.lab.cluster import Cluster, Lab
from tests.lab.installed import HUB_ACCOUNT, hub_kubeconfig, install_hub
from tests.lab.manifests import HUB_NAMESPACE


class Wire:
    """A TCP relay to an API server that can be cut without a word: half-open, as a bad link leaves it."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._flows = asyncio.Event()
        self._flows.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def go_silent(self) -> None:
        self._flows.clear()

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, onward_writer]
        for source, sink in ((reader, onward_writer), (onward_reader, writer)):
            task = asyncio.create_task(self._relay(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _relay(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                await self._flows.wait()
                sink.write(data)
                await sink.drain()
        sink.transport.abort()


@pytest.fixture
async def wire(lab: Lab) -> AsyncIterator[tuple[Wire, Path]]:
    """A relay in front of the cluster `west`, and the hub's kubeconfig through it."""
    cluster = lab.sites["west"]
    one = Wire(int(cluster.url.rpartition(":")[2]))
    port = await one.start()
    for kind in (("namespace", HUB_NAMESPACE), ("serviceaccount", HUB_ACCOUNT, "--namespace", HUB_NAMESPACE)):
        made = cluster.kubectl("create", *kind, "--dry-run=client", "-o", "yaml")
        cluster.kubectl("apply", "--server-side", "-f", "-", stdin=made)
    kubeconfig = hub_kubeconfig(cluster)
    through = kubeconfig.with_name("hub-by-wire.kubeconfig")
    through.write_text(kubeconfig.read_text().replace(cluster.url, f"https://127.0.0.1:{port}"))
    yield one, through
    await one.stop()


async def until(check: Callable[[], bool], what: str, log: Path, limit: float = 30) -> None:
    try:
        async with asyncio.timeout(limit):
            while not check():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{what} did not happen within {limit:.0f} s:\n{log.read_text()}") from None


async def kubectl(cluster: Cluster, *arguments: str, stdin: str | None = None) -> str:
    """In a thread: the wire must go on in this one."""
    return await asyncio.to_thread(lambda: cluster.kubectl(*arguments, stdin=stdin))


async def test_the_hub_waits_says_for_what_serves_and_ends_when_deaf(lab: Lab, wire: tuple[Wire, Path], tmp_path: Path) -> None:
    link, kubeconfig = wire
    west = lab.sites["west"]
    log = tmp_path / "hub.log"
    command = [sys.executable, "-m", "edgefleet", "hub", "--kubeconfig", str(kubeconfig), "--namespace", "gate", "--heartbeat", "1s"]
    with log.open("wb") as stream:
        hub = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        await until(lambda: "waiting" in log.read_text(), "it waits for its kinds", log)
        await asyncio.to_thread(install_hub, west)
        await until(lambda: "namespace gate does not exist" in log.read_text(), "it waits for its namespace", log)
        await kubectl(west, "create", "namespace", "gate")
        await until(lambda: "Secret gate/hub-key" in log.read_text(), "it waits for its key", log)
        await kubectl(
            west, "create", "secret", "generic", "hub-key", "-n", "gate", f"--from-literal=hub.key={PrivateKey.generate().to_pem()}"
        )
        await until(lambda: "signing as" in log.read_text(), "it starts", log)
        await kubectl(west, "create", "namespace", "team")
        fleet = {
            "apiVersion": "edgefleet.io/v1alpha1",
            "kind": "EdgeFleet",
            "metadata": {"name": "early", "namespace": "team"},
            "spec": {"siteSelector": {}, "modelRef": {"name": "none"}},
        }
        await kubectl(west, "create", "-f", "-", stdin=json.dumps(fleet))
        await kubectl(west, "wait", "edgefleet/early", "-n", "team", "--for=condition=Stalled", "--timeout=20s")
        link.go_silent()
        await until(lambda: hub.poll() is not None, "the deaf hub ends", log, limit=60)
        assert hub.returncode == 1, log.read_text()
        assert "own heartbeat not seen" in log.read_text()
    finally:
        hub.kill()
        hub.wait()
        for namespace in ("team", "gate"):
            await kubectl(west, "delete", "namespace", namespace, "--wait=false", "--ignore-not-found")
