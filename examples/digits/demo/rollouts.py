"""Acts 1 to 3: a first release, a better one in waves, and one that fails its exam."""

import json

from edgefleet.api.conditions import find_condition
from edgefleet.api.meta import parse_time
from edgefleet.api.rollout import ModelRollout
from examples.digits.demo.observer import Snapshot
from examples.digits.demo.places import FLEET, MODEL, PLACES, REFUSED
from examples.digits.demo.play import KEY, ROLL_LIMIT, Play, all_serve, ended, last_run, served_name, serving

VNNI_SITES = frozenset(place.name for place in PLACES if "avx512_vnni" in place.features)


def first_release(play: Play) -> None:
    """1. v1 rolls out to all eligible sites; the one that residency refuses is left out, and the fleet says so."""
    play.push("v1", 1, "v1")
    pushed = play.person.types(
        f"edgefleet golden push {play.registry}/vision/{MODEL}-golden:1 releases/golden.jsonl --name {MODEL} --key {KEY} -o json"
    )
    play.person.edits("git/model.yaml", f"sha256:{'0' * 64}", read_digest(pushed.output))
    for file in ("model.yaml", "policy.yaml", "fleet.yaml"):
        play.person.types(f"kubectl apply -f git/{file}")

    checks = play.checks
    seen = checks.awaits("v1 is promoted", lambda seen: ended(seen, "v1", "Promoted"), ROLL_LIMIT, play.found)
    checks.holds(f"all {len(play.sites)} eligible sites serve v1", all_serve(seen, "v1", play.sites), play.found(seen))
    checks.holds(f"{REFUSED} got no assignment", REFUSED not in seen.assigned(FLEET), play.found(seen))
    checks.awaits(
        f"the fleet says that {REFUSED} is left out, and why (ResidencyDenied)",
        lambda seen: "ResidencyDenied" in said_of_fleet(seen) and REFUSED in said_of_fleet(seen),
        10,
        play.found,
    )


def better_release(play: Play) -> None:
    """2. v2 (int8 where it fits): one canary per variant, then 50 %, then all; promoted."""
    play.push("v2", 2, "v2")
    play.names("v2")
    checks = play.checks
    seen = checks.awaits("v2 is promoted", lambda seen: ended(seen, "v2", "Promoted"), ROLL_LIMIT, play.found)
    now = serving(seen, "v2")
    checks.holds(f"all {len(play.sites)} sites serve v2", all_serve(seen, "v2", play.sites), play.found(seen))
    int8 = {site for site, assignment in now.items() if assignment.spec.variant == "int8"}
    checks.holds("int8 runs exactly where the CPU has VNNI (declared)", int8 == VNNI_SITES & play.sites, f"int8 runs at {sorted(int8)}")

    run = last_run(seen)
    assert run is not None
    canaries, half = active_before(seen, run, 0), active_before(seen, run, 1)
    variants = sorted(now[site].spec.variant for site in canaries)
    checks.holds(
        f"before the first wave had passed, only one canary per variant ran v2: {', '.join(sorted(canaries))}",
        variants == ["fp32", "int8"],
        f"{sorted(canaries)} ({variants}); waves: {run.status.waves}",
    )
    planned = sum(wave.sites for wave in run.status.waves)  # one of them may be cut off
    checks.holds("before the second had passed, it was half of the sites", len(half) == planned // 2, f"{sorted(half)}; {run.status.waves}")


def failing_release(play: Play) -> None:
    """3. v3 (trained on wrong labels): the golden set fails at the canary before the switch; nobody else is touched."""
    before = {site: assignment.spec.sequence for site, assignment in play.seen.assigned(FLEET).items()}
    play.push("v3", 3, "v3")
    play.names("v3")
    checks = play.checks
    seen = checks.awaits("v3 is rolled back by itself", lambda seen: ended(seen, "v3", "RolledBack"), ROLL_LIMIT, play.found)
    touched = [site for site, assignment in seen.assigned(FLEET).items() if assignment.spec.sequence != before.get(site)]
    checks.holds(f"no site but the canary was touched ({', '.join(touched)})", len(touched) == 1, f"touched: {touched}")
    play.awaits_version("v2", 30)
    run = last_run(seen)
    assert run is not None
    answered = play.counts.latency_of(served_name(run)).answers
    checks.holds("v3 never answered a customer", answered == 0, f"{answered} answers came from {served_name(run)}")
    checks.awaits(
        "the fleet says why (Stalled, golden set)",
        lambda seen: "olden" in said_of_fleet(seen, "Stalled"),
        10,
        play.found,
    )


def active_before(seen: Snapshot, run: ModelRollout, wave: int) -> set[str]:
    """The sites that served the run's revision before this wave had passed; by the times that sites and hub wrote down."""
    passed = run.status.waves[wave].passed_at
    if passed is None:
        return set()
    return {
        site
        for site, assignment in serving(seen, run.spec.revision.version).items()
        if assignment.status.active is not None and parse_time(assignment.status.active.since) < parse_time(passed)
    }


def said_of_fleet(seen: Snapshot, kind: str | None = None) -> str:
    """Reasons and messages of the fleet's conditions, or of one of them."""
    fleet = seen.fleets.get(FLEET)
    if fleet is None:
        return ""
    if kind is None:
        return "\n".join(f"{each.reason} {each.message}" for each in fleet.status.conditions)
    found = find_condition(fleet.status.conditions, kind)
    return f"{found.reason} {found.message}" if found and found.status == "True" else ""


def read_digest(output: str) -> str:
    """The digest in what `golden push -o json` printed."""
    digest: str = json.loads(output)["digest"]
    return digest
