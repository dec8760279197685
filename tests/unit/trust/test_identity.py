"""Requests for client certificates, and certificates: what they say, and that nothing else is read from them."""

import base64

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from edgefleet.trust.errors import Rejected
from edgefleet.trust.identity import make_request, read_certificate, read_request
from edgefleet.trust.keys import PrivateKey
from tests.lab.pki import Authority

BEGIN, END = b"-----BEGIN CERTIFICATE REQUEST-----\n", b"-----END CERTIFICATE REQUEST-----\n"


def test_a_request_says_who_and_shows_the_key() -> None:
    key = PrivateKey.generate()
    found = read_request(make_request(key, "berlin"))
    assert found.key == key.public.id
    assert found.subject == (("O", "edgefleet:sites"), ("CN", "edgefleet:site:berlin"))
    assert found.extensions == 0


def test_no_flipped_bit_gets_through() -> None:
    pem = make_request(PrivateKey.generate(), "berlin")
    der = base64.b64decode(pem.removeprefix(BEGIN).removesuffix(END))
    for bit in range(0, 8 * len(der), 7):
        flipped = bytearray(der)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Rejected):
            read_request(BEGIN + base64.b64encode(bytes(flipped)) + b"\n" + END)


@pytest.mark.parametrize("key", [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())], ids=["rsa", "p384"])
def test_other_kinds_of_keys_are_refused(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edgefleet:site:berlin")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    with pytest.raises(Rejected) as refusal:
        read_request(request.public_bytes(serialization.Encoding.PEM))
    assert refusal.value.reason == "KeyInvalid"


def test_alternative_names_and_odd_fields_are_seen() -> None:
    fields = [x509.NameAttribute(NameOID.COMMON_NAME, "a"), x509.NameAttribute(NameOID.SERIAL_NUMBER, "b")]
    names = x509.SubjectAlternativeName([x509.DNSName("hub.example")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(fields)).add_extension(names, critical=False)
    found = read_request(builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    assert found.subject == (("CN", "a"), ("2.5.4.5", "b"))
    assert found.extensions == 1


@pytest.mark.parametrize("pem", [b"", b"x", BEGIN + END, b"\xff" * 100])
def test_rubbish_is_refused(pem: bytes) -> None:
    for read in (read_request, read_certificate):
        with pytest.raises(Rejected):
            read(pem)


def test_a_certificate_is_found_beside_its_key(tmp_path_factory: pytest.TempPathFactory) -> None:
    pair = Authority.make(tmp_path_factory.mktemp("ca"), "ca").issue_client("edgefleet:site:berlin", ["edgefleet:sites"])
    cert = pair.cert.read_bytes()
    key = PrivateKey.from_pem(pair.key.read_bytes())
    found = read_certificate(pair.key.read_bytes() + cert)
    assert found.pem.encode() == cert
    assert found.key == key.public.id
    assert found.fingerprint == x509.load_pem_x509_certificate(cert).fingerprint(hashes.SHA256()).hex()
    assert found.subject == (("O", "edgefleet:sites"), ("CN", "edgefleet:site:berlin"))
    assert found.begins_at < found.ends_at
