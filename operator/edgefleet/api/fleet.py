"""EdgeFleet: which sites run which model, under which rollout policy, and where its bytes may go."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from edgefleet.api.conditions import Conditions
from edgefleet.api.meta import Kind, LabelSelector, Schema
from edgefleet.api.quantities import LabelKey, Name, RevisionHash
from edgefleet.api.site import Region

OnDelete = Literal["Retain", "Withdraw"]


class ModelRef(Schema):
    """The EdgeModel of the same namespace. Immutable: another model is another fleet."""

    name: Name

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "self == oldSelf",
                    "message": "modelRef is immutable: make another EdgeFleet for another model",
                }
            ]
        }
    )


class PolicyRef(Schema):
    """The RolloutPolicy of the same namespace."""

    name: Name


class Residency(Schema):
    """Regions whose sites may hold this model. A site without a region is refused."""

    allowed_regions: Annotated[tuple[Region, ...], Field(min_length=1, max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"})]


class Toleration(Schema):
    """A taint of a site that this fleet accepts."""

    key: LabelKey


class EdgeFleetSpec(Schema):
    """What people write."""

    site_selector: LabelSelector
    model_ref: ModelRef
    rollout_policy_ref: PolicyRef | None = None
    residency: Residency | None = None
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    on_delete: OnDelete = "Retain"
    suspend: bool = False


class SiteCounts(Schema):
    """Sites of the fleet now. `desired` = eligible; the others are parts of it, but for `skipped`, which were left out with a reason."""

    desired: int = 0
    updated: int = 0
    ready: int = 0
    failed: int = 0
    inconclusive: int = 0
    unreachable: int = 0
    skipped: int = 0
    rolled_back: int = 0


class EdgeFleetStatus(Schema):
    """What the hub made of it. `stable` is the newest Promoted run's revision, `target` the one that the model names now."""

    observed_generation: int = 0
    stable: RevisionHash | None = None
    stable_version: Annotated[str, Field(max_length=64)] = ""
    target: RevisionHash | None = None
    target_version: Annotated[str, Field(max_length=64)] = ""
    rollout: Annotated[str, Field(max_length=64)] = ""
    sites: SiteCounts = SiteCounts()
    conditions: Conditions = ()


class EdgeFleet(Kind):
    """A set of sites that run one model."""

    kind: Literal["EdgeFleet"] = "EdgeFleet"
    spec: EdgeFleetSpec
    status: EdgeFleetStatus = EdgeFleetStatus()
