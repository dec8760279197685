"""Signed timestamps, as an RFC 3161 authority makes them."""

from datetime import datetime
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.lab.sigstore import der
from tests.lab.sigstore.authority import CA_LIFE, Holder, make_root, new_key

_SIGNED_DATA, _TST_INFO = "1.2.840.113549.1.7.2", "1.2.840.113549.1.9.16.1.4"
_CONTENT_TYPE, _MESSAGE_DIGEST, _SIGNING_TIME = "1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4", "1.2.840.113549.1.9.5"
_SIGNING_CERTIFICATE_V2 = "1.2.840.113549.1.9.16.2.47"
_ECDSA_SHA256, _POLICY = "1.2.840.10045.4.3.2", "1.3.6.1.4.1.57264.2"


class TimestampAuthority:
    """A root and a leaf that stamps. `born` is when its certificates begin."""

    def __init__(self, name: str, born: datetime) -> None:
        self.root = make_root(f"{name} TSA root", born)
        key = new_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} TSA")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.root.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(born)
            .not_valid_after(born + CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.root.key.public_key()), critical=False)
        )
        self.leaf = Holder(builder.sign(self.root.key, hashes.SHA256()), key)
        self._serial = 0

    def stamp(self, message: bytes, at: datetime) -> bytes:
        """A TimeStampResp over `message`, without the leaf's certificate."""
        imprint = der.sequence(der.sequence(der.oid(der.SHA256)), der.octets(sha256(message).digest()))
        return self._respond(imprint, b"", at, with_certificate=False)

    def answer(self, request: bytes, at: datetime) -> bytes:
        """A TimeStampResp for a TimeStampReq."""
        _, *fields = der.read_all(der.read_all(request)[0][1])
        nonce = b"".join(whole for tag, _, whole in fields if tag == 0x02)
        wanted = any(tag == 0x01 and content != b"\0" for tag, content, _ in fields)
        return self._respond(fields[0][2], nonce, at, with_certificate=wanted)

    def _respond(self, imprint: bytes, nonce: bytes, at: datetime, *, with_certificate: bool) -> bytes:
        self._serial += 1
        info = der.sequence(der.integer(1), der.oid(_POLICY), imprint, der.integer(self._serial), der.generalized_time(at), nonce)
        algorithm = der.sequence(der.oid(der.SHA256))
        certified = der.sequence(der.sequence(der.sequence(der.octets(sha256(self.leaf.der).digest()))))
        attributes = (
            _attribute(_CONTENT_TYPE, der.oid(_TST_INFO)),
            _attribute(_SIGNING_TIME, der.utc_time(at)),
            _attribute(_MESSAGE_DIGEST, der.octets(sha256(info).digest())),
            _attribute(_SIGNING_CERTIFICATE_V2, certified),
        )
        signed = der.set_of(*attributes)
        issuer = self.leaf.certificate.issuer.public_bytes(serialization.Encoding.DER)
        signer = der.sequence(
            der.integer(1),
            der.sequence(issuer, der.integer(self.leaf.certificate.serial_number)),
            algorithm,
            b"\xa0" + signed[1:],
            der.sequence(der.oid(_ECDSA_SHA256)),
            der.octets(self.leaf.key.sign(signed, ec.ECDSA(hashes.SHA256()))),
        )
        data = der.sequence(
            der.integer(3),
            der.set_of(algorithm),
            der.sequence(der.oid(_TST_INFO), der.encode(0xA0, der.octets(info))),
            der.encode(0xA0, self.leaf.der) if with_certificate else b"",
            der.set_of(signer),
        )
        return der.sequence(der.sequence(der.integer(0)), der.sequence(der.oid(_SIGNED_DATA), der.encode(0xA0, data)))


def _attribute(kind: str, value: bytes) -> bytes:
    return der.sequence(der.oid(kind), der.set_of(value))
