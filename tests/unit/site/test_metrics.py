"""The agent's page for Prometheus, over HTTP."""

import urllib.request
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgefleet.site.gateway_config import Endpoint
from edgefleet.site.metrics import AgentMetrics, FleetMetrics, serving_metrics
from edgefleet.site.summary import Finding
from tests.lab.processes import free_ports

NOW = datetime(2026, 11, 24, tzinfo=UTC)
LABELS = {
    "edgefleet_agent_build_info": {"version"},
    "edgefleet_agent_hub_last_contact_timestamp_seconds": set(),
    "edgefleet_agent_lease_writes_total": set(),
    "edgefleet_agent_store_bytes": set(),
    "edgefleet_agent_store_free_bytes": set(),
    "edgefleet_agent_store_damaged_blobs_total": set(),
    "edgefleet_agent_store_read_timestamp_seconds": set(),
    "edgefleet_agent_trust_expiry_timestamp_seconds": set(),
    "edgefleet_agent_certificate_expiry_timestamp_seconds": set(),
    "edgefleet_agent_gateway_restarts_total": set(),
    "edgefleet_agent_assignment_state": {"fleet", "state", "reason"},
    "edgefleet_agent_requests_total": {"fleet", "role"},
    "edgefleet_agent_failed_requests_total": {"fleet", "role"},
    "edgefleet_agent_lost_records_total": {"fleet"},
    "edgefleet_agent_local_rollbacks_total": {"fleet"},
    "edgefleet_agent_gap_seconds_total": {"fleet"},
    "edgefleet_agent_gap_requests_total": {"fleet"},
}


def fetch(port: int) -> dict[str, list[tuple[dict[str, str], float]]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        page = answer.read().decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(page):
        assert family.documentation
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_names_and_labels_are_ours_and_a_fleet_has_one_state() -> None:
    (port,) = free_ports(1)
    state = ["Active", "Serving"]

    def read() -> AgentMetrics:
        finding = Finding(1, "a" * 64, state[0], state[1], NOW)  # type: ignore[arg-type]
        fleets = {"vision/plants": FleetMetrics(finding, 10, 2, 1, 0, 3.5, 41), "vision/shops": FleetMetrics(None, 0, 0, 0, 0)}
        return AgentMetrics(NOW, 7, 1234, 1, fleets, 5678, NOW, NOW, store_damaged=3, store_read_at=NOW)

    with serving_metrics(Endpoint("127.0.0.1", port), read):
        first = fetch(port)
        state[:] = ["Failed", "LatencyRegression"]
        second = fetch(port)
    assert {name: set(samples[0][0]) for name, samples in first.items()} == LABELS
    assert first["edgefleet_agent_assignment_state"] == [({"fleet": "vision/plants", "state": "Active", "reason": "Serving"}, 1)]
    assert second["edgefleet_agent_assignment_state"] == [
        ({"fleet": "vision/plants", "state": "Failed", "reason": "LatencyRegression"}, 1)
    ], "a state that is over must not stay"
    assert first["edgefleet_agent_requests_total"][0] == ({"fleet": "vision/plants", "role": "current"}, 10)
    assert first["edgefleet_agent_hub_last_contact_timestamp_seconds"] == [({}, NOW.timestamp())]
    assert first["edgefleet_agent_gap_seconds_total"][0] == ({"fleet": "vision/plants"}, 3.5)
    assert first["edgefleet_agent_gap_requests_total"][0] == ({"fleet": "vision/plants"}, 41)
    assert first["edgefleet_agent_store_bytes"] == [({}, 1234)]
    assert first["edgefleet_agent_store_damaged_blobs_total"] == [({}, 3)]


def test_a_taken_port_is_said() -> None:
    def read() -> AgentMetrics:
        raise AssertionError("nobody asked")

    (port,) = free_ports(1)
    with (
        serving_metrics(Endpoint("127.0.0.1", port), read),
        pytest.raises(OSError, match="in use"),
        serving_metrics(Endpoint("127.0.0.1", port), read),
    ):
        pass
