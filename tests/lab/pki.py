"""Certificates and kubeconfigs of one cluster: its own CA, so that an identity of one cluster is nobody at another."""

import base64
import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFE = datetime.timedelta(days=30)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """The CA of one cluster, kept in `folder` as ca.crt and ca.key; signs what the lab needs."""

    folder: Path

    @property
    def pair(self) -> Pair:
        """The CA's own certificate and key."""
        return Pair(self.folder / "ca.crt", self.folder / "ca.key")

    @classmethod
    def make(cls, folder: Path, name: str) -> "Authority":
        """A new EC P-256 CA called `name`."""
        folder.mkdir(parents=True, exist_ok=True)
        authority = cls(folder)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject(name)
        usage = _key_usage(key_cert_sign=True, crl_sign=True)
        cert = (
            _builder(subject, subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write_pair(authority.pair, cert, key)
        return authority

    def issue_server(self, name: str, more_addresses: Sequence[str] = ()) -> Pair:
        """A serving certificate for 127.0.0.1, ::1, localhost, and `more_addresses`."""
        addresses = [x509.IPAddress(ipaddress.ip_address(text)) for text in ("127.0.0.1", "::1", *more_addresses)]
        names = [x509.DNSName("localhost"), x509.DNSName("kubernetes.default.svc")]
        return self._issue(name, _subject(name), ExtendedKeyUsageOID.SERVER_AUTH, x509.SubjectAlternativeName([*addresses, *names]))

    def issue_client(self, user: str, groups: Sequence[str] = ()) -> Pair:
        """A client certificate: the API server reads CN as user and each O as group."""
        return self._issue(file_name(user), _subject(user, groups), ExtendedKeyUsageOID.CLIENT_AUTH, None)

    def _issue(self, stem: str, subject: x509.Name, use: x509.ObjectIdentifier, names: x509.SubjectAlternativeName | None) -> Pair:
        ca_cert = x509.load_pem_x509_certificate(self.pair.cert.read_bytes())
        ca_key = serialization.load_pem_private_key(self.pair.key.read_bytes(), None)
        assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(subject, ca_cert.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        pair = Pair(self.folder / f"{stem}.crt", self.folder / f"{stem}.key")
        _write_pair(pair, builder.sign(ca_key, hashes.SHA256()), key)
        return pair


def make_signing_key(folder: Path) -> Pair:
    """The key pair that signs service account tokens; `cert` is the bare public key."""
    key = ec.generate_private_key(ec.SECP256R1())
    pair = Pair(folder / "service-accounts.pub", folder / "service-accounts.key")
    pair.cert.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    write_private(pair.key, _key_pem(key))
    return pair


def write_kubeconfig(path: Path, cluster: str, url: str, ca: bytes, client: Pair | str) -> Path:
    """One cluster, one user (a certificate, or a bearer token), one context, everything embedded (PEM as `*-data`), mode 0600."""
    if isinstance(client, str):
        user = {"token": client}
    else:
        user = {
            "client-certificate-data": _base64(client.cert.read_bytes()),
            "client-key-data": _base64(client.key.read_bytes()),
        }
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": cluster,
        "clusters": [{"name": cluster, "cluster": {"server": url, "certificate-authority-data": _base64(ca)}}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": "client"}}],
        "users": [{"name": "client", "user": user}],
    }
    write_private(path, yaml.safe_dump(config, sort_keys=False).encode())
    return path


def write_private(path: Path, data: bytes) -> None:
    """Writes `data` with mode 0600 from the first byte on."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(data)


def make_request(user: str, groups: Sequence[str], key_path: Path) -> bytes:
    """A PEM certificate request for `user` in `groups`; its new key goes to `key_path`."""
    key = ec.generate_private_key(ec.SECP256R1())
    write_private(key_path, _key_pem(key))
    request = x509.CertificateSigningRequestBuilder().subject_name(_subject(user, groups)).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def file_name(user: str) -> str:
    """A user name as a file name: `site:berlin` is `site_berlin`."""
    return "".join(char if char.isalnum() or char in "-." else "_" for char in user)


def _subject(name: str, groups: Sequence[str] = ()) -> x509.Name:
    return x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + _LIFE)
    )


def _key_usage(**on: bool) -> x509.KeyUsage:
    names = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    names += ["key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]
    return x509.KeyUsage(**{name: on.get(name, False) for name in names})


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())


def _write_pair(pair: Pair, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    pair.cert.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    write_private(pair.key, _key_pem(key))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
