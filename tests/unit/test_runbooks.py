"""Alerts and their pages keep step: each alert has a page, each page an alert, and alerts measure what there is."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "runbooks"
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((ROOT / "charts/edgefleet/alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
METRICS = "".join((ROOT / "operator/edgefleet" / room / "metrics.py").read_text() for room in ("hub", "site"))


def test_there_is_a_page_for_each_alert_and_none_besides() -> None:
    assert {rule["annotations"]["runbook_url"] for rule in ALERTS} == {
        f"docs/runbooks/{page.name}" for page in PAGES.glob("*.md") if page.name != "README.md"
    }
    listed = re.findall(r"\| \[(\w+)\]\(([a-z-]+\.md)\) \| (\w+) \|", (PAGES / "README.md").read_text())
    assert listed == [(rule["alert"], Path(rule["annotations"]["runbook_url"]).name, rule["labels"]["severity"]) for rule in ALERTS]


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_is_and_measures_what_is_measured(rule: dict[str, Any]) -> None:
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert all(notes.values())
    page = (ROOT / notes["runbook_url"]).read_text()
    assert page.startswith(f"# {rule['alert']}\n")
    for heading in ("**What it means.**", "## See it", "## Do\n", "## Do not"):
        assert heading in page
    asked = set(re.findall(r"edgefleet_\w+", rule["expr"]))
    assert asked
    for name in asked:
        assert f'"{name.removesuffix("_total")}"' in METRICS, f"{name} is measured nowhere"
