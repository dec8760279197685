"""ModelRollout: one change of one fleet. Its spec is frozen but for `control`, which people write; its status is its record."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from edgefleet.api.conditions import Conditions
from edgefleet.api.fleet import SiteCounts
from edgefleet.api.meta import Kind, Schema
from edgefleet.api.model import Revision
from edgefleet.api.policy import Metric, RolloutPolicySpec
from edgefleet.api.quantities import Message, Name, Reason, Timestamp

Outcome = Literal["Promoted", "RolledBack", "AbortedByUser", "TargetChanged", "Superseded"]
Phase = Literal["Planned", "Rolling", "Returning", "Ended"]


class PlanRef(Schema):
    """The frozen list of sites: immutable ConfigMaps `plan-<hash>-<i>` whose joined content has this SHA-256 (hex)."""

    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)]
    sites: Annotated[int, Field(ge=0)]
    chunks: Annotated[int, Field(ge=0, le=1000)]


class WaveApproval(Schema):
    """One person's consent to open a wave. The admission policy checks that `by` is the caller's own name."""

    wave: Name
    by: Annotated[str, Field(min_length=1, max_length=128)]
    reason: Message = ""


class Control(Schema):
    """What people say to a run. The hub never writes it. `by`: who changed anything but `approvals` last, if that person said so; the
    admission policy lets nobody write another's name, nor leave it there when changing them.

    `promote`: the wave that passes as soon as one of its sites has reported the revision, without the rest of its soak, traffic and
    reports. `retry`: the revision may be tried again though this run, which has ended, took it back; by one new run, which may bar it anew.
    """

    paused: bool = False
    aborted: bool = False
    promote: Annotated[str, Field(max_length=64)] = ""
    retry: bool = False
    by: Annotated[str, Field(max_length=256)] = ""
    approvals: Annotated[tuple[WaveApproval, ...], Field(max_length=64)] = ()


class ModelRolloutSpec(Schema):
    """The change. Everything but `control` is frozen. `author`: who named the release; empty if the EdgeModel did not tell."""

    fleet: Name
    number: Annotated[int, Field(ge=1)]
    revision: Revision
    policy: RolloutPolicySpec
    plan: PlanRef
    author: Annotated[str, Field(max_length=256)] = ""
    control: Control = Control()

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "self.fleet == oldSelf.fleet && self.number == oldSelf.number"
                    " && self.revision == oldSelf.revision && self.policy == oldSelf.policy && self.plan == oldSelf.plan"
                    " && self.author == oldSelf.author",
                    "message": "a run is frozen: only spec.control may change; name another release in the EdgeModel instead",
                },
            ]
        }
    )


class WaveRecord(Schema):
    """What happened to one wave: how many sites it has, when it opened and when it passed."""

    name: Name
    sites: int = 0
    opened_at: Timestamp | None = None
    passed_at: Timestamp | None = None


class GateRecord(Schema):
    """What one gate found so far. `seen` bad events of `requests` (or predictions), where up to about `allowed` would be no worse than
    allowed; `evidence` grows only if the revision is worse, and the verdict is Fail at `bound`. Numbers are written as Python's repr.

    verdict: Quiet (nothing proved), Fail, Hold (a relative gate at its bound without enough controls), NotApplicable (first release)
    """

    name: Metric
    kind: Literal["Absolute", "Relative"]
    dry_run: bool = False
    verdict: Literal["Quiet", "Fail", "Hold", "NotApplicable"]
    requests: int = 0
    seen: int = 0
    allowed: Annotated[str, Field(max_length=32)] = "0"
    evidence: Annotated[str, Field(max_length=32)] = "1"
    bound: Annotated[str, Field(max_length=32)] = "1"


class SaidRecord(Schema):
    """Something a person said in `control`, and when the hub saw it. `by` is empty if the person left no name; `wave` and `reason` go
    with Approved, `wave` with Promoted and with Withdrawn (an approval that was taken away again)."""

    what: Literal["Paused", "Resumed", "Aborted", "Promoted", "Approved", "Withdrawn"]
    by: Annotated[str, Field(max_length=256)] = ""
    wave: Annotated[str, Field(max_length=64)] = ""
    reason: Message = ""
    at: Timestamp


class ModelRolloutStatus(Schema):
    """The run's record, written by the hub alone."""

    observed_generation: int = 0
    phase: Phase = "Planned"
    outcome: Outcome | None = None
    reason: Reason = ""
    message: Message = ""
    waiting_for: Annotated[str, Field(max_length=64)] = ""
    since: Timestamp | None = None
    started_at: Timestamp | None = None
    progressed_at: Timestamp | None = None
    ended_at: Timestamp | None = None
    wave: Annotated[str, Field(max_length=64)] = ""
    waves: Annotated[tuple[WaveRecord, ...], Field(max_length=17)] = ()
    sites: SiteCounts = SiteCounts()
    gates: Annotated[tuple[GateRecord, ...], Field(max_length=6)] = ()
    said: Annotated[tuple[SaidRecord, ...], Field(max_length=128)] = ()
    conditions: Conditions = ()


class ModelRollout(Kind):
    """One change."""

    kind: Literal["ModelRollout"] = "ModelRollout"
    spec: ModelRolloutSpec
    status: ModelRolloutStatus = ModelRolloutStatus()
