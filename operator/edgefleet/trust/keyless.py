"""Whether an identity that is trusted signed a bundle, without a network: sigstore-python, and what it leaves out.

A certificate of ten minutes says who held the key; a log, and for logs of version 2 a timestamp authority, say that it signed in those
minutes. Refusals name the rule:

    IdentityMismatch      the certificate is of nobody who is trusted here
    CertificateInvalid    no authority of the trusted root issued it, or no CT log promised it
    CertificateExpired    the log or a timestamp says a time outside of the certificate's
    LogEntryInvalid       the log entry is missing, of another signature, or not proven
    TimestampInvalid      a timestamp is missing, or not of an authority of the trusted root
    TrustedRootEnded      an authority or a log was not in force any more, or not yet
    TrustedRootMalformed  the trusted root cannot be read
    SignatureInvalid      all else
"""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from edgefleet.api.meta import format_time
from edgefleet.trust.certificates import read_names, read_promise
from edgefleet.trust.errors import Rejected, rejecting
from edgefleet.trust.identities import Identity, Keyless
from edgefleet.trust.material import Material, read_material
from edgefleet.trust.signatures import STATEMENT_PAYLOAD_TYPE, SignedBy, SigstoreBundle
from edgefleet.trust.sigstore_root import Times, open_root

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from sigstore.models import Bundle


class KeylessVerifier:
    """Trusts identities under one trusted root: a BundleVerifier. Loads Sigstore's library. Raises Rejected(TrustedRootMalformed)."""

    def __init__(self, keyless: Keyless) -> None:
        self._identities = keyless.identities
        self._root = open_root(keyless.trusted_root)

    def identify(self, bundle: SigstoreBundle, payload: bytes, signature: bytes) -> SignedBy:
        """See BundleVerifier. Raises Rejected with a reason of this module."""
        from sigstore.models import Bundle

        with rejecting("SignatureInvalid", "a bundle signed without a key"):
            document = bundle.model_dump(by_alias=True, exclude_none=True)
            material = read_material(document["verificationMaterial"])
            # What was parsed is what is verified: the same bytes could be read otherwise by another parser.
            parsed = Bundle.from_json(json.dumps(_with_one_time(document, material)))
            subject, issuer = read_names(parsed.signing_certificate)
            identity = self._admit(issuer, subject)
            times = self._read_times(material, parsed.signing_certificate, signature)
            self._verify(parsed, material, times, payload)
            return SignedBy(identity.id, subject, issuer, times.logged, self._root.address_of(material.log))

    def _admit(self, issuer: str, subject: str) -> Identity:
        found = next((one for one in self._identities if one.admits(issuer, subject)), None)
        if found is None:
            trusted = ", ".join(one.id for one in self._identities[:3])
            raise Rejected("IdentityMismatch", f"signed by {subject[:200]} of issuer {issuer[:120]}; trusted here: {trusted[:300]}")
        return found

    def _read_times(self, material: Material, certificate: "Certificate", signature: bytes) -> Times:
        """When it was signed, by everyone who says so; all of them inside of the certificate's minutes."""
        stamped = [self._root.stamped_at(data, signature) for data in material.timestamps]
        said = list(stamped)
        if material.entry.integrated_time is not None:
            said.insert(0, datetime.fromtimestamp(material.entry.integrated_time, UTC))
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        for moment in said:
            if not start <= moment <= end:
                raise Rejected(
                    "CertificateExpired",
                    f"signed at {format_time(moment)} with a certificate from {format_time(start)} to {format_time(end)}",
                )
        return Times(issued=start, promised=read_promise(certificate), logged=said[0])

    def _verify(self, bundle: "Bundle", material: Material, times: Times, payload: bytes) -> None:
        verifier = self._root.verifier(times, material.log)
        everyone = _Everyone()
        try:
            found = verifier.verify_dsse(bundle, everyone)
        except Exception as error:
            try:
                self._root.verifier_of_all().verify_dsse(bundle, everyone)
            except Exception:
                raise Rejected(_rule_of(error), str(error)[:300]) from error
            raise Rejected(
                "TrustedRootEnded", f"who issued or logged it at {format_time(times.issued)} was not in force then: {str(error)[:200]}"
            ) from error
        if found != (STATEMENT_PAYLOAD_TYPE, payload):
            raise ValueError("what was verified is not what was read")


def _with_one_time(document: dict[str, Any], material: Material) -> dict[str, Any]:
    """The bundle for the library, which needs one source of time and would verify again each that was verified here."""
    if not material.timestamps:
        return document
    kept = dict(document["verificationMaterial"])
    stamps = kept.pop("timestampVerificationData")
    if material.version == 2:
        kept["timestampVerificationData"] = {"rfc3161Timestamps": stamps["rfc3161Timestamps"][:1]}
    return document | {"verificationMaterial": kept}


class _Everyone:
    """A policy of the library that admits all names: whom we trust is decided before, by issuer and subject together."""

    def verify(self, cert: "Certificate") -> None:
        """Admit."""


def _rule_of(error: Exception) -> str:
    """Which rule an error of the library is of; it tells them apart by their words alone."""
    from sigstore.errors import CertValidationError

    text = str(error)
    if isinstance(error, CertValidationError) or "SCT" in text or "usage" in text:
        return "CertificateInvalid"
    if "log entry" in text or "inclusion" in text or "checkpoint" in text:
        return "LogEntryInvalid"
    return "SignatureInvalid"
