"""What the hub knows at one moment, as the decisions see it. Gathered by hub/, consumed by core/; nothing here does anything."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from edgefleet.api.assignment import Fault, OrderAction, SiteState, StopServing
from edgefleet.api.fleet import EdgeFleetSpec
from edgefleet.api.model import Revision
from edgefleet.api.policy import RolloutPolicySpec
from edgefleet.api.rollout import Control, ModelRolloutStatus, Outcome
from edgefleet.api.site import AttestationStatus, EdgeSiteSpec, Hardware
from edgefleet.core.health import Stream


@dataclass(frozen=True, slots=True, order=True)
class FleetKey:
    """A fleet's identity at hub and sites: never a UID."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> "FleetKey":
        """The inverse of str()."""
        namespace, _, name = text.partition("/")
        return cls(namespace, name)


@dataclass(frozen=True, slots=True)
class AssignmentFacts:
    """One fleet's assignment at one site, spec and status, as the hub's API server holds it now.

    `status_sequence` says which assignment the status speaks of: it counts only if it equals `sequence` (I6). `quarantine` is the reason
    why `run` took this one site back alone; empty if it did not. `terms` is what upkeep.terms_of said of the site when it was written,
    `signer` the id of the hub key that its envelope says.
    """

    sequence: int
    action: OrderAction
    model: str
    revision: str | None
    run: str | None
    expires_at: datetime
    variant: str = ""
    quarantine: str = ""
    terms: str = ""
    signer: str = ""
    status_sequence: int = 0
    state: SiteState = "Progressing"
    fault: Fault | None = None
    reason: str = ""
    message: str = ""
    since: datetime | None = None
    active_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """What the site's Lease says of one fleet."""

    revision: str | None
    sequence: int
    floor: int
    active_since: datetime | None

    @property
    def adoptable_sequence(self) -> int:
        """The sequence under which an order for what already runs is believed: the reported one, unless the site has accepted a later
        order meanwhile (which failed there, or was still under way), below which it accepts nothing."""
        return self.sequence if self.sequence >= self.floor else self.floor + 1


@dataclass(frozen=True, slots=True)
class Claim:
    """Another fleet that wants or holds the same model at a site. `gone`: it was deleted, and left its model there (onDelete: Retain)."""

    fleet: FleetKey
    created_at: datetime
    assigned: bool
    gone: bool = False


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """One EdgeSite, for one fleet. `last_heard` is None until its first Lease; `claims` are other fleets' on the same model here,
    `attestation` what its TPM proved."""

    name: str
    spec: EdgeSiteSpec
    labels: dict[str, str]
    deleting: bool = False
    hardware: Hardware | None = None
    last_heard: datetime | None = None
    renew_seconds: int = 60
    assignment: AssignmentFacts | None = None
    report: ReportFacts | None = None
    claims: tuple[Claim, ...] = ()
    attestation: AttestationStatus | None = None


@dataclass(frozen=True, slots=True)
class PlannedSite:
    """One line of a frozen plan: the site, the variant (name) that fits it, and its wave (index; the implicit last wave included)."""

    site: str
    variant: str
    wave: int


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One ModelRollout. `plan` is empty when the run has ended: nothing reads it then. `recorded`: status and label say one outcome."""

    name: str
    number: int
    revision: Revision
    policy: RolloutPolicySpec
    control: Control
    status: ModelRolloutStatus
    created_at: datetime
    outcome: Outcome | None = None
    recorded: bool = True
    plan: tuple[PlannedSite, ...] = ()
    generation: int = 1
    uid: str = ""
    author: str = ""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The fleet's model. `target` is None until a release was verified once. `author` is who named it, empty if that is not known.

    `revoked` are digests, `stops` those of them that sites stop serving by themselves, and when. `disowned` says why those who signed the
    release of `target` are not believed any more; empty while they are.
    """

    target: Revision | None
    verified: bool
    reason: str = ""
    message: str = ""
    revoked: frozenset[str] = frozenset()
    author: str = ""
    stops: tuple[StopServing, ...] = ()
    disowned: str = ""


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """All that decides about one fleet. `model` / `policy` are None when the object that the spec names does not exist.

    `deleted_at` is metadata.deletionTimestamp: withdrawals are waited for from then on, for unreachable.skipAfter and no longer.
    `unreadable` says of each run that cannot be read, or whose plan is lost, what is wrong and what to do; `runs` lacks these.
    `health` is what the sites that matter for the active run said of live traffic, by site, if that run judges it.
    `hub_key` is the id of the key that signs orders now; empty where nobody is about to sign.
    """

    key: FleetKey
    spec: EdgeFleetSpec
    created_at: datetime
    namespace_labels: dict[str, str]
    model: ModelFacts | None
    policy: RolloutPolicySpec | None
    runs: tuple[RunFacts, ...]
    sites: tuple[SiteFacts, ...]
    deleting: bool = False
    deleted_at: datetime | None = None
    generation: int = 1
    unreadable: tuple[str, ...] = field(default=())
    health: Mapping[str, tuple[Stream, ...]] = field(default_factory=dict)
    hub_key: str = ""
