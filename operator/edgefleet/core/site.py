"""What a site decides by itself: whether to obey an order, what to do next, what to keep, whose fault a failure is, when to retry.

Pure. `now` is the site's monotone time (never before a time already seen there). Signatures are checked before (trust/), files and
servers are touched after (site/). An order is believed only as a whole: each check names the field, what was found, and what is
allowed. Reasons are CamelCase, because they become the `reason` of the assignment's status:

    CopyMismatch      spec fields differ from the signed order
    WrongSite         signed for another site
    WrongFleet        signed for another fleet than the object's name says
    OrderIncomplete   it contradicts itself: a Run without a revision, or of another model
    SequenceTooLow    older than an order that was accepted here
    SequenceJump      too far above the newest accepted one: a leaked key could exhaust the numbers
    SequenceReused    the number of an accepted order, with other content
    ModelTaken        another fleet serves this model here
    HashMismatch      its hash, or the short form of it, is that of another revision here, see known.py
    NoVariantFits     the variant needs hardware that this site does not have
    NoPodsHere        it asks for pods, and this site starts none
    PodNotAllowed     it asks for pods with more rights than any site gives
    ImageNotAllowed, EndpointNotAllowed, ResidencyDenied, GoldenMissing, GoldenTooLow, GoldenNotAllowed
                      beyond what the trust bundle allows, see limits.py
    TrustStale        past its end: what serves goes on, nothing is activated
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from edgefleet.api.assignment import Fault, Order, OrderAction, SiteAssignmentSpec, SiteState, assignment_name
from edgefleet.api.meta import format_time, parse_time
from edgefleet.api.model import DeploymentRuntime
from edgefleet.api.site import Hardware
from edgefleet.core.known import Known, find_mix_up
from edgefleet.core.limits import Limits, find_excess

MAX_SEQUENCE_JUMP = 1000
RETRY_DELAYS = tuple(timedelta(seconds=seconds) for seconds in (1, 2, 5, 10, 30, 60, 120, 300))
"""Pauses after the first, second, ... failure on the site's account; the last one repeats. Each is jittered downwards by up to half."""


@dataclass(frozen=True, slots=True)
class FleetMemory:
    """What this site remembers of one fleet, from its state file.

    `floor` is the highest sequence accepted, 0 before the first; `accepted` is what that order said (action and revision). `active` is
    what the gateway routes to. `failed_at` is the sequence whose revision failed here, so that it is not tried again by itself (I10).
    """

    floor: int = 0
    accepted: tuple[OrderAction, str | None] | None = None
    active: str | None = None
    previous: str | None = None
    failed_at: int | None = None


@dataclass(frozen=True, slots=True)
class SiteContext:
    """Who judges: the site, its hardware, its time, and which fleet serves each model here. `limits` are those of the order's model."""

    site: str
    hardware: Hardware
    now: datetime
    holders: Mapping[str, str]
    pods: bool = False
    """Whether this site starts pods."""
    limits: Limits = field(default_factory=Limits)
    region: str | None = None
    """As the site itself was told, never by the hub."""
    known: Known = field(default_factory=Known)


@dataclass(frozen=True, slots=True)
class Accept:
    """Obey. `stale`: it is past its end, but what it asks for is already done, so there is nothing to activate."""

    order: Order
    stale: bool = False


@dataclass(frozen=True, slots=True)
class Refuse:
    """Do nothing; what serves goes on."""

    reason: str
    message: str


def decide_order(order: Order, copy: SiteAssignmentSpec, *, object_name: str, memory: FleetMemory, context: SiteContext) -> Accept | Refuse:
    """Whether this site obeys a validly signed order. The checks go from identity over age to feasibility; the first miss decides."""
    differing = _differences(order, copy)
    if differing:
        return Refuse("CopyMismatch", f"spec differs from the signed order in {'; '.join(differing)}. Only the envelope counts")
    if order.site != context.site:
        return Refuse("WrongSite", f"the order is signed for site {order.site!r}, this is {context.site!r}")
    if assignment_name(*order.fleet.split("/", 1)) != object_name:
        return Refuse("WrongFleet", f"the order is signed for fleet {order.fleet!r}, the object is named {object_name!r}")
    if order.action == "Run" and order.revision is None:
        return Refuse("OrderIncomplete", "action is Run, but there is no revision")
    if order.revision is not None and order.revision.model != order.model:
        return Refuse("OrderIncomplete", f"model is {order.model!r}, but revision.model is {order.revision.model!r}")
    return _decide_sequence(order, memory) or _decide_time(order, memory, context) or _decide_place(order, memory, context)


