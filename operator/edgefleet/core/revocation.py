"""What a revocation means for what a site serves: the root of trust disowns a release, or its time to be served is over.

Two voices: the trust bundle (signed by the root keys) names digests that nobody may start any more, some with a time from which nothing
is to be served rather than them; orders (signed by the hub) only narrow, by such times. A site that serves a release which its bundle
disowns goes back by itself to what served before, if that is an older release that is not disowned: one that is newer was taken back
from here. A time in orders alone sends nobody back: where to go is the hub's to say.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from edgefleet.api.assignment import FrozenRevision
from edgefleet.api.meta import format_time

REVOKED = "Revoked"


@dataclass(frozen=True, slots=True)
class Revocations:
    """`digests` of the bundle; `stops`: by digest, the first moment at which it may not be served any more, whoever said so."""

    digests: frozenset[str] = frozenset()
    stops: Mapping[str, datetime] | None = None

    def stop_of(self, revision: FrozenRevision | None) -> datetime | None:
        """From when on a site serves nothing rather than this."""
        return (self.stops or {}).get(revision.digest) if revision is not None else None

    def is_over(self, revision: FrozenRevision | None, now: datetime) -> bool:
        """Whether this may not be served any more, not even where nothing else is there."""
        by = self.stop_of(revision)
        return by is not None and by <= now

    def forbids(self, revision: FrozenRevision, now: datetime) -> str:
        """Why this may not be put into service now; empty if it may."""
        if revision.digest in self.digests:
            return f"release {revision.version} ({revision.digest}) is revoked by the trust bundle: name another release"
        if self.is_over(revision, now):
            return f"release {revision.version} ({revision.digest}) is revoked, and its time to be served is over: name another release"
        return ""

    def describe(self, revision: FrozenRevision | None) -> str:
        """What a person is told of what serves; empty if nothing is wrong with it."""
        if revision is None:
            return ""
        by = self.stop_of(revision)
        if by is None and revision.digest not in self.digests:
            return ""
        until = f"until {format_time(by)}, then nothing serves" if by else "as long as nothing else is ordered"
        return f"release {revision.version} is revoked, and serves {until}: name another release in the EdgeModel"

    def disowned(self, revision: FrozenRevision | None, instead: FrozenRevision | None) -> bool:
        """Whether the site leaves `revision` by itself for `instead`, which served before."""
        return (
            revision is not None
            and instead is not None
            and revision.digest in self.digests
            and instead.digest not in {*self.digests, *(self.stops or {})}
            and instead.seq < revision.seq
        )


def merge_stops(*voices: Iterable[tuple[str, datetime]]) -> dict[str, datetime]:
    """The earliest time that anybody named for each digest."""
    merged: dict[str, datetime] = {}
    for voice in voices:
        for digest, by in voice:
            merged[digest] = min(by, merged.get(digest, by))
    return merged
