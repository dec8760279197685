"""Looks at the counters of what serves every 5 s, keeps the ledger on disk, and makes the reports of it.

On disk at each 5-minute mark, at each switch, whenever a gateway began or ended, before a revision's counters are taken away, and when the
agent ends: about 300 writes a day. What a crash of the agent finds unwritten is read again, as the gateway has gone on counting; what a
crash of the gateway takes with it is the last 5 s, and one that is drained first leaves its last words. A disk that takes nothing costs the
past, never the serving.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import aiohttp

from edgefleet.api.report import MARK_SECONDS, health_annotation
from edgefleet.site.durable import write_durably
from edgefleet.site.gateway import Gateway, GatewayDown
from edgefleet.site.gateway_config import FLUSH_SECONDS, Target
from edgefleet.site.state import FleetState, StateFile
from edgefleet.site.telemetry.events import plan_edges
from edgefleet.site.telemetry.history import Activation, History
from edgefleet.site.telemetry.ledger import Ledger, Served, decode, encode
from edgefleet.site.telemetry.report import count_bad, is_urgent, is_young, plan_backlog, plan_health
from edgefleet.site.telemetry.stats import STATS_QUERY, Confidence, read_confidence, read_counters

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
BACKLOG_SECONDS = 600.0
"""How long a backlog stays in the Lease: a hub that starts again meanwhile, or reads late, still gets it."""
MAX_METRICS_BYTES = 4 << 20
METRICS_TIMEOUT = aiohttp.ClientTimeout(total=2)


class Meter:
    """One site's, as an async context manager. `metrics_url`: where the model server tells Prometheus its confidence, if it does.
    `on_look` is called after each look of `run`."""

    def __init__(
        self, file: Path, *, state: StateFile, gateway: Gateway, metrics_url: str | None, clock: Callable[[], float] = time.time
    ) -> None:
        self._file = file
        self._state = state
        self._gateway = gateway
        self._metrics_url = metrics_url
        self._clock = clock
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._ledger = self._read()
        self._saved = encode(self._ledger)
        self._saved_mark = self.mark
        self._told_bad: dict[str, tuple[int, int]] = {}
        self._offered: dict[str, int] = {}
        self._backlogs: dict[str, float | None] = {}
        self._trouble: dict[str, str] = {}
        self.on_look: Callable[[], None] = lambda: None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1), timeout=METRICS_TIMEOUT, trust_env=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._save()
        await self._session.close()

    def look_now(self) -> None:
        """Something was switched."""
        self._wake.set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self._wake.clear()
            await self.look()
            self.on_look()
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def look(self) -> None:
        """Read all counters now. A gateway that tells nothing is read at the next look."""
        async with self._lock:
            try:
                looks = await self._gateway.fetch_stats(STATS_QUERY)
                lives = {life: read_counters(look.stats) if look.stats else None for life, look in looks.items()}
            except (GatewayDown, ValueError) as error:
                self._complain("gateway", f"live traffic is not counted now: {error}")
                return
            self._complain("gateway", "")
            confidence = await self._fetch_confidence()
            ended = {life for life, look in looks.items() if look.ended}
            urgent = self._ledger.observe(self._serves(), lives, confidence, second=int(self._clock()), ended=ended)
            if urgent or ended or self.mark != self._saved_mark:
                kept = self._save()
                for life in ended if kept else ():
                    self._gateway.forget(life)

    async def settle(self) -> None:
        """Read and keep what a revision has counted to its last answer: its counters are about to go."""
        await asyncio.sleep(FLUSH_SECONDS)
        await self.look()
        self._save()

    def reports(self, *, skew: float) -> dict[str, str]:
        """The annotations for the Lease, by key; one for each fleet whose revision serves and was looked at."""
        fleets = [fleet for fleet, state in self._state.fleets.items() if state.active]
        self._offered = {}
        reports = {}
        for fleet in fleets:
            found = self.find(fleet)
            if found is None:
                continue
            history, activation = found
            sequence, now = self._state.fleet(fleet).served_sequence, self.mark
            until = self._backlogs.get(fleet)
            if until is not None and until <= time.monotonic():
                del self._backlogs[fleet]
                history.told = now
            told = plan_health(history, activation, sequence=sequence, skew=round(skew), now=now)
            if not told.whole or fleet in self._backlogs:
                self._backlogs.setdefault(fleet, None)
                room = plan_backlog(len(fleets))
                told = plan_health(history, activation, sequence=sequence, skew=round(skew), now=now, backlog=room)
            self._offered[fleet] = now
            self._told_bad[fleet] = activation.at, count_bad(activation)
            reports[health_annotation(fleet)] = told.text
        return reports

    def note_renewed(self) -> None:
        """The hub has what `reports` gave last."""
        for fleet, mark in self._offered.items():
            if fleet not in self._backlogs:
                self._ledger.fleets[fleet].told = mark
            elif self._backlogs[fleet] is None:
                self._backlogs[fleet] = time.monotonic() + BACKLOG_SECONDS

    def is_urgent(self) -> bool:
        """Whether some young revision's bad answers should be told before the next renewal."""
        for fleet, state in self._state.fleets.items():
            found = self.find(fleet) if state.active else None
            if found is not None and is_young(found[1], self._clock()):
                at, bad = self._told_bad.get(fleet, (0, 0))
                if is_urgent(count_bad(found[1]), bad if at == found[1].at else 0):
                    return True
        return False

    def find(self, fleet: str) -> tuple[History, Activation] | None:
        """What is known of what serves for a fleet."""
        served = _served(self._state.fleet(fleet))
        activation = self._ledger.current(fleet, served) if served else None
        return (self._ledger.fleets[fleet], activation) if activation else None

    @property
    def mark(self) -> int:
        """The 5-minute mark of now, by the site's clock."""
        return int(self._clock()) // MARK_SECONDS

    def _serves(self) -> dict[str, Served]:
        return {fleet: served for fleet, state in self._state.fleets.items() if (served := _served(state))}

    async def _fetch_confidence(self) -> Mapping[str, Confidence]:
        if self._metrics_url is None:
            return {}
        try:
            async with self._session.get(self._metrics_url) as answer:
                page = bytearray()
                async for chunk in answer.content.iter_any():
                    page += chunk
                    if len(page) > MAX_METRICS_BYTES:
                        raise ValueError(f"more than {MAX_METRICS_BYTES} bytes")
                self._complain("confidence", "")
                return read_confidence(page.decode(errors="replace"))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self._complain("confidence", f"no confidence from {self._metrics_url}: {error or type(error).__name__}")
            return {}

    def _complain(self, what: str, trouble: str) -> None:
        # What is away for hours is told of once, not at every look.
        if trouble and not self._trouble.get(what):
            log.warning("%s", trouble)
        self._trouble[what] = trouble

    def _read(self) -> Ledger:
        try:
            return decode(self._file.read_bytes())
        except FileNotFoundError:
            return Ledger()
        except ValueError as error:
            log.warning("%s cannot be read (%s): this site's past traffic is forgotten", self._file, error)
            return Ledger()

    def _save(self) -> bool:
        self._ledger.thin(self.mark)
        data = encode(self._ledger)
        self._saved_mark = self.mark
        if data == self._saved:
            return True
        try:
            write_durably(self._file, data)
        except OSError as error:
            log.warning("what traffic said is not on disk: %s", error)
            return False
        self._saved = data
        return True


def _served(state: FleetState) -> Served | None:
    if state.active is None or state.active_since is None:
        return None
    return Served(state.active, Target(state.model, state.active).served_name, int(state.active_since.timestamp()), plan_edges(state.slo))
