"""`make demo`: a signed model goes through a real fleet, act by act.

Exit codes: 0 every act went as promised and no request was lost; 1 not so, and the last lines say what was found; 130 Ctrl-C.
"""

import argparse
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.text import Text

from examples.digits.demo.checks import CheckFailedError, Checks
from examples.digits.demo.ending import (
    describe_files,
    describe_first_site,
    describe_way_around,
    print_acts,
    print_counts,
    print_times,
    write_story,
)
from examples.digits.demo.links import better_release_without_one, returning_site
from examples.digits.demo.nodes import NodeStage, cut_link
from examples.digits.demo.person import CommandFailedError
from examples.digits.demo.places import REPOSITORY, Folders
from examples.digits.demo.play import Play
from examples.digits.demo.refusals import bad_releases, foreign_fleet
from examples.digits.demo.regressions import erring_release, killed_hub, slow_release
from examples.digits.demo.rollouts import better_release, failing_release, first_release
from examples.digits.demo.screen import Screen
from examples.digits.demo.setting import set_up
from examples.digits.demo.stage import Stage, end_leftovers
from examples.digits.demo.story import Story
from examples.digits.demo.survival import lost_hub
from tests.lab import LabError

Acts = tuple[Callable[[Play], None], ...]
ACTS: dict[str, Acts] = {
    "standard": (set_up, first_release, better_release, failing_release, bad_releases, foreign_fleet, lost_hub, slow_release),
    "all": (
        set_up,
        first_release,
        better_release_without_one,
        failing_release,
        bad_releases,
        foreign_fleet,
        returning_site,
        lost_hub,
        slow_release,
        erring_release,
        killed_hub,
    ),
    "nodes": (set_up, first_release, better_release, cut_link, slow_release),
}
"""In the order in which they are played, on one fleet; each says its number."""
GET = "kubectl get edgefleets,modelrollouts,edgesites,siteassignments -A"


def main() -> None:
    """Parse the command line, play, clean up."""
    parser = argparse.ArgumentParser(prog="python -m examples.digits.demo", description=__doc__)
    parser.add_argument("--acts", choices=ACTS, default="standard", help="`all` plays acts 8 to 10 too; `nodes` a few on real nodes")
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end, until Ctrl-C")
    parser.add_argument("--verbose", action="store_true", help="show what kubectl says after each act")
    parser.add_argument("--down", action="store_true", help="only end what a killed demo left running")
    parser.add_argument("--dir", type=Path, default=REPOSITORY / ".lab" / "demo", help="folder of this demo; emptied at the start")
    options = parser.parse_args()
    if options.down:
        print(f"{end_leftovers(Folders(options.dir.resolve()))} processes ended")
        return
    signal.signal(signal.SIGTERM, _interrupt)
    raise SystemExit(run(options.dir, ACTS[options.acts], keep=options.keep, verbose=options.verbose, console=Console()))


def run(root: Path, acts: Acts, *, keep: bool, verbose: bool, console: Console) -> int:
    """The whole demo in `root`; returns the exit code. Everything is ended when it returns."""
    story = Story()
    stage = NodeStage(root, story) if acts is ACTS["nodes"] else Stage(root, story)
    code = 130  # unless the acts come to an end
    try:
        code = _perform(stage, acts, console, verbose)
        if keep:
            console.print(Text(describe_way_around(stage)), soft_wrap=True)
            signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        console.print(Text("ending everything ...", "dim"))
        stage.close()
    counts = stage.traffic.read()
    print_counts(console, counts, len(stage.eligible))
    if code == 0 and counts.lost:  # after the last assertion
        console.print(Text(f"FAILED  requests were lost:\n{counts.describe_losses()}", "bold red"))
        code = 1
    write_story(stage.folders.out / "story.txt", story)
    console.print(describe_files(stage.folders))
    return code


def _perform(stage: Stage, acts: Acts, console: Console, verbose: bool) -> int:
    print_times(console)
    try:
        with Screen(console, stage.story) as screen:
            _play(stage, acts, screen, console, verbose)
    except (CheckFailedError, CommandFailedError, LabError) as error:
        console.print(Text(f"\nFAILED  {error}", "bold red"))
        console.print(describe_files(stage.folders))
        return 1
    print_acts(console, stage.story)
    console.print(describe_first_site(stage.story), soft_wrap=True)
    return 0


def _play(stage: Stage, acts: Acts, screen: Screen, console: Console, verbose: bool) -> None:
    person = stage.build()
    assert stage.observer is not None
    assert stage.registry is not None
    screen.watch(stage.observer, stage.traffic)
    play = Play(stage, person, Checks(stage.story, stage.observer), stage.registry.host)
    for act in acts:
        play.checks.act = (act.__doc__ or "").strip()
        stage.story.tell("act", play.checks.act)
        act(play)
        number = play.checks.act.split(".")[0]
        if act is set_up:
            stage.start_traffic()
            continue
        play.checks_traffic()
        shown = person.types(GET).output
        (stage.folders.out / f"act-{number}.txt").write_text(shown)
        if verbose:
            console.print(Text(shown), soft_wrap=True)
    play.checks.act = "The whole demo"
    stage.story.tell("act", play.checks.act)
    play.checks_customers()
    play.checks_traffic()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
