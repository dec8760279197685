"""What one real TPM said once (`python -m tests.lab.tpm` records it) is believed, and nothing else: no other maker, no other key, no other
nonce, no flipped bit. What a TPM itself must refuse is in tests/integration/test_tpm.py."""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from edgefleet.api.attestation import challenged_name, proof_name
from edgefleet.trust.attestation import (
    Attested,
    Candidate,
    bind_request,
    make_challenge,
    read_challenge,
    read_offer,
    require_maker,
    verify_proof,
)
from edgefleet.trust.errors import Rejected
from edgefleet.trust.tpm import ATTESTING, SIGNING, make_credential, read_key, require_quote
from tests.lab.tpm import Maker

SAID: dict[str, Any] = json.loads((Path(__file__).parent / "vectors/tpm.json").read_text())
OFFER, OTHER = (read_offer(json.dumps(SAID[name])) for name in ("offer", "otherOffer"))
CHALLENGE = read_challenge(json.dumps(SAID["challenge"]))
REQUEST = SAID["request"].encode()
NOW = datetime(2026, 11, 28, tzinfo=UTC)
ZEROS = "0" * 64


def verify(proof: Any, *, candidate: Candidate = OFFER, challenge: Any = CHALLENGE, request: bytes = REQUEST) -> Attested:
    return verify_proof(candidate, challenge, json.dumps(proof), request)


def altered(**more: Any) -> dict[str, Any]:
    return {**SAID["proof"], **more}


def reason_of(proof: Any, **more: Any) -> str:
    with pytest.raises(Rejected) as refused:
        verify(proof, **more)
    return refused.value.reason


def test_what_the_tpm_said_is_believed() -> None:
    require_maker(OFFER, [Maker("another").pem, SAID["maker"]], NOW)
    require_maker(OFFER, ["no PEM", SAID["maker"]], NOW)
    found = verify(SAID["proof"])
    assert found.device == OFFER.device != OTHER.device
    assert found.pcrs == dict.fromkeys(("0", "2", "4", "7"), ZEROS)
    assert found.resets == 1


@pytest.mark.parametrize(
    ("proof", "more", "reason"),
    [
        pytest.param(SAID["proof"], {"challenge": make_challenge(OFFER, (0, 2, 4, 7))}, "NonceMismatch", id="replayed"),
        pytest.param(SAID["proof"], {"request": REQUEST + b"\n"}, "NonceMismatch", id="for another request"),
        pytest.param(SAID["proof"], {"candidate": OTHER}, "SignatureInvalid", id="by another TPM's key"),
        pytest.param(SAID["proof"], {"candidate": replace(OFFER, key=OTHER.key)}, "AttributesRejected", id="certified for another key"),
        pytest.param(altered(pcrs={**SAID["proof"]["pcrs"], "7": "1" * 64}), {}, "PCRMismatch", id="false PCR value"),
        pytest.param(altered(pcrs={"0": ZEROS, "2": ZEROS, "4": ZEROS}), {}, "PCRMismatch", id="PCR left out"),
        pytest.param(altered(pcrs={**SAID["proof"]["pcrs"], "8": ZEROS}), {}, "PCRMismatch", id="PCR nobody asked for"),
        pytest.param(altered(quote=SAID["proof"]["certified"]), {}, "EvidenceMalformed", id="certification shown as quote"),
        pytest.param(altered(certified=SAID["proof"]["quote"]), {}, "EvidenceMalformed", id="quote shown as certification"),
        pytest.param(altered(signature=SAID["proof"]["quote"]["signature"]), {}, "SignatureInvalid", id="signature of something else"),
        pytest.param(altered(nonce=base64.b64encode(bytes(32)).decode()), {}, "NonceMismatch", id="nonce guessed"),
        pytest.param({}, {}, "EvidenceMalformed", id="empty"),
        pytest.param(altered(signature="A" * 40_000), {}, "EvidenceMalformed", id="too long"),
        pytest.param(altered(signature="A==="), {}, "EvidenceMalformed", id="no base64"),
    ],
)
def test_what_it_did_not_say_is_refused(proof: Any, more: dict[str, Any], reason: str) -> None:
    assert reason_of(proof, **more) == reason


