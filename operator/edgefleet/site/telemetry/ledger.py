"""All fleets of a site, and how far each counter was read: one value, so that nothing is counted twice or not at all after a crash. Pure.

It is read and written as a whole (zlib over JSON), at most 256 kB for each fleet: the oldest marks are folded first, and counted as lost.
An agent that restarts goes on where the file ends, as the gateway has kept counting; each life of the gateway is an epoch, and while it is
upgraded two count at once.
"""

import json
import zlib
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from edgefleet.api.report import MARK_SECONDS, HealthBaseline
from edgefleet.site.telemetry.events import NOTHING, Edges, Events, add
from edgefleet.site.telemetry.history import Activation, Epoch, History
from edgefleet.site.telemetry.stats import Confidence, Counters, assess, count_since, predicted_since

FORMAT = 2
MAX_BYTES_PER_FLEET = 262_144
FRESH_SECONDS = 60
"""Of a revision that was switched in longer ago by a site without a past, nobody knows when its counters moved: they begin now."""


@dataclass(frozen=True, slots=True)
class Served:
    """What serves for a fleet now, from the state file; `at` is the second of its switch."""

    revision: str
    served_name: str
    at: int
    edges: Edges


@dataclass(slots=True)
class Ledger:
    """`lives`: how far the counters of each life of the gateway were read, by cluster; `confidence` are the model server's."""

    lives: dict[str, dict[str, Counters]] = field(default_factory=dict)
    confidence: dict[str, Confidence] = field(default_factory=dict)
    fleets: dict[str, History] = field(default_factory=dict)

    def current(self, fleet: str, served: Served) -> Activation | None:
        """The activation of what serves, if it is known yet."""
        history = self.fleets.get(fleet)
        latest = history.latest if history else None
        return latest if latest is not None and (latest.revision, latest.at) == (served.revision, served.at) else None

    def observe(
        self,
        serves: Mapping[str, Served],
        lives: Mapping[str, Mapping[str, Counters] | None],
        confidence: Mapping[str, Confidence],
        *,
        second: int,
        ended: Set[str] = frozenset(),
    ) -> bool:
        """Take in one look at the counters of all lives; of one that tells nothing now, what is known stays. `ended`: those that count no
        more. True if it should be on disk at once: a switch, or another gateway."""
        read, steps = {}, {}
        for life, clusters in lives.items():
            read[life] = dict(self.lives.get(life, {})) if clusters is None or life in ended else {}
            for name, raw in (clusters or {}).items():
                past = self.lives.get(life, {}).get(name)
                now = assess(past, raw)
                if now is None and life in ended:
                    continue  # we looked after its last words, and know more
                if now is None:
                    # The cluster was taken away, with its counters, and made again.
                    past, now = None, assess(None, raw) or raw
                read[life][name], steps[life, name] = now, count_since(past, now)
        predicted = {life_and_name[1]: life_and_name for life_and_name in steps if life_and_name[1] in confidence}
        for name, key in predicted.items():
            steps[key] = add((steps[key], predicted_since(self.confidence.get(name), confidence[name])))
        owners = {key: self._owner(key[1]) for key in steps}
        self._record({key: step for key, step in steps.items() if owners[key]}, second)
        begun = [fleet for fleet, served in serves.items() if self.current(fleet, served) is None]
        unknown = {key: step for key, step in steps.items() if owners[key] is None}
        for fleet in begun:
            served, strange = serves[fleet], fleet not in self.fleets
            history = self.fleets.setdefault(fleet, History(told=second // MARK_SECONDS))
            history.begin(served.revision, served.served_name, served.edges, at=served.at, now=second // MARK_SECONDS)
            if strange and second - served.at > FRESH_SECONDS:
                lost = [unknown.pop(key).requests for key in list(unknown) if key[1] == served.served_name]
                history.lost += any(lost)
        self._record(unknown, second)
        for latest in (history.latest for history in self.fleets.values()):
            if latest is not None and latest.served_name in confidence:
                latest.confident = True
        changed = bool(begun) or not lives.keys() <= self.lives.keys()
        # A model server that does not answer now is not one that has forgotten.
        known = {**self.confidence, **confidence}
        self.lives = read
        self.confidence = {name: known[name] for clusters in read.values() for name in clusters if name in known}
        return changed

    def thin(self, now: int) -> None:
        """Keep what is to be kept at mark `now`."""
        for history in self.fleets.values():
            history.thin(now)

    def _owner(self, name: str) -> tuple[History, Activation] | None:
        found = [(history, one) for history in self.fleets.values() if (one := history.find(name))]
        return max(found, key=lambda pair: pair[1].at, default=None)

    def _record(self, steps: Mapping[tuple[str, str], Events], second: int) -> None:
        for (life, name), step in steps.items():
            owner = self._owner(name)
            if owner is not None and step != NOTHING:
                owner[0].record(owner[1], step, life=life, second=second)


def encode(ledger: Ledger) -> bytes:
    """The file's content. Marks of a fleet that has too much to tell are folded, oldest first."""
    fleets = {}
    for fleet, history in ledger.fleets.items():
        while _is_large(_write_history(history)) and history.shrink():
            pass
        fleets[fleet] = _write_history(history)
    return _pack(
        {
            "formatVersion": FORMAT,
            "lives": {life: _write_clusters(clusters) for life, clusters in ledger.lives.items()},
            "confidence": ledger.confidence,
            "fleets": fleets,
        }
    )


def decode(data: bytes) -> Ledger:
    """The inverse. Raises ValueError for anything else."""
    try:
        body = json.loads(zlib.decompress(data))
        if body["formatVersion"] == 1:
            # Of a time when a gateway had one life at once.
            body = {**body, "formatVersion": FORMAT, "lives": {body["life"]: body["clusters"]}}
        if body["formatVersion"] != FORMAT:
            raise ValueError(f"formatVersion {body['formatVersion']}, {FORMAT} is known")
        return Ledger(
            lives={life: _read_clusters(clusters) for life, clusters in body["lives"].items()},
            confidence={name: tuple(one) for name, one in body["confidence"].items()},
            fleets={fleet: _read_history(one) for fleet, one in body["fleets"].items()},
        )
    except (zlib.error, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not a ledger: {error!r}") from error


def _dump(body: object) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _pack(body: object) -> bytes:
    return zlib.compress(_dump(body), 3)


def _is_large(body: object) -> bool:
    return len(_dump(body)) > MAX_BYTES_PER_FLEET and len(_pack(body)) > MAX_BYTES_PER_FLEET


def _write_clusters(clusters: Mapping[str, Counters]) -> dict[str, list[Any]]:
    return {name: [*one[:-1], _write_times(one.times)] for name, one in clusters.items()}


def _read_clusters(body: Mapping[str, list[Any]]) -> dict[str, Counters]:
    return {name: Counters._make([*one[:-1], _read_times(one[-1])]) for name, one in body.items()}


def _write_times(times: Mapping[int, int]) -> list[int]:
    return [number for pair in sorted(times.items()) for number in pair]


def _read_times(flat: list[int]) -> dict[int, int]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _write_events(events: Events) -> list[Any]:
    return [events.requests, events.failed, _write_times(events.times), events.predictions, events.sureness]


def _read_events(body: list[Any]) -> Events:
    return Events(body[0], body[1], _read_times(body[2]), body[3], tuple(body[4]))


def _write_history(history: History) -> dict[str, Any]:
    return {
        "lost": history.lost,
        "told": history.told,
        "activations": [
            {
                "revision": one.revision,
                "at": one.at,
                "name": one.served_name,
                "edges": one.edges,
                "before": one.before,
                "takenBack": one.taken_back,
                "confident": one.confident,
                "epochs": [
                    {
                        "start": epoch.start,
                        "life": epoch.life,
                        "base": _write_events(epoch.base),
                        "marks": [[mark, *_write_events(events)] for mark, events in sorted(epoch.marks.items())],
                    }
                    for epoch in one.epochs
                ],
            }
            for one in history.activations
        ],
    }


def _read_history(body: Mapping[str, Any]) -> History:
    return History([_read_activation(one) for one in body["activations"]], body["lost"], body["told"])


def _read_activation(body: Mapping[str, Any]) -> Activation:
    return Activation(
        revision=body["revision"],
        at=body["at"],
        served_name=body["name"],
        edges=Edges(*body["edges"]),
        before=HealthBaseline(*body["before"]) if body["before"] else None,
        taken_back=body["takenBack"],
        confident=body["confident"],
        epochs=[_read_epoch(one) for one in body["epochs"]],
    )


def _read_epoch(body: Mapping[str, Any]) -> Epoch:
    return Epoch(body["start"], body["life"], _read_events(body["base"]), {row[0]: _read_events(row[1:]) for row in body["marks"]})
