"""Who may sign without a key of their own: identities that a Sigstore's certificate authority vouches for.

Only what is believed is written here, so that whoever reads a policy need not load Sigstore's library; keyless.py verifies.
"""

import functools
import re
from dataclasses import dataclass

from pydantic_core import SchemaError, SchemaValidator, core_schema

MAX_SUBJECT = 1024
MAX_COUNTED = 64
"""How many repetitions a regex may count, added up."""
_COUNTS = re.compile(r"\{\s*([0-9]*)\s*,?\s*([0-9]*)")
_NESTED = re.compile(r"[)}*+?]\{")
_VERBOSE = re.compile(r"\(\?[a-zA-Z-]*x")


@dataclass(frozen=True)
class Identity:
    """One publisher: a certificate's subject, as its `issuer` (the OpenID Connect issuer's URL) gave it out.

    Exactly one of `subject` and `subject_regex` is set; a regex (of RE2's syntax: no look-around, no backreferences; `{m,n}` up to 64 in
    all, and of no group) must match the whole subject. All who match one rule are one publisher. Raises ValueError.
    """

    issuer: str
    subject: str = ""
    subject_regex: str = ""

    def __post_init__(self) -> None:
        if not self.issuer:
            raise ValueError("an identity needs its issuer: without one, any issuer could name this subject")
        if bool(self.subject) == bool(self.subject_regex):
            raise ValueError(f"an identity of {self.issuer} has exactly one of subject and subjectRegex")
        if self.subject_regex:
            _require_sound(self.subject_regex)

    @property
    def id(self) -> str:
        """How this publisher is counted and named."""
        return f"{self.issuer} {self.subject or '/' + self.subject_regex + '/'}"

    def admits(self, issuer: str, subject: str) -> bool:
        """Whether a certificate of this issuer and subject is this publisher's."""
        if issuer != self.issuer or len(subject) > MAX_SUBJECT:
            return False
        return subject == self.subject if self.subject else _compile(self.subject_regex).isinstance_python(subject)


@dataclass(frozen=True)
class Keyless:
    """Publishers by identity, and the trusted root (`trusted_root.json` of a Sigstore) that their certificates and logs follow from."""

    identities: tuple[Identity, ...]
    trusted_root: bytes


# Policies are read at each pass: what compiled once is not compiled again to be told so.
@functools.lru_cache(maxsize=1024)
def _require_sound(regex: str) -> None:
    """Raises ValueError for what is no regex, and, as it is written, for what would cost much: the engine's own limit lets 10 MB pass."""
    if _VERBOSE.search(regex):
        raise ValueError(f"subjectRegex {regex!r} has the flag x: write it without blanks and comments")
    if _NESTED.search(regex):
        raise ValueError(f"subjectRegex {regex!r} counts repetitions of a group: write {{m,n}} after one character or class alone")
    counted = sum(max(int(low or 0), int(high or 0)) for low, high in _COUNTS.findall(regex))
    if counted > MAX_COUNTED:
        raise ValueError(f"subjectRegex {regex!r} counts {counted} repetitions in all, {MAX_COUNTED} are allowed: use * or +")
    _compile(regex)


# Few are kept: within these bounds, one of 256 characters grows to some 4 MB.
@functools.lru_cache(maxsize=4)
def _compile(regex: str) -> SchemaValidator:
    """What matches whole subjects, in a time that grows with their length alone: whoever has a certificate chooses its subject."""
    try:
        # Alone first: `a)|(b` would come out of the brackets.
        for pattern in (regex, rf"\A(?:{regex})\z"):
            compiled = SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))
    except SchemaError as error:
        why = str(error).strip().rpartition("\n")[2].strip().removeprefix("error: ")
        raise ValueError(f"subjectRegex {regex!r} is not a regular expression of RE2's syntax: {why[:200]}") from error
    return compiled