def test_an_old_quote_is_not_of_this_nonce() -> None:
    """Even with the nonce of the new challenge, which only the TPM can know."""
    fresh = base64.b64encode(bytes(range(32))).decode()
    challenge = CHALLENGE.model_copy(update={"digest": "630dcd2966c4336691125448bbb25b4ff412a49c732db2c8abc1b8581bd710dd"})
    assert reason_of(altered(nonce=fresh), challenge=challenge) == "NonceMismatch"
    with pytest.raises(Rejected, match="answers another challenge"):
        verify(altered(nonce=fresh), challenge=challenge)


SIGNED = [("quote", "attest"), ("quote", "signature"), ("certified", "attest"), ("certified", "signature"), ("signature", "")]


@pytest.mark.parametrize(("part", "field"), SIGNED, ids=lambda one: one or "-")
def test_no_flipped_bit_is_believed(part: str, field: str) -> None:
    data = base64.b64decode(SAID["proof"][part][field] if field else SAID["proof"][part])
    assert len(data) >= 70
    for bit in range(8 * len(data)):
        wrong = bytearray(data)
        wrong[bit // 8] ^= 1 << bit % 8
        text = base64.b64encode(wrong).decode()
        with pytest.raises(Rejected):
            verify(altered(**{part: {**SAID["proof"][part], field: text} if field else text}))


@pytest.mark.parametrize(("part", "field"), SIGNED, ids=lambda one: one or "-")
def test_no_byte_more_or_less_is_believed(part: str, field: str) -> None:
    data = base64.b64decode(SAID["proof"][part][field] if field else SAID["proof"][part])
    for wrong in (*(data[:size] for size in range(1, len(data))), data + b"\0"):
        text = base64.b64encode(wrong).decode()
        with pytest.raises(Rejected):
            verify(altered(**{part: {**SAID["proof"][part], field: text} if field else text}))


def test_mutated_keys_have_another_name_or_are_refused() -> None:
    """20,000 of them: a point that is not on the curve must not be an error of another kind. One that can be read has another name, and
    a credential for that name opens for no TPM."""
    public, chance = base64.b64decode(SAID["offer"]["attester"]), Random(7)
    refused = 0
    for _ in range(20_000):
        wrong = bytearray(public)
        for _ in range(chance.randint(1, 3)):
            wrong[chance.randrange(len(wrong))] = chance.randrange(256)
        if bytes(wrong) == public:
            continue
        try:
            assert read_key(bytes(wrong), attributes=ATTESTING, what="it").name != OFFER.attester.name
        except Rejected:
            refused += 1
    assert refused > 19_000


@pytest.mark.parametrize(
    ("changes", "reason", "said"),
    [
        pytest.param({"attester": SAID["offer"]["key"]}, "AttributesRejected", "attesting key", id="not restricted"),
        pytest.param({"key": SAID["offer"]["attester"]}, "AttributesRejected", "signing key", id="restricted where it signs"),
        pytest.param({"certificate": "MAAA"}, "EvidenceMalformed", "endorsement", id="no certificate"),
        pytest.param({"attester": "ACMA"}, "EvidenceMalformed", "attesting key", id="cut short"),
    ],
)
def test_offers_that_no_agent_makes(changes: dict[str, str], reason: str, said: str) -> None:
    with pytest.raises(Rejected, match=said) as refused:
        read_offer(json.dumps({**SAID["offer"], **changes}))
    assert refused.value.reason == reason


@pytest.mark.parametrize("bit", range(32))
def test_a_key_has_exactly_its_attributes(bit: int) -> None:
    """fixedTPM among them: a key that could leave its TPM vouches for nothing."""
    public = bytearray(base64.b64decode(SAID["offer"]["key"]))
    public[4 + bit // 8] ^= 1 << bit % 8
    with pytest.raises(Rejected) as refused:
        read_key(bytes(public), attributes=SIGNING, what="it")
    assert refused.value.reason == "AttributesRejected"


def certified(maker: Maker, **more: Any) -> Candidate:
    return replace(OFFER, certificate=x509.load_der_x509_certificate(maker.certify(OFFER.endorsement, **more)))


def forged(maker: Maker) -> Candidate:
    """A certificate that names this maker and is signed by somebody else."""
    return certified(Maker(maker.name))


MAKER = Maker(begins=NOW - timedelta(days=1))
PAST = Maker("past", begins=NOW - timedelta(days=900), lasts=timedelta(days=800))


@pytest.mark.parametrize(
    ("candidate", "authorities", "said"),
    [
        pytest.param(OFFER, [], "none is named", id="no maker is known"),
        pytest.param(OFFER, [MAKER.pem], "no authority", id="another maker"),
        pytest.param(forged(MAKER), [MAKER.pem], "no authority", id="forged"),
        pytest.param(certified(PAST), [PAST.pem], "is good from", id="expired"),
        pytest.param(certified(MAKER, use="1.3.6.1.5.5.7.3.2"), [MAKER.pem], "not for an endorsement key", id="for another use"),
        pytest.param(OFFER, ["no PEM"], "no authority", id="an entry that cannot be read"),
    ],
)
def test_a_maker_that_nobody_named_vouches_for_nothing(candidate: Candidate, authorities: list[str], said: str) -> None:
    with pytest.raises(Rejected, match=said) as refused:
        require_maker(candidate, authorities, NOW)
    assert refused.value.reason == "UntrustedEK"


def test_a_certificate_of_a_maker_is_no_authority() -> None:
    """Else every TPM could vouch for others, by its own certificate's key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "leaf")])
    own = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key()).serial_number(1)
    own = own.not_valid_before(NOW).not_valid_after(NOW + timedelta(days=1))
    leaf = own.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True).sign(key, hashes.SHA256())
    impostor = Maker("leaf", begins=NOW, key=key)
    impostor._subject = subject
    pem = leaf.public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(Rejected, match="it is no authority"):
        require_maker(certified(impostor), [pem], NOW)


def test_only_an_rsa_key_of_2048_bits_endorses() -> None:
    large = rsa.generate_private_key(public_exponent=65537, key_size=3072)
    certificate = base64.b64encode(MAKER.certify(large.public_key())).decode()
    with pytest.raises(Rejected, match="2048"):
        read_offer(json.dumps({**SAID["offer"], "certificate": certificate}))


def test_a_challenge_is_another_each_time_and_shows_no_nonce() -> None:
    one, other = make_challenge(OFFER, (7, 0, 7)), make_challenge(OFFER, (7, 0))
    assert one.pcrs == other.pcrs == (0, 7)
    assert one.digest != other.digest
    assert len({one.credential, other.credential, one.secret, other.secret}) == 4
    first, second = (make_credential(OFFER.endorsement, OFFER.attester.name, bytes(32)) for _ in range(2))
    assert first != second


@pytest.mark.parametrize("kind", ["ff5443478017", "ff5443478014", "ff5443468018", "000000008018"])
def test_a_quote_says_that_it_is_one(kind: str) -> None:
    """By its own first bytes, not only by what follows: a restricted key signs nothing that begins so but what its TPM says."""
    attest = base64.b64decode(SAID["proof"]["quote"]["attest"])
    bound, values = bind_request(base64.b64decode(SAID["proof"]["nonce"]), REQUEST), dict.fromkeys((0, 2, 4, 7), bytes(32))
    assert require_quote(attest, bound, values) == 1
    with pytest.raises(Rejected, match="where 0x8018 is due"):
        require_quote(bytes.fromhex(kind) + attest[6:], bound, values)


def test_what_is_signed_is_for_one_nonce_and_one_request() -> None:
    assert len({bind_request(nonce, request) for nonce in (b"a", b"b") for request in (b"c", b"d")}) == 4


def test_names_of_requests_with_a_proof() -> None:
    assert challenged_name(proof_name("edgefleet-plant-7-0011")) == "edgefleet-plant-7-0011"
    assert challenged_name("edgefleet-plant-7-0011") is None
