"""What a site's TPM offers to the hub, and how it answers a challenge. Blocking: a TPM takes its time.

Both keys are made from templates of ours under the maker's seed, so they are the same each time and nothing of them is on disk; a disk in
another machine answers no challenge.
"""

import base64
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from edgefleet.api.attestation import Challenge, Offer, Proof, Signed
from edgefleet.site.tpm import ENDORSEMENT, Tpm, TpmError
from edgefleet.trust.attestation import bind_request
from edgefleet.trust.tpm import ATTESTING, SIGNING

ENDORSEMENT_TEMPLATE = bytes.fromhex(
    "0001000b000300b20020837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa00060080004300100800000000000100"
) + bytes(256)
"""RSA 2048 as the makers' certificates have it (TCG EK Credential Profile, template L-1)."""
CERTIFICATE_INDEX = 0x01C00002
"""Where its certificate is stored (template L-1)."""
_NO_CERTIFICATE = 0x18B


def signing_template(attributes: int) -> bytes:
    """A key for ECDSA P-256 with SHA-256 (TPMT_PUBLIC), without a policy."""
    return bytes.fromhex("0023000b") + attributes.to_bytes(4, "big") + bytes.fromhex("00000010" + "0018000b" + "00030010" + "00000000")


@dataclass(frozen=True, slots=True)
class Device:
    """The TPM at `path`: /dev/tpmrm0, or the socket of a software TPM. All methods raise TpmError."""

    path: Path

    def make_offer(self) -> Offer:
        """Who the TPM is, and the public halves of its keys for us."""
        with Tpm(self.path) as tpm:
            try:
                certificate = tpm.read_nv(CERTIFICATE_INDEX)
            except TpmError as error:
                if error.code == _NO_CERTIFICATE:
                    raise TpmError(
                        f"{self.path}: this TPM has no certificate of its maker for an RSA key (NV {CERTIFICATE_INDEX:#x})"
                    ) from error
                raise
            with tpm.primary(ENDORSEMENT, signing_template(ATTESTING)) as (_, attester):
                pass
            with tpm.primary(ENDORSEMENT, signing_template(SIGNING)) as (_, key):
                pass
        return Offer(certificate=_encode(_trim(certificate)), attester=_encode(attester), key=_encode(key))

    def answer(self, challenge: Challenge, request: bytes) -> Proof:
        """The proof for this certificate request (PEM)."""
        credential, secret = base64.b64decode(challenge.credential), base64.b64decode(challenge.secret)
        with Tpm(self.path) as tpm, tpm.primary(ENDORSEMENT, signing_template(ATTESTING)) as (attester, _):
            with tpm.primary(ENDORSEMENT, ENDORSEMENT_TEMPLATE) as (endorsement, _), tpm.endorsed() as session:
                nonce = tpm.activate(attester, endorsement, session, credential, secret)
            bound = bind_request(nonce, request)
            quote = tpm.quote(attester, bound, challenge.pcrs)
            with tpm.primary(ENDORSEMENT, signing_template(SIGNING)) as (key, _):
                certified = tpm.certify(key, attester, bound)
                signature = tpm.sign(key, sha256(bound).digest())
            pcrs = tpm.read_pcrs(challenge.pcrs)
        return Proof(
            nonce=_encode(nonce),
            quote=_signed(quote),
            pcrs={str(pcr): value.hex() for pcr, value in pcrs.items()},
            certified=_signed(certified),
            signature=_encode(signature),
        )


def _signed(said: tuple[bytes, bytes]) -> Signed:
    return Signed(attest=_encode(said[0]), signature=_encode(said[1]))


def _trim(der: bytes) -> bytes:
    """Some makers' index is longer than the certificate in it."""
    long = der[:2] == b"\x30\x82"
    return der[: 4 + int.from_bytes(der[2:4], "big")] if long else der


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
