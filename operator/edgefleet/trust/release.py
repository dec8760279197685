"""Whether an artifact is a release of a model that enough trusted publishers stand for.

A publisher is a key, or an identity that a Sigstore vouches for. cosign's signature names a digest and nothing else, so alone it could
be moved to another model, or an old release passed off as the newest. Two things are therefore demanded, each by `threshold` different
publishers: a signature over the digest, and an attestation that binds the digest to model, version and release sequence (golden sets:
to the model). Where the bundles were found does not matter, and what the caller does with the verdict is its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, TypeVar

from pydantic import AwareDatetime, Field, ValidationError

from edgefleet.api.meta import Schema, format_time
from edgefleet.api.quantities import Digest, Name
from edgefleet.trust.errors import Rejected, rejecting
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.publishers import Publisher
from edgefleet.trust.signatures import (
    KeyRing,
    SignedBy,
    SignedStatement,
    SigstoreBundle,
    Statement,
    sign_statement,
    verify_bundle,
)

SIGN_PREDICATE = "https://sigstore.dev/cosign/sign/v1"
RELEASE_PREDICATE = "https://edgefleet.io/attestation/release/v1"
GOLDEN_PREDICATE = "https://edgefleet.io/attestation/golden/v1"
MAX_BUNDLES = 64
MAX_CAUSES = 10
MAX_EXPLANATION = 760


class ReleaseFacts(Schema):
    """The predicate of a release attestation. `release_seq` orders the releases of a model; version is for people.

    `variants`, where it is there, is all variants of the index: the name of each, and the digest of its manifest.
    """

    model: Name
    version: Annotated[str, Field(min_length=1, max_length=64)]
    release_seq: Annotated[int, Field(ge=0, le=1_000_000_000, strict=True)]
    created_at: AwareDatetime
    variants: Annotated[dict[Name, Digest], Field(min_length=1, max_length=32)] | None = None


class GoldenFacts(Schema):
    """The predicate of a golden set's attestation."""

    model: Name
    created_at: AwareDatetime


@dataclass(frozen=True)
class VerifiedRelease:
    """What the attestation binds to the digest, and all trusted publishers that signed the digest, by id.

    `variants` is each publisher that attests variants, and which. `bundles` are those that trusted publishers signed, about this digest.
    """

    version: str
    seq: int
    created_at: datetime
    signers: tuple[SignedBy, ...]
    variants: tuple[tuple[str, Mapping[str, str]], ...] = ()
    bundles: tuple[bytes, ...] = ()

    @property
    def signed_by(self) -> tuple[str, ...]:
        """The ids of the publishers."""
        return tuple(signer.id for signer in self.signers)

    def require_variants(self, found: Mapping[str, str]) -> None:
        """Check what publishers attest of variants against those of the index: name to digest. Raises Rejected(VariantMismatch)."""
        for signer, attested in self.variants:
            wrong = sorted(name for name in {*attested, *found} if attested.get(name) != found.get(name))
            if wrong:
                raise Rejected(
                    "VariantMismatch",
                    f"variant {wrong[0]} is {found.get(wrong[0], 'not in the index')}, {signer} attests "
                    f"{attested.get(wrong[0], 'no such variant')}: if the index is right, attest it anew under a higher sequence",
                )


@dataclass(frozen=True)
class VerifiedGolden:
    """When the golden set was attested, and all trusted publishers that signed it, by id."""

    created_at: datetime
    signers: tuple[SignedBy, ...]

    @property
    def signed_by(self) -> tuple[str, ...]:
        """The ids of the publishers."""
        return tuple(signer.id for signer in self.signers)


def sign_digest(key: PrivateKey, digest: str) -> bytes:
    """A signature as `cosign sign` makes it."""
    return sign_statement(key, Statement(SIGN_PREDICATE, (digest,), {}))


def attest_release(key: PrivateKey, digest: str, facts: ReleaseFacts) -> bytes:
    """A release attestation, as `cosign attest --type https://edgefleet.io/attestation/release/v1` makes it."""
    return sign_statement(key, Statement(RELEASE_PREDICATE, (digest,), _predicate(facts, facts.created_at)))


def attest_golden(key: PrivateKey, digest: str, facts: GoldenFacts) -> bytes:
    """An attestation that a golden set is for a model."""
    return sign_statement(key, Statement(GOLDEN_PREDICATE, (digest,), _predicate(facts, facts.created_at)))


