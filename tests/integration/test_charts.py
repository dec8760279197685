"""The charts in the hands of real Helm and a real API server: what is refused, what an upgrade changes, what is left when they go."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab import LabError
from tests.lab.cluster import Cluster, Lab
from tests.lab.helm import helm, render
from tests.lab.manifests import AGENT_CHART, HUB_CHART, HUB_NAMESPACE, KINDS, ROOT, read_documents
from tests.lab.monitoring import fetch_monitoring_kinds

pytestmark = pytest.mark.timeout(400)

SITE = ["site=oslo", "server.url=http://models:8080"]
CHARTS = {"hub": (HUB_CHART, []), "agent": (AGENT_CHART, SITE)}
RELEASE = ["edgefleet", "--namespace", HUB_NAMESPACE]


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster on which nothing of edgefleet is or was."""
    lab = Lab.start(tmp_path / "lab", ["blank"])
    yield lab.hub
    lab.stop()


@pytest.mark.parametrize("name", CHARTS)
def test_helm_finds_nothing_to_complain_about(name: str) -> None:
    chart, settings = CHARTS[name]
    assert "0 chart(s) failed" in helm("lint", "--strict", str(chart), *(word for one in settings for word in ("--set", one)))


@pytest.mark.parametrize(
    ("name", "setting", "said"),
    [
        ("hub", "replicas=-1", "replicas"),
        ("hub", "replicaCount=3", "replicaCount"),
        ("hub", "image.digest=sha256:abc", "digest"),
        ("hub", "networkPolicy.egressPorts[0]=70000", "egressPorts"),
        ("hub", "serviceMonitor.interval=often", "interval"),
        ("hub", "prometheusRule.runbooks=https://docs.example", "runbooks"),
        ("agent", "site=Oslo_1", "site"),
        ("agent", "server.url=ftp://models", "url"),
        ("agent", "gateway.service.type=HostPort", "type"),
        ("agent", "storage.size=lots", "size"),
        ("agent", "renew=often", "renew"),
        ("agent", "hardware.cpu=fast", "hardware"),
    ],
)
def test_a_wrong_value_is_named_and_refused(name: str, setting: str, said: str) -> None:
    chart, settings = CHARTS[name]
    with pytest.raises(LabError) as refusal:
        render(chart, namespace=HUB_NAMESPACE, settings=[*settings, setting])
    assert said in str(refusal.value)


def test_a_site_must_be_named() -> None:
    with pytest.raises(LabError, match="site"):
        render(AGENT_CHART, namespace=HUB_NAMESPACE, settings=["server.url=http://models:8080"])


@pytest.mark.parametrize("name", CHARTS)
def test_its_pods_are_admitted_where_only_restricted_ones_are(name: str, lab: Lab) -> None:
    chart, settings = CHARTS[name]
    space = f"restricted-{name}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    _create(lab.hub, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space, "labels": labels}})
    rendered = read_documents(render(chart, namespace=space, settings=settings))
    for account in (one for one in rendered if one["kind"] == "ServiceAccount"):
        _create(lab.hub, account)
    pods = [one["spec"]["template"] for one in rendered if one["kind"] == "Deployment"]
    assert len(pods) == {"hub": 1, "agent": 2}[name]
    for number, template in enumerate(pods):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{number}", "namespace": space}, "spec": template["spec"]}
        if template["spec"].get("serviceAccountName") is None:
            pod["spec"]["serviceAccountName"] = "edgefleet-agent"  # `default` is made by a controller, in its own time
        _create(lab.hub, pod, "--dry-run=server")
        assert not [one for one in template["spec"]["volumes"] if "hostPath" in one]
        assert all(container["securityContext"]["readOnlyRootFilesystem"] for container in template["spec"]["containers"])
    loose = {**pods[0]["spec"], "securityContext": {}}
    with pytest.raises(LabError, match="violates PodSecurity"):
        _create(
            lab.hub,
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "loose", "namespace": space}, "spec": loose},
            "--dry-run=server",
        )


