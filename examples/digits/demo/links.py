"""Acts 2 and 9 with a site that is cut off: it misses a rollout and three bad releases, serves on, and catches up."""

from edgefleet.api.conditions import find_condition
from examples.digits.demo.observer import Snapshot
from examples.digits.demo.places import CUT_OFF, FLEET
from examples.digits.demo.play import Play, served_name
from examples.digits.demo.rollouts import better_release


def better_release_without_one(play: Play) -> None:
    """2. v2 (int8 where it fits): one canary per variant, then 50 %, then all; promoted, though one site is cut off from the hub."""
    assert play.stage.cable is not None
    play.stage.story.tell("stage", f"the line between {CUT_OFF} and the hub is cut")
    play.stage.cable.cut()
    play.cut_off = CUT_OFF
    play.checks.awaits(f"the hub says that it hears no more of {CUT_OFF}", lambda seen: not is_heard(seen, CUT_OFF), 30, play.found)
    better_release(play)


def returning_site(play: Play) -> None:
    """9. A site that was cut off since act 2 has served v1 all the while; its link is back, and it goes straight to v2."""
    checks, site = play.checks, play.cut_off
    assert play.stage.cable is not None
    before = play.counts.sites[site]
    checks.holds(f"{site} still serves v1, alone with its customers", len(before.by_model) == 1, f"models that answered: {before.by_model}")
    missed = [run.spec.revision.version for run in play.seen.runs_of(FLEET) if run.status.outcome != "Promoted"]
    play.stage.story.tell("stage", f"the line between {CUT_OFF} and the hub is mended")
    play.stage.cable.mend()
    play.cut_off = ""
    checks.awaits(f"the hub hears of {site}", lambda seen: is_heard(seen, site), 60, play.found)
    seen = play.awaits_version("v2", 90)
    run = next(run for run in play.seen.runs_of(FLEET) if run.spec.revision.version == "v2")
    play.waits_for_customers(lambda counts: served_name(run) in counts.sites[site].by_model)
    now = play.counts.sites[site]
    checks.holds(
        f"it went from v1 straight to v2, and never met {' or '.join(missed)}",
        set(now.by_model) == {*before.by_model, served_name(run)},
        f"models that answered: {now.by_model}; {play.found(seen)}",
    )
    checks.holds(f"{site} answered throughout: {now.answered} requests, none lost", now.lost == 0, f"{now.lost} lost")


def is_heard(seen: Snapshot, site: str) -> bool:
    """Whether the hub hears of this site."""
    found = find_condition(seen.sites[site].status.conditions, "Connected") if site in seen.sites else None
    return found is not None and found.status == "True"
