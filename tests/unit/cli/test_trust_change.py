"""`edgefleet trust` for root keys that lie apart: drafts, one signature at a time, new roots, hub keys and revocations."""

import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edgefleet.cli.app import run
from edgefleet.trust.bundle import TrustBundle, make_bundle, make_root, open_bundle, read_roots
from edgefleet.trust.bundle_draft import list_facts, make_draft
from edgefleet.trust.errors import Rejected
from edgefleet.trust.keys import PrivateKey, PublicKey

DIGEST = "sha256:" + "d" * 64


def trust(*words: object) -> int:
    return run(["trust", *map(str, words)])


class Desk:
    """A folder made by 2 of 3 root keys; the keys lie on sticks of their own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder / "trust"
        self.stick = folder / "stick"
        self._capsys = capsys
        assert trust("init", self.folder, "--model", "digits", "--model", "weld-qc", "--root-keys", 3, "--root-threshold", 2) == 0
        self.pinned = (self.folder / "root.json").read_bytes()
        self.stick.mkdir()
        for key in self.folder.glob("root-*.key"):
            key.rename(self.stick / key.name)
        capsys.readouterr()

    @property
    def draft(self) -> Path:
        return self.folder / "bundle.json.draft"

    def keys(self, *numbers: int) -> list[object]:
        return [word for number in numbers for word in ("--root-key", self.stick / f"root-{number}.key")]

    def do(self, verb: str, *words: object) -> int:
        self._capsys.readouterr()
        return trust(verb, self.folder, *words)

    def sign(self, *numbers: int) -> int:
        self._capsys.readouterr()
        return trust("sign", self.draft, *self.keys(*numbers))

    def said(self) -> tuple[str, str]:
        found = self._capsys.readouterr()
        return found.out, found.err

    def bundle(self, *, floor: int = 0) -> TrustBundle:
        """What a site that pinned the first root makes of it."""
        return open_bundle((self.folder / "bundle.json").read_bytes(), pinned_root=self.pinned, floor_version=floor, now=datetime.now(UTC))

    def key_id(self, file: Path) -> str:
        return PrivateKey.from_pem(file.read_bytes()).public.id

    def public(self, name: str) -> Path:
        """A new key; the file with its public half."""
        self._capsys.readouterr()
        assert trust("make-key", self.stick / f"{name}.key") == 0
        self._capsys.readouterr()
        return self.stick / f"{name}.pub"


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    """Version 1 is in force, no root key is in the folder."""
    return Desk(tmp_path, capsys)


def test_one_signature_makes_a_draft_and_the_second_the_bundle(desk: Desk) -> None:
    bob = desk.public("bob")
    assert desk.do("add-publisher", "--model", "digits", "--key", bob, *desk.keys(1)) == 0
    out, err = desk.said()
    assert f"+ publishers.digits.keys: {desk.key_id(bob.with_suffix('.key'))}" in out
    assert "lacks 1 signature" in err
    assert desk.bundle().version == 1, "a draft is nothing yet"
    assert trust("show", desk.draft) == 2
    assert "edgefleet trust sign" in desk.said()[1]
    assert trust("sign", desk.draft) == 0, "only shown"
    assert desk.bundle().version == 1
    assert desk.sign(1) == 0, "the same key again counts once"
    assert desk.bundle().version == 1
    assert desk.sign(3) == 0
    out, err = desk.said()
    assert "+ bundle.version: 2" in out
    assert "- bundle.version: 1" in out
    assert desk.bundle(floor=2).version == 2
    assert len(desk.bundle().publishers["digits"].keys) == 2
    assert len(desk.bundle().publishers["weld-qc"].keys) == 1
    assert not desk.draft.exists()


def test_the_holders_sign_copies_of_the_draft(desk: Desk, tmp_path: Path) -> None:
    """The second holder has the public files from another place, and gets nothing but the draft."""
    there = tmp_path / "there"
    there.mkdir()
    for name in ("root.json", "bundle.json"):
        shutil.copy(desk.folder / name, there)
    assert desk.do("renew", *desk.keys(2)) == 0
    desk.draft.rename(there / desk.draft.name)
    assert trust("sign", there / desk.draft.name, *desk.keys(3)) == 0
    found = open_bundle((there / "bundle.json").read_bytes(), pinned_root=desk.pinned, floor_version=2, now=datetime.now(UTC))
    assert found.version == 2


def test_a_second_change_waits_for_the_first(desk: Desk) -> None:
    assert desk.do("renew", *desk.keys(1)) == 0
    before = desk.draft.read_bytes()
    assert desk.do("revoke", "--digest", DIGEST, *desk.keys(1, 2)) == 1
    assert "DraftPending" in desk.said()[1]
    assert (desk.draft.read_bytes(), desk.bundle().version) == (before, 1)


def forged(desk: Desk, version: int = 2, roots: Sequence[bytes] | None = None, life: timedelta = timedelta(days=9)) -> bytes:
    found = desk.bundle()
    return make_bundle(
        roots=roots or read_roots((desk.folder / "bundle.json").read_bytes()),
        signers=(),
        version=version,
        content=found,
        expires_at=datetime.now(UTC) + life,
    )


def foreign_root() -> bytes:
    """A root of somebody else's, version 1."""
    key = PrivateKey.generate()
    return make_root([key.public], signers=[key], threshold=1, version=1, expires_at=datetime.now(UTC) + timedelta(days=9))


