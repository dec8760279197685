"""What a certificate of a Sigstore's authority says: whose it is, who vouched for that, and when a CT log promised to log it.

Reading is not believing: keyless.py decides whether the certificate counts, and people may be shown the names of one that does not.
"""

from datetime import UTC, datetime

from cryptography.hazmat import asn1
from cryptography.x509 import (
    Certificate,
    ObjectIdentifier,
    PrecertificateSignedCertificateTimestamps,
    RFC822Name,
    SubjectAlternativeName,
    UniformResourceIdentifier,
)

from edgefleet.trust.errors import rejecting

_ISSUER, _ISSUER_V2 = ObjectIdentifier("1.3.6.1.4.1.57264.1.1"), ObjectIdentifier("1.3.6.1.4.1.57264.1.8")


def read_names(certificate: Certificate) -> tuple[str, str]:
    """Subject and issuer: exactly one of each, whatever the spelling of the extension. Raises Rejected(CertificateInvalid)."""
    with rejecting("CertificateInvalid", "the certificate's names"):
        names = list(certificate.extensions.get_extension_for_class(SubjectAlternativeName).value)
        if len(names) != 1 or not isinstance(names[0], RFC822Name | UniformResourceIdentifier):
            raise ValueError(f"{len(names)} subjects, where one URI or address is expected")
        issuers = set()
        for extension in certificate.extensions:
            if extension.oid == _ISSUER:
                issuers.add(extension.value.value.decode())
            elif extension.oid == _ISSUER_V2:
                issuers.add(asn1.decode_der(str, extension.value.value))
        if len(issuers) != 1:
            raise ValueError(f"{len(issuers)} issuers, where one is expected")
        return names[0].value, issuers.pop()


def read_promise(certificate: Certificate) -> datetime:
    """When a CT log promised to log the certificate. Raises Rejected(CertificateInvalid)."""
    with rejecting("CertificateInvalid", "the promise of a CT log"):
        promises = list(certificate.extensions.get_extension_for_class(PrecertificateSignedCertificateTimestamps).value)
        if len(promises) != 1:
            raise ValueError(f"{len(promises)} promises, where one is expected")
        moment: datetime = promises[0].timestamp
        return moment.replace(tzinfo=UTC)
