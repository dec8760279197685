"""How commands for people reach the hub's API server: as `kubectl` would, and with errors that say what to do."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from edgefleet.cli.output import CommandFailed
from edgefleet.kube.client import Api
from edgefleet.kube.connection import load_connection
from edgefleet.kube.errors import ApiError

NamespaceOption = Annotated[str, typer.Option("-n", "--namespace", help="The team's namespace.")]
KubeconfigOption = Annotated[Path | None, typer.Option(help="The hub's kubeconfig. [default: $KUBECONFIG, else ~/.kube/config]")]
ContextOption = Annotated[str | None, typer.Option(help="A context of the kubeconfig. [default: its current one]")]


@asynccontextmanager
async def connecting(kubeconfig: Path | None, context: str | None) -> AsyncIterator[Api]:
    """A client of the hub's API server. What it answers becomes CommandFailed."""
    try:
        connection = load_connection(kubeconfig or _default_kubeconfig(), context)
    except ValueError as error:
        raise CommandFailed("KubeconfigInvalid", f"{error}; name another with --kubeconfig") from error
    async with Api(connection, user_agent="edgefleet-cli") as api:
        try:
            yield api
        except ApiError as error:
            raise CommandFailed(type(error).__name__, error.message) from error


def server_now(api: Api) -> datetime:
    """The time by the API server's clock, as of its last answer: what it and the hub wrote is as old as that says."""
    return datetime.now(UTC) - timedelta(seconds=api.clock_skew)


def _default_kubeconfig() -> Path:
    named = os.environ.get("KUBECONFIG", "")
    return Path(named) if named else Path.home() / ".kube" / "config"
