"""Bundles signed by identities: who is believed under which root, and which rule refuses everything else."""

import base64
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sigstore.verify import Verifier

from edgefleet.trust.errors import Rejected
from edgefleet.trust.identities import Identity, Keyless
from edgefleet.trust.keyless import KeylessVerifier
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.publishers import Publisher
from edgefleet.trust.release import RELEASE_PREDICATE, SIGN_PREDICATE, ReleaseFacts, attest_release, sign_digest, verify_release
from edgefleet.trust.signatures import SignedBy, verify_bundle
from edgefleet.trust.sigstore_root import open_root
from tests.lab.sigstore.private import PrivateSigstore

DIGEST = "sha256:" + "a" * 64
ISSUER = "https://token.test"
SUBJECT = "https://github.com/acme/weld/.github/workflows/release.yml@refs/heads/main"
OURS = PrivateSigstore()
OTHERS = PrivateSigstore("other.test")
ROOT = json.dumps(OURS.trusted_root()).encode()
AT = datetime.now(UTC).replace(microsecond=0) - timedelta(days=30)
LOGGED = AT + timedelta(minutes=1)
FACTS = {"model": "digits", "version": "2.4", "releaseSeq": 7, "createdAt": "2026-01-02T03:04:05Z"}
WE = Identity(ISSUER, SUBJECT)


def signed(sigstore: PrivateSigstore = OURS, *, predicate_type: str = SIGN_PREDICATE, **more: Any) -> bytes:
    predicate = FACTS if predicate_type == RELEASE_PREDICATE else {}
    return sigstore.sign(predicate_type, DIGEST, predicate, **({"subject": SUBJECT, "issuer": ISSUER, "at": AT} | more))


V1, STAMPED, V2 = signed(), signed(stamped=True), signed(rekor=2)


def changed(data: bytes, edit: Callable[[dict[str, Any]], Any]) -> bytes:
    document = json.loads(data)
    edit(document)
    return json.dumps(document, ensure_ascii=False).encode()


