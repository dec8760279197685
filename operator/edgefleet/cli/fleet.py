"""`edgefleet fleet sites`: what runs where."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from edgefleet.cli.cluster import ContextOption, KubeconfigOption, NamespaceOption, connecting
from edgefleet.cli.output import EXIT_CODES, CommandFailed, Format, FormatOption, print_json, print_prose, print_table, show_age
from edgefleet.cli.site import describe, show_standing
from edgefleet.core.facts import FleetKey
from edgefleet.core.why import explain_sites

app = typer.Typer(help="Fleets.", no_args_is_help=True, epilog=EXIT_CODES)


@app.callback()
def _about() -> None:
    """Keeps `sites` a verb of its own while it is the only one."""


@app.command("sites", epilog=EXIT_CODES)
def sites(
    name: Annotated[str, typer.Argument(help="The EdgeFleet.")],
    namespace: NamespaceOption = "default",
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """List what runs where, trouble first: every site that the fleet selects or has an order for.

    \b
    RUNS   the version that serves, as the site last said; HEARD: so long ago
    TOLD   the version in its order from the hub; `2 > 3`: 3 is to follow
    STATE  a word for where it stands, SINCE: for so long
             as it should be: UpToDate, Waiting, UnderWay, Soaking, Behind,
                              Returning, Returned
             trouble:         Failed, Refused, Blocked, Quarantined,
                              Unreachable, Skipped
             left out:        OnHold, Tainted, ResidencyDenied, ...

    `edgefleet site why SITE` says what to do next.
    """
    asyncio.run(_sites(FleetKey(namespace, name), kubeconfig, context, output))


async def _sites(key: FleetKey, kubeconfig: Path | None, context: str | None, output: Format) -> None:
    from edgefleet.cli.snapshot import Snapshot

    async with connecting(kubeconfig, context) as api:
        look = await Snapshot.fetch(api)
        decided = await look.decide(key) if key in look.fleets else None
    if decided is None:
        raise CommandFailed("NotFound", f"EdgeFleet {key.name} does not exist in namespace {key.namespace}; -n names another")
    found = explain_sites(*decided, look.now)
    if output is Format.JSON:
        print_json([show_standing(one) for one in found])
        return
    counts = Counter(one.state for one in found)
    print_prose({f"{key}:": f"{len(found)} site(s){''.join(f', {count} {state}' for state, count in counts.most_common())}"})
    typer.echo()
    rows = [
        (
            one.site,
            one.runs if one.runs != "nothing" else "-",
            f"{one.told or '-'}{f' > {one.then}' if one.then else ''}",
            one.state,
            show_age(one.since, look.now),
            show_age(one.heard, look.now),
            describe(one),
        )
        for one in found
    ]
    print_table(("SITE", "RUNS", "TOLD", "STATE", "SINCE", "HEARD", "WHY"), rows, folding=("WHY",))
