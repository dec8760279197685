"""The live view: what happened scrolls by, what is now stands below. Where the output is no terminal, only the lines."""

from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from edgefleet.api.rollout import ModelRollout
from examples.digits.demo.counts import Traffic
from examples.digits.demo.observer import Observer, Snapshot
from examples.digits.demo.story import Event, Story

FLEET = "vision/digits"
_STYLES = {"act": "bold white on blue", "command": "bold cyan", "fleet": "", "check": "green", "stage": "dim"}
_MARKS = {"act": "", "command": "$ ", "fleet": "  ", "check": "  ✓ ", "stage": "· "}


def format_event(event: Event) -> str:
    """One line: seconds, mark, text."""
    mark = "" if event.kind == "command" and event.text.startswith("#") else _MARKS[event.kind]
    return f"{event.at:6.1f}  {mark}{event.text}"


class Screen:
    """A context manager around the time in which the view is shown."""

    def __init__(self, console: Console, story: Story) -> None:
        self._console = console
        self._observer: Observer | None = None
        self._traffic: Traffic | None = None
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=2, transient=True)
        story.listen(self._print)

    def watch(self, observer: Observer, traffic: Traffic) -> None:
        """From now on there is something to draw."""
        self._observer, self._traffic = observer, traffic

    def __enter__(self) -> "Screen":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def _print(self, event: Event) -> None:
        if event.kind == "act":
            self._console.print()
        self._console.print(Text(format_event(event), _STYLES[event.kind]), soft_wrap=True)

    def _draw(self) -> RenderableType:
        if self._observer is None or self._traffic is None:
            return Text("starting ...", "dim")
        seen = self._observer.latest
        return Group("", _draw_runs(seen), draw_gates(seen), draw_sites(seen, self._traffic), Text(self._observer.trouble, "red"))


def _draw_runs(seen: Snapshot) -> RenderableType:
    runs = seen.runs_of(FLEET)
    if not runs:
        return Text("no run of fleet vision/digits", "dim")
    run = runs[-1]
    line = Text.assemble(
        (f"{run.metadata.name} {run.spec.revision.version}  ", "bold"),
        *(_draw_wave(run, position) for position, wave in enumerate(run.status.waves) if wave.sites),
        (f" {run.status.outcome or run.status.phase}", "bold"),
        (f"  {run.status.reason} {run.status.waiting_for}", "dim"),
    )
    line.no_wrap = True
    return line


def _draw_wave(run: ModelRollout, position: int) -> tuple[str, str]:
    wave = run.status.waves[position]
    style = "green" if wave.passed_at else "yellow" if wave.opened_at else "dim"
    return f"[{wave.name} {wave.sites}{' ✓' if wave.passed_at else ''}] ", style


def draw_gates(seen: Snapshot) -> Text:
    """What live traffic says against the newest run's revision."""
    gates = [gate for run in seen.runs_of(FLEET)[-1:] for gate in run.status.gates]
    if not gates:
        return Text("no evidence from live traffic yet", "dim")
    words = [(f"{gate.name} {float(gate.evidence):.3g}", "bold red" if gate.verdict == "Fail" else "") for gate in gates]
    heading = (f"evidence ({float(gates[0].bound):g} is enough): ", "dim")
    line = Text.assemble(heading, Text("  ").join(Text(*word) for word in words))
    line.no_wrap = True
    return line


def draw_sites(seen: Snapshot, traffic: Traffic) -> Table:
    """Each site: what it serves, what it is told, and what its customers count."""
    counts = traffic.read()
    rates = traffic.rates(counts)
    assigned = seen.assigned(FLEET)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("site", "region", "CPU", "serves", "assigned"):
        table.add_column(column, no_wrap=True)
    for column in ("answers", "/s", "500s", "lost"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, site in sorted(seen.sites.items(), key=lambda item: (item[1].spec.region or "", item[0])):
        count = counts.sites.get(name)
        assignment = assigned.get(name)
        active = assignment.status.active if assignment else None
        state = f"{assignment.spec.version} {assignment.status.reason or assignment.status.state}" if assignment else "-"
        hardware = site.status.hardware
        lost, failed = (count.lost, sum(count.failed.values())) if count else (0, 0)
        table.add_row(
            name,
            site.spec.region or "-",
            ("vnni" if "avx512_vnni" in hardware.features else "plain") if hardware else "?",
            f"{active.version} {active.variant}" if active else "-",
            escape(state),
            str(count.answered if count else 0),
            f"{rates.get(name, 0.0):.0f}",
            Text(str(failed), "red" if failed else "dim"),
            Text(str(lost), "bold red" if lost else "green"),
        )
    totals = (counts.answered, round(sum(rates.values())), counts.failed.total(), counts.lost)
    table.add_row("", "", "", "", "all", *map(str, totals), style="bold")
    return table
