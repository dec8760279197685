"""What the hub keeps in memory of the kinds that grow with the number of sites: only the fields that a decision reads."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from edgefleet.api.assignment import SiteAssignmentSpec, SiteAssignmentStatus
from edgefleet.api.meta import SITE_NAMESPACE_PREFIX, Schema
from edgefleet.api.site import EdgeSiteSpec, EdgeSiteStatus
from edgefleet.kube.watch import Record


class SiteRecord(Record):
    """An EdgeSite."""

    spec: EdgeSiteSpec
    status: EdgeSiteStatus = EdgeSiteStatus()


class LeaseSpec(Schema):
    """The part of a Lease that says how long its holder counts as present."""

    renew_time: datetime | None = None
    lease_duration_seconds: Annotated[int, Field(ge=1)] = 180


class LeaseRecord(Record):
    """A site's Lease; the reports are in its annotations."""

    spec: LeaseSpec = LeaseSpec()


def _without_envelope(spec: Any) -> Any:
    # The envelope is the largest part of an assignment and the hub never reads it back.
    return {**spec, "envelope": "-"} if isinstance(spec, dict) else spec


class AssignmentRecord(Record):
    """A SiteAssignment, without its envelope."""

    spec: Annotated[SiteAssignmentSpec, BeforeValidator(_without_envelope)]
    status: SiteAssignmentStatus = SiteAssignmentStatus()

    @property
    def site(self) -> str:
        """The site, from the namespace: the one thing that nobody but the hub could choose."""
        return (self.metadata.namespace or "").removeprefix(SITE_NAMESPACE_PREFIX)


class NamespaceRecord(Record):
    """A Namespace: its labels decide which sites its fleets may use."""


class BundleRecord(Record):
    """The ConfigMap with the trust bundle, as the person put it there; the hub copies it and cannot make one."""

    data: dict[str, str] = Field(default_factory=dict)
