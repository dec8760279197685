"""What every kind shares: camelCase models, object metadata, label selectors, and the names under which we write."""

from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from edgefleet.api.quantities import LabelKey, LabelValue

GROUP = "edgefleet.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

SITE_NAMESPACE_PREFIX = "edgesite-"
SITE_USER_PREFIX = "edgefleet:site:"
SITES_GROUP = "edgefleet:sites"
"""A site is, at the hub, this user and this group: the subject of its client certificate."""
JOIN_NAMESPACE = "edgefleet-join"
"""At the hub: holds the ServiceAccounts whose tokens let a site ask for its first certificate, and nothing else."""
JOIN_ACCOUNT_PREFIX = "join-"
TRUST_BUNDLE = "trust-bundle"
"""The ConfigMap that holds the trust bundle: the person's in the hub's namespace, the hub's copy in each site's."""
TRUST_BUNDLE_ENTRY = "bundle.json"
RESTORED_ANNOTATION = f"{GROUP}/restored-by"
"""On what `edgefleet restore` created: by whom. Admission lets a person make a run only so."""
FINALIZER = f"{GROUP}/withdraw"
OUTCOME_LABEL = f"{GROUP}/outcome"
FLEET_LABEL = f"{GROUP}/fleet"
AUTHOR_ANNOTATION = f"{GROUP}/author"
"""On an EdgeModel: the user who wrote its spec last. Optional; admission lets nobody write another's name, nor keep it over a change."""
RUN_LABEL = f"{GROUP}/run"
SITE_LABEL = f"{GROUP}/site"
LEFT_ANNOTATION = f"{GROUP}/left"
"""On a site's namespace at the hub: since when the site has no rights there (`edgefleet site leave`). The next join ends it."""
EXPIRES_ANNOTATION = f"{GROUP}/expires"
"""On a join account: until when its token is good."""
PRESENTED_ANNOTATION = f"{GROUP}/certificate"
"""On a site's request for its next certificate: the one that it comes with."""
TERMS_ANNOTATION = f"{GROUP}/terms"
"""On a SiteAssignment: a hash of what its order says of the EdgeSite (storage, registries, proxy); absent where that is the default."""
QUARANTINE_LABEL = f"{GROUP}/quarantined"
"""On a SiteAssignment: the gate whose evidence at this one site took it back alone, for the run that RUN_LABEL names."""


class Schema(BaseModel):
    """A frozen camelCase model. Unknown fields are dropped, as the API server prunes them: a newer hub may know more."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")

    def to_json_dict(self) -> dict[str, Any]:
        """The object as YAML would show it: camelCase, without what is absent."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class ObjectMeta(Schema):
    """The part of Kubernetes metadata that decisions read."""

    name: str = ""
    namespace: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    generation: int = 0
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    finalizers: tuple[str, ...] = ()


class SelectorRequirement(Schema):
    """One line of matchExpressions."""

    key: LabelKey
    operator: Annotated[str, Field(json_schema_extra={"enum": ["In", "NotIn", "Exists", "DoesNotExist"]})]
    values: Annotated[tuple[LabelValue, ...], Field(max_length=32)] = ()


class LabelSelector(Schema):
    """A Kubernetes label selector: all lines must hold; an empty selector matches everything."""

    match_labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] = Field(default_factory=dict)
    match_expressions: Annotated[tuple[SelectorRequirement, ...], Field(max_length=16)] = ()

    def matches(self, labels: dict[str, str]) -> bool:
        """Whether an object with these labels is selected."""
        if any(labels.get(key) != value for key, value in self.match_labels.items()):
            return False
        return all(_holds(line, labels) for line in self.match_expressions)


def _holds(line: SelectorRequirement, labels: dict[str, str]) -> bool:
    match line.operator:
        case "In":
            return labels.get(line.key) in line.values
        case "NotIn":
            return labels.get(line.key) not in line.values
        case "Exists":
            return line.key in labels
        case _:
            return line.key not in labels


class Kind(Schema):
    """Base of the six kinds: apiVersion, kind and metadata around a spec and a status."""

    metadata: ObjectMeta = Field(default_factory=ObjectMeta)

    @classmethod
    def parse(cls, body: dict[str, Any]) -> Self:
        """Read an object as the API server returns it. Raises pydantic.ValidationError."""
        return cls.model_validate(body)


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC, to the second, as Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """The inverse of format_time; also reads fractions of a second. Raises ValueError."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def site_namespace(site: str) -> str:
    """The namespace that holds all of one site, at the hub and at the site."""
    return SITE_NAMESPACE_PREFIX + site
