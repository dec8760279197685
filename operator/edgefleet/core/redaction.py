"""What leaves the house in a support bundle, and what does not: credentials go, all that explains a fault stays.

By place (a Secret, `env`, last-applied, a field called password) and by look (private keys, tokens, credentials in URLs), as people and
programs put secrets where they do not belong. Digests, public keys, certificates and names of Secrets are no secrets and stay.
"""

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GONE = "[redacted]"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

_WORDS = (
    r"password|passwd|passphrase|pwd|secret|token|api[_-]?key|private[_-]?key|access[_-]?key|signing[_-]?key|credentials?|authorization"
)
_PARAMETERS = r"sig|signature|key|auth|code|pass|session"
_SENSITIVE_KEY = re.compile(rf"(?i)(?:{_WORDS}|dockerconfig(?:json)?|^auth$|^bearer$)[\w.-]*$")
_NAMES_ONLY = re.compile(r"(?i)(?:ref|name|names|namespace|path|mode|seconds|policy|audience)$")
_SENSITIVE_FLAG = re.compile(rf"(?i)^--?[\w-]*(?:{_WORDS})$")
_WHOLE = frozenset({"credentials", "auth", "auths", "passwords", "tokens"})


def _keep_public(found: re.Match[str]) -> str:
    """Base64 of a PEM: only what holds a private key goes."""
    text = found[0]
    try:
        plain = base64.b64decode(text + "=" * (-len(text) % 4), validate=False)
    except ValueError:
        return GONE
    return GONE if b"PRIVATE KEY" in plain or b"PRIVATE" in plain[:64] else text


@dataclass(frozen=True, slots=True)
class _Rule:
    """`needles`: of a line that has none of them, in lower case, the pattern cannot hold. Logs are long, and most lines have none."""

    needles: tuple[str, ...]
    pattern: re.Pattern[str]
    instead: str | Callable[[re.Match[str]], str] = GONE


