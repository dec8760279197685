"""Certificates for identities, as Fulcio issues them: root, intermediate, leaves of ten minutes with a CT log's promise inside."""

import struct
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.lab.sigstore import der

LEAF_LIFE = timedelta(minutes=10)
CA_LIFE = timedelta(days=3650)
_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ISSUER_V2 = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_SCT_LIST = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")


def new_key() -> ec.EllipticCurvePrivateKey:
    """All parts but the second log sign with ECDSA on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def spki(key: object) -> bytes:
    """A public key as logs and roots name it."""
    data: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return data


@dataclass(frozen=True)
class Holder:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)


def make_root(name: str, born: datetime) -> Holder:
    """A self-signed authority."""
    key = new_key()
    builder = _ca_builder(name, name, key.public_key(), born, path_length=1)
    return Holder(builder.sign(key, hashes.SHA256()), key)


def make_intermediate(root: Holder, name: str, born: datetime, usage: x509.ObjectIdentifier) -> Holder:
    """An authority under a root, for leaves of one usage."""
    key = new_key()
    builder = (
        _ca_builder(name, _common_name(root), key.public_key(), born, path_length=0)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.key.public_key()), critical=False)
    )
    return Holder(builder.sign(root.key, hashes.SHA256()), key)


class Authority:
    """A certificate authority with its CT log. `born` is when its own certificates begin."""

    def __init__(self, name: str, born: datetime) -> None:
        self.root = make_root(f"{name} root", born)
        self.intermediate = make_intermediate(self.root, f"{name} intermediate", born, ExtendedKeyUsageOID.CODE_SIGNING)
        self.ct_key = new_key()

    def issue(self, public_key: object, subject: str, issuer: str, at: datetime) -> x509.Certificate:
        """A leaf for `subject` (a URI or an address) as `issuer` (of the token) says, from `at` on."""
        plain = self._leaf(public_key, subject, issuer, at)
        unlogged = plain.sign(self.intermediate.key, hashes.SHA256())
        promise = self._promise(unlogged.tbs_certificate_bytes, at)
        return plain.add_extension(x509.UnrecognizedExtension(_SCT_LIST, der.octets(promise)), critical=False).sign(
            self.intermediate.key, hashes.SHA256()
        )

    def _leaf(self, public_key: object, subject: str, issuer: str, at: datetime) -> x509.CertificateBuilder:
        name = x509.UniformResourceIdentifier(subject) if "://" in subject else x509.RFC822Name(subject)
        ca = self.intermediate.key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.intermediate.certificate.subject)
            .public_key(public_key)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(at)
            .not_valid_after(at + LEAF_LIFE)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)  # type: ignore[arg-type]
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca), critical=False)
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(x509.UnrecognizedExtension(_ISSUER, issuer.encode()), critical=False)
            .add_extension(x509.UnrecognizedExtension(_ISSUER_V2, der.utf8(issuer)), critical=False)
        )

    def _promise(self, tbs: bytes, at: datetime) -> bytes:
        """A list of one signed certificate timestamp over a precertificate. Source: RFC 6962, sections 3.2 and 3.3."""
        moment = int(at.timestamp() * 1000)
        issuer = sha256(spki(self.intermediate.key.public_key())).digest()
        signed = struct.pack("!BBQH", 0, 0, moment, 1) + issuer + len(tbs).to_bytes(3, "big") + tbs + b"\0\0"
        signature = self.ct_key.sign(signed, ec.ECDSA(hashes.SHA256()))
        log = sha256(spki(self.ct_key.public_key())).digest()
        one = struct.pack("!B32sQHBBH", 0, log, moment, 0, 4, 3, len(signature)) + signature
        return struct.pack("!HH", len(one) + 2, len(one)) + one


def _ca_builder(name: str, issuer: str, public_key: ec.EllipticCurvePublicKey, born: datetime, path_length: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(born)
        .not_valid_after(born + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "sigstore.test"), x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _common_name(holder: Holder) -> str:
    return str(holder.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _usage(**on: bool) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: on.get(name, False) for name in names})
