"""RolloutPolicy: waves, soak, limits. A reusable template: each run freezes its own copy."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from edgefleet.api.meta import Kind, LabelSelector, Schema
from edgefleet.api.quantities import Duration, Increase, LabelKey, Name, Percent, Share

OnInconclusive = Literal["Hold", "Promote", "Rollback"]
OnFailure = Literal["RollbackAll", "RollbackWave", "RollbackFailed", "Pause"]


class Approval(Schema):
    """How many different people must approve before the wave opens. With `notAuthor` the one who named the release, which the annotation
    edgefleet.io/author of the EdgeModel tells, does not count; a release whose author is unknown then starts no run."""

    required: Annotated[int, Field(ge=1, le=8)] = 1
    not_author: bool = False


class Soak(Schema):
    """How long a wave is watched: it passes after `min` with `minReported` of its sites heard; after `max` onInconclusive decides.

    `minRequests`: how many requests the sites of the wave together must have answered with the new revision. It counts only where a
    gate on live traffic is in force.
    """

    min: Duration = "30m"
    max: Duration = "24h"
    min_requests: Annotated[int, Field(ge=0, le=1_000_000_000)] = 500
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


Metric = Literal["errors", "latency", "confidence"]


class Gate(Schema):
    """A measure of live traffic under which a revision must not fall.

    errors      answers that failed (5xx, resets, timeouts), of all requests
    latency     answers slower than the EdgeModel's slo.latency.le, of all requests
    confidence  predictions below the EdgeModel's slo.confidence.ge, of all predictions

    `max` is absolute and takes the place of the SLO's own limit. `maxIncrease` is relative: how much more than this site's own past,
    moved by what unchanged sites show in the same minutes, but never less than `minIncrease` (percentage points). `dryRun` shows the
    verdict and does not act on it.
    """

    name: Metric
    max: Percent | None = None
    max_increase: Increase | None = None
    min_increase: Percent = "0.1%"
    dry_run: bool = False


class Controls(Schema):
    """The unchanged sites that relative gates compare with: those that are like the site in `sameLabels` (`region` and `hardware` are
    the site's facts, anything else is a label), at most `max` of them, drawn by a hash. With fewer than `min` heard, a relative gate
    holds the rollout instead of rolling it back."""

    same_labels: Annotated[tuple[LabelKey, ...], Field(max_length=8, json_schema_extra={"x-kubernetes-list-type": "set"})] = ("region",)
    min: Annotated[int, Field(ge=1, le=1000)] = 5
    max: Annotated[int, Field(ge=1, le=1000)] = 200


class Analysis(Schema):
    """How live traffic is judged: `falseRollbackBudget` is the chance, over a whole rollout and all its gates, that a healthy release is
    taken back; `siteSpread` is how much a healthy site's own rate differs from day to day (coefficient of variation)."""

    false_rollback_budget: Percent = "5%"
    site_spread: Annotated[str, Field(pattern=r"^[0-2]\.[0-9]{1,2}$", max_length=4)] = "0.3"
    controls: Controls = Controls()
    gates: Annotated[
        tuple[Gate, ...],
        Field(max_length=3, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
    ] = ()

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "!has(self.falseRollbackBudget) || self.falseRollbackBudget != '0%'",
                    "message": "analysis.falseRollbackBudget must be above 0%: no amount of evidence is enough for certainty",
                },
                {
                    "rule": "!has(self.siteSpread) || !self.siteSpread.matches('^0[.]00?$')",
                    "message": "analysis.siteSpread must be above 0: no site is the same every day",
                },
            ]
        }
    )


class HardChecks(Schema):
    """What a site itself must see. `readyWithin` counts from the end of the fetch to readiness of the new revision.

    `maxRestarts` and `oomKilled`: how often the containers of its pods may restart, and be killed for want of memory, from their start
    until the old pods go. Only a site that starts pods can see these; elsewhere they are not applicable, and its status says so.
    """

    ready_within: Duration = "10m"
    max_restarts: Annotated[int, Field(ge=0, le=1000)] = 2
    oom_killed: Annotated[int, Field(ge=0, le=1000)] = 0


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
    analysis: Analysis = Analysis()
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

    def soak_of(self, wave: Wave) -> Soak:
        """How a wave soaks: as it says, else as the policy does."""
        return wave.soak or self.soak


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
    ),
    analysis=Analysis(gates=(Gate(name="errors", max_increase="25%"),)),
)
