"""Killed and cut: whatever ends, lies or falls silent between hub, agents and API servers, at any write, the fleet comes to the same end.

`make test` plays a seeded selection of points, at each place in the code that writes at least one; with `EDGEFLEET_ALL_POINTS=1` all are
played (`make test-all`), with `EDGEFLEET_POINT=TEXT` those whose name has this text, with `EDGEFLEET_SEED=N` others are chosen. A point
that fails leaves its history and logs.
"""

import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.integration.ground import Ground, Releases, open_ground, prepare_clusters
from tests.integration.points import (
    Played,
    Point,
    choose,
    least,
    list_answers,
    list_cuts,
    list_kills,
    list_settling,
    play,
    play_all,
)
from tests.integration.tensecond import PROBED
from tests.lab import cluster
from tests.lab.callers import list_callers
from tests.lab.checker import Violation
from tests.lab.nursery import Knobs
from tests.lab.registry import Registry

LANES = 3
CHOSEN = 50
SEED = int(os.environ.get("EDGEFLEET_SEED", "5"))
ALL, WANTED = os.environ.get("EDGEFLEET_ALL_POINTS") == "1", os.environ.get("EDGEFLEET_POINT", "")
JOINING, PODS = "joining: test_join.py", "pods: test_deployment.py"
NEVER_SEEN: dict[str, str] = {
    "hub/joining.py Joining._answer patch NAMESPACES": JOINING,
    "hub/joining.py Joining._record apply EDGE_SITES": JOINING,
    "hub/joining.py Joining._tell patch CERTIFICATE_REQUESTS": JOINING,
    "hub/joining.py Joining._sweep delete SERVICE_ACCOUNTS": JOINING,
    "hub/sites.py Sites._apply_namespace delete ROLE_BINDINGS": JOINING,
    "site/identity.py Identity._send create CERTIFICATE_REQUESTS": JOINING,
    "site/runtimes/deployment.py Pods.apply apply DEPLOYMENTS": PODS,
    "site/runtimes/deployment.py Pods.unload delete DEPLOYMENTS": PODS,
}
"""Writes in the code that no scenario comes to, as `callers.Caller` prints them, each with the reason."""
MOMENTS_MISSED = 0.05
"""Share of the points whose moment may not come: a status is written more or less often as events fall together."""

Lanes = tuple[cluster.Lab, list[cluster.Cluster]]


@pytest.fixture(scope="module")
def lanes() -> Iterator[Lanes]:
    """A lab of its own: each lane's hub works on a whole API server, and other tests' objects must not be among its own."""
    parent = Path(tempfile.gettempdir()) / f"edgefleet-lab-tests-{os.getuid()}"
    parent.mkdir(mode=0o700, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    lab = cluster.Lab.start(folder, ("east", *(f"lane{n}" for n in range(2, LANES + 1))))
    try:
        yield lab, prepare_clusters(lab)
    finally:
        lab.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Releases]:
    """Releases 1, 3, 4, 5 are good, 2 fails its golden set, and 6 passes it and fails at clients."""
    with Registry() as registry:
        made = Releases(registry, tmp_path_factory.mktemp("releases"))
        for version in ("1", "3", "4", "5"):
            made.push(version)
        made.push("2", bias=1)
        made.push("6", limit=PROBED)
        yield made


def test_each_excuse_is_of_a_write_that_exists() -> None:
    assert set(NEVER_SEEN) <= {str(one) for one in list_callers()}


