"""EdgeSite: one edge cluster. Spec by people; status by the hub, from the site's Lease, and only when it changes."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from edgefleet.api.attestation import Pcr, PcrHash
from edgefleet.api.conditions import Conditions
from edgefleet.api.meta import Kind, LabelSelector, Schema
from edgefleet.api.model import Accelerator, Arch, SecretName
from edgefleet.api.quantities import LabelKey, Message, Reason, Size, Timestamp

REGION_PATTERN = r"^[a-z0-9][a-z0-9-]{0,30}$"
Region = Annotated[str, Field(pattern=REGION_PATTERN, max_length=31)]


class Taint(Schema):
    """Keeps fleets away that do not tolerate the key. What already runs stays."""

    key: LabelKey
    reason: Message = ""


class Hold(Schema):
    """No change at this site until then; it counts as skipped (OnHold)."""

    until: datetime
    reason: Annotated[str, Field(min_length=1, max_length=256)]


class Storage(Schema):
    """The model store of a site: how much it may hold, and how many revisions per fleet it keeps (the serving one and its
    predecessor among them)."""

    limit: Size = "20Gi"
    keep: Annotated[int, Field(ge=2, le=16)] = 2


RegistryHost = Annotated[str, Field(pattern=r"^[a-zA-Z0-9.-]{1,253}(:[0-9]{1,5})?$", max_length=259)]


class RegistryAccess(Schema):
    """How this site reaches the registry `match` (`host` or `host:port`, as image references name it).

    `mirror` is asked in its place, and alone: `host` or `host:port`, and a path that stands before each repository's own. It need not be
    trusted, since every digest is checked. `secretRef` (a pull secret, kubernetes.io/dockerconfigjson) and `caRef` (entry ca.crt: believed
    beside the public authorities) are Secrets in the site's own cluster and are for whichever of the two is asked.
    """

    match: RegistryHost
    mirror: Annotated[str, Field(pattern=r"^[a-zA-Z0-9.-]{1,253}(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$", max_length=200)] | None = (
        None
    )
    secret_ref: SecretName | None = None
    ca_ref: SecretName | None = None


class Proxy(Schema):
    """The HTTP proxy through which a site reaches registries by CONNECT; nothing else chooses one, the environment least of all.

    `noProxy`: hosts that are reached without it, `registry.example`, or `.example` for all below.
    """

    https: Annotated[str, Field(pattern=r"^http://[a-zA-Z0-9.-]{1,253}:[0-9]{1,5}$", max_length=266)]
    no_proxy: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[.]?[a-zA-Z0-9][a-zA-Z0-9.-]*$", max_length=253)], ...], Field(max_length=32)
    ] = ()


Registries = Annotated[
    tuple[RegistryAccess, ...],
    Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["match"]}),
]


KeyHash = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$", max_length=71)]


class PcrValues(Schema):
    """The values (SHA-256 bank, hex) that one PCR of the site's TPM may have."""

    pcr: Pcr
    values: Annotated[tuple[PcrHash, ...], Field(min_length=1, max_length=16)]


class Attestation(Schema):
    """The site's TPM must vouch for the site before a new model goes there, and for each of its certificates.

    `deviceHash` is the SHA-256 of the TPM's endorsement key; without it, the TPM that the site joins with is the site's, until a person
    lets another in. Of `pcrs`, each must have one of its values.
    """

    mode: Annotated[Literal["Required"], Field(json_schema_extra={"enum": ["Required"]})]
    device_hash: KeyHash | None = None
    pcrs: Annotated[
        tuple[PcrValues, ...],
        Field(max_length=24, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["pcr"]}),
    ] = ()


class EdgeSiteSpec(Schema):
    """What people write."""

    region: Region | None = None
    allowed_namespaces: LabelSelector | None = None
    taints: Annotated[
        tuple[Taint, ...],
        Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["key"]}),
    ] = ()
    hold: Hold | None = None
    storage: Storage = Storage()
    registries: Registries = ()
    proxy: Proxy | None = None
    attestation: Attestation | None = None


class Hardware(Schema):
    """What the site runs on. `declared` names the facts that a person overrode at the site instead of their being discovered."""

    arch: Arch
    accelerator: Accelerator | None = None
    memory: Annotated[int, Field(ge=0)]
    features: Annotated[tuple[Accelerator, ...], Field(max_length=32)] = ()
    declared: Annotated[tuple[Annotated[str, Field(max_length=16)], ...], Field(max_length=8)] = ()


class Identity(Schema):
    """Which key the site may come with: that of the certificate it was last granted. `previous` is the key before it, and `invitation` the
    UID of the join account that let it in (empty if it came with a certificate that somebody else had made for it)."""

    key: KeyHash
    previous: KeyHash | None = None
    invitation: Annotated[str, Field(max_length=64)] = ""
    joined_at: Timestamp
    renewed_at: Timestamp | None = None


class PcrValue(Schema):
    """What one PCR was (SHA-256 bank, hex)."""

    pcr: Pcr
    value: PcrHash


class Vouched(Schema):
    """What the site's TPM last proved: which one it is (`deviceHash`), for which key, its PCRs then, and how often it was reset. It counts
    until `validUntil`, the end of the certificate that was granted for it."""

    device_hash: KeyHash
    key: KeyHash
    verified_at: Timestamp
    valid_until: Timestamp
    resets: Annotated[int, Field(ge=0)]
    pcrs: Annotated[tuple[PcrValue, ...], Field(max_length=24)] = ()


class Rebuff(Schema):
    """Why the last proof was not believed."""

    reason: Reason
    message: Message
    at: Timestamp


class AttestationStatus(Schema):
    """`verified` is the last proof that was believed, `refused` one after it that was not."""

    verified: Vouched | None = None
    refused: Rebuff | None = None


class EdgeSiteStatus(Schema):
    """What the hub heard."""

    observed_generation: int = 0
    hardware: Hardware | None = None
    agent_version: Annotated[str, Field(max_length=64)] = ""
    identity: Identity | None = None
    attestation: AttestationStatus | None = None
    conditions: Conditions = ()


class EdgeSite(Kind):
    """One site."""

    kind: Literal["EdgeSite"] = "EdgeSite"
    spec: EdgeSiteSpec
    status: EdgeSiteStatus = EdgeSiteStatus()