def material(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["verificationMaterial"]
    return found


def root_with(edit: Callable[[dict[str, Any]], Any]) -> bytes:
    return changed(ROOT, edit)


def verify(data: bytes, *identities: Identity, root: bytes = ROOT) -> SignedBy:
    return verify_bundle(data, KeylessVerifier(Keyless(identities or (WE,), root))).by


@pytest.mark.parametrize(
    ("data", "log"),
    [(V1, "https://rekor.sigstore.test"), (STAMPED, "https://rekor.sigstore.test"), (V2, "https://log2026.rekor.sigstore.test")],
    ids=["log v1", "log v1 and timestamp", "log v2"],
)
def test_an_identity_that_is_trusted_is_believed(data: bytes, log: str) -> None:
    assert verify(data) == SignedBy(f"{ISSUER} {SUBJECT}", SUBJECT, ISSUER, LOGGED, log)


def test_a_log_without_an_address_is_named_by_its_id() -> None:
    assert verify(V1, root=root_with(lambda d: d["tlogs"][0].update(baseUrl=""))).log == entry_of(V1)["logId"]["keyId"]


@pytest.mark.parametrize(
    "identity",
    [
        Identity(ISSUER, subject_regex=r"https://github\.com/acme/weld/.*@refs/heads/main"),
        Identity(ISSUER, subject_regex=r"https://.*"),
    ],
)
def test_a_regex_is_believed_for_the_whole_subject(identity: Identity) -> None:
    assert verify(V1, Identity(ISSUER, "somebody@acme.test"), identity).id == identity.id


@pytest.mark.parametrize(
    ("identity", "why"),
    [
        pytest.param(Identity(ISSUER, SUBJECT + "x"), SUBJECT, id="another subject"),
        pytest.param(Identity(ISSUER + "/", SUBJECT), ISSUER, id="another issuer"),
        pytest.param(Identity(ISSUER, subject_regex=r"https://github\.com/acme/weld"), "acme", id="a regex for its beginning"),
        pytest.param(Identity(ISSUER, subject_regex=r".*main\n"), "acme", id="a regex with more at the end"),
        pytest.param(Identity("https://else.test", subject_regex=r".*"), ISSUER, id="any subject of another issuer"),
    ],
)
def test_another_identity_is_refused(identity: Identity, why: str) -> None:
    with pytest.raises(Rejected, match=why) as raised:
        verify(V1, identity)
    assert raised.value.reason == "IdentityMismatch"


@pytest.mark.parametrize("fields", [{"issuer": ""}, {"subject": ""}, {"subject_regex": "x"}, {"subject": "", "subject_regex": "("}])
def test_what_is_no_identity(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"issuer|exactly one|regular expression"):
        Identity(**({"issuer": ISSUER, "subject": SUBJECT} | fields))


def entry_of(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = material(json.loads(data))["tlogEntries"][0]
    return found


def stamp_of(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = material(json.loads(data))["timestampVerificationData"]
    return found


def stamps(document: dict[str, Any]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = material(document)["timestampVerificationData"]["rfc3161Timestamps"]
    return found


def retold(document: dict[str, Any]) -> None:
    statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    statement["subject"][0]["digest"]["sha256"] = "b" * 64
    document["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()


LATE = {"logged": AT + timedelta(minutes=11)}
EARLY = {"logged": AT - timedelta(seconds=1)}
REFUSED = [
    pytest.param(signed(OTHERS), "LogEntryInvalid", "a log that the trusted root does not name", id="another Sigstore"),
    pytest.param(
        changed(signed(OTHERS), lambda d: material(d).update(tlogEntries=[entry_of(V1)])),
        "CertificateInvalid",
        None,
        id="another authority",
    ),
    pytest.param(changed(V1, retold), "SignatureInvalid", None, id="v1: tampered payload"),
    pytest.param(changed(V2, retold), "SignatureInvalid", None, id="v2: tampered payload"),
    pytest.param(
        changed(V1, lambda d: material(d).update(tlogEntries=[entry_of(signed())])), "LogEntryInvalid", None, id="v1: swapped entry"
    ),
    pytest.param(
        changed(V2, lambda d: material(d).update(tlogEntries=[entry_of(signed(rekor=2))])), "LogEntryInvalid", None, id="v2: swapped entry"
    ),
    pytest.param(changed(V1, lambda d: material(d).update(tlogEntries=[])), "LogEntryInvalid", "0 log entries", id="no log entry"),
    pytest.param(changed(V1, lambda d: material(d).pop("tlogEntries")), "LogEntryInvalid", "0 log entries", id="log entries left out"),
    pytest.param(
        changed(V1, lambda d: material(d).update(tlogEntries=[entry_of(V1)] * 2)), "LogEntryInvalid", "2 log entries", id="two log entries"
    ),
    pytest.param(
        changed(V1, lambda d: material(d)["tlogEntries"][0].pop("inclusionPromise")), "LogEntryInvalid", "promise", id="v1 without promise"
    ),
    pytest.param(
        changed(V1, lambda d: material(d)["tlogEntries"][0].update(integratedTime=str(int(LOGGED.timestamp()) + 1))),
        "LogEntryInvalid",
        None,
        id="v1: another time",
    ),
    pytest.param(
        changed(V2, lambda d: material(d).update(timestampVerificationData=stamp_of(signed(rekor=2)))),
        "TimestampInvalid",
        None,
        id="swapped timestamp",
    ),
    pytest.param(
        changed(STAMPED, lambda d: material(d).update(timestampVerificationData=stamp_of(signed(stamped=True)))),
        "TimestampInvalid",
        None,
        id="swapped timestamp beside a promise",
    ),
    pytest.param(changed(V2, lambda d: material(d).pop("timestampVerificationData")), "TimestampInvalid", "says no time", id="v2, no TSA"),
    pytest.param(
        changed(V2, lambda d: material(d).update(timestampVerificationData=stamp_of(signed(OTHERS, rekor=2)))),
        "TimestampInvalid",
        None,
        id="another timestamp authority",
    ),
    pytest.param(changed(V2, lambda d: stamps(d).append(stamps(d)[0])), "TimestampInvalid", "stands there twice", id="one timestamp twice"),
    pytest.param(
        changed(V2, lambda d: stamps(d).append(stamps(json.loads(STAMPED))[0])), "TimestampInvalid", None, id="another's beside a good one"
    ),
    pytest.param(signed(**LATE), "CertificateExpired", None, id="v1: logged after the certificate's end"),
    pytest.param(signed(rekor=2, **LATE), "CertificateExpired", None, id="v2: stamped after the certificate's end"),
    pytest.param(signed(**EARLY), "CertificateExpired", None, id="v1: logged before the certificate's start"),
    pytest.param(sign_digest(PrivateKey.generate(), DIGEST), "SignatureInvalid", None, id="signed by a key"),
]


@pytest.mark.parametrize(("data", "reason", "why"), REFUSED)
def test_which_rule_refuses(data: bytes, reason: str, why: str | None) -> None:
    with pytest.raises(Rejected, match=why) as raised:
        verify(data)
    assert raised.value.reason == reason


def entry(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda d: material(d)["tlogEntries"][0].update(fields)


def proof(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def edit(document: dict[str, Any]) -> None:
        found = material(document)["tlogEntries"][0]["inclusionProof"]
        found[name] = change(found[name])

    return edit


def restamped(old: bytes, new: bytes) -> Callable[[dict[str, Any]], None]:
    def edit(document: dict[str, Any]) -> None:
        (one,) = material(document)["timestampVerificationData"]["rfc3161Timestamps"]
        data = base64.b64decode(one["signedTimestamp"])
        assert data.count(old) == 1
        one["signedTimestamp"] = base64.b64encode(data.replace(old, new)).decode()

    return edit


def last_changed(text: str) -> str:
    data = base64.b64decode(text)
    return base64.b64encode(data[:-1] + bytes([data[-1] ^ 1])).decode()


def with_stray_bits(text: str) -> str:
    """Another spelling of the same 32 bytes: the last letter before the padding has two bits that mean nothing."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return text[:-2] + letters[letters.index(text[-2]) + 1] + "="


UNSIGNED = [
    pytest.param(V1, proof("treeSize", lambda size: str(int(size) + 1)), "another tree", id="size of the tree"),
    pytest.param(V1, proof("checkpoint", lambda one: {"envelope": one["envelope"].replace("— r", "— s")}), "by the log", id="log's name"),
    pytest.param(V1, proof("checkpoint", lambda one: {"envelope": one["envelope"] + "\n"}), "no signature", id="a line in a checkpoint"),
    pytest.param(V1, proof("rootHash", with_stray_bits), "canonical", id="stray bits in base64"),
    pytest.param(V2, entry(logIndex="999"), "its proof is for", id="index"),
    pytest.param(V2, entry(logId={"keyId": last_changed(entry_of(V2)["logId"]["keyId"])}), "does not name", id="log id"),
    pytest.param(V2, restamped(bytes.fromhex("2a8648ce3d040302"), bytes.fromhex("2a8648ce3d040303")), "algorithm", id="algorithm"),
    pytest.param(V2, restamped(b"sigstore.test TSA root", b"Sigstore.test TSA root"), "issuer", id="issuer of a timestamp's certificate"),
    pytest.param(STAMPED, restamped(b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02", b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03"), "", id="kind"),
]


@pytest.mark.parametrize(("data", "edit", "why"), UNSIGNED)
def test_what_nothing_signs_cannot_be_changed(data: bytes, edit: Callable[[dict[str, Any]], None], why: str) -> None:
    with pytest.raises(Rejected, match=why or None):
        verify(changed(data, edit))


def in_force(kind: str, **window: datetime) -> bytes:
    """The root, with every entry of a kind in force from `start` or until `end`."""

    def limit(document: dict[str, Any]) -> None:
        for one in document[kind]:
            one.get("publicKey", one)["validFor"] |= {name: at.isoformat().replace("+00:00", "Z") for name, at in window.items()}

    return root_with(limit)


DAY = timedelta(days=1)


@pytest.mark.parametrize("data", [V1, STAMPED, V2], ids=["log v1", "log v1 and timestamp", "log v2"])
@pytest.mark.parametrize("kind", ["certificateAuthorities", "ctlogs", "tlogs", "timestampAuthorities"])
def test_an_entry_of_the_root_counts_for_its_time_alone(kind: str, data: bytes) -> None:
    assert verify(data, root=in_force(kind, start=AT - DAY, end=LOGGED + DAY)).logged_at == LOGGED
    if kind == "timestampAuthorities" and data is V1:
        return  # nothing in it is stamped
    for outside in ({"end": AT - DAY}, {"start": LOGGED + DAY}):
        with pytest.raises(Rejected, match="in force") as raised:
            verify(data, root=in_force(kind, **outside))
        assert raised.value.reason == "TrustedRootEnded"


def test_an_ended_authority_is_not_helped_by_a_living_one() -> None:
    both = json.loads(in_force("certificateAuthorities", end=AT - DAY))
    both["certificateAuthorities"] += OTHERS.trusted_root()["certificateAuthorities"]
    with pytest.raises(Rejected) as raised:
        verify(V1, root=json.dumps(both).encode())
    assert raised.value.reason == "TrustedRootEnded"


@pytest.mark.parametrize(
    "root",
    [
        b"",
        b"{}",
        b"[]",
        root_with(lambda d: d.update(tlogs=[])),
        root_with(lambda d: d.update(ctlogs=[])),
        root_with(lambda d: d.pop("mediaType")),
    ],
    ids=["empty", "no fields", "a list", "no log", "no CT log", "no media type"],
)
def test_what_is_no_root(root: bytes) -> None:
    with pytest.raises(Rejected) as raised:
        KeylessVerifier(Keyless((WE,), root))
    assert raised.value.reason == "TrustedRootMalformed"


def test_a_panic_of_a_library_is_a_refusal() -> None:
    """A name that is no UTF-8 in a timestamp authority's certificate ends OpenSSL's binding in Rust with what is not an Exception."""

    def spoil(document: dict[str, Any]) -> None:
        for certificate in document["timestampAuthorities"][0]["certChain"]["certificates"]:
            data = base64.b64decode(certificate["rawBytes"]).replace(b"sigstore.test TSA", b"sigstore.test \xff\xff\xff")
            certificate["rawBytes"] = base64.b64encode(data).decode()

    with pytest.raises(Rejected, match="ErrorStack") as raised:
        verify(V2, root=root_with(spoil))
    assert raised.value.reason == "TimestampInvalid"


# Releases: keys and identities together


def check(*bundles: bytes, keys: tuple[PrivateKey, ...] = (), identities: tuple[Identity, ...] = (WE,), threshold: int = 1) -> Any:
    return verify_release(
        digest=DIGEST,
        model="digits",
        bundles=bundles,
        publisher=Publisher(tuple(key.public for key in keys), threshold, 7, Keyless(identities, ROOT)),
    )


ATTESTED = signed(predicate_type=RELEASE_PREDICATE)
KEY = PrivateKey.generate()
KEYED = (sign_digest(KEY, DIGEST), attest_release(KEY, DIGEST, ReleaseFacts(model="digits", version="2.4", release_seq=7, created_at=AT)))


def test_a_release_by_an_identity() -> None:
    found = check(V1, ATTESTED)
    assert (found.version, found.seq, found.signers) == (
        "2.4",
        7,
        (SignedBy(WE.id, SUBJECT, ISSUER, LOGGED, "https://rekor.sigstore.test"),),
    )


def test_a_key_and_an_identity_are_two_publishers() -> None:
    assert set(check(V1, ATTESTED, *KEYED, keys=(KEY,), threshold=2).signed_by) == {KEY.public.id, WE.id}


@pytest.mark.parametrize(
    ("bundles", "more", "reason"),
    [
        pytest.param((V1, V2, ATTESTED), {"keys": (KEY,), "threshold": 2}, "ThresholdNotMet", id="one identity twice"),
        pytest.param((V1, ATTESTED), {"threshold": 2}, "ThresholdNotMet", id="two of one"),
        pytest.param(
            (V1, ATTESTED, signed(subject="https://b"), signed(subject="https://b", predicate_type=RELEASE_PREDICATE)),
            {"identities": (Identity(ISSUER, subject_regex="https://.*"),), "keys": (KEY,), "threshold": 2},
            "ThresholdNotMet",
            id="two subjects of one rule",
        ),
        pytest.param((V1, KEYED[1]), {"keys": (KEY,)}, "ThresholdNotMet", id="signed by one, attested by another, two demanded"),
        pytest.param(KEYED, {}, "SignatureInvalid", id="a key where identities are trusted"),
        pytest.param((V1,), {}, "AttestationMissing", id="signed only"),
    ],
)
def test_what_release_is_refused(bundles: tuple[bytes, ...], more: dict[str, Any], reason: str) -> None:
    if "identities" not in more and reason == "ThresholdNotMet":
        more = {"threshold": 2, **more}
    with pytest.raises(Rejected) as raised:
        check(*bundles, **more)
    assert raised.value.reason == reason


def test_the_refusal_names_the_rule() -> None:
    with pytest.raises(Rejected, match=r"candidate 1: IdentityMismatch: signed by https://evil\.test") as raised:
        check(signed(subject="https://evil.test"))
    assert raised.value.reason == "SignatureInvalid"


# What it costs those who do not use it, and the network


def test_nothing_is_asked_and_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    assert verify(V2, root=root_with(lambda d: d["tlogs"][0].update(baseUrl="https://another.test"))).name == SUBJECT
    assert list(tmp_path.iterdir()) == []


def test_a_root_is_opened_once_and_a_bundle_costs_no_verifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sigstore's parser of roots and its Verifier cost more than a bundle does."""
    made = []
    really = Verifier.__init__
    monkeypatch.setattr(Verifier, "__init__", lambda self, **arguments: made.append(self) or really(self, **arguments))
    root = root_with(lambda document: document["tlogs"][0].update(baseUrl="https://once.test"))
    opened = open_root.cache_info().misses
    for _ in range(5):
        for data in (V1, STAMPED, V2):
            assert verify(data, root=root).name == SUBJECT
    assert (open_root.cache_info().misses - opened, len(made)) == (1, 3), "one root, and a verifier for all, for v1 and for v2"


def test_the_library_is_loaded_by_an_identity_alone() -> None:
    code = (
        "import sys, edgefleet.hub.models, edgefleet.trust.bundle, edgefleet.trust.release as r\n"
        "from edgefleet.trust.keys import PublicKey\n"
        f"r.verify_release(digest={DIGEST!r}, model='digits', bundles=[{KEYED[0]!r}, {KEYED[1]!r}],\n"
        f"  publisher=r.Publisher((PublicKey.from_pem({KEY.public.to_pem()!r}),)))\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('sigstore', 'sigstore_models', 'rfc3161_client')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.strip() == "[]"
