"""`edgefleet hub`: run the hub."""

import asyncio
import logging
import platform
import re
import secrets
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from edgefleet.cli.output import read_period
from edgefleet.kube.connection import KubeconfigError
from edgefleet.oci.transport import Proxy


def hub(
    kubeconfig: Annotated[
        Path | None, typer.Option(help="The hub's API server; without it, the service account of the pod that this runs in.")
    ] = None,
    namespace: Annotated[str, typer.Option(help="Where the hub keeps its own objects.")] = "edgefleet-system",
    identity: Annotated[
        str | None,
        typer.Option(
            help="The name of this process among several hubs, of which one works. Never the same for two that live at once; a pod's own "
            "name is right. [default: host name and a random part]"
        ),
    ] = None,
    heartbeat: Annotated[str, typer.Option(help="How often the hub checks that it still hears its API server.")] = "10s",
    metrics_port: Annotated[
        int | None, typer.Option(help="Answer /healthz, /readyz and Prometheus' /metrics at this port.", min=1, max=65535)
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="The address for it; anything but loopback is open to whoever reaches it.")
    ] = "127.0.0.1",
    registry_proxy: Annotated[
        str | None,
        typer.Option(help="http://HOST:PORT of the proxy to registries. Without it none is used, whatever the environment says."),
    ] = None,
    registry_no_proxy: Annotated[
        list[str] | None, typer.Option(help="A registry to reach without that proxy; .example for all below. May be given several times.")
    ] = None,
) -> None:
    """Run the hub: resolve and verify releases, plan waves, assign sites, promote or roll back.

    It keeps nothing on disk and may be killed at any moment. Of several hubs of a namespace one works; another takes over at once when it
    is told to stop, and within 15 s when it is lost. Exit codes: 0 told to stop, 1 to be started again, 2 wrong usage.
    """
    from edgefleet.hub.process import run_hub
    from edgefleet.hub.settings import Settings

    _set_up_logging()
    every = read_period(heartbeat, "--heartbeat")
    settings = Settings(
        identity=identity or f"{platform.node()}_{secrets.token_hex(4)}",
        namespace=namespace,
        heartbeat_every=every,
        heartbeat_lost_after=max(3 * every, timedelta(seconds=5)),
        metrics_host=metrics_host,
        metrics_port=metrics_port,
        registry_proxy=_read_proxy(registry_proxy, registry_no_proxy or []) if registry_proxy else None,
    )
    try:
        asyncio.run(run_hub(kubeconfig, settings))
    except* KubeconfigError as wrong:
        typer.echo(f"hub: {wrong.exceptions[0]}", err=True)
        raise typer.Exit(2) from None
    except* Exception as group:
        for end in _leaves(group):
            expected = type(end).__module__.partition(".")[0] in ("edgefleet", "kopf")
            logging.error("the hub ends, to be started again: %s", end, exc_info=None if expected else end)
        raise typer.Exit(1) from None


def _read_proxy(address: str, direct: list[str]) -> Proxy:
    if not re.fullmatch(r"http://[a-zA-Z0-9.-]{1,253}:[0-9]{1,5}", address):
        raise typer.BadParameter(f"{address!r}: write http://HOST:PORT, without a user", param_hint="--registry-proxy")
    return Proxy(address, tuple(direct))


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    for one in group.exceptions:
        if isinstance(one, BaseExceptionGroup):
            yield from _leaves(one)
        else:
            yield one


def _set_up_logging() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_shorten_kopf)


def _shorten_kopf(record: logging.LogRecord) -> bool:
    # kopf shows a page of traceback for each watch that an API server ends; the line above it says as much.
    error = record.exc_info[1] if record.exc_info else None
    if record.name.startswith("kopf") or (error is not None and type(error).__module__.startswith("kopf")):
        record.exc_info = record.exc_text = None
    return True
