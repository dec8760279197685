"""Keys: one id per key, PEM there and back, and what is not a key is Rejected."""

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from edgefleet.trust.errors import Rejected
from edgefleet.trust.keys import PrivateKey, PublicKey, encode_pae

KEY = PrivateKey.generate()
PEM, SPKI = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo


def test_pem_there_and_back() -> None:
    assert PublicKey.from_pem(KEY.public.to_pem()) == KEY.public
    again = PrivateKey.from_pem(KEY.to_pem())
    assert again.public == KEY.public
    assert KEY.public.verifies("t", b"payload", again.sign("t", b"payload"))


def test_the_same_key_in_another_dress_has_the_same_id() -> None:
    assert PublicKey.from_pem("\n" + KEY.public.to_pem().replace("\n", "\r\n") + "  \n").id == KEY.public.id


def test_a_private_key_does_not_show_itself() -> None:
    assert KEY.to_pem().splitlines()[1] not in repr(KEY)
    assert "sha256:" in repr(KEY)


@pytest.mark.parametrize(
    ("payload_type", "payload", "expected"),
    [("t", b"p", b"DSSEv1 1 t 1 p"), ("", b"", b"DSSEv1 0  0 "), ("http://example.com/HelloWorld", b"hello world", None)],
)
def test_the_encoding_is_that_of_the_specification(payload_type: str, payload: bytes, expected: bytes | None) -> None:
    # the last is the test vector of DSSE's protocol.md
    assert encode_pae(payload_type, payload) == (expected or b"DSSEv1 29 http://example.com/HelloWorld 11 hello world")


@pytest.mark.parametrize(("payload_type", "payload"), [("u", b"payload"), ("t", b"Payload"), ("t", b""), ("", b"tpayload")], ids=repr)
def test_a_signature_is_for_one_type_and_payload(payload_type: str, payload: bytes) -> None:
    assert not KEY.public.verifies(payload_type, payload, KEY.sign("t", b"payload"))


def test_another_key_does_not_verify() -> None:
    assert not PrivateKey.generate().public.verifies("t", b"payload", KEY.sign("t", b"payload"))


@given(st.binary(max_size=80))
def test_no_junk_is_a_signature(junk: bytes) -> None:
    assert not KEY.public.verifies("t", b"payload", junk)


@pytest.mark.parametrize(
    ("key", "named"),
    [
        (ec.generate_private_key(ec.SECP384R1()), "secp384r1"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
        (rsa.generate_private_key(65537, 2048), "RSA"),
    ],
    ids=["P-384", "Ed25519", "RSA"],
)
def test_other_kinds_are_named_and_refused(key: ec.EllipticCurvePrivateKey, named: str) -> None:
    private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for read, pem in ((PrivateKey.from_pem, private), (PublicKey.from_pem, key.public_key().public_bytes(PEM, SPKI))):
        with pytest.raises(Rejected, match=named) as raised:
            read(pem)
        assert raised.value.reason == "KeyInvalid"
        assert "P-256" in raised.value.message


@pytest.mark.parametrize("text", ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "x" * 20_000, KEY.to_pem()])
def test_what_is_no_public_key_is_rejected(text: str) -> None:
    with pytest.raises(Rejected) as raised:
        PublicKey.from_pem(text)
    assert raised.value.reason == "KeyInvalid"


def test_an_encrypted_key_is_answered_with_what_to_do() -> None:
    with pytest.raises(Rejected, match="cosign sign"):
        PrivateKey.from_pem("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA\n")


def test_a_broken_private_key_is_not_quoted() -> None:
    broken = KEY.to_pem().replace("A", "!")
    with pytest.raises(Rejected) as raised:
        PrivateKey.from_pem(broken)
    assert broken.splitlines()[1] not in str(raised.value)
