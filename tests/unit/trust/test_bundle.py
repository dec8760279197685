"""The trust bundle: believed only from the pinned root on, by enough root keys, neither old nor past its end."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefleet.trust.bundle import make_bundle, make_root, open_bundle, read_roots
from edgefleet.trust.bundle_content import BundleContent
from edgefleet.trust.errors import Rejected
from edgefleet.trust.identities import Identity, Keyless
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.publishers import Publisher

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
YEAR = timedelta(days=365)
R1, R2, R3, R4, HUB, ALICE, BOB, STRANGER = (PrivateKey.generate() for _ in range(8))
PUBLISHERS = {
    "digits": Publisher((ALICE.public, BOB.public), threshold=2, min_release_seq=7),
    "weld-qc": Publisher((ALICE.public,)),
}


def root_of(
    keys: Sequence[PrivateKey], signers: Sequence[PrivateKey], threshold: int = 2, version: int = 1, life: timedelta = 10 * YEAR
) -> bytes:
    return make_root([key.public for key in keys], signers=signers, threshold=threshold, version=version, expires_at=NOW + life)


ROOT = root_of([R1, R2, R3], [R1, R2, R3])
NEXT_ROOT = root_of([R2, R3, R4], [R1, R2, R3, R4], version=2)


def bundle_of(
    signers: Sequence[PrivateKey] = (R1, R2), roots: Sequence[bytes] = (ROOT,), version: int = 5, life: timedelta = YEAR
) -> bytes:
    return make_bundle(
        roots=roots, signers=signers, version=version, content=BundleContent(PUBLISHERS, (HUB.public,)), expires_at=NOW + life
    )


def reason_of(data: bytes, *, pinned: bytes = ROOT, floor: int = 0, now: datetime = NOW) -> str:
    with pytest.raises(Rejected) as raised:
        open_bundle(data, pinned_root=pinned, floor_version=floor, now=now)
    return raised.value.reason


def changed(data: bytes, change: Callable[[Any], object]) -> bytes:
    document = json.loads(data)
    change(document)
    return json.dumps(document).encode()


def test_there_and_back() -> None:
    found = open_bundle(bundle_of(), pinned_root=ROOT, floor_version=5, now=NOW)
    assert found.version == 5
    assert dict(found.publishers) == PUBLISHERS
    assert found.hub_keys == (HUB.public,)
    assert found.expires_at == NOW + YEAR


def test_any_m_of_n_root_keys_suffice() -> None:
    for signers in ([R1, R2], [R1, R3], [R2, R3], [R1, R2, R3]):
        open_bundle(bundle_of(signers), pinned_root=ROOT, floor_version=0, now=NOW)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(bundle_of([R1]), "BundleUnderSigned", id="one of two"),
        pytest.param(bundle_of([R1, R1]), "BundleUnderSigned", id="one key twice"),
        pytest.param(bundle_of([R1, STRANGER]), "BundleUnderSigned", id="a stranger's signature"),
        pytest.param(bundle_of([HUB, ALICE]), "BundleUnderSigned", id="hub and publisher keys"),
        pytest.param(bundle_of([]), "BundleUnderSigned", id="unsigned"),
        pytest.param(bundle_of([STRANGER], [root_of([STRANGER], [STRANGER], 1)]), "BundleRootMismatch", id="another installation's"),
        pytest.param(bundle_of([R2, R3], [NEXT_ROOT]), "BundleRootMismatch", id="the pinned root is missing"),
        pytest.param(bundle_of([R2, R4], [ROOT, root_of([R2, R4], [R2, R4], version=2)]), "BundleUnderSigned", id="not by the old root"),
        pytest.param(bundle_of([STRANGER], [ROOT, root_of([STRANGER], [R1, R2], 1, 2)]), "BundleUnderSigned", id="not by itself"),
        pytest.param(bundle_of([R2, R4], [ROOT, root_of([R2, R4], [R1, R2, R4], version=3)]), "BundleRootMismatch", id="a root left out"),
        pytest.param(bundle_of([R1, R2], [ROOT, ROOT]), "BundleRootMismatch", id="a root twice"),
        pytest.param(bundle_of([R1, R2], [ROOT, NEXT_ROOT]), "BundleUnderSigned", id="signed with a key that the new root dropped"),
        pytest.param(bundle_of(life=-timedelta(seconds=1)), "BundleExpired", id="past its end"),
        pytest.param(b"", "BundleMalformed", id="empty"),
        pytest.param(b"\xff\xfe", "BundleMalformed", id="not UTF-8"),
        pytest.param(b"[" * 50_000, "BundleMalformed", id="deeply nested"),
        pytest.param(b"{}" + b" " * (1 << 20), "BundleMalformed", id="too large"),
        pytest.param(b"{}", "BundleFormatUnknown", id="no format"),
        pytest.param(changed(bundle_of(), lambda d: d.update(formatVersion=4)), "BundleFormatUnknown", id="newer format"),
        pytest.param(changed(bundle_of(), lambda d: d.update(formatVersion=2)), "BundleMalformed", id="another format than is signed"),
        pytest.param(changed(bundle_of(), lambda d: d.update(extra=1)), "BundleMalformed", id="unsigned field"),
        pytest.param(changed(bundle_of(), lambda d: d.update(roots=[])), "BundleMalformed", id="no roots"),
        pytest.param(changed(bundle_of(), lambda d: d.update(roots=d["roots"] * 65)), "BundleMalformed", id="too many roots"),
        pytest.param(changed(bundle_of(), lambda d: d["targets"].update(note="x")), "BundleMalformed", id="unsigned field in targets"),
        pytest.param(changed(bundle_of(), lambda d: d.update(targets=d["roots"][0])), "BundleMalformed", id="root as targets"),
        pytest.param(
            changed(bundle_of(), lambda d: d["trust"]["publishers"]["digits"].update(threshold=1)),
            "BundleMalformed",
            id="lower threshold",
        ),
        pytest.param(changed(bundle_of(), lambda d: d["trust"]["publishers"].pop("digits")), "BundleMalformed", id="publisher removed"),
        pytest.param(changed(bundle_of(), lambda d: d["trust"].update(hubKeys=[])), "BundleMalformed", id="hub keys removed"),
        pytest.param(
            changed(bundle_of(), lambda d: d["targets"]["signed"].update(version=9)),
            "BundleUnderSigned",
            id="version raised",
        ),
        pytest.param(
            changed(bundle_of(), lambda d: d["targets"]["signatures"].append(d["targets"]["signatures"][0])),
            "BundleMalformed",
            id="a signature twice",
        ),
    ],
)
def test_what_is_refused(data: bytes, reason: str) -> None:
    assert reason_of(data) == reason


def test_an_older_version_is_refused_and_the_same_is_not() -> None:
    assert reason_of(bundle_of(version=5), floor=6) == "BundleRollback"
    open_bundle(bundle_of(version=5), pinned_root=ROOT, floor_version=5, now=NOW)


def test_it_ends_at_the_earlier_end_of_root_and_targets() -> None:
    root = root_of([R1, R2], [R1, R2], life=timedelta(days=3))
    data = bundle_of(roots=[root])
    assert open_bundle(data, pinned_root=root, floor_version=0, now=NOW).expires_at == NOW + timedelta(days=3)
    assert reason_of(data, pinned=root, now=NOW + timedelta(days=3)) == "BundleExpired"


@pytest.mark.parametrize("pinned", [ROOT, NEXT_ROOT], ids=["pinned before", "pinned after"])
def test_a_new_root_takes_over_step_by_step(pinned: bytes) -> None:
    data = bundle_of([R3, R4], [ROOT, NEXT_ROOT])
    assert open_bundle(data, pinned_root=pinned, floor_version=0, now=NOW).version == 5


def test_an_expired_root_on_the_way_does_not_hinder() -> None:
    old = root_of([R1, R2, R3], [R1, R2, R3], life=-YEAR)
    data = bundle_of([R3, R4], [old, NEXT_ROOT])
    assert open_bundle(data, pinned_root=old, floor_version=0, now=NOW).version == 5


def test_one_key_under_two_ids_counts_once() -> None:
    def forge(document: Any) -> None:
        signed = document["signed"]
        (only,) = signed["keys"].values()
        signed["keys"]["0" * 64] = only
        for role in ("root", "targets"):
            signed["roles"][role] = {"keyids": list(signed["keys"]), "threshold": 1}

    forged = changed(root_of([R1], [R1], 1), forge)
    assert reason_of(bundle_of([R1], [forged]), pinned=forged) == "BundleMalformed"


def test_a_threshold_beyond_the_keys_is_not_made() -> None:
    with pytest.raises(ValueError, match="threshold 2"):
        root_of([R1, R1], [R1], 2)
    with pytest.raises(ValueError, match="threshold 2"):
        make_bundle(
            roots=[ROOT],
            signers=[R1, R2],
            version=1,
            content=BundleContent({"digits": Publisher((ALICE.public, ALICE.public), threshold=2)}, (HUB.public,)),
            expires_at=NOW + YEAR,
        )


@pytest.mark.parametrize("pinned", [b"", b"{}", b"null", bundle_of(), ROOT.replace(b'"version":1}', b'"version":2}')])
def test_a_broken_pinned_root_is_rejected(pinned: bytes) -> None:
    with pytest.raises(Rejected):
        open_bundle(bundle_of(), pinned_root=pinned, floor_version=0, now=NOW)


def test_roots_are_carried_over() -> None:
    roots = read_roots(bundle_of([R3, R4], [ROOT, NEXT_ROOT]))
    again = bundle_of([R3, R4], roots, version=6)
    assert open_bundle(again, pinned_root=ROOT, floor_version=6, now=NOW).version == 6
    with pytest.raises(Rejected):
        read_roots(b"[]")


SMALL_ROOT = root_of([R1], [R1], 1)
SMALL = make_bundle(
    roots=[SMALL_ROOT],
    signers=[R1],
    version=1,
    content=BundleContent({"m": Publisher((ALICE.public,))}, (HUB.public,)),
    expires_at=NOW + YEAR,
).rstrip()


@settings(max_examples=1500, deadline=None)
@given(st.integers(min_value=0, max_value=len(SMALL) * 8 - 1))
def test_no_flipped_bit_is_accepted(bit: int) -> None:
    flipped = bytearray(SMALL)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Rejected):
        open_bundle(bytes(flipped), pinned_root=SMALL_ROOT, floor_version=0, now=NOW)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner),
    )
)
def test_any_json_in_any_part_is_rejected(value: Any) -> None:
    for part in ("roots", "targets", "trust"):
        data = changed(SMALL, lambda document, part=part: document.update({part: value}))
        with pytest.raises(Rejected):
            open_bundle(data, pinned_root=SMALL_ROOT, floor_version=0, now=NOW)


# Identities without keys

SIGSTORE = Keyless(
    (Identity("https://token.test", "https://github.com/acme/weld"), Identity("https://token.test", subject_regex="x.*")), b'{"a":1}'
)


def keyless_bundle(**publishers: Publisher) -> bytes:
    return make_bundle(roots=[SMALL_ROOT], signers=[R1], version=1, content=BundleContent(publishers, (HUB.public,)), expires_at=NOW + YEAR)


def test_identities_are_read_as_they_were_written() -> None:
    publishers = {
        "weld": Publisher((ALICE.public,), 3, 7, SIGSTORE),
        "digits": Publisher((), 1, 0, SIGSTORE),
        "old": Publisher((BOB.public,)),
    }
    found = open_bundle(keyless_bundle(**publishers), pinned_root=SMALL_ROOT, floor_version=0, now=NOW)
    assert dict(found.publishers) == publishers


def test_a_bundle_of_keys_alone_is_what_older_agents_read() -> None:
    assert json.loads(keyless_bundle(old=Publisher((BOB.public,))))["formatVersion"] == 1
    assert json.loads(keyless_bundle(new=Publisher((BOB.public,), keyless=SIGSTORE)))["formatVersion"] == 2


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        pytest.param(
            lambda d: d["trust"]["publishers"]["weld"]["identities"][0].update(issuer="https://b"), "BundleMalformed", id="issuer"
        ),
        pytest.param(lambda d: d["trust"]["trustedRoot"].update(a=2), "BundleMalformed", id="trusted root"),
        pytest.param(lambda d: d["trust"].pop("trustedRoot"), "BundleMalformed", id="no trusted root"),
        pytest.param(lambda d: d.update(formatVersion=1), "BundleMalformed", id="said to be of an older format"),
    ],
)
def test_no_part_of_it_can_be_changed(edit: Any, reason: str) -> None:
    with pytest.raises(Rejected) as raised:
        open_bundle(changed(keyless_bundle(weld=Publisher((), 1, 0, SIGSTORE)), edit), pinned_root=SMALL_ROOT, floor_version=0, now=NOW)
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    "publishers",
    [
        {"a": Publisher((), 3, 0, SIGSTORE)},
        {"a": Publisher(())},
        {"a": Publisher((), 1, 0, SIGSTORE), "b": Publisher((), 1, 0, Keyless(SIGSTORE.identities, b"{}"))},
    ],
    ids=["threshold that nobody meets", "nobody", "two trusted roots"],
)
def test_what_is_not_written(publishers: dict[str, Publisher]) -> None:
    with pytest.raises(ValueError, match=r"cannot be met|different trusted roots"):
        keyless_bundle(**publishers)
