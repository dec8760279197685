"""ECDSA P-256 keys (the kind that cosign makes), their ids, and DSSE signatures with them.

A key's id is the SHA-256 of its public half in DER (SubjectPublicKeyInfo), written `sha256:<hex>`; Sigstore bundles carry the
same hash in base64 as a hint. Two files with the same key have the same id, so they count once towards a threshold.
Who is trusted for what is left to the callers.
"""

import hashlib
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgefleet.trust.documents import encode_base64
from edgefleet.trust.errors import Rejected, rejecting

MAX_KEY_BYTES = 16_384


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are checked with. Equal when the ids are equal."""

    id: str
    _key: ec.EllipticCurvePublicKey = field(repr=False, compare=False)

    @classmethod
    def from_pem(cls, pem: bytes | str) -> "PublicKey":
        """Read a `-----BEGIN PUBLIC KEY-----` block. Raises Rejected(KeyInvalid)."""
        data = pem.encode() if isinstance(pem, str) else pem
        with rejecting("KeyInvalid", "not a public key in PEM"):
            if len(data) > MAX_KEY_BYTES:
                raise ValueError(f"{len(data)} bytes")
            key = serialization.load_pem_public_key(data.strip() + b"\n")
        return cls.from_key(key)

    @classmethod
    def from_key(cls, key: object) -> "PublicKey":
        """Wrap a key of the cryptography library. Raises Rejected(KeyInvalid) for other types and curves."""
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise Rejected("KeyInvalid", f"found {_describe(key)}, only ECDSA keys on P-256 are accepted")
        return cls("sha256:" + hashlib.sha256(_der(key)).hexdigest(), key)

    @property
    def hint(self) -> str:
        """The id as Sigstore bundles write it."""
        return encode_base64(bytes.fromhex(self.id.removeprefix("sha256:")))

    def to_pem(self) -> str:
        """The PEM block, ending in a newline."""
        pem = self._key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        return pem.decode("ascii")

    def to_crypto(self) -> ec.EllipticCurvePublicKey:
        """The key as the cryptography library knows it, for other libraries."""
        return self._key

    def verifies(self, payload_type: str, payload: bytes, signature: bytes) -> bool:
        """Whether `signature` (DER) is this key's over the DSSE envelope of that payload."""
        try:
            self._key.verify(signature, encode_pae(payload_type, payload), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class PrivateKey:
    """A key that signs. Its repr shows only the public id."""

    _key: ec.EllipticCurvePrivateKey = field(repr=False, compare=False)
    public: PublicKey

    @classmethod
    def generate(cls) -> "PrivateKey":
        """A new key."""
        return cls.from_key(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes | str) -> "PrivateKey":
        """Read an unencrypted PKCS#8 or SEC1 block. Raises Rejected(KeyInvalid), whose message never shows the key."""
        data = pem.encode() if isinstance(pem, str) else pem
        if b"ENCRYPTED" in data[:64]:
            raise Rejected(
                "KeyInvalid",
                "the private key is encrypted: use `cosign sign --key` with it, or a key made by `edgefleet trust init`",
            )
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except Exception as error:
            raise Rejected("KeyInvalid", "not an unencrypted private key in PEM") from error
        return cls.from_key(key)

    @classmethod
    def from_key(cls, key: object) -> "PrivateKey":
        """Wrap a key of the cryptography library. Raises Rejected(KeyInvalid) for other types and curves."""
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise Rejected("KeyInvalid", f"found {_describe(key)}, only ECDSA keys on P-256 are accepted")
        return cls(key, PublicKey.from_key(key.public_key()))

    def to_pem(self) -> str:
        """The unencrypted PKCS#8 block: write it only where the owner alone can read."""
        pem = self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return pem.decode("ascii")

    def to_crypto(self) -> ec.EllipticCurvePrivateKey:
        """The key as the cryptography library knows it, for signers of other libraries."""
        return self._key

    def sign(self, payload_type: str, payload: bytes) -> bytes:
        """A DSSE signature (DER)."""
        return self._key.sign(encode_pae(payload_type, payload), ec.ECDSA(hashes.SHA256()))


def encode_pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed. Source: secure-systems-lab/dsse, protocol.md."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _der(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _describe(key: object) -> str:
    curve = getattr(key, "curve", None)
    return f"an elliptic curve key on {curve.name}" if curve is not None else f"a {type(key).__name__.lstrip('_')}"
