"""Metrics: what is declared is also set, labels are bounded, and what is gone leaves nothing behind."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from edgefleet.api.conditions import Condition
from edgefleet.api.fleet import EdgeFleetStatus, SiteCounts
from edgefleet.api.meta import format_time, parse_time
from edgefleet.api.policy import Metric
from edgefleet.api.rollout import GateRecord, ModelRolloutStatus, Phase, WaveRecord
from edgefleet.core.facts import FleetKey
from edgefleet.core.skew import Skew
from edgefleet.hub.fleets import FleetView
from edgefleet.hub.metrics import CONDITIONS, CountingApi
from edgefleet.hub.probes import Probes
from edgefleet.hub.process import Hub
from edgefleet.hub.registries import Registries
from edgefleet.hub.settings import Settings
from edgefleet.kube.resources import LEASES
from edgefleet.kube.watch import _Event
from edgefleet.site.metrics import AgentCollector, AgentMetrics, FleetMetrics
from edgefleet.trust.keys import PrivateKey

KEY = FleetKey("team", "plants")
BOUNDED: dict[str, set[str] | None] = {
    "namespace": {"team"},
    "fleet": {"plants"},
    "model": {"weld"},
    "state": {*SiteCounts.model_fields, "connected", "never_heard", "Blocked"},
    "region": {"de", "none"},
    "skew": set(Skew),
    "condition": set(CONDITIONS),
    "phase": set(get_args(Phase)),
    "waiting_for": {"Soaking"},
    "gate": set(get_args(Metric)),
    "kind": {
        "EdgeFleet",
        "EdgeModel",
        "EdgeSite",
        "Lease",
        "Namespace",
        "SiteAssignment",
        "ConfigMap",
        "CertificateSigningRequest",
        "Absolute",
        "Relative",
    },
    "verb": {"create", "apply", "patch", "delete"},
    "channel": {"kopf", "list-watch"},
    "result": {"written", "known", "dropped", "failed"},
    "reason": {"SignatureMissing", "StoreFull", "Other"},
    "version": None,
    "le": None,
}
"""Every label that there is, and what it may say: this test's objects, or our own words."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    nothing: Any = None
    with Registries(nothing) as registries:
        api = CountingApi(nothing, user_agent="test")
        yield Hub(api, PrivateKey.generate(), registries, Settings())


ENDS = "2026-12-01T00:00:00Z"


def stuck(site: str, reason: str) -> dict[str, Any]:
    meta = {"name": "team.plants", "namespace": f"edgesite-{site}", "resourceVersion": "1"}
    spec = {"site": site, "fleet": "team/plants", "sequence": 1, "action": "Run", "model": "weld", "expiresAt": ENDS, "envelope": "-"}
    return {"metadata": meta, "spec": spec, "status": {"sequence": 1, "state": "Blocked", "reason": reason}}


async def fill(hub: Hub) -> None:
    """Something happened in every part."""
    ago = format_time(datetime.now(UTC) - timedelta(minutes=5))
    wave = WaveRecord(name="canary", sites=1, opened_at=ago)
    gate = GateRecord(name="latency", kind="Absolute", verdict="Quiet", evidence="10.0", bound="40.0")
    rollout = ModelRolloutStatus(phase="Rolling", wave="canary", waves=(wave,), waiting_for="Soaking", since=ago, gates=(gate,))
    stalled = Condition(type="Stalled", status="True", reason="RolledBack")
    hub.fleets.views[KEY] = FleetView(EdgeFleetStatus(sites=SiteCounts(desired=3), conditions=(stalled,)), rollout)
    for name, status in (("berlin", "True"), ("oslo", "Unknown")):
        connected = {"type": "Connected", "status": status, "reason": "Heartbeat" if status == "True" else "HeartbeatLost"}
        spec = {"region": "de"} if name == "berlin" else {}
        said = {"conditions": [connected], "agentVersion": "0.1.9" if name == "berlin" else "nonsense"}
        hub.inventory.sites.observe({"metadata": {"name": name, "resourceVersion": "1"}, "spec": spec, "status": said})
    for name, reason in (("berlin", "StoreFull"), ("oslo", "MadeUpByOslo")):
        hub.inventory.assignments.observe(stuck(name, reason))
    hub.sites.bundle = json.dumps({"roots": [{"signed": {"expires": ENDS}}], "targets": {"signed": {"expires": "2099-01-01T00:00:00Z"}}})
    hub.models.failures["team", "weld", "SignatureMissing"] += 1
    with pytest.raises(RuntimeError):  # there is no API server
        await hub._api.apply(LEASES, {"metadata": {"name": "agent", "namespace": "x"}}, manager="test")
    for queue in hub.queues:
        assert queue.on_pass is not None
        queue.on_pass(0.02)


def scrape(hub: Hub) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(generate_latest(hub.metrics.registry).decode())}


