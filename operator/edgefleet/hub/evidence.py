"""What sites said of live traffic while a run is under way: kept in memory, and in ConfigMaps beside the run's plan.

Each site's Lease carries its last hour, the ConfigMaps all that was heard before; both together are the same set of records whenever
they are read, so a hub that dies loses nothing and judges the same. They are written before a decision is acted on, and every few
minutes. A ConfigMap is read by itself: one that was written and one that was not yet are both true. What follows from the evidence is
decided in core.
"""

import base64
import binascii
import hashlib
import logging
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from edgefleet.api.meta import FLEET_LABEL, GROUP
from edgefleet.api.report import MARK_SECONDS
from edgefleet.api.rollout import GateRecord
from edgefleet.core.case import Case, decode_line, encode_record
from edgefleet.core.facts import FleetKey
from edgefleet.core.health import Stream, merge_streams, read_stream, thin
from edgefleet.hub.inventory import Inventory
from edgefleet.hub.settings import FIELD_MANAGER
from edgefleet.kube.client import Api
from edgefleet.kube.resources import CONFIG_MAPS, MODEL_ROLLOUTS

log = logging.getLogger(__name__)

EVIDENCE_LABEL = f"{GROUP}/evidence"
ENTRY = "record.jsonl.z"
SITES_PER_CHUNK = 250
STORE_EVERY_SECONDS = 600.0
"""Less than the hour that a Lease carries."""
ACTIVATIONS_PER_SITE = 4
SOON = timedelta(milliseconds=200)
LATER = timedelta(seconds=10)
Streams = dict[tuple[str, int], Stream]
"""One site's, by revision and activation."""


@dataclass(slots=True)
class _Run:
    """The evidence about one run. `written` holds a hash of each ConfigMap as it was last written."""

    name: str
    uid: str
    revision: str
    sites: dict[str, Streams] = field(default_factory=dict)
    written: dict[int, str] = field(default_factory=dict)
    stored_at: float = field(default_factory=time.monotonic)


