"""The command line, put together from one module per noun.

A noun with several verbs is a typer app, a single command a function. A command line that names one of them imports that one alone: an
agent runs for months, and what it never calls would stay in its memory.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from edgefleet import __version__
from edgefleet.cli.output import EXIT_CODES, CommandFailed
from edgefleet.oci.errors import RegistryError
from edgefleet.trust.errors import Rejected

GROUPS = {
    "model": "model:app",
    "golden": "golden:app",
    "trust": "trust:app",
    "policy": "policy:app",
    "rollout": "rollout:app",
    "judge": "judge:app",
    "fleet": "fleet:app",
    "site": "site:app",
    "gateway": "agent:gateway",
}
COMMANDS = {
    "status": "status:status",
    "check": "check:check",
    "support-bundle": "support:support_bundle",
    "agent": "agent:agent",
    "hub": "hub:hub",
    "crds": "crds:crds",
    "backup": "backup:backup",
    "restore": "backup:restore",
}
"""Names and where they are found: module of this package, and attribute."""
VERBS = {
    "rollout": {"explain": "record:explain", "export": "record:export"},
    "judge": {"replay": "record:replay"},
    "model": {"sign": "sign:sign", "export": "transfer:export_release", "adopt": "adopt:adopt"},
    "site": {
        "join": "join:join",
        "leave": "join:leave",
        "identity": "join:identity",
        "import": "transfer:import_release",
        "verify": "verify_site:verify_site",
    },
}
"""Verbs whose module is not that of their noun: what live traffic said of a run, how a site comes and goes."""

EXPECTED = (CommandFailed, Rejected, RegistryError)
"""Errors that say all there is to say: one line on stderr, exit code 1. Each has a `reason` and a `message`."""


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"edgefleet {__version__}")
        raise typer.Exit


def load(name: str) -> Any:
    """The typer app of a group, or the function of a command."""
    found = _find({**GROUPS, **COMMANDS}[name])
    for verb, place in VERBS.get(name, {}).items():
        if all(known.name != verb for known in found.registered_commands):
            found.command(verb, epilog=EXIT_CODES)(_find(place))
    return found


def _find(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(import_module(f"edgefleet.cli.{module}"), attribute)


def make_app(only: str | None = None) -> typer.Typer:
    """All commands, or the one that is named."""
    app = typer.Typer(
        name="edgefleet",
        help="Roll signed ML models out to fleets of edge sites, and take them back when they are worse.",
        epilog=EXIT_CODES,
        no_args_is_help=True,
        # Brackets in examples are YAML, not markup.
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_about)
    names = [only] if only in {*GROUPS, *COMMANDS} else [*GROUPS, *COMMANDS]
    for name in names:
        if name in GROUPS:
            app.add_typer(load(name), name=name)
        else:
            app.command(name)(load(name))
    return app


def _about(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)] = False,
) -> None:
    """Takes the options that stand before any command."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code (0 done, 1 refused or failed, 2 wrong usage)."""
    try:
        make_app(arguments[0] if arguments else None)(args=list(arguments), prog_name="edgefleet")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except EXPECTED as error:
        typer.echo(f"error: {error.reason}: {error.message}", err=True)
        return 1
    except OSError as error:
        typer.echo(f"error: {error.strerror or error}: {error.filename or ''}".rstrip(": "), err=True)
        return 1
    return 0
