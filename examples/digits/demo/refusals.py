"""Acts 4 and 5: releases that are not to be believed, and a team that has no sites."""

import json

from edgefleet.api.conditions import find_condition
from examples.digits.demo.observer import Snapshot
from examples.digits.demo.places import FLEET, MODEL, RETAIL
from examples.digits.demo.play import Play, all_serve, ended, last_run, serving


def bad_releases(play: Play) -> None:
    """4. v4 unsigned and v5 signed by a stranger are refused at the hub; v6 with a flipped byte is refused at the site."""
    runs = len(play.seen.runs_of(FLEET))
    play.push("v4", 4, "v4", key=None)
    play.names("v4")
    play.checks.awaits("v4 is refused at the hub: SignatureMissing", lambda seen: refused(seen) == "SignatureMissing", 30, play.found)

    play.person.types(f"edgefleet trust init stranger --model {MODEL}")
    play.push("v5", 5, "v5", key="stranger/publisher.key")
    play.names("v5")
    play.checks.awaits("v5 is refused at the hub: SignatureInvalid", lambda seen: refused(seen) == "SignatureInvalid", 30, play.found)
    found = play.seen.runs_of(FLEET)
    play.checks.holds("neither started a run", len(found) == runs, f"{len(found) - runs} new runs: {found[runs:]}")
    _spoilt_release(play)


def _spoilt_release(play: Play) -> None:
    checks = play.checks
    play.push("v6", 6, "v6")
    digest = spoil_weights(play, "v6")
    play.stage.story.tell("stage", f"a byte of v6's weights is flipped in the registry: {digest[:19]}...")
    play.names("v6")
    seen = checks.awaits("v6 passes the hub, a canary refuses its bytes: DigestMismatch", blocked, 60, play.found)
    site = blocked(seen)[0]
    fault = seen.assigned(FLEET)[site].status.fault
    checks.holds(f"it counts against the site {site}, not the release", fault == "Site", f"fault: {fault}; {play.found(seen)}")
    run = last_run(seen)
    checks.holds("the run is neither promoted nor rolled back", run is not None and run.status.outcome is None, play.found(seen))
    others = [name for name in play.sites if name not in blocked(seen) and name not in serving(seen, "v2")]
    checks.holds("every other site was left on v2", not others, f"not on v2: {others}; {play.found(seen)}")

    play.names("v2")
    checks.awaits("Git names v2 again: the run ends TargetChanged", lambda seen: ended(seen, "v6", "TargetChanged"), 60, play.found)
    play.awaits_version("v2")


def foreign_fleet(play: Play) -> None:
    """5. Another team's fleet with an empty selector gets none of these sites."""
    play.person.types("kubectl apply -f git/retail.yaml")

    def left_out(seen: Snapshot) -> bool:
        fleet = seen.fleets.get(RETAIL)
        placed = find_condition(fleet.status.conditions, "PlacementSatisfied") if fleet else None
        return placed is not None and placed.status == "False" and "NamespaceNotAllowed" in f"{placed.reason} {placed.message}"

    checks = play.checks
    seen = checks.awaits("retail's fleet says that no site allows its namespace", left_out, 30, _describe_retail)
    got = [site for site, owner in seen.assignments if owner == RETAIL]
    checks.holds("retail has no site and no run", not got and not seen.runs_of(RETAIL), f"sites {got}, runs {seen.runs_of(RETAIL)}")
    checks.holds("vision's sites serve as before", all_serve(seen, "v2", play.sites), play.found(seen))


def refused(seen: Snapshot) -> str:
    """Why the model's newest release is not accepted; empty if it is."""
    model = seen.models.get(FLEET)
    said = find_condition(model.status.conditions, "SourceVerified") if model else None
    return said.reason if said and said.status == "False" else ""


def blocked(seen: Snapshot) -> list[str]:
    """The sites that hold up the newest assignment because of a wrong digest."""
    return [
        site
        for site, assignment in seen.assigned(FLEET).items()
        if assignment.status.sequence == assignment.spec.sequence
        and (assignment.status.state, assignment.status.reason) == ("Blocked", "DigestMismatch")
    ]


def spoil_weights(play: Play, tag: str) -> str:
    """Flip a byte of the model's largest layer at the registry; returns that layer's digest."""
    assert play.stage.registry is not None
    shown = play.person.types(f"edgefleet model inspect {play.registry}/vision/{MODEL}:{tag} -o json", shown=False).output
    manifest = json.loads(shown)["variants"][0]["digest"]
    layers = play.stage.registry.content.find_manifest(f"vision/{MODEL}", manifest).parsed["layers"]
    digest: str = max(layers, key=lambda layer: layer["size"])["digest"]
    play.stage.registry.corrupt_blob(digest)
    return digest


def _describe_retail(seen: Snapshot) -> str:
    fleet = seen.fleets.get(RETAIL)
    return repr(fleet.status.conditions) if fleet else "no such fleet"
