"""What a site says of itself: annotations on the one Lease in its namespace at the hub. Heartbeat and report are one write.

`edgefleet.io/site` holds a `SiteReport`; for each fleet, `<fleet>.<namespace>.fleet.edgefleet.io/report` holds a `FleetReport`, which
changes with what serves, and `.../health` a `HealthReport`, which changes with every request.
`formatVersion` comes first in both; a hub drops what it cannot read, and that site counts as silent.
"""

from typing import Annotated, Literal, NamedTuple

from pydantic import AwareDatetime, Field

from edgefleet.api.meta import GROUP, Schema
from edgefleet.api.quantities import RevisionHash
from edgefleet.api.site import Hardware

LEASE_NAME = "agent"
SITE_ANNOTATION = f"{GROUP}/site"
MAX_REPORT_BYTES = 1024
MAX_HEALTH_BYTES = 1024
MAX_BACKLOG_BYTES = 32_768
"""A HealthReport after the hub could not be reached for a while."""
MARK_SECONDS = 300
RENEWALS_PER_LEASE = 3
"""An agent writes leaseDurationSeconds = 3 x its renew interval: one lost write is no outage."""


class TrustReport(Schema):
    """What the site believes: the version of its trust bundle (0: it has none) and when that ends.

    `refused` says why it does not take the bundle that the hub has for it, `clock` how its clock contradicts what it has seen; both are
    `<Reason>: <words>`, or empty.
    """

    version: Annotated[int, Field(ge=0)]
    ends: AwareDatetime | None = None
    refused: Annotated[str, Field(max_length=300)] = ""
    clock: Annotated[str, Field(max_length=200)] = ""


class SiteReport(Schema):
    """The site: its hardware, its agent, and what it believes."""

    format_version: Literal[1] = 1
    agent_version: Annotated[str, Field(max_length=64)]
    hardware: Hardware
    trust: TrustReport | None = None


class FleetReport(Schema):
    """One fleet at this site: what serves, under which assigned sequence, and the floor below which no sequence is accepted."""

    format_version: Literal[1] = 1
    revision: RevisionHash | None = None
    sequence: Annotated[int, Field(ge=0, le=1 << 53)]
    floor: Annotated[int, Field(ge=0, le=1 << 53)]
    active_since: AwareDatetime | None = None


class HealthCounts(NamedTuple):
    """Counts since an epoch began, or a sum of them. `slow`: answered after slo.latency.le; `unsure`: below slo.confidence.ge."""

    requests: int = 0
    failed: int = 0
    slow: int = 0
    predictions: int = 0
    unsure: int = 0


class HealthBaseline(NamedTuple):
    """Sums over up to 7 days, and how bursty each measure was: variance / mean of its 5-minute counts, at least 1."""

    requests: int
    failed: int
    slow: int
    predictions: int
    unsure: int
    burst_failed: float = 1.0
    burst_slow: float = 1.0
    burst_unsure: float = 1.0


class HealthEpoch(Schema):
    """Counters of one life of the gateway, from `start` (UTC seconds, the site's clock). Each record is `[mark, requests, failed, slow,
    predictions, unsure]`: cumulative since the epoch began, up to the end of the 5-minute span `mark` (UTC seconds // 300). The last
    record's span may still run. Records only grow; one that is missing costs nothing but when its events happened."""

    start: Annotated[int, Field(ge=0, le=1 << 40)]
    records: Annotated[tuple[tuple[int, int, int, int, int, int], ...], Field(max_length=2048)]


class HealthReport(Schema):
    """What live traffic says of the revision that serves, since it was switched in at `activation` (UTC seconds, the site's clock).

    `le_ms` and `ge` are the edges at which `slow` and `unsure` were really counted: None if not at all. `skew`: the site's clock minus
    the hub's, in seconds. `lost`: records that were dropped for want of room. `usual`: this revision at this site in the last 7 days;
    `before`: what ran here in the 7 days before the switch (absent: nothing did).
    """

    format_version: Literal[1] = 1
    revision: RevisionHash
    sequence: Annotated[int, Field(ge=0, le=1 << 53)]
    activation: Annotated[int, Field(ge=0, le=1 << 40)]
    le_ms: int | None = None
    ge: Annotated[str, Field(max_length=3)] | None = None
    skew: int = 0
    lost: int = 0
    usual: HealthBaseline | None = None
    before: HealthBaseline | None = None
    epochs: Annotated[tuple[HealthEpoch, ...], Field(max_length=64)] = ()


def fleet_annotation(fleet: str) -> str:
    """The annotation key for a fleet written `<namespace>/<name>`."""
    namespace, _, name = fleet.partition("/")
    return f"{name}.{namespace}.fleet.{GROUP}/report"


def health_annotation(fleet: str) -> str:
    """The annotation key of the HealthReport for a fleet written `<namespace>/<name>`."""
    namespace, _, name = fleet.partition("/")
    return f"{name}.{namespace}.fleet.{GROUP}/health"


def fleet_of_annotation(key: str) -> str | None:
    """The inverse of fleet_annotation; None for other keys."""
    return _fleet_of(key, "report")


def fleet_of_health(key: str) -> str | None:
    """The inverse of health_annotation; None for other keys."""
    return _fleet_of(key, "health")


def _fleet_of(key: str, suffix: str) -> str | None:
    prefix, _, found = key.partition("/")
    parts = prefix.removesuffix(f".fleet.{GROUP}").split(".")
    if found != suffix or not prefix.endswith(f".fleet.{GROUP}") or len(parts) != 2:
        return None
    return f"{parts[1]}/{parts[0]}"