def skipped_root(desk: Desk) -> list[bytes]:
    """Roots 1 and 3."""
    key = PrivateKey.from_pem((desk.stick / "root-1.key").read_bytes())
    third = make_root([key.public], signers=[key], threshold=1, version=3, expires_at=datetime.now(UTC) + timedelta(days=9))
    return [*read_roots((desk.folder / "bundle.json").read_bytes()), third]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda desk: forged(desk, version=1), "DraftVersion", id="the version in force"),
        pytest.param(lambda desk: forged(desk, version=3), "DraftVersion", id="a version left out"),
        pytest.param(lambda desk: forged(desk, roots=[foreign_root()]), "DraftForeign", id="another installation's"),
        pytest.param(lambda desk: forged(desk, roots=skipped_root(desk)), "DraftForeign", id="a root left out"),
        pytest.param(lambda desk: forged(desk, life=-timedelta(days=1)), "BundleExpired", id="past its end"),
        pytest.param(lambda _: b"{}", "BundleMalformed", id="empty"),
        pytest.param(
            lambda desk: forged(desk).replace(b'"minReleaseSeq": 0', b'"minReleaseSeq": 1'), "BundleMalformed", id="not what it names"
        ),
    ],
)
def test_what_is_never_signed(desk: Desk, make: Any, reason: str) -> None:
    desk.draft.write_bytes(make(desk))
    before = desk.draft.read_bytes()
    assert desk.sign(1, 2) == 1
    assert reason in desk.said()[1]
    assert (desk.draft.read_bytes(), desk.bundle().version) == (before, 1)


def test_a_key_that_is_no_root_key_signs_nothing(desk: Desk) -> None:
    assert desk.do("renew", "--root-key", desk.folder / "hub.key") == 1
    assert "RootKeyUnknown" in desk.said()[1]
    assert not desk.draft.exists()


def test_the_signer_sees_all_that_a_draft_says(desk: Desk) -> None:
    """A person who signs must be shown what nobody told him: here a revocation that came with a harmless change."""
    found = desk.bundle()
    hidden = make_draft(
        (desk.folder / "bundle.json").read_bytes(),
        version=2,
        content=type(found)(
            publishers=found.publishers,
            hub_keys=(PrivateKey.generate().public,),
            revoked=type(found.revoked)(frozenset({DIGEST})),
            version=2,
            expires_at=found.expires_at,
        ),
        expires_at=datetime.now(UTC) + timedelta(days=1000),
    )
    desk.draft.write_bytes(hidden)
    assert trust("sign", desk.draft) == 0
    changes = desk.said()[0].splitlines()
    assert f"+ revoked.digests: {DIGEST}" in changes
    assert [line[:11] for line in changes].count("- hubKeys: ") == 1
    assert [line[:11] for line in changes].count("+ hubKeys: ") == 1
    assert any(line.startswith("+ bundle.ends: ") for line in changes)


