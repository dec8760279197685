"""What happened between a fleet's processes and their API servers: JSON lines, one a request, watch event, start, end or fault.

Written by faultproxy.py and whoever starts the processes; judged by checker.py. The order of what an API server accepted is the order
of its resource versions (one etcd stands behind all clusters of a lab), not of the lines: answers may overtake each other.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_LONGEST = 2000  # characters of one string that are kept: envelopes and bundles say nothing to a checker
_LONGER = {"binaryData": 20_000, "annotations": 40_000}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. `kind`: request, event (of a watch), start, end, fault, note, probe, model.

    `actor` is who: hub, agent-SITE, person, client-SITE, runtime-SITE. `server` is which cluster: hub or site. `caller` is the line of
    code that asked for a write, such as `hub/runs.py:34 create` (see nursery.py). `code` 0: there was no answer. `version` is the
    resource version after an accepted write. `body` is what was sent, with long strings cut; of a `model` or `probe` what was seen.
    """

    n: int
    at: float
    kind: str
    actor: str
    server: str = ""
    method: str = ""
    path: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    caller: str = ""
    code: int = 0
    version: int = 0
    text: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_write(self) -> bool:
        """Whether this is a request that changes something."""
        return self.kind == "request" and self.method in WRITES

    @property
    def accepted(self) -> bool:
        """Whether the API server did what was asked, whoever got to know it."""
        return self.is_write and 200 <= self.code < 300


class History:
    """The entries so far; with `file`, each is appended there too."""

    def __init__(self, file: Path | None = None) -> None:
        self.entries: list[Entry] = []
        self._out = file.open("a", encoding="utf-8") if file else None

    def add(self, kind: str, actor: str, **more: Any) -> Entry:
        """Write down one more."""
        body = more.pop("body", None)
        entry = Entry(len(self.entries) + 1, time.time(), kind, actor, body=_cut(body) if body else {}, **more)
        self.entries.append(entry)
        if self._out is not None:
            self._out.write(json.dumps({key: value for key, value in asdict(entry).items() if value}) + "\n")
            self._out.flush()
        return entry

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self.entries))

    def close(self) -> None:
        """Close the file."""
        if self._out is not None:
            self._out.close()

    @classmethod
    def load(cls, file: Path) -> "History":
        """Read one back."""
        found = cls()
        found.entries = [Entry(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
        return found


def accepted_writes(entries: Iterator[Entry] | list[Entry]) -> list[Entry]:
    """What API servers accepted, in the order in which they did. A delete answers no version of its own and keeps its place."""
    last, found = 0, []
    for entry in entries:
        if entry.accepted:
            found.append((entry.version or last, entry.n, entry))
            last = max(last, entry.version)
    return [entry for _, _, entry in sorted(found, key=lambda one: one[:2])]


@dataclass(frozen=True, slots=True)
class Where:
    """What a URL path names."""

    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""


def parse_path(path: str) -> Where:
    """Read `/apis/GROUP/VERSION/[namespaces/NS/]RESOURCE[/NAME[/SUBRESOURCE]]`; anything else names nothing."""
    parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
    rest = parts[2:] if parts[0] == "api" else parts[3:] if parts[0] == "apis" else []
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces" and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    if not rest:
        return Where()
    return Where(rest[0], rest[2] if len(rest) > 2 else "", namespace, rest[1] if len(rest) > 1 else "")


def _cut(value: Any, longest: int = _LONGEST) -> Any:
    if isinstance(value, str):
        return value if len(value) <= longest else value[:40] + "..."
    if isinstance(value, Mapping):
        return {key: "..." if key == "envelope" else _cut(one, _LONGER.get(key, longest)) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_cut(one, longest) for one in value]
    return value
