"""EdgeModel: where a model's releases come from, whom to trust for it, how sites serve it, and what good means for it."""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from edgefleet.api.conditions import Conditions
from edgefleet.api.meta import Kind, Schema
from edgefleet.api.quantities import (
    Digest,
    Duration,
    LabelKey,
    LabelValue,
    Message,
    Name,
    Percent,
    Repository,
    RevisionHash,
    Share,
    Tag,
    Timestamp,
)

Arch = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,16}$", max_length=16)]
MAX_TEMPLATE_BYTES = 16_384
"""A signed order carries one template; its envelope may have 64 KiB."""
Accelerator = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}$", max_length=32)]


SecretName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]


class Source(Schema):
    """A repository of an OCI registry, and which release in it is wanted.

    For the hub alone, Secrets in the model's namespace: `secretRef` (a pull secret, kubernetes.io/dockerconfigjson; its entries are also
    for the golden set's registry) and `caRef` (entry ca.crt: authorities of the registry, believed beside the public ones). Sites have
    their own, see EdgeSite.
    """

    repository: Repository
    tag: Tag | None = None
    digest: Digest | None = None
    interval: Duration = "10m"
    secret_ref: SecretName | None = None
    ca_ref: SecretName | None = None

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "has(self.tag) != has(self.digest)",
                    "message": "set exactly one of source.tag and source.digest",
                },
                {
                    "rule": "!has(self.interval) || duration(self.interval) >= duration('1s')",
                    "message": "source.interval must be 1s or longer: the registry is asked that often",
                },
            ]
        }
    )


class KeyPolicy(Schema):
    """Public keys in a Secret of the same namespace: every entry whose name ends in `.pub` is one PEM key."""

    secret_ref: Name
    threshold: Annotated[int, Field(ge=1, le=8)] = 1


class TrustedIdentity(Schema):
    """A publisher without a key of its own: the subject of a Sigstore certificate (a workflow's URI, an address), as `issuer` gave it out.

    A regex (of RE2's syntax; `{m,n}` up to 64 in all, and of no group) must match the whole subject. All who match one entry are one
    publisher.
    """

    issuer: Annotated[str, Field(min_length=1, max_length=256)]
    subject: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    subject_regex: Annotated[str, Field(min_length=1, max_length=256)] | None = None

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "has(self.subject) != has(self.subjectRegex)",
                    "message": "an identity has exactly one of subject and subjectRegex",
                }
            ]
        }
    )


class KeylessPolicy(Schema):
    """Identities, and a ConfigMap of the same namespace with the root of the Sigstore that vouches for them.

    Its entries are `trusted_root.json` and `version`, a number that only grows: with a lower one than before nothing is accepted.
    """

    identities: Annotated[tuple[TrustedIdentity, ...], Field(min_length=1, max_length=8)]
    trusted_root_ref: SecretName


class RevokedPublishers(Schema):
    """Publishers whose signatures do not count any more: ids of keys (`sha256:<hex>`, as `status.release.signedBy` names them), and
    identities, also some of those that a `subjectRegex` admits."""

    keys: Annotated[tuple[Digest, ...], Field(max_length=64)] = ()
    identities: Annotated[tuple[TrustedIdentity, ...], Field(max_length=64)] = ()


PredicateType = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9+.-]*:\S+$", max_length=512)]


class Verify(Schema):
    """The hub's gate. It is required, and no match means refused: there is no warn-only.

    `threshold` is how many different publishers must sign, keys and identities counted together; with keys alone, `keys.threshold` says it.
    `requiredPredicates` are attestations that one of them must have made beside the release's own, by type, such as a review's.
    """

    keys: KeyPolicy | None = None
    keyless: KeylessPolicy | None = None
    threshold: Annotated[int, Field(ge=1, le=8)] | None = None
    min_release_seq: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    required_predicates: Annotated[tuple[PredicateType, ...], Field(max_length=8)] = ()
    revoked: RevokedPublishers = RevokedPublishers()

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "has(self.keys) || has(self.keyless)",
                    "message": "verify needs keys, keyless or both: what nobody signed is never accepted",
                },
                {
                    "rule": "!has(self.keys) || self.keys.threshold == 1 || !(has(self.keyless) || has(self.threshold))",
                    "message": "with verify.keyless, write verify.threshold instead of verify.keys.threshold",
                },
            ]
        }
    )

    @property
    def demanded(self) -> int:
        """How many different publishers must sign."""
        return self.threshold or (self.keys.threshold if self.keys else 1)