def verify_release(
    *, digest: str, model: str, bundles: Sequence[bytes], publisher: Publisher, problems: Sequence[str] = ()
) -> VerifiedRelease:
    """The facts of a release that enough of `publisher` signed and attested for `model`.

    `problems` says why other candidates never became a bundle; it counts for nothing but the message.

    If several attestations hold, the one with the highest sequence counts. Raises Rejected: Revoked, SignatureMissing, SignatureInvalid,
    ThresholdNotMet, AttestationMissing, ModelMismatch, SeqTooLow, PredicateMissing, TrustedRootMalformed; the message says why candidates
    did not count.
    """
    with rejecting("SignatureInvalid", f"release {digest}"):
        evidence = _gather(digest, bundles, publisher, problems)
        signers = _require_signatures(evidence)
        votes: dict[tuple[int, str], dict[str, datetime]] = {}
        variants: dict[tuple[int, str], list[tuple[str, Mapping[str, str]]]] = {}
        for signer, facts in _read_attestations(evidence, RELEASE_PREDICATE, ReleaseFacts, model):
            votes.setdefault((facts.release_seq, facts.version), {})[signer] = facts.created_at
            if facts.variants is not None:
                variants.setdefault((facts.release_seq, facts.version), []).append((signer, facts.variants))
        held = [release for release, signers in votes.items() if len(signers) >= publisher.threshold]
        if not held:
            raise _unattested(evidence, sum(len(signers) for signers in votes.values()), model)
        seq, version = max(held)
        if seq < publisher.min_release_seq:
            raise Rejected(
                "SeqTooLow",
                f"{digest} is version {version} of {model} with release sequence {seq}; "
                f"the lowest accepted here is {publisher.min_release_seq}",
            )
        _require_predicates(evidence, publisher.predicates)
        created_at, named = min(votes[seq, version].values()), tuple(variants.get((seq, version), ()))
        return VerifiedRelease(version, seq, created_at, signers, named, tuple(evidence.counted))


def verify_signature(*, digest: str, bundles: Sequence[bytes], publisher: Publisher, problems: Sequence[str] = ()) -> tuple[SignedBy, ...]:
    """Who of `publisher` signed an artifact, whatever it is. Takes what verify_release does; raises what that says of signatures."""
    with rejecting("SignatureInvalid", f"artifact {digest}"):
        return _require_signatures(_gather(digest, bundles, publisher, problems))


def verify_golden(
    *, digest: str, model: str, bundles: Sequence[bytes], publisher: Publisher, problems: Sequence[str] = ()
) -> VerifiedGolden:
    """The facts of a golden set that enough of `publisher` signed and attested for `model`. Takes and raises what verify_release does."""
    with rejecting("SignatureInvalid", f"golden set {digest}"):
        evidence = _gather(digest, bundles, publisher, problems)
        signers = _require_signatures(evidence)
        votes = {signer: facts.created_at for signer, facts in _read_attestations(evidence, GOLDEN_PREDICATE, GoldenFacts, model)}
        if len(votes) < publisher.threshold:
            raise _unattested(evidence, len(votes), model)
        return VerifiedGolden(min(votes.values()), signers)


@dataclass
class _Evidence:
    """What trusted publishers said about the digest; `problems` tells why other candidates, or parts of them, do not count: the
    candidate's number, 0 for one that never became a bundle, and the cause."""

    digest: str
    threshold: int
    signed: list[SignedStatement]
    problems: list[tuple[int, str]]
    other_models: set[str]
    counted: list[bytes] = field(default_factory=list)

    def explain(self) -> str:
        """Why each candidate does not count, equal causes once, short enough for a condition."""
        causes: dict[str, list[int]] = {}
        for candidate, cause in self.problems:
            causes.setdefault(" ".join(cause.split()), []).append(candidate)
        told = [_name_candidates(found) + cause for cause, found in causes.items()]
        more = f"; and {len(told) - MAX_CAUSES} more causes" if len(told) > MAX_CAUSES else ""
        return f" ({'; '.join(_shorten(told[:MAX_CAUSES], MAX_EXPLANATION))}{more})" if told else ""


def _shorten(texts: Sequence[str], total: int) -> list[str]:
    """The texts, the longest cut so that all have `total` characters at most."""
    width, left = total, len(texts)
    for text in sorted(texts, key=len):
        width = total // left
        if len(text) > width:
            break
        total, left = total - len(text), left - 1
    return [text[:width] if len(text) > width and left else text for text in texts]


def _name_candidates(numbers: Sequence[int]) -> str:
    if not any(numbers):
        return ""
    listed = ", ".join(map(str, numbers)) if len(numbers) < 5 else f"{numbers[0]} to {numbers[-1]}, {len(numbers)} of them"
    return f"candidate{'s' if len(numbers) > 1 else ''} {listed}: "