def _decide_sequence(order: Order, memory: FleetMemory) -> Refuse | None:
    if order.sequence < memory.floor:
        return Refuse("SequenceTooLow", f"sequence is {order.sequence}; this site has accepted {memory.floor} and never goes back")
    # The first order sets the floor wherever the hub stands: a site that was set up anew would be locked out otherwise.
    if memory.floor and order.sequence > memory.floor + MAX_SEQUENCE_JUMP:
        return Refuse(
            "SequenceJump",
            f"sequence is {order.sequence}; at most {memory.floor + MAX_SEQUENCE_JUMP} is allowed after {memory.floor}",
        )
    if order.sequence == memory.floor and memory.accepted != asked_for(order):
        return Refuse("SequenceReused", f"sequence {order.sequence} was accepted with other content: use a higher sequence")
    return None


def _decide_time(order: Order, memory: FleetMemory, context: SiteContext) -> Accept | Refuse | None:
    if context.now < order.expires_at:
        return None
    if order.sequence == memory.floor and memory.active == asked_for(order)[1]:
        return Accept(order, stale=True)
    return Refuse(
        "TrustStale",
        f"the order ended at {format_time(order.expires_at)}, here it is {format_time(context.now)}: nothing is activated until the "
        "hub renews it",
    )


def _decide_place(order: Order, memory: FleetMemory, context: SiteContext) -> Accept | Refuse:
    holder = context.holders.get(order.model)
    if order.action == "Run" and holder is not None and holder != order.fleet:
        return Refuse("ModelTaken", f"model {order.model!r} is served here for fleet {holder!r}: withdraw that one first")
    if order.action != "Run" or order.revision is None:
        return Accept(order)
    # Also of what serves: the hash is the hub's word, and says nothing of what comes with it.
    refused = decide_limits(order, context)
    if refused is not None:
        return refused
    missing = _missing_hardware(order, context.hardware) if order.revision.hash != memory.active else ""
    if missing:
        return Refuse("NoVariantFits", f"variant {order.revision.variant.name!r} needs {missing}")
    mix_up = find_mix_up(order.revision, context.known, context.hardware)
    return Refuse("HashMismatch", mix_up) if mix_up else Accept(order)


def decide_limits(order: Order, context: SiteContext) -> Refuse | None:
    """Whether the trust bundle's limits, or this site's own, forbid what an order would run; also what ran here before them."""
    if order.revision is None:
        return None
    excess = find_excess(order, context.limits, context.region)
    if excess is not None:
        return Refuse(excess.reason, excess.message)
    deployment = order.revision.serving.deployment
    return _decide_pods(deployment, context) if deployment is not None else None


def _decide_pods(deployment: DeploymentRuntime, context: SiteContext) -> Refuse | None:
    if not context.pods:
        return Refuse("NoPodsHere", "serving.deployment asks for pods, and this site starts none: give its agent --pods-namespace")
    # Imported late: a site that starts no pods needs nothing of it.
    from edgefleet.core.pods import find_forbidden

    forbidden = find_forbidden(deployment.template)
    return Refuse("PodNotAllowed", f"serving.deployment.template.{forbidden}") if forbidden else None


def _missing_hardware(order: Order, hardware: Hardware) -> str:
    if order.revision is None:
        return ""
    variant = order.revision.variant
    if variant.arch != hardware.arch:
        return f"arch {variant.arch}, this site has {hardware.arch}"
    if variant.accelerator is not None and variant.accelerator != hardware.accelerator:
        return f"accelerator {variant.accelerator}, this site has {hardware.accelerator or 'none'}"
    absent = sorted(set(variant.features) - set(hardware.features))
    if absent:
        return f"{', '.join(absent)}, which this site does not have"
    if variant.min_memory > hardware.memory:
        return f"{variant.min_memory} bytes of memory, this site has {hardware.memory}"
    return ""


def _differences(order: Order, copy: SiteAssignmentSpec) -> list[str]:
    revision = order.revision
    pairs: dict[str, tuple[object, object]] = {
        "site": (copy.site, order.site),
        "fleet": (copy.fleet, order.fleet),
        "sequence": (copy.sequence, order.sequence),
        "action": (copy.action, order.action),
        "model": (copy.model, order.model),
        "revision": (copy.revision, revision.hash if revision else None),
        "version": (copy.version, revision.version if revision else ""),
        "variant": (copy.variant, revision.variant.name if revision else ""),
        "expiresAt": (_to_second(copy.expires_at), format_time(order.expires_at)),
    }
    return [f"{field}: {found!r} instead of {signed!r}" for field, (found, signed) in pairs.items() if found != signed]


def _to_second(text: str) -> str:
    try:
        return format_time(parse_time(text))
    except ValueError:
        return text