def test_what_values_ask_for_is_there_and_else_is_not() -> None:
    extra = {"ServiceMonitor", "PrometheusRule", "ConfigMap"}
    plain = {one["kind"] for one in read_documents(render(HUB_CHART, namespace=HUB_NAMESPACE))}
    assert not plain & extra
    settings = ["serviceMonitor.enabled=true", "prometheusRule.enabled=true", "dashboard.enabled=true", "replicas=1"]
    asked = {one["kind"]: one for one in read_documents(render(HUB_CHART, namespace=HUB_NAMESPACE, settings=settings))}
    assert asked.keys() >= extra
    assert "PodDisruptionBudget" in plain
    assert "PodDisruptionBudget" not in asked  # of one hub none may be evicted, then
    assert asked["PrometheusRule"]["spec"] == yaml.safe_load((HUB_CHART / "alerts.yaml").read_text())
    pages = [rule["annotations"]["runbook_url"] for rule in list_rules(asked["PrometheusRule"]["spec"])]
    own = read_documents(
        render(
            HUB_CHART, namespace=HUB_NAMESPACE, settings=["prometheusRule.enabled=true", "prometheusRule.runbooks=https://docs.example/r/"]
        )
    )
    (moved,) = (one["spec"] for one in own if one["kind"] == "PrometheusRule")
    assert [rule["annotations"]["runbook_url"] for rule in list_rules(moved)] == [
        f"https://docs.example/r/{page.removeprefix('docs/runbooks/')}" for page in pages
    ]
    assert json.loads(asked["ConfigMap"]["data"]["edgefleet.json"])["title"] == "edgefleet"


def list_rules(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [rule for group in spec["groups"] for rule in group["rules"]]


def test_it_is_installed_upgraded_with_its_kinds_rolled_back_and_uninstalled(empty: Cluster, tmp_path: Path) -> None:
    config = empty.kubeconfig
    helm("install", *RELEASE, str(HUB_CHART), "--create-namespace", "--set", "replicas=0", kubeconfig=config)
    empty.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(KINDS))
    empty.kubectl("create", "namespace", "team")
    fleet = {"siteSelector": {}, "modelRef": {"name": "weld"}}
    _create(
        empty,
        {"apiVersion": "edgefleet.io/v1alpha1", "kind": "EdgeFleet", "metadata": {"name": "plants", "namespace": "team"}, "spec": fleet},
    )

    newer = tmp_path / "edgefleet"
    shutil.copytree(HUB_CHART, newer)
    _add_field(newer / "templates" / "crds.yaml")
    helm("upgrade", *RELEASE, str(newer), "--set", "replicas=1", kubeconfig=config)
    assert _deployment(empty)["spec"]["replicas"] == 1
    _wait_for_field(empty, there=True)
    assert empty.kubectl("get", "edgefleets", "-n", "team", "-o", "name").strip() == "edgefleet.edgefleet.io/plants"

    helm("rollback", *RELEASE, "1", kubeconfig=config)
    assert _deployment(empty)["spec"]["replicas"] == 0
    _wait_for_field(empty, there=False)

    helm("uninstall", *RELEASE, kubeconfig=config)
    assert empty.kubectl("get", "deployments,clusterroles,validatingadmissionpolicies", "-A", "-o", "name").count("edgefleet-hub") == 0
    assert empty.kubectl("get", "edgefleets", "-n", "team", "-o", "name").strip() == "edgefleet.edgefleet.io/plants"

    # A namespace goes by and by, and nothing can be made in it until then.
    empty.kubectl("wait", "--for=delete", "namespace/edgefleet-join", "--timeout=60s", limit=70)
    helm("install", *RELEASE, str(HUB_CHART), "--set", "replicas=0", kubeconfig=config)
    assert empty.kubectl("get", "edgefleets", "-n", "team", "-o", "name").strip() == "edgefleet.edgefleet.io/plants"


