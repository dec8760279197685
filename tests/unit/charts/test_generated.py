"""What is generated under charts/ is what its sources say."""

import inspect
from pathlib import Path

import yaml

from edgefleet.api.site import Hardware
from edgefleet.cli.agent import drain
from edgefleet.hub import probes
from edgefleet.site.gateway_config import FLUSH_SECONDS
from edgefleet.site.hardware import declare_hardware
from tests.lab.helm import helm, render
from tests.lab.manifests import AGENT_CHART, HUB_CHART, KINDS, ROOT, plan_crds, plan_install, plan_site_crds


def test_the_charts_kinds_are_those_of_crds() -> None:
    assert (HUB_CHART / "templates" / "crds.yaml").read_text() == plan_crds(), "run `make manifests`"
    assert (AGENT_CHART / "templates" / "crds.yaml").read_text() == plan_site_crds(), "run `make manifests`"


def test_install_yaml_is_what_the_chart_renders() -> None:
    assert (ROOT / "charts" / "install.yaml").read_text() == plan_install(), "run `make manifests`"


def test_each_kind_is_kept_when_the_chart_goes_and_is_otherwise_unchanged() -> None:
    kinds = {body["metadata"]["name"]: body for body in yaml.safe_load_all(plan_crds())}
    for path in KINDS.glob("*.yaml"):
        body = kinds.pop(f"{path.stem}.edgefleet.io")
        assert body["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert body == yaml.safe_load(path.read_text())
    assert not kinds


def test_values_reach_the_command_line() -> None:
    hub = render(HUB_CHART, namespace="edge", settings=["registryProxy.url=http://proxy:3128", "registryProxy.direct[0]=.example"])
    assert "--registry-proxy=http://proxy:3128" in hub
    assert "--registry-no-proxy=.example" in hub
    assert "--namespace=edge" in hub
    site = ["site=oslo", "server.url=http://models:8080"]
    plain = render(AGENT_CHART, namespace="edge", settings=site)
    assert "--server-url=http://models:8080" in plain
    assert "--pods-namespace=" not in plain
    pods = render(AGENT_CHART, namespace="edge", settings=[*site, "pods.enabled=true", "storage.existingClaim=mine"])
    assert "--pods-namespace=edge" in pods
    assert "--store-claim=mine" in pods


def test_a_hub_has_three_minutes_to_start_and_is_asked_for_what_it_answers() -> None:
    documents = yaml.safe_load_all(render(HUB_CHART, namespace="edge"))
    (hub,) = (body["spec"]["template"]["spec"]["containers"][0] for body in documents if body and body["kind"] == "Deployment")
    start, alive, ready = hub["startupProbe"], hub["livenessProbe"], hub["readinessProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= 180
    assert start["httpGet"] == alive["httpGet"]
    assert "initialDelaySeconds" not in alive, "the start has a probe of its own"
    answered = inspect.getsource(probes)
    assert all(f'"{probe["httpGet"]["path"]}"' in answered for probe in (start, alive, ready))


def test_the_next_gateway_comes_before_the_old_one_goes_which_has_time_to_drain() -> None:
    documents = yaml.safe_load_all(render(AGENT_CHART, namespace="edge", settings=["site=oslo", "server.url=http://models:8080"]))
    (gateway,) = (one["spec"] for one in documents if one and (one["kind"], one["metadata"]["name"]) == ("Deployment", "edgefleet-gateway"))
    assert gateway["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    pod = gateway["template"]["spec"]
    hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert hook[:5] == ["python3", "-m", "edgefleet", "gateway", "drain"]
    assert [word.partition("=")[0] for word in hook[5:]] == ["--state"], "the limits are those of the command"
    limits = inspect.signature(drain).parameters
    longest = limits["seconds"].default + limits["limit"].default + FLUSH_SECONDS
    assert pod["terminationGracePeriodSeconds"] >= longest + 20, "Python may take long to start on a small machine"


def test_a_site_declares_its_hardware_and_has_containers_beside_its_agent(tmp_path: Path) -> None:
    values = {
        "hardware": {"arch": "amd64", "features": ["avx2"]},
        "renew": "2s",
        "extraContainers": [{"name": "tunnel", "image": "tunnel:1"}],
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump({"site": "oslo", "server": {"url": "http://models:8080"}, **values}))
    shown = helm("template", "edgefleet", str(AGENT_CHART), "--namespace", "edge", "--values", str(tmp_path / "values.yaml"))
    documents = list(yaml.safe_load_all(shown))
    pods = {body["metadata"]["name"]: body["spec"]["template"]["spec"] for body in documents if body and body["kind"] == "Deployment"}
    agent, beside = pods["edgefleet-agent"]["containers"]
    assert {"--hardware=/hardware/hardware.yaml", "--renew=2s"} <= set(agent["args"])
    assert beside == values["extraContainers"][0]
    assert len(pods["edgefleet-gateway"]["containers"]) == 1
    (file,) = (body["data"]["hardware.yaml"] for body in documents if body and body["metadata"]["name"] == "edgefleet-hardware")
    (tmp_path / "hardware.yaml").write_text(file)
    assert declare_hardware(Hardware(arch="arm64", memory=1), tmp_path / "hardware.yaml").features == ("avx2",)
