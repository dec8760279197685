"""What a site says of itself: annotations on the one Lease in its namespace at the hub. Heartbeat and report are one write.

`edgefleet.io/site` holds a `SiteReport`; `<fleet>.<namespace>.fleet.edgefleet.io/report` holds a `FleetReport` for each fleet.
`formatVersion` comes first in both; a hub drops what it cannot read, and that site counts as silent.
"""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from edgefleet.api.meta import GROUP, Schema
from edgefleet.api.quantities import RevisionHash
from edgefleet.api.site import Hardware

LEASE_NAME = "agent"
SITE_ANNOTATION = f"{GROUP}/site"
MAX_REPORT_BYTES = 1024
RENEWALS_PER_LEASE = 3
"""An agent writes leaseDurationSeconds = 3 x its renew interval: one lost write is no outage."""


class SiteReport(Schema):
    """The site: its hardware and its agent."""

    format_version: Literal[1] = 1
    agent_version: Annotated[str, Field(max_length=64)]
    hardware: Hardware


class FleetReport(Schema):
    """One fleet at this site: what serves, under which assigned sequence, and the floor below which no sequence is accepted."""

    format_version: Literal[1] = 1
    revision: RevisionHash | None = None
    sequence: Annotated[int, Field(ge=0, le=1 << 53)]
    floor: Annotated[int, Field(ge=0, le=1 << 53)]
    active_since: AwareDatetime | None = None


def fleet_annotation(fleet: str) -> str:
    """The annotation key for a fleet written `<namespace>/<name>`."""
    namespace, _, name = fleet.partition("/")
    return f"{name}.{namespace}.fleet.{GROUP}/report"


def fleet_of_annotation(key: str) -> str | None:
    """The inverse of fleet_annotation; None for other keys."""
    prefix, _, suffix = key.partition("/")
    parts = prefix.removesuffix(f".fleet.{GROUP}").split(".")
    if suffix != "report" or not prefix.endswith(f".fleet.{GROUP}") or len(parts) != 2:
        return None
    return f"{parts[1]}/{parts[0]}"
