"""A site's client certificate: its key, the request for it, and what both say. Which request is granted is decided in core/joining.py.

Keys are named as in keys.py, so the key in a request and the key in a certificate can be compared.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from edgefleet.api.meta import SITE_USER_PREFIX, SITES_GROUP
from edgefleet.trust.errors import rejecting
from edgefleet.trust.keys import PrivateKey, PublicKey

_FIELDS = {NameOID.COMMON_NAME: "CN", NameOID.ORGANIZATION_NAME: "O"}


@dataclass(frozen=True, slots=True)
class Requested:
    """What a request asks for: the id of its key, the subject's fields, and how many extensions."""

    key: str
    subject: tuple[tuple[str, str], ...]
    extensions: int


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """What a certificate says. `fingerprint` is the SHA-256 of its DER in hex, as API servers name it; `pem` is the certificate alone."""

    pem: str
    key: str
    subject: tuple[tuple[str, str], ...]
    fingerprint: str
    begins_at: datetime
    ends_at: datetime


def make_request(key: PrivateKey, site: str) -> bytes:
    """The request (PEM) of a site for a client certificate with this key."""
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, SITES_GROUP), x509.NameAttribute(NameOID.COMMON_NAME, SITE_USER_PREFIX + site)]
    )
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key.to_crypto(), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def read_request(pem: bytes) -> Requested:
    """Read a request (PEM) whose signature shows that the requester has the key. Raises Rejected(RequestMalformed, KeyInvalid)."""
    with rejecting("RequestMalformed", "not a certificate request"):
        request = x509.load_pem_x509_csr(pem)
        if not request.is_signature_valid:
            raise ValueError("its signature is not by its own key")
        return Requested(PublicKey.from_key(request.public_key()).id, _subject(request.subject), len(request.extensions))


def read_certificate(pem: bytes) -> ClientCertificate:
    """Read the first certificate of a PEM file, which may hold its key too. It is not checked who issued it.

    Raises Rejected(CertificateMalformed, KeyInvalid).
    """
    with rejecting("CertificateMalformed", "not a certificate"):
        found = x509.load_pem_x509_certificate(pem)
        return ClientCertificate(
            pem=found.public_bytes(serialization.Encoding.PEM).decode("ascii"),
            key=PublicKey.from_key(found.public_key()).id,
            subject=_subject(found.subject),
            fingerprint=hashlib.sha256(found.public_bytes(serialization.Encoding.DER)).hexdigest(),
            begins_at=found.not_valid_before_utc,
            ends_at=found.not_valid_after_utc,
        )


def _subject(name: x509.Name) -> tuple[tuple[str, str], ...]:
    return tuple((_FIELDS.get(field.oid, field.oid.dotted_string), str(field.value)) for field in name)
