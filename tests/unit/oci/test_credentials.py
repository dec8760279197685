"""Logins of docker and its like are found by registry; a broken file is not quoted."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from edgefleet.oci.credentials import read_docker_config
from edgefleet.oci.errors import Unauthorised
from edgefleet.oci.transport import Credentials

AUTH = base64.b64encode(b"user:pass:word").decode()


@pytest.mark.parametrize(
    ("auths", "expected"),
    [
        ({"registry.example": {"auth": AUTH}}, {"registry.example": Credentials("user", "pass:word")}),
        ({"https://registry.example:5000/v2/": {"auth": AUTH}}, {"registry.example:5000": Credentials("user", "pass:word")}),
        ({"registry.example": {"username": "u", "password": "p"}}, {"registry.example": Credentials("u", "p")}),
        ({"registry.example": {}}, {}),
        (None, {}),
    ],
)
def test_logins(auths: Any, expected: dict[str, Credentials], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
    assert read_docker_config(tmp_path / "config.json") == expected


@pytest.mark.parametrize("text", ["secret-not-json", '"secret"', '{"auths": ["secret"]}', '{"auths": {"r": {"auth": "secret!"}}}'])
def test_a_broken_file_is_not_quoted(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(Unauthorised) as raised:
        read_docker_config(tmp_path / "config.json")
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_password_does_not_show_itself() -> None:
    assert "word" not in repr(Credentials("user", "word"))
