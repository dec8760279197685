"""Condition types and how they are set. They follow kstatus: `Ready` is normal-true, `Reconciling` and `Stalled` are
abnormal-true and absent when fine.

Ready         accepted, verified, planned, and every reachable site runs what the plan allows now
Reconciling   the object was just changed and the hub has not acted on it yet; never the length of a rollout
Stalled       a person must act: rolled back, aborted, deadline passed, invalid
SourceVerified   the release in the registry is signed as spec.verify demands
PlacementSatisfied   there is at least one site for this fleet
Progressing   a run is under way; the reason says what it waits for
Paused        a person, or a rule, holds the run
Healthy       the evidence of the run so far
RolledBack    the run's sites went back
Connected     the site's Lease is fresh (False never follows from silence; then it is Unknown)
Attested      the site's TPM vouched for it; absent where that is not asked for; Unknown counts like False
Joined        the hub has granted the site a certificate; False when a person took the site out; absent for a site that brought its own
"""

from typing import Annotated, Literal

from pydantic import Field

from edgefleet.api.meta import Schema
from edgefleet.api.quantities import Message, Reason, Timestamp

ConditionStatus = Literal["True", "False", "Unknown"]


class Condition(Schema):
    """A Kubernetes condition."""

    type: Annotated[str, Field(max_length=64)]
    status: ConditionStatus
    reason: Reason = ""
    message: Message = ""
    last_transition_time: Timestamp | None = None
    observed_generation: int | None = None


Conditions = Annotated[
    tuple[Condition, ...],
    Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
]


def merge_conditions(old: tuple[Condition, ...], new: tuple[Condition, ...], *, now: str, generation: int) -> tuple[Condition, ...]:
    """The new set, each keeping its old transition time while its status is unchanged. What is not in `new` is dropped.

    `now` is an RFC 3339 time. Messages are cut to 1,024 characters, the bound of the schema.
    """
    before = {condition.type: condition for condition in old}
    merged = []
    for condition in new:
        previous = before.get(condition.type)
        since = previous.last_transition_time if previous and previous.status == condition.status else None
        merged.append(
            condition.model_copy(
                update={
                    "last_transition_time": since or now,
                    "observed_generation": generation,
                    "message": condition.message[:1024],
                }
            )
        )
    return tuple(merged)


def find_condition(conditions: tuple[Condition, ...], kind: str) -> Condition | None:
    """The condition of this type, or None."""
    return next((condition for condition in conditions if condition.type == kind), None)