_LOUD = ("pass", "pwd", "secret", "token", "key", "credential", "authorization")
_RULES: Sequence[_Rule] = (
    _Rule(("ls0tls1crudjti",), re.compile(r"LS0tLS1CRUdJTi[A-Za-z0-9+/=_-]{20,}"), _keep_public),
    _Rule(
        ("authorization",),
        re.compile(r"(?i)(authorization[\"'\\]*\s*[:=]\s*[\"'\\]*(?:(?:bearer|basic|token)\s+)?)[^\s\"',}\\]+"),
        rf"\1{GONE}",
    ),
    _Rule(("bearer", "basic"), re.compile(r"(?i)\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{8,}"), rf"\1\2{GONE}"),
    _Rule(("eyj",), re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?")),
    _Rule(
        ("gh", "glpat-", "dckr_pat_", "xox", "hf_", "npm_", "pypi-", "sk-"),
        re.compile(r"\b(?:gh[pousr]_|github_pat_|glpat-|dckr_pat_|xox[abeprs]-|hf_|npm_|pypi-|sk-)[A-Za-z0-9_-]{16,}"),
    ),
    _Rule(("akia", "asia"), re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    # A bootstrap token of Kubernetes.
    _Rule((".",), re.compile(r"(?<![\w.-])[a-z0-9]{6}\.[a-z0-9]{16}(?![\w.-])")),
    # Whoever writes a slash into a password has credentials that the first of these does not see.
    _Rule(("://",), re.compile(r"(://)[^/\s@\"'<>\\]{1,512}@"), rf"\1{GONE}@"),
    _Rule(("://",), re.compile(r"(://)[^/\s:@\"'<>\\]{1,128}:[^\s@\"'<>\\]{1,256}@(?!sha256:|sha512:)"), rf"\1{GONE}@"),
    _Rule(
        ("?", "&"),
        re.compile(
            rf"(?i)([?&](?:x-amz-[\w-]{{1,64}}|x-goog-[\w-]{{1,64}}|[^=&\s]{{0,64}}(?:{_PARAMETERS}|{_WORDS})[^=&\s]{{0,64}})=)[^&\s\"'<>\\]+"
        ),
        rf"\1{GONE}",
    ),
    _Rule(("--",), re.compile(rf"(?i)(--[\w-]{{0,64}}(?:{_WORDS})[\s=]+)[^\s\"',]+"), rf"\1{GONE}"),
    _Rule(_LOUD, re.compile(rf"(?i)((?:{_WORDS})\\?[\"']?\s*[:=]\s*\\?[\"'])[^\"'\\]+"), rf"\1{GONE}"),
    _Rule(_LOUD, re.compile(rf"(?i)((?:{_WORDS})\\?[\"']?\s*[:=]\s*)[^\s\"',;&}}\\]+"), rf"\1{GONE}"),
)
_KEY_BEGINS = re.compile(r"-----BEGIN ((?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY)-----")
_KEY_BODY = re.compile(r"(?:[A-Za-z0-9+/=\s]|\\[nr])*")
_LONGEST_KEY = 20_000


def redact_text(text: str) -> str:
    """Text of any kind, e.g. a log, without what looks like a credential."""
    return "".join(_redact_line(line) for line in _drop_keys(text).splitlines(keepends=True))


def _drop_keys(text: str) -> str:
    """Without private keys in PEM, also such whose end was cut off."""
    kept, position = [], 0
    while (begins := _KEY_BEGINS.search(text, position)) is not None:
        closing = f"-----END {begins[1]}-----"
        end = text.find(closing, begins.end(), begins.end() + _LONGEST_KEY)
        if end >= 0:
            stop = end + len(closing)
        else:
            body = _KEY_BODY.match(text, begins.end())
            stop = body.end() if body else begins.end()
        kept += [text[position : begins.start()], GONE]
        position = stop
    return "".join((*kept, text[position:]))


def _redact_line(line: str) -> str:
    lower = line.lower()
    for rule in _RULES:
        if any(needle in lower for needle in rule.needles):
            line = rule.pattern.sub(rule.instead, line)
    return line


def redact_object(value: Any) -> Any:
    """A JSON value, e.g. a Kubernetes object, without credentials. What it was not given it does not add."""
    if isinstance(value, Mapping):
        return _redact_map(value)
    if isinstance(value, list):
        return _redact_list(value)
    return _redact_string(value) if isinstance(value, str) else value


def _redact_map(value: Mapping[str, Any]) -> dict[str, Any]:
    if value.get("kind") == "Secret" and "metadata" in value:
        meta = value["metadata"] if isinstance(value["metadata"], Mapping) else {}
        return {"kind": "Secret", "metadata": {key: meta[key] for key in ("name", "namespace") if key in meta}, "redacted": True}
    found: dict[str, Any] = {}
    for key, one in value.items():
        if key == "managedFields":
            continue
        if key == LAST_APPLIED:
            found[key] = GONE
        elif key == "env" and isinstance(one, list):
            found[key] = [_redact_variable(entry) for entry in one]
        elif key == "envelope" and isinstance(one, str):
            # A copy in base64 of what stands beside it.
            found[key] = f"[left out: {len(one)} characters]"
        elif _is_sensitive(key) and isinstance(one, str):
            found[key] = GONE if one else one
        elif key.lower() in _WHOLE:
            found[key] = _blank(one)
        else:
            found[key] = redact_object(one)
    return found


def _redact_list(value: list[Any]) -> list[Any]:
    found: list[Any] = []
    for number, one in enumerate(value):
        before = value[number - 1] if number else None
        follows = isinstance(before, str) and _SENSITIVE_FLAG.match(before) is not None
        found.append(GONE if follows and isinstance(one, str) else redact_object(one))
    return found


def _redact_variable(entry: Any) -> Any:
    if isinstance(entry, Mapping) and "value" in entry:
        return {**redact_object({key: one for key, one in entry.items() if key != "value"}), "value": GONE}
    return redact_object(entry)


def _redact_string(text: str) -> str:
    if text[:1] in ("{", "["):
        try:
            return json.dumps(redact_object(json.loads(text)))
        except ValueError:
            pass
    return redact_text(text)


def _is_sensitive(key: str) -> bool:
    return _SENSITIVE_KEY.search(key) is not None and _NAMES_ONLY.search(key) is None


def _blank(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _blank(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_blank(one) for one in value]
    return GONE if isinstance(value, str) else value