def value(families: dict[str, Any], name: str, **labels: str) -> float | None:
    found = [sample.value for family in families.values() for sample in family.samples if (sample.name, sample.labels) == (name, labels)]
    return found[0] if found else None


async def test_each_metric_that_is_declared_is_set_and_its_labels_are_bounded(hub: Hub) -> None:
    await fill(hub)
    families = scrape(hub)
    ours = {name for name in families if not name.startswith("process_")}
    assert len(ours) >= 17
    for name in ours:
        family = families[name]
        assert re.fullmatch(r"edgefleet_[a-z_]+", name)
        assert family.documentation.endswith(".")
        assert family.samples, f"{name} is declared and never set"
        for sample in family.samples:
            for label, said in sample.labels.items():
                assert label in BOUNDED, f"{name} has a label {label}"
                allowed = BOUNDED[label]
                assert allowed is None or said in allowed, f"{name}: {label} {said}"
    text = generate_latest(hub.metrics.registry).decode()
    assert "berlin" not in text
    assert "oslo" not in text


async def test_each_query_of_the_board_asks_for_what_a_page_has(hub: Hub) -> None:
    await fill(hub)
    agents = CollectorRegistry(auto_describe=False)
    facts = AgentMetrics(datetime.now(UTC), 1, 0, 0, {"team/plants": FleetMetrics(None, 0, 0, 0, 0)}, 0, None)
    agents.register(AgentCollector(lambda: facts))
    nobody: Any = SimpleNamespace(leads=False)
    pages = [generate_latest(registry).decode() for registry in (Probes(nobody)._own, hub.metrics.registry, agents)]
    families = [family for page in pages for family in text_string_to_metric_families(page)]
    series = {sample.name: set(sample.labels) for family in families for sample in family.samples}
    board = json.loads((Path(__file__).parents[3] / "charts" / "edgefleet" / "board.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    assert len(queries) >= 15
    for query in queries:
        names = set(re.findall(r"edgefleet_\w+", query))
        assert names
        assert names <= series.keys(), f"{query}: {names - series.keys()} is on no page"
        labels = {label.strip() for listed in re.findall(r"\bby \(([^)]+)\)", query) for label in listed.split(",")}
        labels |= {label for listed in re.findall(r"{([^}]+)}", query) for label in re.findall(r"(\w+)(?:=|!)", listed)}
        assert labels <= set.union(*(series[name] for name in names)), query
    # A site counts in one region; each of several hubs counts them all.
    assert "sum by (state) (max by (region, state) (edgefleet_sites))" in queries


async def test_the_figures_are_those_of_the_parts(hub: Hub) -> None:
    await fill(hub)
    found = scrape(hub)
    fleet = {"namespace": "team", "fleet": "plants"}
    assert value(found, "edgefleet_fleet_sites", **fleet, state="desired") == 3
    assert value(found, "edgefleet_fleet_condition", **fleet, condition="Stalled") == 1
    assert value(found, "edgefleet_fleet_condition", **fleet, condition="Ready") == 0
    assert value(found, "edgefleet_gate_evidence_ratio", **fleet, gate="latency", kind="Absolute") == 0.25
    assert value(found, "edgefleet_rollout_info", **fleet, phase="Rolling", waiting_for="Soaking") == 1
    assert value(found, "edgefleet_rollout_wave_age_seconds", **fleet) == pytest.approx(300, abs=5)
    assert value(found, "edgefleet_sites", region="de", state="connected") == 1
    assert value(found, "edgefleet_sites", region="de", state="unreachable") == 0
    assert value(found, "edgefleet_sites", region="none", state="unreachable") == 1
    assert value(found, "edgefleet_agents", skew="same") == 1
    assert value(found, "edgefleet_agents", skew="unreadable") == 1
    assert value(found, "edgefleet_assignments_stuck", state="Blocked", reason="StoreFull") == 1
    assert value(found, "edgefleet_assignments_stuck", state="Blocked", reason="Other") == 1, "a site makes no series"
    assert value(found, "edgefleet_trust_bundle_expiry_timestamp_seconds") == parse_time(ENDS).timestamp()
    assert value(found, "edgefleet_api_writes_total", kind="Lease", verb="apply") == 1
    assert value(found, "edgefleet_reconcile_duration_seconds_count", kind="EdgeFleet") == 1
    assert value(found, "edgefleet_queue_depth", kind="EdgeSite") == 2, "both sites are new"


async def test_what_is_gone_leaves_no_series(hub: Hub) -> None:
    await fill(hub)
    hub.fleets.views.clear()
    hub.inventory.sites._take(_Event(type="DELETED", object={"metadata": {"name": "berlin", "resourceVersion": "2"}}))
    found = scrape(hub)
    assert not found["edgefleet_fleet_sites"].samples
    assert not found["edgefleet_rollout_info"].samples
    assert value(found, "edgefleet_sites", region="de", state="connected") is None
