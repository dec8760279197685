"""`edgefleet status`: one screen that says what needs a person, since when, and what to do next."""

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from edgefleet.api.conditions import find_condition
from edgefleet.api.fleet import EdgeFleet
from edgefleet.api.meta import SITE_LABEL, format_time, parse_time
from edgefleet.api.model import EdgeModel
from edgefleet.api.rollout import ModelRollout
from edgefleet.cli.cluster import ContextOption, KubeconfigOption, NamespaceOption, connecting, server_now
from edgefleet.cli.output import Format, FormatOption, print_json, print_note, print_prose, print_table, show_age
from edgefleet.core.overview import Level, Overview, look_at_fleet, look_at_model, without_echoes
from edgefleet.kube.client import Api
from edgefleet.kube.errors import Denied
from edgefleet.kube.resources import EDGE_FLEETS, EDGE_MODELS, LEASES, MODEL_ROLLOUTS


def status(
    namespace: NamespaceOption = "default",
    everywhere: Annotated[bool, typer.Option("-A", "--all-namespaces", help="All teams' fleets.")] = False,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Say on one screen what needs a person, since when, and what to do next. A fleet that is well takes one line.

    \b
    It shows what the hub wrote into statuses:
      fleets that stand (rolled back, stalled, paused, waiting for a person),
      and those on their way
      models whose source is refused, or cannot be fetched
      whether a hub is running, where you may know that

    A site that cannot be reached is no fault of a fleet: it serves what it has. `edgefleet fleet sites NAME` lists them.

    Exit codes: 0 nothing needs a person, 1 something does (or it could not be asked: stderr says why), 2 wrong usage.
    """
    raise typer.Exit(asyncio.run(_status(None if everywhere else namespace, kubeconfig, context, output)))


async def _status(namespace: str | None, kubeconfig: Path | None, context: str | None, output: Format) -> int:
    async with connecting(kubeconfig, context) as api:
        bodies = await api.list(EDGE_FLEETS, namespace)
        models = [EdgeModel.parse(body) for body in await api.list(EDGE_MODELS, namespace)]
        runs = {
            (run.metadata.namespace, run.metadata.name): run for run in map(ModelRollout.parse, await api.list(MODEL_ROLLOUTS, namespace))
        }
        now = server_now(api)
        hub = await _look_at_hub(api, now)
    fleets = [EdgeFleet.parse(body) for body in bodies]
    found = [(look_at_fleet(fleet, runs.get((fleet.metadata.namespace, fleet.status.rollout)), now), fleet) for fleet in fleets]
    found.sort(key=lambda one: (-one[0].level, one[0].namespace, one[0].name))
    others = without_echoes([(one, fleet.spec.model_ref.name) for one, fleet in found], [look_at_model(model, now) for model in models])
    trouble = [one for one in (*([hub] if hub else ()), *(one for one, _ in found), *others) if one.level >= Level.WAITS]
    if output is Format.JSON:
        fine = [one for one in (*([hub] if hub else ()), *(one for one, _ in found), *others) if one not in trouble]
        print_json({"needsPerson": [_show(one) for one in trouble], "others": [_show(one) for one in fine]})
        return int(bool(trouble))
    if found:
        print_table(("FLEET", "STATE", "VERSION", "SITES", "SINCE"), [_row(one, fleet, now) for one, fleet in found])
    else:
        print_note(f"no fleet in {f'namespace {namespace}; -A looks in all' if namespace else 'any namespace'}")
    for one in trouble:
        where = f"{one.namespace}/{one.name}" if one.namespace else one.name
        typer.echo(f"\n{one.kind} {where}: {one.state}{f' for {show_age(one.since, now)}' if one.since else ''}")
        print_prose({"why": one.message, "next": one.next}, indent=2)
    return int(bool(trouble))


async def _look_at_hub(api: Api, now: datetime) -> Overview | None:
    """Whether a hub renews its own Lease; None if that may not be known, or if there never was one."""
    try:
        leases = await api.list(LEASES, labels=f"{SITE_LABEL}=")
    except Denied:
        print_note("whether a hub is running is not known: it takes the right to list Leases")
        return None
    newest = max((body["spec"] for body in leases), key=lambda spec: str(spec.get("renewTime", "")), default=None)
    if newest is None:
        return Overview(
            "Hub", "", "edgefleet", Level.WRONG, "NeverHeard", "no hub ever ran against this API server", None, "edgefleet hub --help"
        )
    heard = parse_time(newest["renewTime"])
    if now - heard <= timedelta(seconds=newest["leaseDurationSeconds"]):
        return Overview("Hub", "", "edgefleet", Level.FINE, "Heartbeat", "", heard)
    message = f"no hub has renewed its Lease since {format_time(heard)}: what is shown here is from then, and sites keep what they have"
    return Overview("Hub", "", "edgefleet", Level.WRONG, "HeartbeatLost", message, heard, "start `edgefleet hub`, or read its log")


def _row(one: Overview, fleet: EdgeFleet, now: datetime) -> tuple[str, ...]:
    counts, status = fleet.status.sites, fleet.status
    progress = find_condition(status.conditions, "Progressing")
    moving = progress is not None and progress.status == "True" and status.target_version != status.stable_version
    version = f"{status.stable_version or '-'} > {status.target_version}" if moving else status.stable_version or "-"
    silent = f" ({counts.unreachable} silent)" if counts.unreachable else ""
    state = "ok" if one.level is Level.FINE else one.state
    return (f"{one.namespace}/{one.name}", state, version, f"{counts.updated}/{counts.desired}{silent}", show_age(one.since, now))


def _show(one: Overview) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "namespace": one.namespace or None,
        "name": one.name,
        "level": one.level.name.capitalize(),
        "state": one.state,
        "message": one.message,
        "since": format_time(one.since) if one.since else None,
        "next": one.next,
    }