@pytest.mark.timeout(4 * 3600 if ALL else 1500)
async def test_killed_or_cut_anywhere_it_comes_to_the_same_end(lanes: Lanes, releases: Releases, tmp_path: Path) -> None:
    lab, hubs = lanes
    async with open_ground(lab, hubs, releases, tmp_path) as ground:
        recorded = await record_undisturbed(ground)
        undisturbed = {name: played[0].state for name, played in recorded.items()}
        kills, others = list_points(recorded)
        points = [*kills, *others] if ALL or WANTED else choose(kills, others, CHOSEN, SEED)
        points = [point for point in points if WANTED in str(point)]
        random.Random(SEED).shuffle(points)  # one that is ended early has tried some of everything
        assert points, f"no point's name has {WANTED!r} in it"
        done = await play_all(ground, points, undisturbed)
    seen = {entry.caller for played in recorded.values() for entry in played[0].entries if entry.is_write}
    seen |= {entry.caller for one in done for entry in one.entries if entry.is_write}
    uncovered = print_coverage(seen, done)
    failed = [one for one in done if one.violations]
    missed = [one for one in done if not one.met]
    print(f"{len(done)} points played: {len(failed)} failed, {len(missed)} whose moment did not come")
    for one in missed:
        print(f"  did not come: {one.point}")
    assert not failed, describe(failed)
    assert len(missed) <= MOMENTS_MISSED * len(done)
    assert WANTED or not uncovered, f"never written: {uncovered}; add a scenario, or name them with a reason in NEVER_SEEN"


async def record_undisturbed(ground: Ground) -> Mapping[str, list[Played]]:
    """Two plain runs of what all points are drawn from, one of each other scenario; each must be without fault."""
    names = ("judged", "rollback", "adoption", "forgetting", "rollback")
    empty: dict[str, Any] = dict.fromkeys(names)
    found: dict[str, list[Played]] = {name: [] for name in names}
    for one in await play_all(ground, [Point(name) for name in names], empty):
        assert not one.violations, describe([one])
        found[one.point.scenario].append(one)
    assert found["rollback"][0].state == found["rollback"][1].state
    return found


def list_points(recorded: Mapping[str, Sequence[Played]]) -> tuple[list[Point], list[Point]]:
    """The kills, and all else. Of the smaller scenarios only what the first one does not write."""
    functions = {one.caller: one.function for one in list_callers()}
    entries = least([one.entries for one in recorded["rollback"]])
    kills, others = (
        list_kills("rollback", entries, functions),
        [*list_answers("rollback", entries, functions), *list_cuts("rollback", entries)],
    )
    known = {entry.caller for entry in entries if entry.is_write}
    for name in ("adoption", "forgetting", "judged"):
        more = recorded[name][0].entries
        new = {entry.caller for entry in more if entry.is_write} - known
        kills += list_kills(name, more, functions, new)
        others += list_answers(name, more, functions, new)
    settling = list_settling()
    kills += [point for point in settling if point.faults[-1].what == "kill"]
    others += [point for point in settling if point.faults[-1].what != "kill"]
    return kills, others


def print_coverage(seen: set[str], done: Sequence[Played]) -> list[str]:
    """One line for each write in the code; the ones that are neither seen nor excused."""
    befell = Counter(getattr(fault, "caller", "") for one in done if one.met for fault in one.point.faults)
    uncovered = []
    for one in list_callers():
        excuse = NEVER_SEEN.get(str(one), "")
        print(f"{'seen' if one.caller in seen else excuse or 'NEVER':8} {befell[one.caller]:4} faults  {one}")
        if one.caller not in seen and not excuse:
            uncovered.append(str(one))
    return uncovered


def describe(failed: Sequence[Played]) -> str:
    """What was broken, and where the histories are."""
    return "\n".join(f"{one.point} ({one.folder}):\n  " + "\n  ".join(map(str, one.violations[:8])) for one in failed)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("mutant", "rule"),
    [("hand_out_old_sequences", "I4"), ("open_all_waves", "I3"), ("take_silence_for_success", "I5")],
)
async def test_a_broken_hub_is_caught(lanes: Lanes, releases: Releases, tmp_path: Path, mutant: str, rule: str) -> None:
    lab, hubs = lanes
    async with open_ground(lab, hubs[:1], releases, tmp_path) as ground:
        knobs = Knobs(mutant=f"tests.integration.broken_hubs:{mutant}")
        played = await play(ground, ground.lanes[0], Point("rollback", knobs=knobs, patience=10), None)
    assert rules_of(played.violations) == {rule}, describe([played])


def rules_of(violations: Sequence[Violation]) -> set[str]:
    """The rules that were broken; that the scenario does not come to its end, and a site does not obey, follows from them."""
    return {one.rule for one in violations} - {"END", "I11"}
