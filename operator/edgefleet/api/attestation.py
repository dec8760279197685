"""What a site and the hub say to each other about the site's TPM, in annotations of certificate requests and in the hub's answers.

A request with an offer is denied with reason AttestationChallenge, whose message is a challenge; the same request, sent again under the
name that `proof_name` gives, brings the proof. All bytes are base64; layouts are those of the TPM 2.0 Library. What is believed is decided
in trust/tpm.py and trust/attestation.py.
"""

from typing import Annotated

from pydantic import Field

from edgefleet.api.meta import GROUP, Schema

OFFER_ANNOTATION = f"{GROUP}/tpm-offer"
PROOF_ANNOTATION = f"{GROUP}/tpm-proof"
CHALLENGE_REASON = "AttestationChallenge"
_PROVED = "-proved"

Encoded = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{1,8192}={0,2}$", max_length=8194)]
Pcr = Annotated[int, Field(ge=0, le=23)]
PcrHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)]


class Offer(Schema):
    """`certificate` is the endorsement key's (DER); `attester` and `key` are public areas (TPMT_PUBLIC): of the key that attests, and of
    the one that signs for the request."""

    certificate: Encoded
    attester: Encoded
    key: Encoded


class Challenge(Schema):
    """`credential` (TPM2B_ID_OBJECT) and `secret` (TPM2B_ENCRYPTED_SECRET) hold a nonce that only the offered TPM can open; `digest` is
    the nonce's SHA-256 in hex. `pcrs` are to be quoted, in the SHA-256 bank."""

    credential: Encoded
    secret: Encoded
    digest: PcrHash
    pcrs: Annotated[tuple[Pcr, ...], Field(min_length=1, max_length=24)]


class Signed(Schema):
    """What a TPM attests (TPMS_ATTEST), and the signature (TPMT_SIGNATURE)."""

    attest: Encoded
    signature: Encoded


class Proof(Schema):
    """The nonce, opened, and what the TPM says under it: a quote with the PCRs' values by their numbers, that `key` is its own, and that
    key's signature."""

    nonce: Encoded
    quote: Signed
    pcrs: Annotated[dict[str, PcrHash], Field(max_length=24)]
    certified: Signed
    signature: Encoded


def proof_name(request: str) -> str:
    """The name of the request that brings the proof for this one."""
    return request + _PROVED


def challenged_name(request: str) -> str | None:
    """The inverse of proof_name; None for a request that brings no proof."""
    return request.removesuffix(_PROVED) if request.endswith(_PROVED) else None