@pytest.mark.parametrize(
    ("file", "fact"),
    [
        pytest.param({"default": {"images": []}}, "limits.default.images: (empty list)", id="no image at all"),
        pytest.param({"models": {"digits": {}}}, "limits.models.digits: (empty map)", id="a model without the default's limits"),
    ],
)
def test_the_signer_sees_what_is_empty(desk: Desk, file: dict[str, Any], fact: str) -> None:
    """No line would look like no change; it means that nothing is allowed, or that everything is."""
    held = (desk.folder / "bundle.json").read_bytes()
    document = json.loads(forged(desk))
    document["trust"] |= {"formatVersion": 3, "limits": file}
    assert fact in list_facts(json.dumps(document).encode())
    assert fact not in list_facts(held)


def test_a_new_root_replaces_a_lost_key_and_old_sites_follow(desk: Desk) -> None:
    new = desk.public("root-4")
    lost = desk.key_id(desk.stick / "root-1.key")
    assert desk.do("rotate", "--remove", lost, "--add", new, *desk.keys(2)) == 0
    _, err = desk.said()
    assert "root 2 (old keys): 1 of" in err
    assert "root 2 (its own keys): 1 of" in err
    assert desk.sign(4) == 0, "the old root wants another of its own"
    assert desk.bundle().version == 1
    assert desk.sign(3) == 0
    assert desk.bundle(floor=2).version == 2
    # The lost key signs nothing any more, neither old sites nor a new one believe it.
    assert desk.do("renew", *desk.keys(1)) == 1
    assert "RootKeyUnknown" in desk.said()[1]
    assert desk.do("rotate", "--root-threshold", 3, *desk.keys(2, 3, 4)) == 0
    assert desk.bundle(floor=3).version == 3
    assert desk.do("renew", *desk.keys(2, 3)) == 0
    assert desk.draft.exists()
    assert desk.sign(4) == 0
    assert desk.bundle(floor=4).version == 4
    assert (desk.folder / "root.json").read_bytes() == desk.pinned


def test_a_new_root_needs_as_many_old_keys_as_the_old_one_says(desk: Desk) -> None:
    """Whoever has one of three keys cannot make himself the root."""
    mine = desk.public("mine")
    ids = [desk.key_id(desk.stick / f"root-{number}.key") for number in (2, 3)]
    removed = [word for one in ids for word in ("--remove", one)]
    assert desk.do("rotate", *removed, "--add", mine, "--root-threshold", 1, *desk.keys(1), "--root-key", desk.stick / "mine.key") == 0
    assert "root 2 (old keys): 1 of" in desk.said()[1]
    assert desk.bundle().version == 1
    data = desk.draft.read_bytes()
    with pytest.raises(Rejected) as refused:
        open_bundle(data, pinned_root=desk.pinned, floor_version=0, now=datetime.now(UTC))
    assert refused.value.reason == "BundleUnderSigned"


def test_hub_keys_overlap_for_a_while(desk: Desk) -> None:
    old = desk.bundle().hub_keys
    new = PublicKey.from_pem(desk.public("hub-2").read_bytes())
    assert desk.do("replace-hub-key", "--key", desk.stick / "hub-2.pub", "--keep-old", *desk.keys(1, 2)) == 0
    assert desk.bundle().hub_keys == (*old, new)
    assert desk.do("replace-hub-key", "--key", desk.stick / "hub-2.pub", *desk.keys(1, 2)) == 0
    assert desk.bundle().hub_keys == (new,)


