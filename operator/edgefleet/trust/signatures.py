"""Sigstore bundles v0.3 that carry an in-toto statement: what cosign 3 writes, read and written without a network.

A bundle says "the holder of this key says `predicate` about the artifact with this SHA-256". Who may say what is decided in
release.py. Keys are verified here; certificates by the other `BundleVerifier`, in keyless.py, which loads Sigstore's library.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Protocol

from cryptography.x509 import load_der_x509_certificate
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from edgefleet.trust.certificates import read_names
from edgefleet.trust.documents import decode_base64, encode_base64, format_canonical, parse_json_object
from edgefleet.trust.errors import Rejected, rejecting
from edgefleet.trust.keys import PrivateKey, PublicKey

BUNDLE_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
STATEMENT_PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


@dataclass(frozen=True)
class Statement:
    """What is said (`predicate`, of the kind `predicate_type`) about which artifacts (`digests`, `sha256:<hex>`)."""

    predicate_type: str
    digests: tuple[str, ...]
    predicate: Mapping[str, Any]


@dataclass(frozen=True)
class SignedBy:
    """A trusted publisher (`id`, what thresholds count) and how it showed itself.

    `name` is the key's id, or the certificate's subject; `issuer` is the certificate's, `logged_at` and `log` (an address) are its log's.
    """

    id: str
    name: str
    issuer: str = ""
    logged_at: datetime | None = None
    log: str = ""


@dataclass(frozen=True)
class SignedStatement:
    """A statement and the trusted publisher whose signature over it is valid."""

    statement: Statement
    by: SignedBy

    @property
    def signer(self) -> str:
        """The publisher's id."""
        return self.by.id


@dataclass(frozen=True)
class Claim:
    """A statement that nobody has verified, and whom it names: a key's id, or a certificate's subject with its `issuer`."""

    statement: Statement
    names: str
    issuer: str = ""


class _Strict(BaseModel):
    # Fields that we do not know could change what the known ones mean; Sigstore's own parsers refuse them as well.
    model_config = ConfigDict(alias_generator=to_camel, frozen=True, extra="forbid", strict=True)


class _KeyHint(_Strict):
    hint: Annotated[str, Field(max_length=256)] = ""


class _Material(_Strict):
    public_key: _KeyHint | None = None
    certificate: dict[str, Any] | None = None
    x509_certificate_chain: dict[str, Any] | None = Field(None, alias="x509CertificateChain")
    tlog_entries: list[Any] | None = None
    timestamp_verification_data: dict[str, Any] | None = None


class _Signature(_Strict):
    sig: Annotated[str, Field(max_length=1024)]
    keyid: Literal[""] = ""


class _Envelope(_Strict):
    payload: str
    payload_type: Literal["application/vnd.in-toto+json"]
    signatures: Annotated[list[_Signature], Field(min_length=1, max_length=1)]


class SigstoreBundle(_Strict):
    """A bundle as it was found; nothing in it is to be believed."""

    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json", "application/vnd.dev.sigstore.bundle+json;version=0.3"]
    verification_material: _Material
    dsse_envelope: _Envelope

    @property
    def names_certificate(self) -> bool:
        """Whether its signer is said to have a certificate."""
        material = self.verification_material
        return material.certificate is not None or material.x509_certificate_chain is not None


class _Subject(BaseModel):
    digest: dict[str, str]


