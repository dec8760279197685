"""The files of a site's identity: what is no join file, and what a damaged folder says. Joining itself is tested on a real hub."""

import json
from pathlib import Path

import pytest

from edgefleet.api.join import JoinFile
from edgefleet.site.identity import Identity
from edgefleet.site.identity_files import IdentityInvalid, describe, load_or_make_key, read_join_file

GOOD = {
    "formatVersion": 1,
    "site": "berlin",
    "hub": "https://hub.example:6443",
    "ca": "",
    "token": "s3cr3t",
    "expiresAt": "2026-11-28T07:00:00Z",
    "root": "{}",
}


def test_a_join_file_is_read_and_hides_its_token(tmp_path: Path) -> None:
    (tmp_path / "join.json").write_text(json.dumps(GOOD))
    found = read_join_file(tmp_path / "join.json")
    assert (found.site, found.hub, found.token) == ("berlin", "https://hub.example:6443", "s3cr3t")
    assert "s3cr3t" not in repr(found)
    assert JoinFile.model_validate(found.to_json_dict()) == found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"formatVersion": 2}, "formatVersion", id="a newer format"),
        pytest.param({"site": "Berlin"}, "site", id="no name"),
        pytest.param({"hub": "http://hub.example"}, "hub", id="no TLS"),
        pytest.param({"hub": "https://me:s3cr3t@hub.example"}, "hub", id="a login in the address"),
        pytest.param({"token": "s3cr3t\nX: y"}, "token", id="a token that is none"),
        pytest.param({"root": ""}, "root", id="no root"),
    ],
)
def test_what_is_no_join_file_is_named_without_its_token(change: dict[str, object], said: str, tmp_path: Path) -> None:
    (tmp_path / "join.json").write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(IdentityInvalid) as refusal:
        Identity(tmp_path / "identity", tmp_path / "join.json")
    assert f"{said}: " in str(refusal.value)
    assert "edgefleet site join" in str(refusal.value)
    assert "s3cr3t" not in str(refusal.value)


def test_without_a_join_file_and_a_folder_nobody_knows_which_site_it_is(tmp_path: Path) -> None:
    with pytest.raises(IdentityInvalid, match="a join file was expected"):
        Identity(tmp_path / "identity", tmp_path / "join.json")
    with pytest.raises(IdentityInvalid, match="edgefleet agent --join FILE"):
        describe(tmp_path / "identity")


@pytest.mark.parametrize("name", ["hub.json", "site.pem"])
def test_a_damaged_folder_is_named_and_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("half of it")
    with pytest.raises(IdentityInvalid, match=name):
        describe(tmp_path)
    assert (tmp_path / name).read_text() == "half of it"


def test_a_key_is_kept_for_the_next_try_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "next-renewal.key"
    key = load_or_make_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_make_key(path) == key
    path.write_text("half of a key")
    assert load_or_make_key(path) != key
