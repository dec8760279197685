"""What is generated under charts/ is what its sources say."""

import yaml

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
