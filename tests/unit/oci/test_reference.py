"""References: full match or nothing, no defaults, plain HTTP for loopback alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet.oci.errors import ReferenceInvalid
from edgefleet.oci.reference import Reference, Repository, is_loopback

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "registry", "path", "tag", "digest"),
    [
        ("registry.example/digits:1.0", "registry.example", "digits", "1.0", None),
        ("registry.example:5000/a/b-c/d_e/f.g:v1", "registry.example:5000", "a/b-c/d_e/f.g", "v1", None),
        (f"registry.example/a/b@{DIGEST}", "registry.example", "a/b", None, DIGEST),
        (f"127.0.0.1:5000/a@{DIGEST}", "127.0.0.1:5000", "a", None, DIGEST),
        ("localhost/a:b", "localhost", "a", "b", None),
        ("[::1]:5000/a:b", "[::1]:5000", "a", "b", None),
        ("Registry.Example/a__b/c--d:_x", "Registry.Example", "a__b/c--d", "_x", None),
    ],
)
def test_what_is_a_reference(text: str, registry: str, path: str, tag: str | None, digest: str | None) -> None:
    found = Reference.parse(text)
    assert found == Reference(Repository(registry, path), tag, digest)
    assert str(found) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "digits",
        "digits:1",
        "library/digits:1",
        "UPPER/..//x:1",
        "registry.example/digits",
        "registry.example/:1",
        "registry.example/digits:",
        "registry.example//digits:1",
        "registry.example/digits/:1",
        "registry.example/Digits:1",
        "registry.example/../digits:1",
        "registry.example/a/./b:1",
        "registry.example/a___b:1",
        "registry.example/-a:1",
        "registry.example/digits:v1?x=/../../",
        "registry.example/digits:-v1",
        "registry.example/digits:" + "x" * 129,
        "registry.example/" + "x" * 300 + ":1",
        f"registry.example/digits:1@{DIGEST}",
        f"registry.example/digits@{DIGEST}x",
        f"registry.example/digits@{DIGEST.upper()}",
        f"registry.example/digits@{DIGEST}\n",
        "registry.example/digits@sha512:" + "a" * 128,
        "registry.example/digits@",
        "registry.example/digits:1\n",
        " registry.example/digits:1",
        "https://registry.example/digits:1",
        "user@registry.example/digits:1",
        "registry.example:0/digits:1",
        "registry.example:65536/digits:1",
        "registry.example:x/digits:1",
        "-registry.example/digits:1",
        "registry..example/digits:1",
        "[::g]:5000/digits:1",
        "[1.2]/digits:1",
        "::1/digits:1",
        "registry.exämple/digits:1",
        "registry.example/digits:①",
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ReferenceInvalid):
        Reference.parse(text)


@given(st.text(max_size=60))
def test_what_is_read_is_written_back(text: str) -> None:
    try:
        found = Reference.parse(text)
    except ReferenceInvalid:
        return
    assert str(found) == text


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("[::1]", True),
        ("128.0.0.1", False),
        ("0.0.0.0", False),  # noqa: S104 (a case that must not count)
        ("127.0.0.1.example", False),
        ("localhost.example", False),
        ("registry.example", False),
        ("", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_only_loopback_is_spoken_to_in_plain_http() -> None:
    assert Repository.parse("127.0.0.1:5000/a").url == "http://127.0.0.1:5000/v2/a"
    assert Repository.parse("[::1]:5000/a").url == "http://[::1]:5000/v2/a"
    assert Repository.parse("registry.example/a/b").url == "https://registry.example/v2/a/b"
    assert Repository.parse("10.0.0.1:5000/a").url == "https://10.0.0.1:5000/v2/a"
