"""SiteAssignment: what one site shall run for one fleet, and the signed order inside it.

The agent believes only the bytes inside `spec.envelope` (a DSSE envelope over an `Order`). The other spec fields are a readable
copy; the agent checks that they are equal and refuses the assignment otherwise.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from edgefleet.api.conditions import Conditions
from edgefleet.api.meta import Kind, Schema
from edgefleet.api.model import Golden, Serving, Slo, Variant
from edgefleet.api.policy import Analysis, HardChecks
from edgefleet.api.quantities import Digest, Duration, Message, Name, Reason, Repository, RevisionHash, Timestamp
from edgefleet.api.site import Proxy, Registries, Storage

ORDER_FORMAT = 1
ORDER_PAYLOAD_TYPE = "application/vnd.edgefleet.order.v1+json"

OrderAction = Literal["Run", "Withdraw"]
Fault = Literal["Revision", "Site"]
SiteState = Literal["Progressing", "Active", "Failed", "Blocked", "Refused", "Withdrawn"]
"""Where a site stands with the assigned sequence.

Progressing  on its way: fetching, verifying, starting, checking
Active       the gateway routes to the assigned revision
Failed       the revision's fault (golden set, readiness): the site serves its previous revision
Blocked      the site's fault (fetch, digest, disk, model server): retried by itself; the gateway routes where it did before
Refused      the order or the artifact is not to be believed here (trust, identity, sequence, expiry)
Withdrawn    a signed withdrawal was carried out
"""


class FrozenRevision(Schema):
    """The part of a revision that one site needs: one variant, the serving entry that fits, and where the bytes are."""

    hash: RevisionHash
    model: Name
    repository: Repository
    digest: Digest
    version: Annotated[str, Field(max_length=64)]
    seq: Annotated[int, Field(ge=0)]
    variant: Variant
    serving: Serving
    golden: Golden | None = None
    slo: Slo = Slo()


class StopServing(Schema):
    """A release that a site must not serve any more from this moment on."""

    digest: Digest
    by: datetime


class Order(Schema):
    """The signed payload. `fleet` is `<namespace>/<name>`; `sequence` only grows per (site, fleet).

    `registries` and `proxy` are absent where the site has none: older agents know neither, and go straight to the registry. `soak` is how
    long the run wants this site to have served it at least; absent where no run does. `stop_serving` holds for what serves, whatever the
    order asks for, also when the order has ended; absent where nothing of the model is revoked with a time.
    """

    format_version: Literal[1] = 1
    site: Name
    fleet: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,63}/[a-z0-9-]{1,40}$", max_length=104)]
    sequence: Annotated[int, Field(ge=1, le=1 << 53)]
    action: OrderAction
    model: Name
    revision: FrozenRevision | None = None
    checks: HardChecks = HardChecks()
    analysis: Analysis = Analysis()
    soak: Duration | None = None
    storage: Storage = Storage()
    registries: Registries | None = None
    proxy: Proxy | None = None
    stop_serving: Annotated[tuple[StopServing, ...], Field(max_length=64)] | None = None
    issued_at: datetime
    expires_at: datetime


class SiteAssignmentSpec(Schema):
    """The envelope and its readable copy."""

    site: Name
    fleet: Annotated[str, Field(max_length=104)]
    sequence: Annotated[int, Field(ge=1, le=1 << 53)]
    action: OrderAction
    model: Name
    revision: RevisionHash | None = None
    version: Annotated[str, Field(max_length=64)] = ""
    variant: Annotated[str, Field(max_length=40)] = ""
    expires_at: Timestamp
    envelope: Annotated[str, Field(min_length=1, max_length=65_536)]


class ActiveRevision(Schema):
    """What the gateway of the site routes to, whatever was assigned."""

    revision: RevisionHash
    version: Annotated[str, Field(max_length=64)] = ""
    variant: Annotated[str, Field(max_length=40)] = ""
    since: Timestamp


class SiteAssignmentStatus(Schema):
    """Written by the agent alone. `sequence` and `revision` name the assignment that it speaks of."""

    sequence: int = 0
    revision: RevisionHash | None = None
    state: SiteState = "Progressing"
    fault: Fault | None = None
    reason: Reason = ""
    message: Message = ""
    since: Timestamp | None = None
    golden_score: Annotated[str, Field(max_length=16)] = ""
    active: ActiveRevision | None = None
    conditions: Conditions = ()


class SiteAssignment(Kind):
    """What one site shall run for one fleet."""

    kind: Literal["SiteAssignment"] = "SiteAssignment"
    spec: SiteAssignmentSpec
    status: SiteAssignmentStatus = SiteAssignmentStatus()


def assignment_name(fleet_namespace: str, fleet_name: str) -> str:
    """The name of a fleet's assignment in each site's namespace."""
    return f"{fleet_namespace}.{fleet_name}"