def test_a_key_has_one_part(desk: Desk) -> None:
    """A hub key that were a publisher's could make a release and order it; a stolen root key is not gone because it is revoked."""
    hub, publisher, root = (desk.folder / f"{name}.pub" for name in ("hub", "publisher", "root-1"))
    for words, reason in (
        (["add-publisher", "--model", "digits", "--key", hub], "KeyInUse"),
        (["add-publisher", "--model", "digits", "--key", root], "KeyInUse"),
        (["replace-hub-key", "--key", publisher], "KeyInUse"),
        (["replace-hub-key", "--key", root], "KeyInUse"),
        (["rotate", "--add", hub], "KeyInUse"),
        (["revoke", "--key", root], "NotAPublisher"),
        (["add-publisher", "--model", "digits", "--key", desk.stick / "root-1.key"], "KeyInvalid"),
    ):
        assert desk.do(words[0], *words[1:], *desk.keys(1, 2)) == 1, words
        assert f"error: {reason}: " in desk.said()[1], words
    assert desk.bundle().version == 1
    bob = desk.public("bob")
    assert desk.do("revoke", "--key", bob, *desk.keys(1, 2)) == 0
    assert "is no publisher of this bundle" in desk.said()[1]
    assert desk.bundle().revoked.keys == {PublicKey.from_pem(bob.read_bytes()).id}


def test_a_lost_root_key_is_named_by_its_public_half(desk: Desk) -> None:
    four = desk.public("root-4")
    assert desk.do("rotate", "--remove", desk.folder / "root-2.pub", "--add", four, "--root-valid-days", 20, *desk.keys(1, 3)) == 0
    assert "its root ends before it" in desk.said()[1]
    assert desk.bundle(floor=2).version == 2
    assert trust("show", desk.folder) == 0
    out, err = desk.said()
    assert desk.key_id(desk.stick / "root-2.key") not in out
    assert "trust rotate --root-valid-days" in err, "renew would not help"


def test_a_revoked_release_may_have_a_time_from_which_nothing_serves_rather_than_it(desk: Desk) -> None:
    time = ["--stop-serving-by", "2026-01-31T18:00:00Z"]
    assert desk.do("revoke", "--key", desk.public("bob"), *time, *desk.keys(1, 2)) == 2
    assert desk.do("revoke", "--digest", DIGEST, "--stop-serving-by", "tomorrow", *desk.keys(1, 2)) == 2
    assert desk.do("revoke", "--digest", DIGEST, *desk.keys(1, 2)) == 0
    assert desk.bundle().revoked.stops == {}
    assert desk.do("revoke", "--digest", DIGEST, *time, *desk.keys(1, 2)) == 0
    assert desk.bundle().revoked.stops == {DIGEST: datetime(2026, 1, 31, 18, tzinfo=UTC)}


def test_a_revoked_key_leaves_every_publisher(desk: Desk) -> None:
    bob = desk.public("bob")
    stolen = desk.folder / "publisher.pub"
    assert desk.do("revoke", "--key", stolen, *desk.keys(1, 2)) == 1
    err = desk.said()[1]
    assert "PublishersTooFew" in err
    assert "digits (0 left, 1 must sign), weld-qc (0 left, 1 must sign)" in err
    assert desk.do("add-publisher", "--model", "digits", "--key", bob, "--threshold", 2, *desk.keys(1, 2)) == 0
    assert desk.do("revoke", "--key", stolen, "--too-few", "lower", *desk.keys(1, 2)) == 1
    assert "weld-qc (0 left" in desk.said()[1]
    assert desk.do("add-publisher", "--model", "weld-qc", "--key", bob, *desk.keys(1, 2)) == 0
    assert desk.do("revoke", "--key", stolen, "--too-few", "lower", *desk.keys(1, 2)) == 0
    found = desk.bundle()
    revoked = PublicKey.from_pem(stolen.read_bytes()).id
    assert found.revoked.keys == {revoked}
    assert {model: (len(entry.keys), entry.threshold) for model, entry in found.publishers.items()} == {"digits": (1, 1), "weld-qc": (1, 1)}
    assert desk.do("add-publisher", "--model", "digits", "--key", stolen, *desk.keys(1, 2)) == 1
    assert "PublisherRevoked" in desk.said()[1]
    assert desk.do("revoke", "--key", bob, "--too-few", "drop", *desk.keys(1, 2)) == 0
    assert desk.bundle().publishers == {}
    assert desk.do("revoke", "--key", desk.folder / "hub.pub", *desk.keys(1, 2)) == 1
    assert "replace-hub-key" in desk.said()[1]