def test_what_watches_the_hub_is_taken_by_the_kinds_of_prometheus_operator(empty: Cluster, tmp_path: Path) -> None:
    kinds, config = fetch_monitoring_kinds(), empty.kubeconfig
    empty.kubectl("apply", "--server-side", "-f", str(kinds))
    empty.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(kinds), limit=70)
    asked = ["--set", "serviceMonitor.enabled=true,prometheusRule.enabled=true,dashboard.enabled=true,replicas=0"]
    helm("install", *RELEASE, str(HUB_CHART), "--create-namespace", *asked, kubeconfig=config)

    rules = _get(empty, "prometheusrule", "edgefleet")["spec"]
    # test_alerts.py lets each of these fire, from the same file.
    assert rules["groups"] == yaml.safe_load((HUB_CHART / "alerts.yaml").read_text())["groups"]
    monitor = _get(empty, "servicemonitor", "edgefleet-hub")["spec"]
    (endpoint,) = monitor["endpoints"]
    assert endpoint["honorLabels"] is True
    found = empty.kubectl("get", "services", "-n", HUB_NAMESPACE, "-o", "json", "-l", _selector(monitor["selector"]["matchLabels"]))
    (service,) = json.loads(found)["items"]
    assert [port["name"] for port in service["spec"]["ports"]] == [endpoint["port"]]
    pods = _deployment(empty)["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= pods.items(), "what it selects is the hub"

    # Were a field wrong, this is how an operator's cluster would say so.
    wrong = tmp_path / "edgefleet"
    shutil.copytree(HUB_CHART, wrong)
    for file, good, bad, said in (
        ("templates/monitoring.yaml", "honorLabels", "honourLabels", r"honourLabels: field not declared in schema"),
        ("alerts.yaml", "for: 2m", "for: 2 minutes", r"spec.groups\[0\].rules\[0\].for"),
    ):
        kept = (wrong / file).read_text()
        (wrong / file).write_text(kept.replace(good, bad, 1))
        with pytest.raises(LabError, match=said):
            helm("upgrade", *RELEASE, str(wrong), *asked, kubeconfig=config)
        (wrong / file).write_text(kept)


def test_kubectl_applies_the_whole_hub_from_one_file(empty: Cluster) -> None:
    for _ in range(2):  # the second time changes nothing
        empty.kubectl("apply", "--server-side", "-f", str(ROOT / "charts" / "install.yaml"))
    empty.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(KINDS))
    assert _deployment(empty)["spec"]["replicas"] == 2


def test_a_sites_chart_is_installed_upgraded_and_leaves_what_serves(empty: Cluster) -> None:
    config = empty.kubeconfig
    words = [*RELEASE, str(AGENT_CHART), *(word for one in SITE for word in ("--set", one))]
    helm("install", *words, "--create-namespace", kubeconfig=config)
    before = {name: _deployment(empty, name)["metadata"]["generation"] for name in ("edgefleet-agent", "edgefleet-gateway")}
    helm("upgrade", *words, "--set", "image.tag=0.2.0", "--set", "gateway.tag=0.1.0", kubeconfig=config)
    after = {name: _deployment(empty, name)["metadata"]["generation"] for name in before}
    assert after["edgefleet-agent"] > before["edgefleet-agent"]
    assert after["edgefleet-gateway"] == before["edgefleet-gateway"], "an upgrade of the agent does not touch the gateway"
    helm("uninstall", *RELEASE, kubeconfig=config)
    left = empty.kubectl("get", "crd,namespace,persistentvolumeclaims", "-n", HUB_NAMESPACE, "-o", "name").split()
    assert "customresourcedefinition.apiextensions.k8s.io/siteassignments.edgefleet.io" in left
    assert "namespace/edgesite-oslo" in left
    assert "persistentvolumeclaim/edgefleet-state" in left


def _create(cluster: Cluster, body: dict[str, Any], *words: str) -> None:
    cluster.kubectl("apply", "--server-side", *words, "-f", "-", stdin=json.dumps(body))


def _deployment(cluster: Cluster, name: str = "edgefleet-hub") -> dict[str, Any]:
    return _get(cluster, "deployment", name)


def _get(cluster: Cluster, kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cluster.kubectl("get", kind, name, "-n", HUB_NAMESPACE, "-o", "json"))
    return found


def _selector(labels: dict[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in labels.items())


def _add_field(template: Path) -> None:
    """A version of the kinds in which an EdgeFleet has one more field."""
    kinds = list(yaml.safe_load_all(template.read_text()))
    fleet = next(one for one in kinds if one["spec"]["names"]["kind"] == "EdgeFleet")
    spec = fleet["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["remark"] = {"type": "string", "maxLength": 100}
    template.write_text(yaml.safe_dump_all(kinds))


def _wait_for_field(cluster: Cluster, *, there: bool) -> None:
    path = "{.spec.versions[0].schema.openAPIV3Schema.properties.spec.properties.remark.type}"
    assert cluster.kubectl("get", "crd", "edgefleets.edgefleet.io", "-o", f"jsonpath={path}") == ("string" if there else "")