class Golden(Schema):
    """Labelled examples that the model must answer before it is switched in; an artifact of its own."""

    repository: Repository
    digest: Digest
    min: Share


class HardwareMatch(Schema):
    """Which sites a serving entry is for; what is left out matches all."""

    arch: Arch | None = None
    accelerator: Accelerator | None = None


class RepositoryRuntime(Schema):
    """A model server that already runs at the site and speaks the Open Inference Protocol v2 with the repository extension.

    Its address and its model folder are facts of the site (`edgefleet agent --server-url --server-models`), not of the model:
    a hub that could name URLs could reach into a site's network.
    """


Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=16)]
_OPEN: Any = {"x-kubernetes-preserve-unknown-fields": True}


class PodContainer(Schema):
    """A container as Kubernetes knows it, its image by digest. What a site allows in it is decided there."""

    name: Name
    image: Annotated[str, Field(pattern=r"^[a-z0-9][^\s@]*@sha256:[0-9a-f]{64}$", max_length=512)]

    model_config = ConfigDict(extra="allow", json_schema_extra=_OPEN)


class PodSpec(Schema):
    """The spec of a pod as Kubernetes knows it. What a site allows in it is decided there."""

    containers: Annotated[tuple[PodContainer, ...], Field(min_length=1, max_length=8)]
    init_containers: Annotated[tuple[PodContainer, ...], Field(max_length=8)] = ()

    model_config = ConfigDict(extra="allow", json_schema_extra=_OPEN)


class PodMetadata(Schema):
    """Labels of the pods, beside those that the site sets. Annotations are not taken: some of them move a pod to other networks."""

    labels: Labels = Field(default_factory=dict)


class PodTemplate(Schema):
    """A pod template as Kubernetes knows it, at most MAX_TEMPLATE_BYTES of JSON."""

    metadata: PodMetadata = PodMetadata()
    spec: PodSpec

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        size = len(self.model_dump_json(by_alias=True, exclude_defaults=True).encode())
        if size > MAX_TEMPLATE_BYTES:
            raise ValueError(f"the pod template has {size} bytes of JSON, at most {MAX_TEMPLATE_BYTES} are allowed")
        return self


class DeploymentRuntime(Schema):
    """Pods that the site starts for each revision, with the revision's files mounted read-only at `mountPath` of every container.

    `port` is where the first container answers. `path` is what stands there for `/v2/models/<model>` of the site's gateway; without it
    the server must know the model by the name of the EdgeModel. A server that does not speak the Open Inference Protocol v2 can be served
    under a path of its own, but it cannot answer a golden set.
    """

    template: PodTemplate
    port: Annotated[int, Field(ge=1, le=65535)]
    mount_path: Annotated[str, Field(pattern=r"^/[A-Za-z0-9._/-]*$", max_length=256)]
    path: Annotated[str, Field(pattern=r"^/[A-Za-z0-9._/-]*$", max_length=256)] | None = None


class Serving(Schema):
    """One way to serve the model; the first entry that fits the site's hardware is used.

    `switch`: SideBySide starts a new revision beside the old one and switches when it has passed. Replace stops the old one first, for
    hardware that holds only one: requests are refused in between, and counted.
    """

    match: HardwareMatch = HardwareMatch()
    repository: RepositoryRuntime | None = None
    deployment: DeploymentRuntime | None = None
    switch: Literal["SideBySide", "Replace"] = "SideBySide"

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "has(self.repository) != has(self.deployment)",
                    "message": "a serving entry has exactly one of repository and deployment",
                }
            ]
        }
    )

    @model_validator(mode="after")
    def _one_runtime(self) -> Self:
        if (self.repository is None) == (self.deployment is None):
            raise ValueError("a serving entry has exactly one of repository and deployment")
        return self


class LatencySlo(Schema):
    """`share` of the answers come within `le`, in whole milliseconds from 1 ms to 60 s. Sites count at exactly this edge."""

    le: Duration
    share: Percent

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "duration(self.le) >= duration('1ms') && duration(self.le) <= duration('60s')",
                    "message": "slo.latency.le must be from 1ms to 60s",
                }
            ]
        }
    )


