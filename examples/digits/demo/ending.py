"""What is printed when the acts are over: each act with what happened and what was asserted, the customers' count, and where to look."""

import re
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from examples.digits.demo.counts import Counts
from examples.digits.demo.places import FLEET, PLACES, Folders
from examples.digits.demo.screen import format_event
from examples.digits.demo.stage import Stage
from examples.digits.demo.story import Event, Story
from examples.digits.demo.times import SHORTENED
from tests.lab.binaries import fetch_kubectl

_SITES = {place.name for place in PLACES}
_SERVES = re.compile(r"site [-\w]+: \S+ .*Active$")


def print_times(console: Console) -> None:
    """Which times are shortened; nothing else is."""
    table = Table(title="Shortened for the demo, and nothing else", title_justify="left", box=None, header_style="dim")
    for column in ("what", "setting", "real use", "here"):
        table.add_column(column)
    for entry in {entry.key: entry for entry in SHORTENED}.values():
        table.add_row(entry.what, entry.key, entry.real, entry.demo)
    console.print(table)
    console.print(Text("All sites share this machine: their CPUs are declared (edgefleet agent --hardware), not discovered.", "dim"))


def print_acts(console: Console, story: Story) -> None:
    """Each act: when it began, what changed at the hub, and each assertion that held."""
    table = Table(title="What happened when", title_justify="left", box=None, header_style="dim", pad_edge=False)
    table.add_column("s", justify="right")
    table.add_column("what")
    for event in story.events:
        if _is_told(event):
            style = {"act": "bold", "check": "green"}.get(event.kind, "")
            table.add_row(f"{event.at:.1f}", Text(format_event(event)[8:], style))
    console.print(table)


def describe_first_site(story: Story) -> str:
    """How many commands and how much time it took from empty clusters to the first site that serves; empty if none does.

    Edits are no commands, and those that let another site in do not count; their time does.
    """
    served = next((event for event in story.events if event.kind == "fleet" and _SERVES.match(event.text)), None)
    if served is None:
        return ""
    site = served.text.split()[1].rstrip(":")
    typed = [event for event in story.events if event.kind == "command" and event.at <= served.at and not event.text.startswith("#")]
    named = [(event, _SITES.intersection(re.split(r"[ ./]", event.text)) - {site}) for event in typed]
    needed, others = [event for event, other in named if not other], set[str]().union(*(other for _, other in named))
    took = served.at - typed[0].at
    also = f", the joining of {len(others)} other sites by {len(typed) - len(needed)} more included" if others else ""
    return f"from empty clusters to {site}, the first site that serves: {len(needed)} commands, {took / 60:.1f} minutes{also}"


def print_counts(console: Console, counts: Counts, eligible: int) -> None:
    """The customers' own figures; `eligible` is the number of sites that were to serve."""
    served = [name for name, count in counts.sites.items() if count.answered]
    share = counts.right / counts.answered if counts.answered else 0.0
    console.print(
        f"customers: {counts.answered} requests answered at {len(served)} sites ({share:.1%} with the right digit), "
        f"[bold]{counts.lost} lost[/bold]; {eligible} sites were to serve{_describe_failed(counts)}",
        soft_wrap=True,
    )


def _describe_failed(counts: Counts) -> str:
    """Errors that releases answered themselves."""
    return "".join(f"; {name} answered {count} with an error" for name, count in sorted(counts.failed.items()))


def write_story(path: Path, story: Story) -> None:
    """All events, as they scrolled by."""
    path.write_text("".join(format_event(event) + "\n" for event in story.events))


def describe_files(folders: Folders) -> str:
    """Where the record of this demo lies."""
    return f"kubectl's view after each act, counts and story: {folders.out}; logs of all processes: {folders.run}"


def describe_way_around(stage: Stage) -> str:
    """How to look around while it runs, as lines to paste."""
    sites = "\n".join(
        f"  kubectl --kubeconfig {cluster.kubeconfig} get siteassignments -A   # at the sites of cluster {name}"
        for name, cluster in stage.lab.sites.items()
    )
    tools = ":".join(dict.fromkeys(str(folder) for folder in (Path(sys.executable).parent, fetch_kubectl().parent)))
    return (
        "Everything goes on running. In another terminal:\n\n"
        f"  export KUBECONFIG={stage.lab.hub.kubeconfig}\n"
        f"  export PATH={tools}:$PATH   # edgefleet, kubectl\n"
        "  kubectl get edgefleets,modelrollouts,edgesites,siteassignments -A\n"
        "  kubectl -n vision describe edgefleet digits\n"
        "  edgefleet rollout list digits -n vision\n"
        f"  edgefleet rollout explain {_last_run(stage)} -n vision\n"
        f"  curl -s {stage.gateway('berlin')}/v2/models/digits\n"
        f"{sites}\n\n"
        f"The team's Git is {stage.folders.desk / 'git'}: edit model.yaml and `kubectl apply` it.\n"
        "Ctrl-C here ends all of it."
    )


def _last_run(stage: Stage) -> str:
    runs = stage.observer.latest.runs_of(FLEET) if stage.observer else []
    return runs[-1].metadata.name if runs else "digits-1"


def _is_told(event: Event) -> bool:
    return event.kind in ("act", "check") or (event.kind == "fleet" and not event.text.startswith("site "))
