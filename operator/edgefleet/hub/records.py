"""What the hub keeps in memory of the kinds that grow with the number of sites: only the fields that a decision reads."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from edgefleet.api.assignment import SiteAssignmentSpec, SiteAssignmentStatus
from edgefleet.api.meta import SITE_NAMESPACE_PREFIX, Schema
from edgefleet.api.site import EdgeSiteSpec, EdgeSiteStatus
from edgefleet.kube.watch import Record
from edgefleet.trust.orders import read_signer


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


NOBODY = "-"


def _without_envelope(spec: Any) -> Any:
    # The envelope is the largest part of an assignment, and the hub reads nothing back but by which key it signed.
    return {**spec, "envelope": read_signer(str(spec.get("envelope"))) or NOBODY} if isinstance(spec, dict) else spec


class AssignmentRecord(Record):
    """A SiteAssignment; of its envelope only whose signature it bears."""

    spec: Annotated[SiteAssignmentSpec, BeforeValidator(_without_envelope)]
    status: SiteAssignmentStatus = SiteAssignmentStatus()

    @property
    def signer(self) -> str:
        """The id of the hub key that signed it, by the envelope's own word; empty where it says none."""
        return self.spec.envelope if self.spec.envelope != NOBODY else ""

    @property
    def site(self) -> str:
        """The site, from the namespace: the one thing that nobody but the hub could choose."""
        return (self.metadata.namespace or "").removeprefix(SITE_NAMESPACE_PREFIX)


class NamespaceRecord(Record):
    """A Namespace: its labels decide which sites its fleets may use."""


class BundleRecord(Record):
    """The ConfigMap with the trust bundle, as the person put it there; the hub copies it and cannot make one."""

    data: dict[str, str] = Field(default_factory=dict)
