"""How commands speak: tables that fit 80 columns, JSON with `-o json`, errors and progress on stderr, exit codes.

0  done
1  refused or failed; stderr says why
2  wrong usage
"""

import json
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgefleet.api.quantities import parse_duration

if TYPE_CHECKING:
    from rich.progress import Progress

EXIT_CODES = "Exit codes: 0 done, 1 refused or failed (stderr says why), 2 wrong usage."


class Format(StrEnum):
    """What a command prints."""

    TABLE = "table"
    JSON = "json"


FormatOption = Annotated[Format, typer.Option("-o", "--output", help="What to print.")]


class CommandFailed(Exception):
    """A command cannot do what was asked. `reason` is CamelCase, `message` says what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2))


def print_facts(facts: Mapping[str, object]) -> None:
    """One fact a line on stdout, never folded: digests are there to be copied. Labels of up to 7 letters keep within 80 columns."""
    width = max(len(label) for label in facts)
    for label, value in facts.items():
        for line in value if isinstance(value, (list, tuple)) else [value]:
            typer.echo(f"{label:<{width}} {line}")


def print_prose(facts: Mapping[str, str], *, indent: int = 0) -> None:
    """One fact a paragraph on stdout, folded at the terminal's width (80 columns where there is none) under a hanging label. Empty facts
    are left out."""
    margin = " " * indent
    label_width = max((len(label) for label in facts), default=0) + 1
    columns = max(40, shutil.get_terminal_size((80, 24)).columns)
    for label, value in facts.items():
        if value:
            first, later = f"{margin}{label:<{label_width}}", margin + " " * label_width
            folded = textwrap.wrap(
                value, columns, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
            )
            typer.echo("\n".join(folded))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None, folding: Collection[str] = ()
) -> None:
    """A table on stdout, 80 columns wide where stdout is not a terminal. Cells of `folding` columns fold, others stay whole."""
    from rich.console import Console
    from rich.table import Table

    if title:
        typer.echo(f"\n{title}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column not in folding)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    Console(file=sys.stdout, highlight=False, markup=False).print(table)


def print_note(text: str) -> None:
    """A line for people on stderr, so that stdout stays what `-o` says."""
    typer.echo(text, err=True)


def read_period(text: str, option: str) -> timedelta:
    """How often something is done, at most once a second. Raises typer.BadParameter."""
    try:
        period = parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
    if period < timedelta(seconds=1):
        raise typer.BadParameter(f"{text} is too often: 1s or longer", param_hint=option)
    return period


def short(identity: str) -> str:
    """A digest or key id as tables show it: `sha256:` and twelve digits."""
    return identity[:19] if identity.startswith("sha256:") else identity


def show_age(moment: datetime | None, now: datetime) -> str:
    """How long ago, in its largest unit: `5s`, `12m`, `3h`, `4d`. `-` for None, `0s` for what is still to come."""
    if moment is None:
        return "-"
    seconds = max(0, int((now - moment).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def show_size(size: int) -> str:
    """Bytes for people: `97.7 KiB`."""
    amount, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.1f} {unit}" if unit != "B" else f"{size} B"


@contextmanager
def showing_bytes(label: str, total: int) -> Iterator["Progress"]:
    """A progress bar on stderr, only where that is a terminal. Its only task has id 0."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
    with bar:
        bar.add_task(label, total=total)
        yield bar
