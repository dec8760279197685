"""The servers of examples/servers: no site refuses them, and each port that is asked is one of the container's."""

from pathlib import Path

import pytest
import yaml

from edgefleet.api.model import EdgeModel
from edgefleet.core.pods import Place, find_forbidden, plan_deployment

FILES = sorted((Path(__file__).parents[3] / "examples" / "servers").glob("*.yaml"))


def test_there_is_one_for_each_server() -> None:
    assert [path.stem for path in FILES] == ["custom", "kserve", "openvino", "triton", "vllm"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_site_takes_it(path: Path) -> None:
    model = EdgeModel.parse(yaml.safe_load(path.read_text()))
    (serving,) = model.spec.serving
    assert serving.deployment is not None
    assert find_forbidden(serving.deployment.template) == ""
    body = plan_deployment("x--12345678", model.metadata.name, serving.deployment, Place("plant-7", "models", "store", "pods"))
    (container,) = body["spec"]["template"]["spec"]["containers"]
    assert [port["containerPort"] for port in container["ports"]] == [serving.deployment.port]
    assert container["readinessProbe"]["httpGet"]["port"] == serving.deployment.port
    names = {volume["name"] for volume in body["spec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} <= names
