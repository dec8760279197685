"""`edgefleet site why`: one site, in each of its fleets."""

import asyncio
from datetime import datetime
from typing import Annotated, Any

import typer

from edgefleet.api.meta import format_time
from edgefleet.api.report import TrustReport
from edgefleet.cli.cluster import ContextOption, KubeconfigOption, connecting
from edgefleet.cli.output import EXIT_CODES, Format, FormatOption, print_facts, print_json, print_note, print_prose, show_age
from edgefleet.core.why import Standing, explain_sites

app = typer.Typer(help="Sites: what each runs, and why.", no_args_is_help=True, epilog=EXIT_CODES)


@app.callback()
def _about() -> None:
    """Keeps `why` a verb of its own while it is the only one."""


@app.command("why", epilog=EXIT_CODES)
def why(
    name: Annotated[str, typer.Argument(help="The EdgeSite.")],
    namespace: Annotated[str | None, typer.Option("-n", "--namespace", help="Only fleets of this team's namespace.")] = None,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Say why a site does not run what it should. For each fleet: what it should run, what it runs, since when, and what to do next.

    It is decided here as the hub decides it, from the same facts: who may use the site (namespaces, region, taints, holds, hardware), which
    wave of which run it is in, what its agent answered, and whether it can be heard. What a site runs is what it last said.

    It reads EdgeSites, Leases and SiteAssignments, so it needs the right to do that in the site's namespace.
    """
    asyncio.run(_why(name, namespace, kubeconfig, context, output))


async def _why(name: str, namespace: str | None, kubeconfig: Any, context: str | None, output: Format) -> None:
    from edgefleet.cli.snapshot import Snapshot

    found: list[Standing] = []
    async with connecting(kubeconfig, context) as api:
        look = await Snapshot.fetch(api, name)
        for key in sorted(look.fleets):
            decided = await look.decide(key) if namespace in (None, key.namespace) else None
            found += explain_sites(*decided, look.now) if decided else ()
    record = look.inventory.sites.get("", name)
    heard, report = look.inventory.last_heard(name), look.inventory.site_report(name)
    if output is Format.JSON:
        trust = report.trust.to_json_dict() if report and report.trust else None
        said = {"name": name, "heard": format_time(heard) if heard else None, "trust": trust}
        print_json({**said, "fleets": [show_standing(one) for one in found]})
        return
    labels = ", ".join(f"{key}={value}" for key, value in sorted(record.metadata.labels.items())) if record else ""
    print_facts(
        {
            "Site": f"{name}, region {(record.spec.region if record else None) or 'none'}",
            "Labels": labels or "none",
            "Agent": f"{report.agent_version} on {report.hardware.arch}" if report else "never heard",
            "Heard": f"{show_age(heard, look.now)} ago" if heard else "never",
            **({"Trust": describe_trust(report.trust)} if report and report.trust else {}),
        }
    )
    for one in sorted(found, key=lambda one: (-one.trouble, one.fleet)):
        typer.echo(f"\n{one.fleet}: {one.state}{_for(one.since, look.now)}")
        print_prose(
            {
                "told": f"{one.told or 'no order of this fleet'}{f', then {one.then}' if one.then else ''}",
                "runs": one.runs,
                "why": describe(one),
                "next": one.next,
            },
            indent=2,
        )
    if not found:
        where = f"of namespace {namespace}" if namespace else f"of {len(look.fleets)}"
        print_note(f"no fleet {where} selects {name} or has an order for it: compare its labels with the fleets' spec.siteSelector")


def describe_trust(trust: TrustReport) -> list[str]:
    """What a site believes, a line for each fact, and for each thing that is wrong with it."""
    ends = f", until {format_time(trust.ends)}" if trust.ends else ""
    lines = [f"bundle version {trust.version}{ends}" if trust.version else "no bundle is in force: it activates nothing"]
    lines += [f"refuses the hub's bundle: {trust.refused}"] if trust.refused else []
    return lines + ([trust.clock] if trust.clock else [])


def describe(one: Standing) -> str:
    """Why, in one sentence: the reason where it says more than the state, and the message."""
    reason = one.reason if one.reason not in (one.state, "") else ""
    return ": ".join(part for part in (reason, one.message) if part)


def show_standing(one: Standing) -> dict[str, Any]:
    """A standing for `-o json`."""
    return {
        "site": one.site,
        "fleet": one.fleet,
        "state": one.state,
        "told": one.told or None,
        "runs": one.runs,
        "then": one.then or None,
        "reason": one.reason,
        "message": one.message,
        "since": format_time(one.since) if one.since else None,
        "heard": format_time(one.heard) if one.heard else None,
        "next": one.next,
    }


def _for(since: datetime | None, now: datetime) -> str:
    return f" for {show_age(since, now)} (since {format_time(since)})" if since else ""