class _StatementDocument(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"] = Field(alias="_type")
    predicate_type: Annotated[str, Field(alias="predicateType", max_length=512)]
    subject: Annotated[list[_Subject], Field(min_length=1, max_length=64)]
    predicate: dict[str, Any] | None = None


class BundleVerifier(Protocol):
    """Decides whether a trusted party signed a bundle's envelope."""

    def identify(self, bundle: SigstoreBundle, payload: bytes, signature: bytes) -> SignedBy:
        """The trusted publisher that signed `payload`. Raises Rejected if there is none."""
        ...


class KeyRing:
    """Trusts public keys, each for itself; the signer's id is the key's."""

    def __init__(self, keys: Iterable[PublicKey]) -> None:
        self._by_hint = {key.hint: key for key in keys}

    def identify(self, bundle: SigstoreBundle, payload: bytes, signature: bytes) -> SignedBy:
        """See BundleVerifier. Raises Rejected(SignatureInvalid)."""
        material = bundle.verification_material
        if material.public_key is None or bundle.names_certificate:
            raise Rejected("SignatureInvalid", "signed with a certificate, only signatures by keys are accepted here")
        hint = material.public_key.hint
        candidates = list(self._by_hint.values()) if not hint else [key for key in (self._by_hint.get(hint),) if key]
        for key in candidates:
            if key.verifies(STATEMENT_PAYLOAD_TYPE, payload, signature):
                return SignedBy(key.id, key.id)
        raise Rejected("SignatureInvalid", f"not signed by a trusted key (it names key {_id_of_hint(hint)})")


def sign_statement(key: PrivateKey, statement: Statement) -> bytes:
    """A public-key bundle that cosign 3 verifies."""
    document = {
        "_type": STATEMENT_TYPE,
        "subject": [{"digest": {"sha256": digest.removeprefix("sha256:")}} for digest in statement.digests],
        "predicateType": statement.predicate_type,
        "predicate": dict(statement.predicate),
    }
    payload = format_canonical(document)
    return format_canonical(
        {
            "mediaType": BUNDLE_MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": key.public.hint}},
            "dsseEnvelope": {
                "payload": encode_base64(payload),
                "payloadType": STATEMENT_PAYLOAD_TYPE,
                "signatures": [{"sig": encode_base64(key.sign(STATEMENT_PAYLOAD_TYPE, payload))}],
            },
        }
    )


def verify_bundle(data: bytes, verifier: BundleVerifier) -> SignedStatement:
    """The statement in a bundle, if a trusted signer made it. Raises Rejected(SignatureInvalid)."""
    with rejecting("SignatureInvalid", "not a Sigstore bundle v0.3 with an in-toto statement"):
        bundle = SigstoreBundle.model_validate(parse_json_object(data))
        payload = decode_base64(bundle.dsse_envelope.payload)
        signature = decode_base64(bundle.dsse_envelope.signatures[0].sig)
        by = verifier.identify(bundle, payload, signature)
        return SignedStatement(_parse_statement(payload), by)


def read_claim(data: bytes) -> Claim:
    """What a bundle claims. Nothing is verified: for people to look at. Raises Rejected(SignatureInvalid)."""
    with rejecting("SignatureInvalid", "not a Sigstore bundle v0.3 with an in-toto statement"):
        bundle = SigstoreBundle.model_validate(parse_json_object(data))
        statement = _parse_statement(decode_base64(bundle.dsse_envelope.payload))
        material = bundle.verification_material
        if material.certificate is not None:
            subject, issuer = read_names(load_der_x509_certificate(decode_base64(material.certificate["rawBytes"])))
            return Claim(statement, subject, issuer)
        return Claim(statement, _id_of_hint(material.public_key.hint if material.public_key else ""))


def _parse_statement(payload: bytes) -> Statement:
    document = _StatementDocument.model_validate(parse_json_object(payload))
    digests = []
    for subject in document.subject:
        digest = "sha256:" + subject.digest.get("sha256", "")
        if not _is_digest(digest):
            raise ValueError("a subject without a sha256 digest")
        digests.append(digest)
    return Statement(document.predicate_type, tuple(digests), document.predicate or {})


def _is_digest(text: str) -> bool:
    return len(text) == 71 and all(letter in "0123456789abcdef" for letter in text.removeprefix("sha256:"))


def _id_of_hint(hint: str) -> str:
    try:
        return "sha256:" + decode_base64(hint).hex()[:64] if hint else "unnamed"
    except ValueError:
        return repr(hint[:80])