class _Publishers:
    """All who are trusted, by key or by identity: a BundleVerifier."""

    def __init__(self, publisher: Publisher) -> None:
        self._ring = KeyRing(publisher.keys)
        self._revoked = publisher.revoked
        self._verifier = None
        if publisher.keyless is not None:
            # Sigstore's library is loaded only where an identity is trusted.
            from edgefleet.trust.keyless import KeylessVerifier

            self._verifier = KeylessVerifier(publisher.keyless)

    def identify(self, bundle: SigstoreBundle, payload: bytes, signature: bytes) -> SignedBy:
        """See BundleVerifier."""
        if self._verifier is not None and bundle.names_certificate:
            by = self._verifier.identify(bundle, payload, signature)
            self._revoked.require_identity(by.issuer, by.name)
        else:
            by = self._ring.identify(bundle, payload, signature)
            self._revoked.require_key(by.id)
        return by


def _gather(digest: str, bundles: Sequence[bytes], publisher: Publisher, problems: Sequence[str]) -> _Evidence:
    publisher.revoked.require_digest(digest)
    if not 1 <= publisher.threshold <= len(publisher.names):
        raise Rejected(
            "ThresholdNotMet", f"{publisher.threshold} signatures are demanded of {len(publisher.names)} different trusted publishers"
        )
    verifier = _Publishers(publisher)
    evidence = _Evidence(digest, publisher.threshold, [], [(0, problem) for problem in problems], set())
    for number, bundle in enumerate(bundles[:MAX_BUNDLES], start=1):
        try:
            found = verify_bundle(bundle, verifier)
        except Rejected as rejected:
            rule = "" if rejected.reason == "SignatureInvalid" else f"{rejected.reason}: "
            evidence.problems.append((number, f"{rule}{rejected.message}"))
            continue
        if digest in found.statement.digests:
            evidence.signed.append(found)
            evidence.counted.append(bundle)
        else:
            evidence.problems.append((number, f"it is about {found.statement.digests[0]}"))
    return evidence


def _require_predicates(evidence: _Evidence, predicates: Sequence[str]) -> None:
    said = {signed.statement.predicate_type for signed in evidence.signed}
    missing = [predicate for predicate in predicates if predicate not in said]
    if missing:
        raise Rejected(
            "PredicateMissing",
            f"no trusted publisher attests {missing[0]} of {evidence.digest}: use `cosign attest --type {missing[0]}`{evidence.explain()}",
        )


def _require_signatures(evidence: _Evidence) -> tuple[SignedBy, ...]:
    signers: dict[str, SignedBy] = {}
    for found in evidence.signed:
        if found.statement.predicate_type == SIGN_PREDICATE:
            signers.setdefault(found.signer, found.by)
    if len(signers) >= evidence.threshold:
        return tuple(signer for _, signer in sorted(signers.items()))
    if signers:
        raise Rejected(
            "ThresholdNotMet",
            f"{evidence.digest} is signed by {len(signers)} trusted publishers, {evidence.threshold} are demanded{evidence.explain()}",
        )
    if evidence.problems:
        raise Rejected("SignatureInvalid", f"no trusted publisher signed {evidence.digest}{evidence.explain()}")
    raise Rejected("SignatureMissing", f"{evidence.digest} is not signed: use `edgefleet model push --key` or `cosign sign`")


_Facts = TypeVar("_Facts", ReleaseFacts, GoldenFacts)


def _read_attestations(evidence: _Evidence, predicate_type: str, kind: type[_Facts], model: str) -> list[tuple[str, _Facts]]:
    found = []
    for signed in evidence.signed:
        if signed.statement.predicate_type != predicate_type:
            continue
        try:
            facts = kind.model_validate(dict(signed.statement.predicate))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            evidence.problems.append((0, f"the attestation by {signed.signer} is malformed: {where}: {first['msg']}"))
            continue
        if facts.model == model:
            found.append((signed.signer, facts))
        else:
            evidence.other_models.add(facts.model)
    return found


def _unattested(evidence: _Evidence, votes: int, model: str) -> Rejected:
    if votes:
        return Rejected(
            "ThresholdNotMet",
            f"no attestation of {evidence.digest} is made by the {evidence.threshold} different trusted publishers that are demanded"
            f"{evidence.explain()}",
        )
    if evidence.other_models:
        return Rejected(
            "ModelMismatch", f"{evidence.digest} is attested for {', '.join(sorted(evidence.other_models))[:200]}, not for {model}"
        )
    return Rejected(
        "AttestationMissing",
        f"{evidence.digest} is signed, but no trusted publisher attests what it is: use `edgefleet model push` or `cosign attest`"
        f"{evidence.explain()}",
    )


def _predicate(facts: Schema, created_at: datetime) -> dict[str, Any]:
    return {**facts.to_json_dict(), "createdAt": format_time(created_at)}
