"""What the traffic client counted: read from the file that it writes twice a second."""

import json
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SiteCount:
    """One site since the start; `by_model` names the revision that gave each answer (see examples/digits/traffic.py)."""

    before: int = 0
    answered: int = 0
    right: int = 0
    lost: int = 0
    by_model: dict[str, int] = field(default_factory=dict)
    last_model: str = ""
    losses: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Counts:
    """All sites at `at` (seconds since the epoch, by the client's clock)."""

    at: float = 0.0
    sites: dict[str, SiteCount] = field(default_factory=dict)

    @property
    def answered(self) -> int:
        """Answers of all sites."""
        return sum(site.answered for site in self.sites.values())

    @property
    def lost(self) -> int:
        """Requests that no site answered as it should."""
        return sum(site.lost for site in self.sites.values())

    @property
    def right(self) -> int:
        """Answers with the right digit."""
        return sum(site.right for site in self.sites.values())

    def describe_losses(self) -> str:
        """The last few losses, one a line."""
        found = [
            f"{time.strftime('%H:%M:%S', time.localtime(loss['at']))} {name}: {loss['trouble']}"
            for name, site in self.sites.items()
            for loss in site.losses
        ]
        return "\n".join(found[-10:]) or "none"


class Traffic:
    """Reads the counts, and keeps a few seconds of them for rates."""

    WINDOW = 3.0  # seconds over which a rate is taken

    def __init__(self, path: Path) -> None:
        self._path = path
        self._past: deque[Counts] = deque(maxlen=32)

    def read(self) -> Counts:
        """The newest counts; empty ones before the client's first."""
        try:
            found = json.loads(self._path.read_text())
        except FileNotFoundError:
            return Counts()
        sites = {name: SiteCount(**{**site, "losses": tuple(site["losses"])}) for name, site in found["sites"].items()}
        counts = Counts(found["at"], sites)
        if not self._past or self._past[-1].at != counts.at:
            self._past.append(counts)
        return counts

    def rates(self, now: Counts) -> dict[str, float]:
        """Answers a second of each site, over about WINDOW seconds."""
        old = next((counts for counts in self._past if counts.at >= now.at - self.WINDOW), now)
        span = now.at - old.at
        if span <= 0:
            return dict.fromkeys(now.sites, 0.0)
        return {name: (site.answered - old.sites[name].answered) / span for name, site in now.sites.items() if name in old.sites}
