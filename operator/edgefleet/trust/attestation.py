"""Whether a request for a certificate comes from the TPM that it names: the hub's challenge, and the verdict on the answer.

The challenge is a nonce that one TPM alone can open, and only beside the key that attests. The answer is for one request: what the TPM says
carries sha256(nonce, sha256(request)). So neither an answer nor a challenge is of use to another machine, or for another key. The hub keeps
nothing meanwhile but the nonce's hash, in its own answer. Which device a site may be, and what its PCRs may be, is decided in
core/attestation.py.
"""

import base64
import hashlib
import hmac
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from edgefleet.api.attestation import Challenge, Offer, Proof, Signed
from edgefleet.trust.errors import Rejected, rejecting
from edgefleet.trust.tpm import (
    ATTESTING,
    MALFORMED,
    SIGNING,
    TpmKey,
    make_credential,
    read_key,
    require_certified,
    require_quote,
    require_signature,
)

_ENDORSES = x509.ObjectIdentifier("2.23.133.8.1")
MAX_BYTES = 32_768
NONCE_BYTES = 32
S = TypeVar("S", Offer, Challenge, Proof)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A TPM as it presents itself: nothing of it is proved. `device` is the SHA-256 of its endorsement key (SubjectPublicKeyInfo)."""

    device: str
    endorsement: rsa.RSAPublicKey
    certificate: x509.Certificate
    attester: TpmKey
    key: TpmKey


@dataclass(frozen=True, slots=True)
class Attested:
    """What a TPM has proved about itself. `pcrs` are the values in hex, by number; `resets` is how often it lost power."""

    device: str
    pcrs: dict[str, str]
    resets: int


def read_offer(text: str) -> Candidate:
    """Read an offer. Raises Rejected(EvidenceMalformed, AttributesRejected)."""
    offer = _parse(Offer, text, "the offer")
    with rejecting(MALFORMED, "the certificate of the endorsement key"):
        certificate = x509.load_der_x509_certificate(_decode(offer.certificate))
        endorsement = certificate.public_key()
        if not isinstance(endorsement, rsa.RSAPublicKey) or endorsement.key_size != 2048:
            raise ValueError("it is of no RSA key of 2048 bits, the kind that every TPM 2.0 has")
        spki = endorsement.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return Candidate(
        device="sha256:" + hashlib.sha256(spki).hexdigest(),
        endorsement=endorsement,
        certificate=certificate,
        attester=read_key(_decode(offer.attester), attributes=ATTESTING, what="the attesting key"),
        key=read_key(_decode(offer.key), attributes=SIGNING, what="the signing key"),
    )


def require_maker(candidate: Candidate, authorities: Iterable[str], now: datetime) -> None:
    """Check that one of these authorities (PEM; those of a chain are each named) vouches for the TPM. Raises Rejected(UntrustedEK)."""
    failures = []
    try:
        _require_use(candidate.certificate, now)
        for pem in authorities:
            try:
                found = x509.load_pem_x509_certificates(pem.encode())
            except ValueError as error:
                # Whoever mistyped one entry must not put every site in quarantine.
                failures.append(f"an entry that cannot be read: {str(error)[:60]}")
                continue
            for authority in found:
                try:
                    _require_issued(candidate.certificate, authority, now)
                except Exception as error:
                    failures.append(f"{authority.subject.rfc4514_string()[:60]}: {str(error) or type(error).__name__}")
                else:
                    return
    except Exception as error:
        failures.append(str(error) or type(error).__name__)
    why = "; ".join(failures)[:400] or "none is named"
    raise Rejected("UntrustedEK", f"no authority of ConfigMap tpm-authorities vouches for TPM {candidate.device}: {why}")


def make_challenge(candidate: Candidate, pcrs: Iterable[int]) -> Challenge:
    """A new challenge for this TPM."""
    nonce = os.urandom(NONCE_BYTES)
    credential, secret = make_credential(candidate.endorsement, candidate.attester.name, nonce)
    return Challenge(
        credential=_encode(credential), secret=_encode(secret), digest=hashlib.sha256(nonce).hexdigest(), pcrs=tuple(sorted(set(pcrs)))
    )


def read_challenge(text: str) -> Challenge:
    """Read a challenge. Raises Rejected(EvidenceMalformed)."""
    return _parse(Challenge, text, "the challenge")


def bind_request(nonce: bytes, request: bytes) -> bytes:
    """What the TPM signs under: it answers this challenge, for this certificate request (PEM), and for nothing else."""
    return hashlib.sha256(nonce + hashlib.sha256(request).digest()).digest()


def verify_proof(candidate: Candidate, challenge: Challenge, text: str, request: bytes) -> Attested:
    """The verdict on an answer to `challenge`, for `request` (PEM).

    Raises Rejected(EvidenceMalformed, NonceMismatch, SignatureInvalid, PCRMismatch, AttributesRejected).
    """
    proof = _parse(Proof, text, "the proof")
    with rejecting(MALFORMED, "the proof"):
        nonce = _decode(proof.nonce)
        if not hmac.compare_digest(hashlib.sha256(nonce).hexdigest(), challenge.digest):
            raise Rejected("NonceMismatch", "the proof does not hold the nonce of its challenge: another TPM could not open it")
        bound = bind_request(nonce, request)
        if set(proof.pcrs) != {str(pcr) for pcr in challenge.pcrs}:
            raise Rejected("PCRMismatch", f"the proof has not the PCRs that were asked for ({', '.join(map(str, challenge.pcrs))})")
        values = {pcr: bytes.fromhex(proof.pcrs[str(pcr)]) for pcr in challenge.pcrs}
        resets = require_quote(_signed(candidate.attester, proof.quote, "the quote"), bound, values)
        require_certified(_signed(candidate.attester, proof.certified, "the certification"), bound, candidate.key)
        require_signature(candidate.key, bound, _decode(proof.signature), "the request")
    return Attested(candidate.device, dict(proof.pcrs), resets)


def _signed(key: TpmKey, said: Signed, what: str) -> bytes:
    attest = _decode(said.attest)
    require_signature(key, attest, _decode(said.signature), what)
    return attest


def _require_use(certificate: x509.Certificate, now: datetime) -> None:
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise ValueError(f"its certificate is good from {certificate.not_valid_before_utc} to {certificate.not_valid_after_utc}")
    if _ENDORSES not in certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value:
        raise ValueError("its certificate is not for an endorsement key")


def _require_issued(certificate: x509.Certificate, authority: x509.Certificate, now: datetime) -> None:
    certificate.verify_directly_issued_by(authority)
    if not authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise ValueError("it is no authority")
    if not authority.not_valid_before_utc <= now <= authority.not_valid_after_utc:
        raise ValueError(f"it is good from {authority.not_valid_before_utc} to {authority.not_valid_after_utc}")


def _parse(kind: type[S], text: str, what: str) -> S:
    with rejecting(MALFORMED, what):
        if len(text) > MAX_BYTES:
            raise ValueError(f"{len(text)} bytes, at most {MAX_BYTES} are read")
        return kind.model_validate_json(text)


def _decode(text: str) -> bytes:
    with rejecting(MALFORMED, "base64"):
        return base64.b64decode(text, validate=True)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