class Evidence:
    """The evidence about the active run of each fleet that judges live traffic."""

    def __init__(self, api: Api, inventory: Inventory) -> None:
        self._api = api
        self._inventory = inventory
        self._runs: dict[FleetKey, _Run] = {}

    async def gather(self, fleet: FleetKey, run: str, uid: str, revision: str, sites: Iterable[str]) -> dict[str, tuple[Stream, ...]]:
        """All that is known of these sites; what an earlier hub stored is read the first time."""
        wanted, held = frozenset(sites), self._runs.get(fleet)
        if held is None or held.name != run:
            stored = await self._fetch(fleet, run)
            held = self._runs[fleet] = _Run(run, uid, revision, {site: {} for site in wanted})
            for site, stream in stored:
                _add(held.sites.setdefault(site, {}), stream)
            for site in held.sites:
                self._read_lease(held, fleet, site)
        for site in wanted - held.sites.keys():
            held.sites[site] = {}
            self._read_lease(held, fleet, site)
        return {site: tuple(held.sites[site].values()) for site in wanted}

    def forget(self, fleet: FleetKey) -> None:
        """The fleet has no run that judges live traffic."""
        self._runs.pop(fleet, None)

    def observe(self, site: str, fleet: FleetKey) -> timedelta | None:
        """A site's traffic was heard of. Within what time the fleet should be looked at because of it; None: it does not matter."""
        held = self._runs.get(fleet)
        if held is None or site not in held.sites:
            return None
        before = _bad(held.sites[site].values(), held.revision)
        self._read_lease(held, fleet, site)
        after = _bad(held.sites[site].values(), held.revision)
        if after is None:
            return None  # a control: it counts at the next look, and needs none of its own
        return SOON if after != before else LATER

    async def store(
        self, fleet: FleetKey, case: Case, gates: tuple[GateRecord, ...], health: Mapping[str, tuple[Stream, ...]], *, now: bool
    ) -> None:
        """Write what changed, if it is due or must be `now`: the case, what was found in it, and exactly the streams (`health`) that it was
        found from, whatever was heard since."""
        held = self._runs.get(fleet)
        if held is None or (not now and time.monotonic() - held.stored_at < STORE_EVERY_SECONDS):
            return
        # Sites that do not matter any more are kept all the same: they may have been controls.
        left = {site: tuple(streams.values()) for site, streams in held.sites.items() if site not in health}
        head, lines = encode_record(case, gates, {**left, **health})
        mark = int(datetime.now(UTC).timestamp()) // MARK_SECONDS
        for streams in held.sites.values():
            for key, stream in streams.items():
                streams[key] = thin(stream, mark)
        names = list(lines)
        for index in range(max(1, -(-len(names) // SITES_PER_CHUNK))):
            own = [line for name in names[index * SITES_PER_CHUNK : (index + 1) * SITES_PER_CHUNK] for line in lines[name]]
            await self._write(fleet, held, index, "\n".join((head if index == 0 else []) + own).encode())
        held.stored_at = time.monotonic()

    async def _write(self, fleet: FleetKey, held: _Run, index: int, text: bytes) -> None:
        digest = hashlib.sha256(text).hexdigest()
        if held.written.get(index) == digest:
            return
        owner = {"apiVersion": MODEL_ROLLOUTS.api_version, "kind": MODEL_ROLLOUTS.kind, "name": held.name, "uid": held.uid}
        meta = {
            "name": f"evidence-{held.name}-{index}",
            "namespace": fleet.namespace,
            "labels": {FLEET_LABEL: fleet.name, EVIDENCE_LABEL: held.name},
            "ownerReferences": [owner],
        }
        body = {"metadata": meta, "binaryData": {ENTRY: base64.b64encode(zlib.compress(text, 6)).decode()}}
        await self._api.apply(CONFIG_MAPS, body, manager=FIELD_MANAGER)
        held.written[index] = digest

    def _read_lease(self, held: _Run, fleet: FleetKey, site: str) -> None:
        report = self._inventory.health_report(site, fleet)
        if report is not None:
            _add(held.sites[site], read_stream(report))

    async def _fetch(self, fleet: FleetKey, run: str) -> list[tuple[str, Stream]]:
        bodies = await self._api.list(CONFIG_MAPS, fleet.namespace, labels=f"{EVIDENCE_LABEL}={run}")
        found = []
        for line in read_lines(bodies):
            try:
                one = decode_line(line)
            except ValueError as error:
                log.warning("run %s: a line of its evidence cannot be read: %s", run, error)
                continue
            if isinstance(one, tuple):
                found.append(one)
        return found


def read_lines(bodies: Iterable[Mapping[str, Any]]) -> list[str]:
    """The lines of a run's evidence ConfigMaps, in order; one that cannot be read is left out and said."""
    lines = []
    for body in sorted(bodies, key=lambda one: one["metadata"]["name"]):
        data = body.get("binaryData") or {}
        try:
            lines += zlib.decompress(base64.b64decode(data[ENTRY])).decode().splitlines()
        except (KeyError, zlib.error, binascii.Error, UnicodeDecodeError) as error:
            log.warning("ConfigMap %s holds no evidence that can be read: %s", body["metadata"]["name"], error)
    return lines


def _add(streams: Streams, stream: Stream) -> None:
    key = (stream.revision, stream.activation)
    held = streams.get(key)
    streams[key] = stream if held is None else merge_streams(held, stream)
    # A site names its activations as it likes: only the newest are of interest, and the others would fill the memory.
    while len(streams) > ACTIVATIONS_PER_SITE:
        del streams[min(streams, key=lambda key: (key[1], key[0]))]


def _bad(streams: Iterable[Stream], revision: str) -> tuple[int, int, int] | None:
    """Failed, slow and unsure answers of a revision; None if the site said nothing of it."""
    found = [stream for stream in streams if stream.revision == revision]
    if not found:
        return None
    last = [records[max(records)] for stream in found for records in stream.epochs.values() if records]
    return sum(one.failed for one in last), sum(one.slow for one in last), sum(one.unsure for one in last)
