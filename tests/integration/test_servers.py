"""The servers of examples/servers that can be had here, run as their files say: command, arguments, environment, mounts, port, path, probe.

The node is a fake; the servers, the agent, Envoy and the API servers are real. How far each is the server that its image holds stands in
examples/servers/README.md.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgefleet.api.assignment import FrozenRevision
from edgefleet.api.model import EdgeModel
from edgefleet.api.policy import HardChecks
from edgefleet.core.health import read_stream
from edgefleet.kube.resources import Resource
from tests.integration.podsite import open_node, start_agent
from tests.integration.site_rig import ROOT, Client, Rig, open_rig, wait_until
from tests.lab import server_images
from tests.lab.cluster import Lab
from tests.lab.registry import Registry
from tests.lab.server import ModelServer, ServerEnvironment

pytestmark = pytest.mark.timeout(600, func_only=True)
_numbers = itertools.count(1)
RUNTIME_CLASSES = Resource("node.k8s.io/v1", "RuntimeClass", "runtimeclasses", False)
PATIENT = HardChecks(ready_within="240s")


def triton_files(trained: Path) -> Mapping[str, Path]:
    own = server_images.SERVERS / "triton"
    return {
        "parts-triton/config.pbtxt": own / "config.pbtxt",
        "parts-triton/1/model.py": own / "1" / "model.py",
        "parts-triton/1/model.onnx": trained / "model.onnx",
    }


FILES: Mapping[str, Callable[[Path], Mapping[str, Path]]] = {
    "custom": lambda trained: {"classes.json": trained / "classes.json"},
    "kserve": lambda trained: {"model.joblib": trained / "model.joblib"},
    "triton": triton_files,
}
"""What an artifact holds, from the folder of a trained release."""


@pytest.fixture(scope="module")
def trained(server_env: ServerEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `1` and `2`: what servers/parts.py trains."""
    folder = tmp_path_factory.mktemp("trained")
    server_env.run(server_images.SERVERS / "parts.py", folder)
    return folder


@pytest.fixture
def own_server() -> None:
    """Installed before the first test (tests/conftest.py)."""


@pytest.fixture
def servers_of_others() -> None:
    """The same for KServe and Triton, which take minutes to install and to start: played on demand."""


def question(size: int) -> dict[str, Any]:
    return {"inputs": [{"name": "input-0", "datatype": "FP32", "shape": [1, 1], "data": [float(size)]}]}


def release_of(answer: Any) -> str:
    """A part of size 1000 is told the number of the release."""
    (output,) = answer["outputs"]
    return f"release {output['data'][0]}"


@dataclass
class Site:
    """A site that serves one example's model."""

    rig: Rig
    name: str
    model: EdgeModel
    trained: Path

    def push(self, release: int, **instead: Path) -> FrozenRevision:
        """Release 1 or 2 under the example's own serving entry; `instead` are other files by the stem of their names."""
        (serving,) = self.model.spec.serving
        files = {name: instead.get(Path(name).stem, path) for name, path in FILES[self.name](self.trained / str(release)).items()}
        return self.rig.push_files(f"1.{release}", release, files).model_copy(update={"serving": serving})

    async def counted(self, revision: FrozenRevision, requests: int, before: int | None) -> None:
        """Wait until the Lease says so many of this revision and of the one before, and not one has failed."""
        last: Any = None

        async def said() -> bool:
            nonlocal last
            report, _ = await self.rig.health()
            if report is None or report.revision != revision.hash:
                return False
            total = read_stream(report).total
            last = (total.requests, total.failed, report.before and report.before[0])
            return bool(last == (requests, 0, before))

        await wait_until(said, lambda: f"{requests} requests, {before} before; the last word was {last}\n{self.rig.log()}", 60)


@asynccontextmanager
async def asking(rig: Rig) -> AsyncIterator[Client]:
    """A client whose last answer may still come."""
    client = Client(rig, question(1000), release_of, pace=0.1)  # the next server starts on the same two cores
    client.__enter__()
    try:
        yield client
    finally:
        await asyncio.to_thread(client.__exit__, None, None, None)


OpenSite = Callable[[str], AbstractAsyncContextManager[Site]]


