"""What a TPM 2.0 says, read and checked without one: its keys' public areas, its attestations, its signatures; and credentials for it.

Everything here comes from a machine that may be anybody's: whatever is wrong with it leaves as Rejected, and a byte too many is wrong.
Whose TPM it is, and what its words mean for a site, is decided in attestation.py. Only ECDSA P-256 with SHA-256 attests and signs, and RSA
endorses: what every TPM 2.0 has. Layouts: TCG TPM 2.0 Library, part 2; credentials: part 1, section 24.
"""

import hashlib
import hmac
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from edgefleet.trust.errors import Rejected, rejecting

MALFORMED = "EvidenceMalformed"
_ECC, _NULL, _SHA256, _ECDSA, _P256 = 0x0023, 0x0010, 0x000B, 0x0018, 0x0003
_MAGIC, _CERTIFIED, _QUOTED = 0xFF544347, 0x8017, 0x8018
SIGNING = 0x00040072
"""sign, userWithAuth, sensitiveDataOrigin, fixedParent, fixedTPM: made in this TPM, and it can never leave it."""
ATTESTING = SIGNING | 0x00010000
"""The same and restricted: it signs only what the TPM itself says."""


@dataclass(frozen=True, slots=True)
class TpmKey:
    """A key in a TPM. `name` is the TPM's own for it (its algorithm, and the hash of its public area)."""

    name: bytes
    public: ec.EllipticCurvePublicKey


class _Reader:
    """Big-endian fields, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        if len(found) != size:
            raise ValueError(f"it ends after {len(self._data)} bytes")
        self._at += size
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        return self.take(self.number(2))

    def end(self) -> None:
        if self._at != len(self._data):
            raise ValueError(f"{len(self._data) - self._at} bytes too many")


def read_key(public: bytes, *, attributes: int, what: str) -> TpmKey:
    """A key from its public area (TPMT_PUBLIC), which must have exactly these attributes.

    Raises Rejected(AttributesRejected, EvidenceMalformed).
    """
    with rejecting(MALFORMED, what):
        reader = _Reader(public)
        kind, digest, found = reader.number(2), reader.number(2), reader.number(4)
        if (kind, digest) != (_ECC, _SHA256):
            raise Rejected(
                "AttributesRejected", f"{what}: kind {kind:#x} named by {digest:#x}, where ECC (0x23) named by SHA-256 (0xb) is due"
            )
        if found != attributes:
            raise Rejected("AttributesRejected", f"{what}: attributes {found:#010x}, where exactly {attributes:#010x} are allowed")
        policy, cipher = reader.sized(), reader.number(2)
        scheme = (reader.number(2), reader.number(2), reader.number(2), reader.number(2))
        if policy or cipher != _NULL or scheme != (_ECDSA, _SHA256, _P256, _NULL):
            raise Rejected("AttributesRejected", f"{what}: only ECDSA with SHA-256 on P-256, without a policy, is allowed")
        x, y = reader.sized(), reader.sized()
        reader.end()
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1())
        return TpmKey(struct.pack(">H", _SHA256) + hashlib.sha256(public).digest(), numbers.public_key())


def require_signature(key: TpmKey, data: bytes, signature: bytes, what: str) -> None:
    """Raises Rejected(SignatureInvalid, EvidenceMalformed) unless `signature` (TPMT_SIGNATURE) is by this key over `data`."""
    with rejecting(MALFORMED, f"the signature of {what}"):
        reader = _Reader(signature)
        if (reader.number(2), reader.number(2)) != (_ECDSA, _SHA256):
            raise ValueError("only ECDSA with SHA-256 is read")
        r, s = int.from_bytes(reader.sized(), "big"), int.from_bytes(reader.sized(), "big")
        reader.end()
        encoded = encode_dss_signature(r, s)
    with rejecting("SignatureInvalid", f"{what} is not signed by the key that was offered"):
        key.public.verify(encoded, data, ec.ECDSA(hashes.SHA256()))


def require_quote(attest: bytes, bound: bytes, pcrs: dict[int, bytes]) -> int:
    """How often the TPM was reset, if `attest` (TPMS_ATTEST) quotes exactly these PCRs with these values, under `bound`. Its signature is
    checked elsewhere.

    Raises Rejected(NonceMismatch, PCRMismatch, EvidenceMalformed).
    """
    with rejecting(MALFORMED, "the quote"):
        reader, resets = _open(attest, _QUOTED, bound, "the quote")
        banks, bank, size = reader.number(4), reader.number(2), reader.number(1)
        selected = int.from_bytes(reader.take(size), "little")
        digest = reader.sized()
        reader.end()
        if (banks, bank, selected) != (1, _SHA256, sum(1 << pcr for pcr in pcrs)):
            raise Rejected("PCRMismatch", f"the quote is of other PCRs than {', '.join(map(str, sorted(pcrs)))} in SHA-256")
        if digest != hash_pcrs(pcrs[pcr] for pcr in sorted(pcrs)):
            raise Rejected("PCRMismatch", "the quote is not of the values that were sent with it")
        return resets


def require_certified(attest: bytes, bound: bytes, key: TpmKey) -> None:
    """Check that `attest` (TPMS_ATTEST, whose signature is checked elsewhere) says that `key` is in the same TPM, under `bound`.

    Raises Rejected(NonceMismatch, AttributesRejected, EvidenceMalformed).
    """
    with rejecting(MALFORMED, "the certification"):
        reader, _ = _open(attest, _CERTIFIED, bound, "the certification")
        name, _ = reader.sized(), reader.sized()
        reader.end()
        if name != key.name:
            raise Rejected("AttributesRejected", "the certification is of another key than the one that signs for the request")


def _open(attest: bytes, kind: int, bound: bytes, what: str) -> tuple[_Reader, int]:
    reader = _Reader(attest)
    found = (reader.number(4), reader.number(2))
    if found != (_MAGIC, kind):
        raise ValueError(f"it is of kind {found[1]:#x}, where {kind:#x} is due")
    reader.sized()  # who signed, by a name that says also under which parents: the signature says it better
    if not hmac.compare_digest(reader.sized(), bound):
        raise Rejected("NonceMismatch", f"{what} answers another challenge, or is for another certificate request")
    reader.take(8)  # its clock, which after a power cut may be behind what it said before
    resets = reader.number(4)
    reader.take(4 + 1 + 8)  # restarts, whether the clock is safe, the firmware's version
    return reader, resets


def hash_pcrs(values: Iterable[bytes]) -> bytes:
    """The digest of PCR values as a quote has it, in the order of the PCRs."""
    return hashlib.sha256(b"".join(values)).digest()


def make_credential(endorsement: rsa.RSAPublicKey, name: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """Wrap `secret` (up to 32 bytes) for the TPM with this endorsement key, which opens it only beside the key of this name.

    Gives TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET. Endorsement keys are used with AES-128 and SHA-256, as in their default template.
    """
    seed = os.urandom(32)
    wrapped = endorsement.encrypt(seed, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\0"))
    cipher = Cipher(algorithms.AES(_derive(seed, b"STORAGE", name, 128)), CFB(bytes(16))).encryptor()
    hidden = cipher.update(_sized(secret)) + cipher.finalize()
    mark = hmac.digest(_derive(seed, b"INTEGRITY", b"", 256), hidden + name, "sha256")
    return _sized(_sized(mark) + hidden), _sized(wrapped)


def _derive(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDFa of part 1, section 11.4.10.2, for no more than one block."""
    return hmac.digest(key, struct.pack(">I", 1) + label + b"\0" + context + struct.pack(">I", bits), "sha256")[: bits // 8]


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data
