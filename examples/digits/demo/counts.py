"""What the traffic client counted: read from the file that it writes twice a second."""

import json
import time
from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from examples.digits.traffic import EDGES_MS


@dataclass(frozen=True)
class Latency:
    """How long some answers took: how many there are up to each of EDGES_MS from the edge before, and the rest at the end."""

    bins: tuple[int, ...] = (0,) * (len(EDGES_MS) + 1)

    @property
    def answers(self) -> int:
        """How many there are."""
        return sum(self.bins)

    def slower_than(self, milliseconds: int) -> float:
        """The share (0 to 1) above one of EDGES_MS; 0 without answers."""
        return sum(self.bins[EDGES_MS.index(milliseconds) + 1 :]) / max(1, self.answers)

    def rank(self, share: float) -> int:
        """The bin in which the answer lies that this share of the others is faster than."""
        return next(index for index, upto in enumerate(accumulate(self.bins)) if upto >= share * self.answers)

    def edge_at(self, share: float) -> float:
        """The edge, in milliseconds, within which this share of the answers came; infinite beyond the last."""
        return (*EDGES_MS, float("inf"))[self.rank(share)]

    def __sub__(self, other: "Latency") -> "Latency":
        return Latency(tuple(now - before for now, before in zip(self.bins, other.bins, strict=True)))


def sum_latency(parts: Sequence[Sequence[int]]) -> Latency:
    """All of them together."""
    return Latency(tuple(map(sum, zip(Latency().bins, *parts, strict=True))))


@dataclass(frozen=True)
class SiteCount:
    """One site since the start; `by_model`, `failed` and `latency` name the revision that answered (see examples/digits/traffic.py)."""

    before: int = 0
    answered: int = 0
    right: int = 0
    lost: int = 0
    by_model: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    latency: dict[str, list[int]] = field(default_factory=dict)
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
        """Requests that no site answered as it should; a model's own errors are in `failed`."""
        return sum(site.lost for site in self.sites.values())

    @property
    def right(self) -> int:
        """Answers with the right digit."""
        return sum(site.right for site in self.sites.values())

    @property
    def failed(self) -> Counter[str]:
        """Errors that a model itself answered, by its name."""
        return sum((Counter(site.failed) for site in self.sites.values()), Counter())

    def latency_at(self, sites: Collection[str]) -> Latency:
        """Of all answers at these sites."""
        return sum_latency([bins for name in sites if name in self.sites for bins in self.sites[name].latency.values()])

    def latency_of(self, model: str) -> Latency:
        """Of all answers that this revision gave, by its name in the answers."""
        return sum_latency([bins for site in self.sites.values() for name, bins in site.latency.items() if name == model])

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
