"""Identities: whom a rule admits, which rules there are not, and that no subject keeps a verifier busy."""

import time

import pytest

from edgefleet.trust.identities import MAX_SUBJECT, Identity

ISSUER = "https://token.test"


def admits(regex: str, subject: str) -> bool:
    return Identity(ISSUER, subject_regex=regex).admits(ISSUER, subject)


@pytest.mark.parametrize(
    ("regex", "subject", "expected"),
    [
        (r"https://github[.]com/acme/.*", "https://github.com/acme/weld", True),
        (r"https://github[.]com/acme/.*", "https://github.com/acme", False),
        (r"acme", "https://github.com/acme/weld", False),
        (r"a|ab", "ab", True),
        (r"a|ab", "abc", False),
        (r"(?i)ACME", "acme", True),
        (r"a.b", "a\nb", False),
        (r"a", "a\n", False),
        (r"(?m)a$", "a\nb", False),
        (r"a\n", "a", False),
        (r"(?P<who>[a-z]+)@acme[.]test", "ci@acme.test", True),
        (r".*", "x" * MAX_SUBJECT, True),
        (r".*", "x" * (MAX_SUBJECT + 1), False),
        (r".*", "\ud800", False),
    ],
)
def test_whom_a_regex_admits(regex: str, subject: str, expected: bool) -> None:
    assert admits(regex, subject) is expected


@pytest.mark.parametrize(
    ("regex", "why"),
    [
        pytest.param("(", "unclosed group", id="unclosed"),
        pytest.param("a)|(b", "unopened group", id="out of the brackets"),
        pytest.param("(?x)a #", "unclosed group", id="a comment over the end"),
        pytest.param("(?=a)a", "look-around", id="look-ahead"),
        pytest.param(r"(a)\1", "backreferences", id="backreference"),
        pytest.param("((a{100}){100}){100}", "size limit", id="too large"),
    ],
)
def test_which_regexes_are_refused(regex: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Identity(ISSUER, subject_regex=regex)


@pytest.mark.parametrize("regex", ["(a+)+b", "(a|a)*b", "(.*)*b", ".*.*.*.*.*.*.*.*.*.*.*.*b", "(?:a?){500}a{500}b", "(x+x+)+y|(a*)*c"])
def test_no_subject_keeps_a_verifier_busy(regex: str) -> None:
    """Python's own engine needs longer than the universe has for some of these."""
    started = time.process_time()
    assert not admits(regex, "a" * MAX_SUBJECT)
    assert time.process_time() - started < 5
