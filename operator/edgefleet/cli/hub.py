"""`edgefleet hub`: run the hub."""

import asyncio
import logging
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from edgefleet.api.quantities import parse_duration


def hub(
    kubeconfig: Annotated[
        Path | None, typer.Option(help="The hub's API server; without it, the service account of the pod that this runs in.")
    ] = None,
    namespace: Annotated[str, typer.Option(help="Where the hub keeps its own objects.")] = "edgefleet-system",
    heartbeat: Annotated[str, typer.Option(help="How often the hub checks that it still hears its API server.")] = "10s",
) -> None:
    """Run the hub: resolve and verify releases, plan waves, assign sites, promote or roll back.

    It keeps nothing on disk and may be killed at any moment. Exit codes: 0 told to stop, 1 to be started again, 2 wrong usage.
    """
    from edgefleet.hub.heartbeat import DeafError
    from edgefleet.hub.process import run_hub
    from edgefleet.hub.settings import Settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        every = parse_duration(heartbeat)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--heartbeat") from error
    settings = Settings(namespace=namespace, heartbeat_every=every, heartbeat_lost_after=max(3 * every, timedelta(seconds=5)))
    try:
        asyncio.run(run_hub(kubeconfig, settings))
    except* DeafError as deaf:
        for silence in deaf.exceptions:
            typer.echo(f"hub: {silence}", err=True)
        raise typer.Exit(1) from None
    except* ValueError as wrong:
        for mistake in wrong.exceptions:
            typer.echo(f"hub: {mistake}", err=True)
        raise typer.Exit(2) from None
