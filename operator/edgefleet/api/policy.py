"""RolloutPolicy: waves, soak, limits. A reusable template: each run freezes its own copy."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from edgefleet.api.meta import Kind, LabelSelector, Schema
from edgefleet.api.quantities import Duration, Name, Share

OnInconclusive = Literal["Hold", "Promote", "Rollback"]
OnFailure = Literal["RollbackAll", "RollbackWave", "RollbackFailed", "Pause"]


class Approval(Schema):
    """How many different people must approve before the wave opens."""

    required: Annotated[int, Field(ge=1, le=8)] = 1


class Soak(Schema):
    """How long a wave is watched: it passes after `min` with `minReported` of its sites heard; after `max` onInconclusive decides."""

    min: Duration = "30m"
    max: Duration = "24h"
    min_reported: Share = "80%"


class Wave(Schema):
    """A step of the rollout. `percent` is cumulative over all eligible sites, rounded down, at least 1."""

    name: Name
    sites: Annotated[int, Field(ge=1, le=100_000)] | None = None
    percent: Annotated[int, Field(ge=1, le=100)] | None = None
    per_variant: bool = False
    max_concurrent: Annotated[int, Field(ge=1, le=100_000)] | None = None
    selector: LabelSelector | None = None
    approval: Approval | None = None
    soak: Soak | None = None
    on_inconclusive: OnInconclusive | None = None

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "has(self.sites) != has(self.percent)",
                    "message": "a wave has exactly one of sites and percent",
                }
            ]
        }
    )


class HardChecks(Schema):
    """What a site itself must see. `readyWithin` counts from the end of the fetch to readiness of the new revision."""

    ready_within: Duration = "10m"


class MaxFailed(Schema):
    """How many sites may fail on the revision's account: a count in the first wave, later a share of all sites exposed so far."""

    first_wave: Annotated[int, Field(ge=0, le=100_000)] = 0
    later: Share = "5%"


class Unreachable(Schema):
    """How long a site may be silent, or have a fault of its own, before it is skipped with a reason."""

    skip_after: Duration = "1h"


class RolloutPolicySpec(Schema):
    """What people write. Without a policy the built-in `standard` holds: `edgefleet policy show`."""

    waves: Annotated[
        tuple[Wave, ...],
        Field(
            min_length=1,
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ]
    soak: Soak = Soak()
    on_inconclusive: OnInconclusive = "Hold"
    hard_checks: HardChecks = HardChecks()
    max_failed: MaxFailed = MaxFailed()
    on_failure: OnFailure = "RollbackAll"
    unreachable: Unreachable = Unreachable()
    progress_deadline: Duration = "24h"

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "self.waves.filter(w, has(w.percent)).map(w, w.percent).isSorted()",
                    "message": "waves[].percent is cumulative and must not fall from one wave to the next",
                }
            ]
        }
    )


class RolloutPolicy(Kind):
    """A template for rollouts."""

    kind: Literal["RolloutPolicy"] = "RolloutPolicy"
    spec: RolloutPolicySpec


STANDARD_POLICY = RolloutPolicySpec(
    waves=(
        Wave(name="canary", sites=1, per_variant=True),
        Wave(name="ten", percent=10, max_concurrent=20),
        Wave(name="half", percent=50, max_concurrent=100),
        Wave(name="all", percent=100, max_concurrent=200),
    )
)
