"""The command line, put together from one module per noun.

A noun with several verbs is a typer app in `GROUPS`, a single command a function in `COMMANDS`. All of them are imported for
each command line, so modules keep heavy imports (the hub, the agent) inside their functions.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from edgefleet import __version__
from edgefleet.cli import agent, crds, fleet, golden, hub, judge, model, policy, record, rollout, site, status, trust
from edgefleet.cli.output import EXIT_CODES, CommandFailed
from edgefleet.oci.errors import RegistryError
from edgefleet.trust.errors import Rejected

GROUPS = {
    "model": model.app,
    "golden": golden.app,
    "trust": trust.app,
    "policy": policy.app,
    "rollout": rollout.app,
    "judge": judge.app,
    "fleet": fleet.app,
    "site": site.app,
    "gateway": agent.gateway,
}
COMMANDS: dict[str, Callable[..., None]] = {"status": status.status, "agent": agent.agent, "hub": hub.hub, "crds": crds.crds}

# What live traffic said of a run is one module, under two nouns.
rollout.app.command("explain", epilog=EXIT_CODES)(record.explain)
rollout.app.command("export", epilog=EXIT_CODES)(record.export)
judge.app.command("replay", epilog=EXIT_CODES)(record.replay)

EXPECTED = (CommandFailed, Rejected, RegistryError)
"""Errors that say all there is to say: one line on stderr, exit code 1. Each has a `reason` and a `message`."""


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"edgefleet {__version__}")
        raise typer.Exit


def make_app() -> typer.Typer:
    """All commands."""
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
    for name, group in GROUPS.items():
        app.add_typer(group, name=name)
    for name, command in COMMANDS.items():
        app.command(name)(command)
    return app


def _about(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)] = False,
) -> None:
    """Takes the options that stand before any command."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code (0 done, 1 refused or failed, 2 wrong usage)."""
    try:
        make_app()(args=list(arguments), prog_name="edgefleet")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except EXPECTED as error:
        typer.echo(f"error: {error.reason}: {error.message}", err=True)
        return 1
    except OSError as error:
        typer.echo(f"error: {error.strerror or error}: {error.filename or ''}".rstrip(": "), err=True)
        return 1
    return 0
