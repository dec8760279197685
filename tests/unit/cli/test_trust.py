"""`edgefleet trust`: two commands for a first user, private keys that only their owner reads, and nothing overwritten."""

import json
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edgefleet.cli.app import run
from edgefleet.trust.bundle import open_bundle
from edgefleet.trust.keys import PrivateKey, PublicKey
from tests.lab.sigstore.private import PrivateSigstore


def init(folder: Path, *more: str) -> int:
    return run(["trust", "init", str(folder), "--model", "digits", *more])


def shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert run(["trust", "show", str(folder / "bundle.json"), "-o", "json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_init_makes_all_that_a_first_user_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "trust"
    assert init(folder, "--model", "weld-qc") == 0
    names = {path.name for path in folder.iterdir()}
    assert names == {"root-1.key", "root-1.pub", "root.json", "hub.key", "hub.pub", "publisher.key", "publisher.pub", "bundle.json"}
    bundle = open_bundle(
        (folder / "bundle.json").read_bytes(), pinned_root=(folder / "root.json").read_bytes(), floor_version=1, now=datetime.now(UTC)
    )
    hub, publisher = (PrivateKey.from_pem((folder / f"{name}.key").read_bytes()).public for name in ("hub", "publisher"))
    assert bundle.version == 1
    assert bundle.hub_keys == (hub,)
    assert {model: entry.keys for model, entry in bundle.publishers.items()} == {"digits": (publisher,), "weld-qc": (publisher,)}
    assert PublicKey.from_pem((folder / "publisher.pub").read_bytes()) == publisher
    assert "PRIVATE" not in "".join(capsys.readouterr())


def test_private_keys_are_their_owners(tmp_path: Path) -> None:
    init(tmp_path / "trust", "--root-keys", "3")
    keys = sorted((tmp_path / "trust").glob("*.key"))
    assert len(keys) == 5
    for key in keys:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert b"PRIVATE KEY" in key.read_bytes()


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert init(tmp_path) == 1
    assert "AlreadyExists" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_one_file_in_the_way_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "hub.key").write_text("mine")
    assert init(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["hub.key"]


def test_a_publisher_is_added_and_the_others_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(tmp_path)
    bob = PrivateKey.generate().public
    (tmp_path / "bob.pub").write_text(bob.to_pem())
    keys = ["--key", str(tmp_path / "bob.pub"), "--key", str(tmp_path / "publisher.pub")]
    assert run(["trust", "add-publisher", str(tmp_path), "--model", "weld-qc", *keys, "--threshold", "2"]) == 0
    found = shown(tmp_path, capsys)
    publishers = found["publishers"]
    assert isinstance(publishers, dict)
    assert set(publishers) == {"digits", "weld-qc"}
    assert publishers["weld-qc"]["threshold"] == 2
    assert bob.id in publishers["weld-qc"]["keys"]


def test_identities_are_publishers_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(tmp_path)
    roots = [tmp_path / "sigstore-1.json", tmp_path / "sigstore-2.json"]
    for number, root in enumerate(roots):
        root.write_text(json.dumps(PrivateSigstore(f"{number}.test").trusted_root()))

    def publish(model: str, *more: str) -> int:
        return run(["trust", "add-publisher", str(tmp_path), "--model", model, "--issuer", "https://token.test", *more])

    assert publish("digits", "--identity", "https://a.test/x") == 2, "no trusted root"
    assert publish("digits", "--identity", "https://a.test/x", "--sigstore-root", str(roots[0])) == 0
    both = ["--identity-regex", "https://b.*", "--key", str(tmp_path / "publisher.pub"), "--threshold", "2"]
    assert publish("weld-qc", *both) == 0, "the bundle has a trusted root already"
    publishers: Any = shown(tmp_path, capsys)["publishers"]
    assert publishers["digits"]["identities"] == ["https://token.test https://a.test/x"]
    assert (publishers["weld-qc"]["identities"], len(publishers["weld-qc"]["keys"])) == (["https://token.test /https://b.*/"], 1)

    assert publish("weld-qc", *both, "--sigstore-root", str(roots[1])) == 0
    bundle = open_bundle(
        (tmp_path / "bundle.json").read_bytes(), pinned_root=(tmp_path / "root.json").read_bytes(), floor_version=4, now=datetime.now(UTC)
    )
    assert [json.loads(entry.keyless.trusted_root) for entry in bundle.publishers.values() if entry.keyless] == [
        json.loads(roots[1].read_text())
    ] * 2
    capsys.readouterr()
    assert publish("digits", "--identity", "https://a.test/x", "--sigstore-root", str(tmp_path / "root.json")) == 1
    assert "TrustedRootMalformed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["add-publisher", "DIR", "--model", "digits", "--identity", "https://a.test/x"],
        ["init", "DIR"],
        ["init", "DIR", "--model", "Not A Name"],
        ["init", "DIR", "--model", "digits", "--root-keys", "2", "--root-threshold", "3"],
        ["show"],
        ["add-publisher", "DIR", "--model", "digits"],
        ["nonsense"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str], tmp_path: Path) -> None:
    assert run(["trust", *[str(tmp_path / "t") if word == "DIR" else word for word in arguments]]) == 2
    assert not (tmp_path / "t").exists()


def test_a_bundle_without_its_root_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(tmp_path)
    init(tmp_path / "other")
    (tmp_path / "root.json").unlink()
    assert run(["trust", "show", str(tmp_path / "bundle.json")]) == 1
    assert "RootMissing" in capsys.readouterr().err
    assert run(["trust", "show", str(tmp_path / "bundle.json"), "--root", str(tmp_path / "other" / "root.json")]) == 1
    assert "BundleRootMismatch" in capsys.readouterr().err


def test_show_takes_the_folder_and_has_ids_to_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(tmp_path)
    capsys.readouterr()
    assert run(["trust", "show", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert PublicKey.from_pem((tmp_path / "publisher.pub").read_bytes()).id in lines


@pytest.mark.parametrize("noun", ["trust", "model", "golden", "site"])
def test_help_lists_whole_sentences(noun: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([noun, "--help"]) == 0
    _, _, out = capsys.readouterr().out.partition("Commands:")
    assert out
    assert "..." not in out


def test_help_lists_a_bundles_life(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trust", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.index("  init ") < out.index("  show ") < out.index("  add-publisher ") < out.index("  make-key ")


def test_tables_fit_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(tmp_path, "--root-keys", "3")
    run(["trust", "show", str(tmp_path / "bundle.json")])
    assert all(len(line) <= 80 for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trust/absent.json"], "trust/absent.json"),
        (["trust/hub.key"], "trust/hub.key: the trust bundle"),
        (["trust/bundle.json", "--root", "trust/hub.pub"], "trust/hub.pub: not a root document"),
        (["trust/bundle.json", "--root", "absent.json"], "absent.json is not there"),
    ],
)
def test_show_names_the_file_that_is_wrong(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    init(Path("trust"))
    capsys.readouterr()
    assert run(["trust", "show", *words]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