def asked_for(order: Order) -> tuple[OrderAction, str | None]:
    """What an order asks for, as the memory keeps it: the action and, for Run, the revision."""
    return order.action, order.revision.hash if order.revision and order.action == "Run" else None


class Step(StrEnum):
    """What to do about an accepted order."""

    KEEP = "Keep"
    """It is done: keep it loaded and routed."""
    ACTIVATE = "Activate"
    WITHDRAW = "Withdraw"
    GO_BACK = "GoBack"
    """What serves was found worse on live traffic here, or is revoked by the trust bundle: switch to the previous one."""
    REST = "Rest"
    """Its revision failed here under this very sequence: wait for another order."""


def decide_step(order: Order, memory: FleetMemory, *, disowned: bool = False, barred: bool = False) -> Step:
    """The step that an accepted order leads to, after any restart: it reads only what was persisted.

    `disowned`: the trust bundle revokes what serves, and what served before may take its place; `barred`: what is asked for is revoked.
    """
    if order.action == "Withdraw":
        return Step.WITHDRAW
    failed = memory.failed_at == order.sequence
    if order.revision is not None and order.revision.hash == memory.active:
        return Step.GO_BACK if disowned or (failed and memory.previous) else Step.KEEP
    if disowned and (failed or barred):
        return Step.GO_BACK
    return Step.REST if failed else Step.ACTIVATE


class Cause(StrEnum):
    """What kind of thing went wrong while an order was carried out."""

    READINESS = "Readiness"
    GOLDEN = "Golden"
    CONTENT = "Content"
    FETCH = "Fetch"
    DISK = "Disk"
    TRUST = "Trust"
    SERVER = "Server"
    POD = "Pod"


_JUDGEMENTS: dict[Cause, tuple[SiteState, Fault]] = {
    Cause.READINESS: ("Failed", "Revision"),
    Cause.GOLDEN: ("Failed", "Revision"),
    Cause.CONTENT: ("Failed", "Revision"),
    Cause.POD: ("Failed", "Revision"),
    Cause.FETCH: ("Blocked", "Site"),
    Cause.DISK: ("Blocked", "Site"),
    Cause.SERVER: ("Blocked", "Site"),
    Cause.TRUST: ("Refused", "Site"),
}


def decide_fault(cause: Cause) -> tuple[SiteState, Fault]:
    """The state that a failure leads to, and on whose account it goes. Failures of the site are retried, those of the revision never."""
    return _JUDGEMENTS[cause]


def plan_delay(failures: int, jitter: float) -> timedelta:
    """The pause after so many failures in a row (at least 1). `jitter` is drawn by the caller from 0 to 1."""
    longest = RETRY_DELAYS[min(failures, len(RETRY_DELAYS)) - 1]
    return longest * (1 - jitter / 2)


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """A complete revision in the store: its blobs (digest to bytes), and when it was last put into service or fetched."""

    revision: str
    fleet: str
    blobs: Mapping[str, int]
    used_at: datetime


@dataclass(frozen=True, slots=True)
class Retention:
    """What to remove. `fits`: whether the wanted bytes then have room under the limit."""

    remove: tuple[str, ...]
    fits: bool


def plan_retention(
    stored: Sequence[StoredRevision],
    *,
    protected: Iterable[str],
    keep: int,
    limit: int,
    wanted: Mapping[str, int] | None = None,
) -> Retention:
    """Which stored revisions go so that each fleet holds at most `keep`, and `wanted` blobs fit under `limit` bytes.

    Protected ones (serving, their predecessors, those on their way) stay whatever it costs; they count towards `keep`. The longest
    unused go first. Bytes shared by revisions count once.
    """
    safe = frozenset(protected)
    newest_first = sorted(stored, key=lambda one: (one.used_at, one.revision), reverse=True)
    keeping: list[StoredRevision] = [one for one in newest_first if one.revision in safe]
    spare: list[StoredRevision] = []
    for one in newest_first:
        held = sum(1 for other in keeping if other.fleet == one.fleet)
        if one.revision not in safe and held < keep:
            keeping.append(one)
            spare.append(one)
    needed = dict(wanted or {})
    while _bytes(keeping, needed) > limit and spare:
        oldest = min(spare, key=lambda one: (one.used_at, one.revision))
        spare.remove(oldest)
        keeping.remove(oldest)
    kept = {one.revision for one in keeping}
    return Retention(
        remove=tuple(sorted(one.revision for one in stored if one.revision not in kept)),
        fits=_bytes(keeping, needed) <= limit,
    )


def _bytes(revisions: Iterable[StoredRevision], wanted: Mapping[str, int]) -> int:
    blobs = dict(wanted)
    for one in revisions:
        blobs.update(one.blobs)
    return sum(blobs.values())