@pytest.mark.parametrize(
    "words",
    [
        ["revoke", "--digest", DIGEST],
        ["add-publisher", "--model", "digits", "--min-seq", "7", "--predicate", "https://acme.test/reviewed/v1"],
        ["rotate", "--root-threshold", "3"],
    ],
)
def test_a_change_is_made_once_and_can_be_tried(desk: Desk, words: list[str]) -> None:
    verb, *more = words
    assert desk.do(verb, *more, "--dry-run") == 0
    tried, err = desk.said()
    assert "--dry-run" in err
    assert desk.bundle().version == 1
    assert not desk.draft.exists()
    assert desk.do(verb, *more, *desk.keys(1, 2, 3)) == 0
    done, _ = desk.said()
    assert [line for line in done.splitlines() if "ends" not in line] == [line for line in tried.splitlines() if "ends" not in line]
    assert desk.bundle().version == 2
    before = (desk.folder / "bundle.json").read_bytes()
    assert desk.do(verb, *more, *desk.keys(1, 2, 3)) == 0
    assert "nothing changes" in desk.said()[1]
    assert (desk.folder / "bundle.json").read_bytes() == before


def test_a_bundle_past_its_end_can_be_renewed(desk: Desk) -> None:
    held = desk.bundle()
    keys = [PrivateKey.from_pem((desk.stick / f"root-{number}.key").read_bytes()) for number in (1, 2)]
    ended = make_bundle(
        roots=read_roots((desk.folder / "bundle.json").read_bytes()),
        signers=keys,
        version=5,
        content=held,
        expires_at=datetime.now(UTC) - timedelta(days=3),
    )
    (desk.folder / "bundle.json").write_bytes(ended)
    assert trust("show", desk.folder / "bundle.json") == 1
    assert "BundleExpired" in desk.said()[1]
    assert desk.do("renew", "--valid-days", 20, *desk.keys(1, 2)) == 0
    assert desk.bundle(floor=6).version == 6
    assert trust("show", desk.folder / "bundle.json") == 0
    assert "warning: it ends" in desk.said()[1]


def test_show_has_everything_that_is_in_the_bundle(desk: Desk) -> None:
    assert desk.do("revoke", "--digest", DIGEST, *desk.keys(1, 2)) == 0
    assert desk.do("add-publisher", "--model", "digits", "--predicate", "https://acme.test/reviewed/v1", *desk.keys(1, 2)) == 0
    desk.said()
    assert trust("show", desk.folder / "bundle.json") == 0
    out, err = desk.said()
    assert err == ""
    for fact in list_facts((desk.folder / "bundle.json").read_bytes()):
        value = fact.partition(": ")[2]
        assert value in out or value[:19] in out, fact
    assert trust("show", desk.folder / "bundle.json", "-o", "json") == 0
    found = json.loads(desk.said()[0])
    assert found["revoked"]["digests"] == [DIGEST]
    assert found["publishers"]["digits"]["requiredPredicates"] == ["https://acme.test/reviewed/v1"]
    assert (found["root"]["threshold"], len(found["root"]["keys"])) == (2, 3)


def test_keys_are_never_overwritten(desk: Desk) -> None:
    before = desk.public("root-4").read_bytes()
    assert trust("make-key", desk.stick / "root-4.key") == 1
    assert "AlreadyExists" in desk.said()[1]
    assert (desk.stick / "root-4.pub").read_bytes() == before
    assert (desk.stick / "root-4.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "words",
    [
        ["revoke", "DIR"],
        ["revoke", "DIR", "--digest", "sha256:abc"],
        ["revoke", "DIR", "--key", "nobody"],
        ["rotate", "DIR", "--root-threshold", "4"],
        ["add-publisher", "DIR", "--model", "digits", "--replace", "--min-seq", "1"],
        ["add-publisher", "DIR", "--model", "digits", "--threshold", "2"],
        ["replace-hub-key", "DIR"],
        ["make-key", "DIR"],
        ["sign", "DIR/bundle.json"],
    ],
)
def test_wrong_usage_is_2(desk: Desk, words: list[str]) -> None:
    assert trust(*[word.replace("DIR", str(desk.folder)) for word in words]) == 2
    assert desk.bundle().version == 1