class ConfidenceSlo(Schema):
    """`share` of the predictions have a confidence of `ge` or more: one of the nine inner edges of ten bins.

    Only where the model server says it: a Prometheus histogram `edgefleet_confidence` with the label `model_name` (the served name)
    and buckets 0.1, 0.2, ... 1.0.
    """

    ge: Annotated[str, Field(pattern=r"^0\.[1-9]$", max_length=3)]
    share: Percent


class Slo(Schema):
    """What good means for this model on live traffic. Each line is an absolute gate of every rollout, and an edge at which sites count."""

    latency: LatencySlo | None = None
    confidence: ConfidenceSlo | None = None
    error_rate: Percent | None = None


class RevokedRelease(Schema):
    """A release that must not run any more: sites go to the newest good release that was promoted, at once.

    A site that cannot (there is none, or it is held or cut off) goes on serving it until `stopServingAfter` has passed since the hub saw
    the revocation (`status.revoked` says when that is), and then serves nothing; without it, for as long as that takes.
    """

    digest: Digest
    reason: Message = ""
    stop_serving_after: Duration | None = None


class EdgeModelSpec(Schema):
    """What people write."""

    source: Source
    verify: Verify
    golden: Golden | None = None
    serving: Annotated[tuple[Serving, ...], Field(min_length=1, max_length=16)]
    slo: Slo = Slo()
    revoked: Annotated[
        tuple[RevokedRelease, ...],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["digest"]}),
    ] = ()


class Variant(Schema):
    """One manifest of the index, and what hardware it needs. `priority` breaks ties between variants that fit: highest wins."""

    name: Name
    digest: Digest
    size: Annotated[int, Field(ge=0)]
    arch: Arch
    accelerator: Accelerator | None = None
    features: Annotated[tuple[Accelerator, ...], Field(max_length=16)] = ()
    min_memory: Annotated[int, Field(ge=0)] = 0
    precision: Annotated[str, Field(max_length=16)] = ""
    priority: Annotated[int, Field(ge=0, le=1000)] = 0


Variants = Annotated[
    tuple[Variant, ...],
    Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
]


class SigningIdentity(Schema):
    """Who signed without a key, and when the transparency log had it."""

    subject: Annotated[str, Field(max_length=1024)]
    issuer: Annotated[str, Field(max_length=256)]
    logged_at: Timestamp


class TrustedRootVersion(Schema):
    """Under which version of which ConfigMap it was verified."""

    name: SecretName
    version: Annotated[int, Field(ge=1)]


class Release(Schema):
    """A verified release: the digest of its index and what its attestation binds to it. `signedBy` are ids of keys, and identities.

    `evidence` are the digests of the bundles that vouched for it.
    """

    digest: Digest
    version: Annotated[str, Field(max_length=64)]
    seq: Annotated[int, Field(ge=0)]
    variants: Variants
    signed_by: Annotated[tuple[Annotated[str, Field(max_length=1024)], ...], Field(max_length=8)]
    identities: Annotated[tuple[SigningIdentity, ...], Field(max_length=8)] = ()
    trusted_root: TrustedRootVersion | None = None
    evidence: Annotated[tuple[Digest, ...], Field(max_length=64)] = ()
    verified_at: Timestamp


class Revision(Schema):
    """All that a revision is a hash of, and what a site needs to fetch it. Frozen into every run and assignment."""

    hash: RevisionHash
    model: Name
    repository: Repository
    digest: Digest
    version: Annotated[str, Field(max_length=64)]
    seq: Annotated[int, Field(ge=0)]
    variants: Variants
    golden: Golden | None = None
    serving: Annotated[tuple[Serving, ...], Field(min_length=1, max_length=16)]
    slo: Slo = Slo()

    @property
    def short(self) -> str:
        """The first eight characters, as names use it."""
        return self.hash[:8]


class RevokedSince(Schema):
    """Since when a release is revoked, as the hub saw it, and when sites stop serving it by themselves, if they ever do."""

    digest: Digest
    since: Timestamp
    stop_serving_by: Timestamp | None = None


class EdgeModelStatus(Schema):
    """What the hub found."""

    observed_generation: int = 0
    release: Release | None = None
    revision: RevisionHash | None = None
    revoked: Annotated[
        tuple[RevokedSince, ...],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["digest"]}),
    ] = ()
    conditions: Conditions = ()


class EdgeModel(Kind):
    """A model and its releases."""

    kind: Literal["EdgeModel"] = "EdgeModel"
    spec: EdgeModelSpec
    status: EdgeModelStatus = EdgeModelStatus()
