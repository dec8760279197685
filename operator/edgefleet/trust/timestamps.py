"""The form of a signed timestamp (RFC 3161): what stands outside of its signature must be the one thing that fits what is inside.

rfc3161-client verifies the signature, and leaves the algorithm's name, embedded certificates and other parts unread. Reading DER one
level at a time is enough to bind them; whether the signature holds is sigstore_root.py's matter.
"""

from collections.abc import Collection

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import Certificate

_GRANTED = bytes.fromhex("3003020100")
_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")
_TST_INFO = bytes.fromhex("060b2a864886f70d0109100104")
_VERSION_1, _VERSION_3 = b"\x02\x01\x01", b"\x02\x01\x03"
_NULL = b"\x05\x00"
_INTEGER, _SEQUENCE, _SET, _CONTEXT_0 = 0x02, 0x30, 0x31, 0xA0

# By digest: SHA-256, SHA-384, SHA-512. Source: RFC 5754.
_DIGESTS = [bytes.fromhex(f"06096086480165030402{last:02x}") for last in (1, 2, 3)]
_ECDSA = [bytes.fromhex(f"06082a8648ce3d0403{last:02x}") for last in (2, 3, 4)]
_RSA_WITH = [bytes.fromhex(f"06092a864886f70d0101{last:02x}") for last in (0x0B, 0x0C, 0x0D)]
_RSA = bytes.fromhex("06092a864886f70d010101")


def require_form(response: bytes, signer: Certificate, chain: Collection[bytes]) -> None:
    """Check a TimeStampResp (DER) that `signer` made; certificates in it must be of `chain` (DER). Raises ValueError, IndexError."""
    status, token = _children(response, _SEQUENCE, 2)
    kind, wrapped = _children(token, _SEQUENCE, 2)
    _require(status == _GRANTED and kind == _SIGNED_DATA, "its status or its kind")
    (signed_data,) = _children(wrapped, _CONTEXT_0, 1)
    version, digests, content, *certificates, signers = _children(signed_data, _SEQUENCE)
    _require(version == _VERSION_3 and _children(content, _SEQUENCE, 2)[0] == _TST_INFO, "the kind of its content")
    _require(len(certificates) <= 1, "what it carries beside certificates")
    for embedded in _children(certificates[0], _CONTEXT_0) if certificates else ():
        _require(embedded in chain, "a certificate in it")
    (info,) = _children(signers, _SET, 1)
    version, named, digest, _, algorithm, _ = _children(info, _SEQUENCE, 6)
    issuer, serial = _children(named, _SEQUENCE, 2)
    _require(issuer == signer.issuer.public_bytes(Encoding.DER), "its signer's issuer")
    _require(int.from_bytes(_content(serial, _INTEGER), "big", signed=True) == signer.serial_number, "its signer's number")
    _require(version == _VERSION_1 and _children(digests, _SET, 1) == [digest], "its digest algorithm")
    number = next((number for number, one in enumerate(_DIGESTS) if _content(digest, _SEQUENCE) in (one, one + _NULL)), None)
    _require(number is not None and _content(algorithm, _SEQUENCE) in _names(signer, number or 0), "its signature algorithm")


def _names(signer: Certificate, number: int) -> tuple[bytes, ...]:
    key = signer.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return (_ECDSA[number],)
    if isinstance(key, rsa.RSAPublicKey):
        return (_RSA_WITH[number] + _NULL, _RSA + _NULL)
    return ()


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"{what} is not what its signature says")


def _content(data: bytes, tag: int) -> bytes:
    found, content, rest = _read(data)
    if found != tag or rest:
        raise ValueError(f"tag {tag:#x} was expected, found {found:#x}")
    return content


def _children(data: bytes, tag: int, count: int | None = None) -> list[bytes]:
    content, found = _content(data, tag), []
    while content:
        _, _, rest = _read(content)
        found.append(content[: len(content) - len(rest)])
        content = rest
    if count is not None and len(found) != count:
        raise ValueError(f"{len(found)} parts where {count} are expected")
    return found


def _read(data: bytes) -> tuple[int, bytes, bytes]:
    """Tag, content and what follows, of DER with lengths of at most 64 KiB in their shortest form."""
    size, start = data[1], 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(data[2:start], "big")
        if start not in (3, 4) or size < (0x80 if start == 3 else 0x100):
            raise ValueError("a length that is not in its shortest form")
    if start + size > len(data):
        raise ValueError("cut off")
    return data[0], data[start : start + size], data[start + size :]