@pytest.fixture
def open_site(controllers: Lab, registry: Registry, model_server: ModelServer, trained: Path, tmp_path: Path) -> OpenSite:
    """Opens the site of an example, by the name of its file; its agent runs, its golden set is pushed."""

    @asynccontextmanager
    async def opened(name: str) -> AsyncIterator[Site]:
        model = EdgeModel.parse(yaml.safe_load((ROOT / "examples" / "servers" / f"{name}.yaml").read_text()))
        (serving,) = model.spec.serving
        assert serving.deployment is not None
        spec = serving.deployment.template.model_dump(mode="json", by_alias=True)["spec"]
        named = spec["containers"][0]["image"].partition("@")[0]
        space = f"servers-{name}-{next(_numbers)}"  # the namespace of the test before may still be going
        async with open_rig(tmp_path, controllers, registry, model_server, space, model.metadata.name) as rig:
            lines = [{**question(size), "expect": {"output": "output-0", "label": size % 10}} for size in range(20)]
            rig.push_golden(lines=lines)
            if "runtimeClassName" in spec:  # the device's operator brings it; without it the cluster makes no pod
                runtime_class = {"metadata": {"name": spec["runtimeClassName"]}, "handler": spec["runtimeClassName"]}
                await rig.local.apply(RUNTIME_CLASSES, runtime_class, manager="test")
            async with open_node(rig, space, {named: server_images.fetch_example_image(name)}) as node:
                node.memory = 16 << 30
                start_agent(rig, space, keep="5s")
                yield Site(rig, name, model, trained)

    return opened


@pytest.mark.usefixtures("own_server")
async def test_a_server_of_your_own_serves_as_its_file_says(open_site: OpenSite) -> None:
    await serve_two_releases("custom", open_site)


@pytest.mark.usefixtures("servers_of_others")
@pytest.mark.parametrize("name", ["kserve", "triton"])
async def test_a_server_of_others_serves_as_its_file_says(name: str, open_site: OpenSite) -> None:
    await serve_two_releases(name, open_site)


async def serve_two_releases(name: str, open_site: OpenSite) -> None:
    """The next release takes the first one's place, and the gateway has counted what the client saw."""
    async with open_site(name) as site:
        rig = site.rig
        first, second = site.push(1), site.push(2)
        await rig.assign(first, checks=PATIENT)
        assert (await wait_active(rig)).golden_score == "100.0%"
        async with asking(rig) as client:
            await client.answered(20)
            await rig.assign(second, checks=PATIENT)
            status = await wait_active(rig)
            await answered_by(client, "release 2", 20)
        assert status.golden_score == "100.0%"
        assert client.answers.keys() == {"release 1", "release 2"}
        await site.counted(second, client.answers["release 2"], client.answers["release 1"])
        (serving,) = site.model.spec.serving
        if serving.switch == "Replace":
            assert {lost[:3] for lost in client.lost} == {"503"}
            assert f"{len(client.lost)} request(s) were refused" in status.message
        else:
            assert client.lost == []


@pytest.mark.usefixtures("own_server")
async def test_a_server_that_ends_over_its_files_is_taken_back_and_the_old_one_serves(open_site: OpenSite, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("[")
    async with open_site("custom") as site:
        rig = site.rig
        first, second = site.push(1), site.push(2, classes=broken)
        await rig.assign(first, checks=PATIENT)
        await wait_active(rig)
        async with asking(rig) as client:
            await rig.assign(second, checks=PATIENT.model_copy(update={"max_restarts": 1}))
            status = await rig.wait_for("Failed", "Restarted")
            await client.answered(10)
        assert "exit code 1" in status.message
        assert (status.fault, client.lost, set(client.answers)) == ("Revision", [], {"release 1"})


async def wait_active(rig: Rig) -> Any:
    """A server of its own weight starts in seconds, or on a busy machine in many."""
    return await rig.wait_for("Active", limit=270)


async def answered_by(client: Client, who: str, count: int) -> None:
    """Wait until this one has given so many answers."""

    async def enough() -> bool:
        return client.answers.get(who, 0) >= count

    await wait_until(enough, lambda: f"{count} answers of {who}: {client.answers}, lost {client.lost[-3:]}")
