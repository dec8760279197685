"""Act 6: everything at the hub is lost, and the sites go on serving; restored, the hub adopts what runs."""

import time

from edgefleet.api.conditions import find_condition
from examples.digits.demo.counts import Counts
from examples.digits.demo.observer import Snapshot
from examples.digits.demo.places import ELIGIBLE, FLEET, HUB_NAMESPACE
from examples.digits.demo.play import Play
from examples.digits.demo.setting import BACKUP, TEAM_FILES, install_hub

ALONE = 8.0  # seconds for which the sites are watched without any hub


def lost_hub(play: Play) -> None:
    """6. The EdgeFleet, all CRDs and the hub's namespace are deleted under traffic; applied again, nothing rolls."""
    checks = play.checks
    before = play.counts
    hub = play.stage.hub
    assert hub is not None
    checks.holds("the hub's process never ended so far", hub.restarts == 0, f"{hub.restarts} restarts; see {hub.log}")
    play.person.types("kubectl -n vision delete edgefleet digits")
    checks.awaits("the fleet is gone", lambda seen: FLEET not in seen.fleets, 30, play.found)
    play.person.types("kubectl delete -f edgefleet/crds/")
    play.person.types(f"kubectl delete namespace {HUB_NAMESPACE}")
    play.stage.story.tell("stage", "kubelet: the namespace is gone, so the hub's process is ended")
    hub.stop()
    gone = play.counts
    wait_for_answers(play, gone, ALONE)
    alone = play.counts
    silent = [site for site in ELIGIBLE if alone.sites[site].answered <= gone.sites[site].answered]
    checks.holds(f"without hub and CRDs every site went on serving for {ALONE:.0f} s", not silent, f"silent: {silent}")
    checks.holds("the same revision as before", models(alone) == models(before), f"{models(before)} -> {models(alone)}")
    play.checks_traffic()
    for name, cluster in play.stage.lab.sites.items():
        shown = play.person.types(f"kubectl --kubeconfig {cluster.kubeconfig} get siteassignments -A", shown=False).output
        (play.stage.folders.out / f"act-6-without-hub-{name}.txt").write_text(shown)

    install_hub(play.person)
    play.person.types(f"kubectl apply -f {BACKUP}")
    for file in TEAM_FILES:
        play.person.types(f"kubectl apply -f git/{file}")
    play.stage.start_hub()
    seen = checks.awaits("the hub adopts what runs: one run, Promoted, reason Adopted", adopted, 60, play.found)
    checks.awaits("the fleet is Ready, with eight sites", ready, 60, play.found)
    seen = play.awaits_version("v2", 60)
    checks.holds("no other run was started", len(seen.runs_of(FLEET)) == 1, f"runs: {[run.metadata.name for run in seen.runs_of(FLEET)]}")
    now = play.counts
    checks.holds("no site switched", models(now) == models(before), f"{models(before)} -> {models(now)}")


def adopted(seen: Snapshot) -> bool:
    """Whether the fleet's only memory is an adoption."""
    return [(run.status.outcome, run.status.reason) for run in seen.runs_of(FLEET)] == [("Promoted", "Adopted")]


def ready(seen: Snapshot) -> bool:
    """Whether the fleet is Ready with all its sites."""
    fleet = seen.fleets.get(FLEET)
    found = find_condition(fleet.status.conditions, "Ready") if fleet else None
    return fleet is not None and found is not None and found.status == "True" and fleet.status.sites.ready == len(ELIGIBLE)


def models(counts: Counts) -> dict[str, str]:
    """Which revision answered last, at each site that ever served."""
    return {name: count.last_model for name, count in counts.sites.items() if count.last_model}


def wait_for_answers(play: Play, since: Counts, seconds: float) -> None:
    """Let the customers ask on for `seconds` by their own clock; at most three times that by ours."""
    limit = time.monotonic() + 3 * seconds
    while play.counts.at < since.at + seconds and time.monotonic() < limit:
        time.sleep(0.2)
