"""What a site must not forget: per fleet the sequence floor and what serves; the versions of bundle and root and the latest time seen.

Every change is on disk before it is acted on (fsync + rename). Losing this file means that an old order could come back, so one that
cannot be read stops the agent instead of being replaced. What to do with these facts is decided in core/site.py.
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from edgefleet.api.assignment import OrderAction
from edgefleet.api.meta import Schema, format_time
from edgefleet.api.model import Slo
from edgefleet.api.policy import Analysis, HardChecks
from edgefleet.api.quantities import Duration, RevisionHash, parse_duration
from edgefleet.core.site import FleetMemory
from edgefleet.site.durable import Checkpoint, no_checkpoint, write_durably

TIME_GRAIN = timedelta(hours=1)
"""How much of the time that was seen a loss of power may take away; a write for each renewal would wear flash out."""
CLOCK_TOLERANCE = timedelta(minutes=10)


class Failure(Schema):
    """Why the revision of the order with this sequence failed here. It is not tried again under that sequence."""

    sequence: int
    revision: RevisionHash
    reason: str
    message: str
    golden_score: str = ""
    at: datetime


class FleetState(Schema):
    """One fleet. `floor` and `accepted_*` are the newest order accepted; `active` is what the gateway routes to.

    `served_sequence` is the newest order that was carried out: under it `active` serves, or was withdrawn. `model` and `slo` are those of
    `active`, `analysis`, `checks` and `soak` are how that order wants it judged; `previous` served before it, under `previous_sequence`.
    `gap_since`: since when no revision serves, because one is stopped before the next (switch: Replace). `gap_seconds` and `gap_requests`:
    how long that was, and how many requests were refused, in all; `gap` says it of the last time. `stops` are by digest what the newest
    order says of when serving must end; `stopped_at`: since when nothing serves for such a reason, `stopped` is what did.
    """

    floor: int = 0
    accepted_action: OrderAction | None = None
    accepted_revision: RevisionHash | None = None
    served_sequence: int = 0
    model: str = ""
    active: RevisionHash | None = None
    active_since: datetime | None = None
    golden_score: str = ""
    slo: Slo = Slo()
    analysis: Analysis | None = None
    checks: HardChecks | None = None
    soak: Duration | None = None
    previous: RevisionHash | None = None
    previous_sequence: int = 0
    withdrawn_at: datetime | None = None
    gap_since: datetime | None = None
    gap_seconds: float = 0
    gap_requests: int = 0
    gap: str = ""
    failure: Failure | None = None
    stops: dict[str, datetime] = Field(default_factory=dict)
    stopped_at: datetime | None = None
    stopped: RevisionHash | None = None

    def watch_for(self, otherwise: timedelta) -> timedelta:
        """For how long after its switch `active` is on trial: its soak, where a run has one."""
        return parse_duration(self.soak) if self.soak is not None else otherwise

    def to_memory(self) -> FleetMemory:
        """The part that decisions read."""
        return FleetMemory(
            floor=self.floor,
            accepted=(self.accepted_action, self.accepted_revision) if self.accepted_action else None,
            active=self.active,
            previous=self.previous,
            failed_at=self.failure.sequence if self.failure else None,
        )


class SiteState(Schema):
    """The whole file. `fleets` is by `<namespace>/<name>`."""

    format_version: Literal[1] = 1
    site: str
    bundle_version: Annotated[int, Field(ge=0)] = 0
    root_version: Annotated[int, Field(ge=0)] = 0
    latest_time: datetime = datetime.fromtimestamp(0, UTC)
    fleets: dict[str, FleetState] = Field(default_factory=dict)


class StateUnreadable(Exception):
    """The state file is damaged, or another site's. Starting without it would forget the sequence floors."""


class StateFile:
    """The state in memory and on disk. Every method that changes it returns only when the change is on disk."""

    def __init__(self, path: Path, state: SiteState, checkpoint: Checkpoint = no_checkpoint) -> None:
        self._path = path
        self._state = state
        self._checkpoint = checkpoint
        self._kept_at = time.monotonic()

    @classmethod
    def open(cls, path: Path, *, site: str, checkpoint: Checkpoint = no_checkpoint) -> "StateFile":
        """Read the file, or begin with nothing. Raises StateUnreadable."""
        if not path.exists():
            return cls(path, SiteState(site=site), checkpoint)
        try:
            state = SiteState.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            raise StateUnreadable(
                f"{path} cannot be read ({'.'.join(map(str, first['loc']))}: {first['msg']}). Restore it from a backup; removing it "
                "makes this site accept old orders again"
            ) from error
        if state.site != site:
            raise StateUnreadable(f"{path} is the state of site {state.site!r}, not of {site!r}: give each site a folder of its own")
        return cls(path, state, checkpoint)

    @property
    def site(self) -> str:
        """Whose state this is."""
        return self._state.site

    @property
    def fleets(self) -> Mapping[str, FleetState]:
        """All fleets that this site has ever accepted an order of."""
        return self._state.fleets

    @property
    def bundle_version(self) -> int:
        """The highest version of the trust bundle that was acted on."""
        return self._state.bundle_version

    @property
    def root_version(self) -> int:
        """The highest version of a root that a bundle was acted on under."""
        return self._state.root_version

    def fleet(self, fleet: str) -> FleetState:
        """One fleet, empty if unknown."""
        return self._state.fleets.get(fleet, FleetState())

    def holders(self) -> dict[str, str]:
        """Which fleet serves each model here."""
        return {state.model: fleet for fleet, state in self._state.fleets.items() if state.active}

    def now(self) -> datetime:
        """The wall clock; where that was set back, the latest time kept here and what has passed since, so that orders end all the same."""
        return max(datetime.now(UTC), self._state.latest_time + timedelta(seconds=time.monotonic() - self._kept_at))

    def remember_time(self) -> None:
        """Keep the time of now, so that a clock set back over a restart brings no order back; at most once an hour. Raises OSError."""
        if self.now() - self._state.latest_time >= TIME_GRAIN:
            self._write(latest_time=self.now())

    def describe_clock(self) -> str:
        """How the clock contradicts the latest time seen here, which counts: `ClockSkew: ...`; empty where it does not."""
        clock, latest = datetime.now(UTC), self.now()
        if latest - clock < CLOCK_TOLERANCE:
            return ""
        return f"ClockSkew: the clock says {format_time(clock)}, the latest time seen here is {format_time(latest)}, and that counts"

    def change_fleet(self, fleet: str, **changes: Any) -> FleetState:
        """Change some fields of one fleet; the time of now is remembered with it."""
        changed = FleetState.model_validate(self.fleet(fleet).model_copy(update=changes).model_dump())
        self._write(fleets={**self._state.fleets, fleet: changed}, latest_time=self.now())
        return changed

    def raise_bundle_version(self, version: int, root_version: int = 0) -> None:
        """Remember that a bundle was acted on, and under which root; neither ever goes down."""
        raised = {"bundle_version": max(version, self.bundle_version), "root_version": max(root_version, self.root_version)}
        if raised != {"bundle_version": self.bundle_version, "root_version": self.root_version}:
            self._write(**raised, latest_time=self.now())

    def _write(self, **changes: Any) -> None:
        changed = self._state.model_copy(update=changes)
        write_durably(self._path, changed.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode(), checkpoint=self._checkpoint)
        if changed.latest_time != self._state.latest_time:
            self._kept_at = time.monotonic()
        self._state = changed
