"""References to artifacts: `registry/repository:tag` or `registry/repository@sha256:...`.

Full match or nothing: the registry is mandatory, there is no default registry and no default tag, and a tag beside a digest is
refused because nobody would check it. Loopback registries are spoken to in plain HTTP, all others in HTTPS; nothing else decides that.
"""

import ipaddress
import re
from dataclasses import dataclass

from edgefleet.api.quantities import DIGEST_PATTERN
from edgefleet.oci.errors import ReferenceInvalid

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?P<host>{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:.]{{2,45}}\])(?::(?P<port>[0-9]{{1,5}}))?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
MAX_REPOSITORY_CHARACTERS = 255


@dataclass(frozen=True)
class Repository:
    """A repository in a registry. `registry` is `host` or `host:port`; `path` has no leading slash."""

    registry: str
    path: str

    @classmethod
    def parse(cls, text: str) -> "Repository":
        """Read `registry/path`. Raises ReferenceInvalid."""
        registry, slash, path = text.partition("/")
        host = _HOST.fullmatch(registry)
        if not slash or not host or not _names_a_registry(registry):
            raise ReferenceInvalid(
                f"{text!r} does not begin with a registry: write for example registry.example/vision/weld-qc or localhost:5000/digits"
            )
        if host["port"] and not 1 <= int(host["port"]) <= 65_535:
            raise ReferenceInvalid(f"{text!r}: port {host['port']} is not between 1 and 65535")
        if host["host"].startswith("[") and not _is_ipv6(host["host"][1:-1]):
            raise ReferenceInvalid(f"{text!r}: {host['host']} is not an IPv6 address")
        if len(text) > MAX_REPOSITORY_CHARACTERS or not _PATH.fullmatch(path):
            raise ReferenceInvalid(
                f"{text!r}: {path[:80]!r} is not a repository path (lower-case letters, digits, single . _ -, parts divided by /; "
                f"at most {MAX_REPOSITORY_CHARACTERS} characters in all)"
            )
        return cls(registry, path)

    @property
    def is_loopback(self) -> bool:
        """Whether the registry is on this machine."""
        return is_loopback(_HOST.fullmatch(self.registry)["host"])  # type: ignore[index]

    @property
    def url(self) -> str:
        """The base of the repository's addresses, `https://registry/v2/path`."""
        return f"{'http' if self.is_loopback else 'https'}://{self.registry}/v2/{self.path}"

    def __str__(self) -> str:
        return f"{self.registry}/{self.path}"


@dataclass(frozen=True)
class Reference:
    """One artifact in a repository: exactly one of `tag` and `digest` is set."""

    repository: Repository
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Read `registry/path:tag` or `registry/path@sha256:...`. Raises ReferenceInvalid."""
        name, at, digest = text.partition("@")
        if at:
            if not re.fullmatch(DIGEST_PATTERN.strip("^$"), digest):
                raise ReferenceInvalid(f"{text!r}: {digest[:80]!r} is not a digest: write sha256: and 64 lower-case hex digits")
            if ":" in name.rpartition("/")[2] and "/" in name:
                raise ReferenceInvalid(f"{text!r} has a tag and a digest: leave the tag out, only the digest would be obeyed")
            return cls(Repository.parse(name), digest=digest)
        name, colon, tag = text.rpartition(":")
        if not colon or "/" in tag:
            raise ReferenceInvalid(f"{text!r} names no tag and no digest: write for example registry.example/digits:1.0")
        if not _TAG.fullmatch(tag):
            raise ReferenceInvalid(f"{text!r}: {tag[:80]!r} is not a tag (letters, digits, . _ -, at most 128)")
        return cls(Repository.parse(name), tag=tag)

    def __str__(self) -> str:
        return f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"


def is_loopback(host: str) -> bool:
    """Whether a host name or address (IPv6 with or without brackets) is this machine: localhost, 127.0.0.0/8 or ::1."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _names_a_registry(text: str) -> bool:
    # `vision/weld-qc` would otherwise be read as repository `weld-qc` of a host named `vision`.
    return "." in text or ":" in text or text == "localhost"


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
