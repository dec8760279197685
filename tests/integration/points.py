"""The points at which a ten-second fleet is killed or cut: read from what an undisturbed one wrote, and played on a fleet of its own.

A point that plays needs the same end as the undisturbed run of its scenario, and a checker that has nothing to say.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from edgefleet.kube.errors import NotFound
from edgefleet.kube.resources import EDGE_FLEETS, MODEL_ROLLOUTS, ROLLOUT_POLICIES, SITE_ASSIGNMENTS
from tests.integration.endstate import FLEET
from tests.integration.ground import GOLDEN_LINES, Ground, Lane
from tests.integration.tensecond import POLICY, TenSecondFleet
from tests.lab.callers import find_caller
from tests.lab.checker import Truth, Violation, check
from tests.lab.faults import Fault, FaultPlan, WatchFault, WriteFault
from tests.lab.history import Entry
from tests.lab.nursery import Knobs

REPEATED = frozenset(
    {
        "hub/heartbeat.py Heartbeat._beat",
        "site/heartbeat.py Heartbeat.run",
        "hub/leadership.py Leadership._write",
        "hub/events.py Events._write",
    }
)
"""The same write again and again, that no decision depends on: the first three are enough."""
FIRST = 3
ACTORS = ("hub", "agent-a", "agent-b")
"""Whom faults befall. Site c goes the way of site b."""
ANSWERS: tuple[tuple[Any, Any, int], ...] = (
    ("answer", "before", 409),
    ("answer", "before", 429),
    ("answer", "before", 500),
    ("answer", "after", 409),
    ("answer", "after", 500),
    ("hang", "before", 0),
    ("hang", "after", 0),
)
WATCHES: tuple[Any, ...] = ("cut", "expire", "merge", "swallow", "silent")
PATIENT = Knobs()
IMPATIENT = Knobs(request=2)
HALF_OPEN = Knobs(request=2, silence=4)


async def rollback(fleet: TenSecondFleet) -> None:
    """A good release is promoted, a bad one taken back."""
    await fleet.name_release("1")
    await fleet.start()
    await fleet.add_fleet()
    await fleet.until_ended(1, "Promoted")
    await fleet.name_release("2")
    await fleet.until_ended(2, "RolledBack")


async def adoption(fleet: TenSecondFleet) -> None:
    """A hub that lost everything adopts what its sites run; then the fleet is deleted and withdraws."""
    await fleet.apply(ROLLOUT_POLICIES, "careful", _one_wave())
    await fleet.name_release("1")
    await fleet.start()
    await fleet.add_fleet()
    await fleet.until_ended(1, "Promoted")
    await fleet.actors["hub"].pause()
    await fleet.admin.delete(EDGE_FLEETS, FLEET, fleet.team)
    await fleet.admin.delete(MODEL_ROLLOUTS, f"{FLEET}-1", fleet.team)
    for letter in fleet.SITES:
        await fleet.admin.delete(SITE_ASSIGNMENTS, f"{fleet.team}.{FLEET}", f"edgesite-{fleet.site(letter)}")
    fleet.history.add("note", "person", text="everything of the fleet is lost at the hub")
    await fleet.actors["hub"].start()
    await fleet.add_fleet(onDelete="Withdraw")
    await fleet.until_ended(1, "Promoted")

    async def guarded() -> bool:
        body = await fleet.admin.get(EDGE_FLEETS, FLEET, fleet.team)
        return bool(body["metadata"].get("finalizers"))

    await fleet.until("the hub guards the deletion", guarded)
    await fleet.admin.delete(EDGE_FLEETS, FLEET, fleet.team)

    async def gone() -> bool:
        try:
            await fleet.admin.get(EDGE_FLEETS, FLEET, fleet.team)
        except NotFound:
            return True
        return False

    await fleet.until("the fleet is gone", gone)


async def forgetting(fleet: TenSecondFleet) -> None:
    """Four good releases, of which the first is forgotten."""
    await fleet.apply(ROLLOUT_POLICIES, "careful", _one_wave())
    await fleet.name_release("1")
    await fleet.start()
    await fleet.add_fleet()
    for number, version in enumerate(("1", "3", "4", "5"), start=1):
        if number > 1:
            await fleet.name_release(version)
        await fleet.until_ended(number, "Promoted")

    async def forgotten() -> bool:
        return len(await fleet.admin.list(MODEL_ROLLOUTS, fleet.team)) == 3

    await fleet.until("the first run is forgotten", forgotten)


async def judged(fleet: TenSecondFleet) -> None:
    """A release that answers its golden set and fails at clients is taken back by what the gateway of its canary counts."""
    slo = {"errorRate": "1%"}
    waves = [{**wave, "soak": {"min": "200ms", "max": "30s", "minRequests": 5}} for wave in POLICY["waves"]]  # type: ignore[attr-defined]
    await fleet.apply(ROLLOUT_POLICIES, "careful", {**POLICY, "waves": waves})
    await fleet.name_release("1", slo=slo)
    await fleet.start()
    await fleet.add_fleet()
    await fleet.until_ended(1, "Promoted")
    await fleet.name_release("6", slo=slo)
    await fleet.until_ended(2, "RolledBack")


def _one_wave() -> dict[str, Any]:
    return {**POLICY, "waves": [{"name": "all", "percent": 100}]}


SCENARIOS: dict[str, Callable[[TenSecondFleet], Awaitable[None]]] = {
    "rollback": rollback,
    "adoption": adoption,
    "forgetting": forgetting,
    "judged": judged,
}
GOOD, BAD = frozenset({"1", "3", "4", "5", "6"}), frozenset({"2"})


@dataclass(frozen=True, slots=True)
class Point:
    """What befalls one fleet. `ends`: how often a process may give up by itself meanwhile; `patience`: seconds for each step."""

    scenario: str
    faults: tuple[Fault, ...] = ()
    knobs: Knobs = PATIENT
    ends: Mapping[str, int] = field(default_factory=dict, hash=False)
    patience: float = 40

    def __str__(self) -> str:
        return f"{self.scenario}: {' + '.join(map(str, self.faults)) or 'undisturbed'}"


@dataclass
class Played:
    """What came of a point. `met`: whether all its faults came about."""

    point: Point
    entries: list[Entry]
    state: dict[str, Any]
    violations: list[Violation]
    met: bool
    folder: Path
    seconds: float


async def play(ground: Ground, lane: Lane, point: Point, undisturbed: Mapping[str, Any] | None) -> Played:
    """Let one fleet live."""
    loop = asyncio.get_running_loop()
    began, plan, failures = loop.time(), FaultPlan(*point.faults), []
    async with TenSecondFleet(ground, lane, plan, point.knobs, point.patience) as fleet:
        try:
            await SCENARIOS[point.scenario](fleet)
        except AssertionError as error:
            failures.append(Violation("END", str(error)))
        final = await fleet.settle(dict(undisturbed) if undisturbed is not None else None, limit=2 if failures else 12)
        truth = Truth(
            good=GOOD,
            bad=BAD,
            golden=GOLDEN_LINES,
            denied=frozenset({fleet.site("d")}),
            withdrawn=frozenset({f"{fleet.team}/{FLEET}"} if point.scenario == "adoption" else ()),
            ends=point.ends,
        )
        failures += check(fleet.history.entries, truth, final)
        folder = fleet.folder
    return Played(point, fleet.history.entries, dict(final.state), failures, not plan.unmet, folder, loop.time() - began)


async def play_all(ground: Ground, points: Sequence[Point], undisturbed: Mapping[str, Mapping[str, Any]]) -> list[Played]:
    """Each point on whichever lane is free."""
    waiting, played = list(reversed(points)), []

    async def work(lane: Lane) -> None:
        while waiting:
            point = waiting.pop()
            one = await play(ground, lane, point, undisturbed[point.scenario])
            if not one.met and not one.violations:
                # Its moment did not come: whoever was to be hit was a moment earlier or later than before.
                one = await play(ground, lane, point, undisturbed[point.scenario])
            played.append(one)
            said = "; ".join(map(str, one.violations)) or ("as undisturbed" if one.met else "its moment did not come")
            print(f"{len(played)} of {len(points)}, {one.seconds:.1f} s  {one.point}: {said}", flush=True)

    async with asyncio.TaskGroup() as group:
        for lane in ground.lanes:
            group.create_task(work(lane))
    return played


def list_kills(scenario: str, entries: Iterable[Entry], functions: Mapping[str, str], only: Iterable[str] | None = None) -> list[Point]:
    """Every write of the hub and of the sites a and b, before and after it. `functions` names the function of each caller."""
    found = []
    for (actor, server, caller), count in _count_writes(entries, functions).items():
        if only is None or caller in only:
            for nth, when in product(range(1, count + 1), ("before", "after")):
                found.append(Point(scenario, (WriteFault(actor, server, caller, nth, "kill", when),)))  # type: ignore[arg-type]
    return found


def list_answers(scenario: str, entries: Iterable[Entry], functions: Mapping[str, str], only: Iterable[str] | None = None) -> list[Point]:
    """Every wrong answer to the first and the last write from each place; none of site b, whose agent is site a's. A conflict is answered
    only where the server may find one: to what makes, deletes, or names the version that it changes."""
    kept, found = list(entries), []
    conflicting = {entry.caller for entry in kept if entry.is_write and _may_conflict(entry)}
    for (actor, server, caller), count in _count_writes(kept, functions).items():
        if actor != "agent-b" and (only is None or caller in only):
            for nth, (what, when, code) in product(sorted({1, count}), ANSWERS):
                if code != 409 or caller in conflicting:
                    knobs = IMPATIENT if what == "hang" else PATIENT
                    found.append(Point(scenario, (WriteFault(actor, server, caller, nth, what, when, code),), knobs))
    return found


def _may_conflict(entry: Entry) -> bool:
    return entry.method in ("POST", "DELETE") or "resourceVersion" in (entry.body.get("metadata") or {})


def list_cuts(scenario: str, entries: Iterable[Entry]) -> list[Point]:
    """Every trouble of a watch at the first, middle and last event of each kind."""
    seen = Counter((e.actor, e.server, e.resource) for e in entries if e.kind == "event" and e.actor in ACTORS and e.actor != "agent-b")
    found = []
    for (actor, server, resource), count in seen.items():
        count = min(count, FIRST) if resource in ("leases", "rolloutpolicies") else _certain(count)
        for nth, what in product(sorted({1, (count + 1) // 2, count}), WATCHES):
            knobs = HALF_OPEN if what == "silent" else PATIENT
            ends = {"hub": 1} if what == "silent" else {}
            found.append(Point(scenario, (WatchFault(actor, server, resource, nth, what),), knobs, ends))
    return found


def list_settling() -> list[Point]:
    """Deaths after deaths: what a hub that died between plan, run and owner left behind is settled by one that dies, too."""
    found = []
    for left, write in (("hub/runs.py Runs.start", "create"), ("hub/plans.py apply_plan_owner", "apply")):
        first = WriteFault("hub", "hub", find_caller(left, write), 1, "kill", "before")
        verb = "delete" if write == "create" else "patch"
        settles = find_caller("hub/plans.py settle_leftovers", verb)
        found.append(Point("rollback", (first,)))
        for what, when, code in (("kill", "before", 0), ("kill", "after", 0), *ANSWERS):
            second = WriteFault("hub", "hub", settles, 1, what, when, code)
            found.append(Point("rollback", (first, second), IMPATIENT if what == "hang" else PATIENT))
    return found


def choose(kills: Sequence[Point], others: Sequence[Point], count: int, seed: int) -> list[Point]:
    """A seeded selection: first one kill at each place in the code, then half of the rest at random from the kills."""
    draw = random.Random(seed)
    by_place: dict[str, list[Point]] = {}
    for point in kills:
        by_place.setdefault(_last_place(point), []).append(point)
    chosen = [draw.choice(points) for _, points in sorted(by_place.items())]
    left = max(0, count - len(chosen))
    remaining = [point for point in kills if point not in chosen]
    chosen += draw.sample(remaining, min(left // 3, len(remaining)))
    chosen += draw.sample(list(others), min(count - len(chosen), len(others)))
    return chosen[:count]


def _last_place(point: Point) -> str:
    fault = point.faults[-1]
    return fault.caller if isinstance(fault, WriteFault) else fault.resource


def _count_writes(entries: Iterable[Entry], functions: Mapping[str, str]) -> dict[tuple[str, str, str], int]:
    seen = Counter((e.actor, e.server, e.caller) for e in entries if e.is_write and e.actor in ACTORS)
    return {key: min(count, FIRST) if functions.get(key[2]) in REPEATED else _certain(count) for key, count in seen.items()}


def _certain(count: int) -> int:
    """Of many writes or events of a kind the last may not come: on a busy machine several changes are told at once."""
    return count if count <= 4 else count * 2 // 3


def least(recordings: Sequence[Sequence[Entry]]) -> list[Entry]:
    """The writes and events that each of these recordings has: how often something is written may depend on the moment."""

    def keys(entries: Sequence[Entry]) -> Counter[tuple[str, ...]]:
        return Counter(_key(e) for e in entries)

    common = keys(recordings[0])
    for entries in recordings[1:]:
        common &= keys(entries)
    found = []
    for entry in recordings[0]:
        if common[_key(entry)] > 0:
            common[_key(entry)] -= 1
            found.append(entry)
    return found


def _key(entry: Entry) -> tuple[str, ...]:
    return (entry.kind, entry.actor, entry.server, entry.resource if entry.kind == "event" else entry.caller)
