"""The agent's own metrics for Prometheus, read from its parts when they are asked for.

Labels take no value from outside but the names of this site's fleets; states and reasons are words of ours. What is counted per fleet falls
back to 0 when another revision is switched in, as Prometheus expects of a counter that starts anew.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgefleet import __version__
from edgefleet.site.gateway_config import Endpoint
from edgefleet.site.summary import Finding

log = logging.getLogger(__name__)

CURRENT = "current"
"""The role of the revision that clients get."""


@dataclass(frozen=True, slots=True)
class FleetMetrics:
    """One fleet: where it stands, what its serving revision has counted since its switch, what became of its records, and for how long
    no revision served because of `switch: Replace`."""

    finding: Finding | None
    requests: int
    failed: int
    lost: int
    taken_back: int
    gap_seconds: float = 0
    gap_requests: int = 0


@dataclass(frozen=True, slots=True)
class AgentMetrics:
    """All of it, at one moment."""

    last_contact: datetime | None
    lease_writes: int
    store_bytes: int
    gateway_restarts: int
    fleets: Mapping[str, FleetMetrics]
    store_free_bytes: int
    trust_ends: datetime | None
    certificate_ends: datetime | None = None
    store_damaged: int = 0
    store_read_at: datetime | None = None


class AgentCollector(Collector):
    """`read` gives the moment; it is called in the thread that serves the page, so it must only read."""

    def __init__(self, read: Callable[[], AgentMetrics]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are not claimed before the first page."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        found = self._read()
        build = GaugeMetricFamily("edgefleet_agent_build_info", "1; the version is a label.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        if found.last_contact is not None:
            yield GaugeMetricFamily(
                "edgefleet_agent_hub_last_contact_timestamp_seconds",
                "When the hub last took this site's Lease.",
                value=found.last_contact.timestamp(),
            )
        if found.certificate_ends is not None:
            yield GaugeMetricFamily(
                "edgefleet_agent_certificate_expiry_timestamp_seconds",
                "When the certificate ends that the agent keeps at the hub; it renews it when two thirds of its life are over.",
                value=found.certificate_ends.timestamp(),
            )
        yield CounterMetricFamily("edgefleet_agent_lease_writes", "Renewals that the hub took.", value=found.lease_writes)
        yield GaugeMetricFamily("edgefleet_agent_store_bytes", "Bytes of the model store.", value=found.store_bytes)
        yield GaugeMetricFamily(
            "edgefleet_agent_store_free_bytes", "Bytes that the store's disk still has room for.", value=found.store_free_bytes
        )
        yield CounterMetricFamily(
            "edgefleet_agent_store_damaged_blobs",
            "Files of the store that were damaged on the disk since this agent started; each is fetched again.",
            value=found.store_damaged,
        )
        if found.store_read_at is not None:
            yield GaugeMetricFamily(
                "edgefleet_agent_store_read_timestamp_seconds",
                "When all that serves, and served before it, was last read from the disk and compared with its digest.",
                value=found.store_read_at.timestamp(),
            )
        if found.trust_ends is not None:
            yield GaugeMetricFamily(
                "edgefleet_agent_trust_expiry_timestamp_seconds",
                "When the trust bundle in force ends.",
                value=found.trust_ends.timestamp(),
            )
        yield CounterMetricFamily(
            "edgefleet_agent_gateway_restarts", "How often this agent found the gateway ended and started it.", value=found.gateway_restarts
        )
        yield from _fleets(found.fleets)


def _fleets(fleets: Mapping[str, FleetMetrics]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "edgefleet_agent_assignment_state", "1 for where the site stands with each fleet.", labels=["fleet", "state", "reason"]
    )
    per_role = ["fleet", "role"]
    requests = CounterMetricFamily("edgefleet_agent_requests", "Requests since the revision was switched in.", labels=per_role)
    failed = CounterMetricFamily("edgefleet_agent_failed_requests", "Those of them that failed.", labels=per_role)
    lost = CounterMetricFamily("edgefleet_agent_lost_records", "Records dropped before the hub had them.", labels=["fleet"])
    back = CounterMetricFamily("edgefleet_agent_local_rollbacks", "Revisions that this agent took back by itself.", labels=["fleet"])
    gap = CounterMetricFamily(
        "edgefleet_agent_gap_seconds",
        "For how long no revision served, as the old one was stopped first (switch: Replace).",
        labels=["fleet"],
    )
    refused = CounterMetricFamily("edgefleet_agent_gap_requests", "Requests that were refused meanwhile.", labels=["fleet"])
    for fleet, one in sorted(fleets.items()):
        if one.finding is not None:
            state.add_metric([fleet, one.finding.state, one.finding.reason], 1)
        requests.add_metric([fleet, CURRENT], one.requests)
        failed.add_metric([fleet, CURRENT], one.failed)
        lost.add_metric([fleet], one.lost)
        back.add_metric([fleet], one.taken_back)
        gap.add_metric([fleet], one.gap_seconds)
        refused.add_metric([fleet], one.gap_requests)
    yield from (state, requests, failed, lost, back, gap, refused)


@contextmanager
def serving_metrics(endpoint: Endpoint, read: Callable[[], AgentMetrics]) -> Iterator[None]:
    """Serve the page at `/metrics` while inside. Raises OSError if the port is taken."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(AgentCollector(read))
    server, thread = start_http_server(endpoint.port, endpoint.host, registry)
    log.info("metrics on %s/metrics", endpoint.url)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
