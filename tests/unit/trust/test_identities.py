"""Identities: whom a rule admits, which rules there are not, and that no subject keeps a verifier busy."""

import time

import pytest

from edgefleet.trust.identities import MAX_SUBJECT, Identity, _compile

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
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{12}", "0123abcd-0123-0123456789ab", True),
        (r"ci,2026@acme[.]test", "ci,2026@acme.test", True),
        (r"weld-\w{1,63}", "weld-" + "x" * 64, False),
    ],
)
def test_whom_a_regex_admits(regex: str, subject: str, expected: bool) -> None:
    assert admits(regex, subject) is expected


@pytest.mark.parametrize(
    ("regex", "why"),
    [
        pytest.param("(", "unclosed group", id="unclosed"),
        pytest.param("a)|(b", "unopened group", id="out of the brackets"),
        pytest.param("(?x)a #", "flag x", id="a comment over the end"),
        pytest.param("(?=a)a", "look-around", id="look-ahead"),
        pytest.param(r"(a)\1", "backreferences", id="backreference"),
        pytest.param(r"(?i)[\w.-]{1,200}@acme[.]test", "counts 200 repetitions", id="many of a large class"),
        pytest.param(r"\w{32}x\w{33}", "counts 65 repetitions", id="many in all"),
        pytest.param("((a{4}){4}){4}", "of a group", id="counted groups"),
        pytest.param("a{8}{8}", "of a group", id="counted counts"),
        pytest.param("(?:a{8})*{60}", "of a group", id="a group behind a star"),
        pytest.param(r"\w{ , 200 }", "counts 200", id="counted behind blanks"),
        pytest.param("(?ix)a{ 1, #\n 200 }", "flag x", id="counted behind a comment"),
        pytest.param("(?i-s:a)(?sx:b)", "flag x", id="a flag of a group"),
        pytest.param("a{4294967296}", "counts 4294967296", id="past all integers"),
    ],
)
def test_which_regexes_are_refused(regex: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Identity(ISSUER, subject_regex=regex)


def test_policies_that_are_read_again_compile_nothing() -> None:
    regexes = [rf"team-{number}-\w{{1,60}}@acme[.]test" for number in range(24)]
    for regex in regexes:
        Identity(ISSUER, subject_regex=regex)
    compiled = _compile.cache_info().misses
    for regex in regexes:
        Identity(ISSUER, subject_regex=regex)
    assert _compile.cache_info().misses == compiled
    assert _compile.cache_info().currsize <= 4


@pytest.mark.parametrize("regex", ["(a+)+b", "(a|a)*b", "(.*)*b", ".*.*.*.*.*.*.*.*.*.*.*.*b", "(?:a?a?a?a?)*a{60}b", "(x+x+)+y|(a*)*c"])
def test_no_subject_keeps_a_verifier_busy(regex: str) -> None:
    """Python's own engine needs longer than the universe has for some of these."""
    started = time.process_time()
    assert not admits(regex, "a" * MAX_SUBJECT)
    assert time.process_time() - started < 5
