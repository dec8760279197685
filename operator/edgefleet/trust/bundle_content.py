"""What a trust bundle says, as JSON: publishers by model, hub keys, revocations, limits. bundle.py decides whether it was signed.

A document has the lowest formatVersion that can say it, so that older agents read what they can obey and refuse the rest by name:

    1  publishers by key
    2  identities, and the `trustedRoot` of the Sigstore that vouches for them
    3  `revoked`, `requiredPredicates`, `limits`, `imageSigners`
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, ConfigDict, Field
from pydantic.alias_generators import to_camel

from edgefleet.api.meta import Schema, format_time
from edgefleet.api.quantities import Digest, Name
from edgefleet.core.limits import LimitsByModel
from edgefleet.trust.documents import format_canonical, parse_json_object
from edgefleet.trust.identities import Identity, Keyless
from edgefleet.trust.keys import PublicKey
from edgefleet.trust.limits import ImagePattern, ImageSigner, LimitsDocument, read_limits, write_limits
from edgefleet.trust.publishers import Publisher, Revoked

KEYED_FORMAT, KEYLESS_FORMAT, POLICY_FORMAT = 1, 2, 3
FORMATS = (KEYED_FORMAT, KEYLESS_FORMAT, POLICY_FORMAT)

Pem = Annotated[str, Field(max_length=2048)]


@dataclass(frozen=True)
class BundleContent:
    """`publishers` is by model name. What is `revoked` holds for all of them, and stands in each as well."""

    publishers: Mapping[str, Publisher]
    hub_keys: tuple[PublicKey, ...]
    revoked: Revoked = field(default_factory=Revoked)
    limits: LimitsByModel = field(default_factory=LimitsByModel)
    image_signers: tuple[ImageSigner, ...] = ()


class _Document(Schema):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


class _IdentityDocument(_Document):
    issuer: Annotated[str, Field(min_length=1, max_length=256)]
    subject: Annotated[str, Field(max_length=1024)] = ""
    subject_regex: Annotated[str, Field(max_length=256)] = ""


class _SignersDocument(_Document):
    keys: Annotated[tuple[Pem, ...], Field(max_length=8)] = ()
    identities: Annotated[tuple[_IdentityDocument, ...], Field(max_length=8)] = ()
    threshold: Annotated[int, Field(ge=1, le=8)] = 1


class _PublisherDocument(_SignersDocument):
    min_release_seq: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    required_predicates: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=512)], ...], Field(max_length=8)] = ()


class _ImageSignerDocument(_SignersDocument):
    repository: ImagePattern


class _RevokedDocument(_Document):
    digests: Annotated[tuple[Digest, ...], Field(max_length=1024)] = ()
    stop_serving_by: Annotated[dict[Digest, AwareDatetime], Field(max_length=1024)] = Field(default_factory=dict)
    keys: Annotated[tuple[Digest, ...], Field(max_length=256)] = ()
    identities: Annotated[tuple[_IdentityDocument, ...], Field(max_length=256)] = ()


class _ContentDocument(_Document):
    format_version: Literal[1, 2, 3] = 1
    publishers: Annotated[dict[Name, _PublisherDocument], Field(max_length=1024)]
    hub_keys: Annotated[tuple[Pem, ...], Field(min_length=1, max_length=8)]
    trusted_root: dict[str, Any] | None = None
    revoked: _RevokedDocument | None = None
    limits: LimitsDocument | None = None
    image_signers: Annotated[tuple[_ImageSignerDocument, ...], Field(max_length=32)] = ()

    @property
    def needed_format(self) -> int:
        """The lowest format that knows what is said here."""
        limited = self.limits is not None or bool(self.image_signers)
        if self.revoked is not None or limited or any(entry.required_predicates for entry in self.publishers.values()):
            return POLICY_FORMAT
        if self.trusted_root is not None or any(entry.identities for entry in self.publishers.values()):
            return KEYLESS_FORMAT
        return KEYED_FORMAT


def write_content(content: BundleContent) -> dict[str, Any]:
    """The document. Raises ValueError for what read_content would refuse."""
    signing = (*content.publishers.values(), *(entry.publisher for entry in content.image_signers))
    trusted_roots = {publisher.keyless.trusted_root for publisher in signing if publisher.keyless}
    if len(trusted_roots) > 1:
        raise ValueError("the publishers have different trusted roots: a bundle carries one, which may name several authorities and logs")
    document = _ContentDocument(
        publishers={model: _write_publisher(publisher) for model, publisher in content.publishers.items()},
        hub_keys=tuple(key.to_pem() for key in content.hub_keys),
        trusted_root=parse_json_object(trusted_roots.pop()) if trusted_roots else None,
        revoked=_write_revoked(content.revoked),
        **_write_limits(content),
    )
    written = document.model_copy(update={"format_version": document.needed_format}).model_dump(
        mode="json", by_alias=True, exclude_unset=True, exclude_none=True
    )
    read_content(written)
    return written


def read_content(document: Any) -> BundleContent:
    """What a document says. Raises ValueError."""
    found = _ContentDocument.model_validate(document)
    if found.needed_format > found.format_version:
        raise ValueError(f"it says what only formatVersion {found.needed_format} can say, its formatVersion is {found.format_version}")
    root = None if found.trusted_root is None else format_canonical(found.trusted_root)
    revoked = Revoked()
    if found.revoked is not None:
        revoked = _read_revoked(found.revoked)
    publishers = {}
    for model, entry in found.publishers.items():
        signers = _read_signers(entry, root, revoked, f"publisher of {model}")
        publishers[model] = replace(signers, min_release_seq=entry.min_release_seq, predicates=tuple(entry.required_predicates))
    image_signers = tuple(
        ImageSigner(entry.repository, _read_signers(entry, root, revoked, f"imageSigners, {entry.repository}"))
        for entry in found.image_signers
    )
    return BundleContent(publishers, _distinct(found.hub_keys), revoked, read_limits(found.limits), image_signers)


def _read_signers(entry: _SignersDocument, root: bytes | None, revoked: Revoked, what: str) -> Publisher:
    identities = _identities(entry.identities)
    if identities and root is None:
        raise ValueError(f"{what}: identities need the trustedRoot that vouches for them")
    keyless = Keyless(identities, root) if identities and root else None
    publisher = Publisher(_distinct(entry.keys), entry.threshold, keyless=keyless, revoked=revoked)
    if publisher.threshold > len(publisher.names):
        raise ValueError(f"{what}: threshold {entry.threshold} cannot be met by {len(publisher.names)} different publishers")
    return publisher


def _write_publisher(publisher: Publisher) -> _PublisherDocument:
    document = {**_write_signers(publisher), "minReleaseSeq": publisher.min_release_seq}
    if publisher.predicates:
        document["requiredPredicates"] = publisher.predicates
    return _PublisherDocument.model_validate(document)


def _read_revoked(document: _RevokedDocument) -> Revoked:
    digests, stops = frozenset(document.digests), document.stop_serving_by
    if not stops.keys() <= digests:
        raise ValueError(f"revoked.stopServingBy names {min(stops.keys() - digests)}, which revoked.digests does not")
    return Revoked(digests, frozenset(document.keys), _identities(document.identities), stops)


def _write_signers(publisher: Publisher) -> dict[str, Any]:
    document: dict[str, Any] = {"keys": tuple(key.to_pem() for key in publisher.keys), "threshold": publisher.threshold}
    return document | ({"identities": _write_identities(publisher.identities)} if publisher.identities else {})


def _write_limits(content: BundleContent) -> dict[str, Any]:
    limits = write_limits(content.limits)
    found: dict[str, Any] = {"limits": LimitsDocument.model_validate(limits)} if limits else {}
    if content.image_signers:
        entries = ({"repository": one.repository, **_write_signers(one.publisher)} for one in content.image_signers)
        found["image_signers"] = tuple(map(_ImageSignerDocument.model_validate, entries))
    return found


def _write_revoked(revoked: Revoked) -> _RevokedDocument | None:
    said = {
        "digests": tuple(sorted(revoked.digests)),
        "stopServingBy": {digest: format_time(by) for digest, by in sorted(revoked.stops.items())},
        "keys": tuple(sorted(revoked.keys)),
        "identities": _write_identities(revoked.identities),
    }
    filled = {name: value for name, value in said.items() if value}
    return _RevokedDocument.model_validate(filled) if filled else None


def _write_identities(identities: Sequence[Identity]) -> tuple[dict[str, str], ...]:
    return tuple(
        {"issuer": one.issuer} | ({"subject": one.subject} if one.subject else {"subjectRegex": one.subject_regex}) for one in identities
    )


def _identities(documents: Sequence[_IdentityDocument]) -> tuple[Identity, ...]:
    return tuple({one.id: one for one in (Identity(**dict(entry)) for entry in documents)}.values())


def _distinct(pems: Sequence[str]) -> tuple[PublicKey, ...]:
    keys = {key.id: key for key in (PublicKey.from_pem(pem) for pem in pems)}
    return tuple(keys.values())
