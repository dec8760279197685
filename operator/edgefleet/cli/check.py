"""`edgefleet check`: look before a rollout, and first at 3 am. What is looked at stands in the check_* modules, what follows in core."""

import asyncio
import textwrap
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from edgefleet.api.quantities import parse_duration
from edgefleet.cli.cluster import ContextOption, KubeconfigOption, connecting
from edgefleet.cli.output import CommandFailed, Format, FormatOption, print_json
from edgefleet.core.preflight import Level, Line
from edgefleet.kube.errors import ApiError, Denied

T = TypeVar("T")
Probe = Callable[[], Awaitable[Sequence[Line]]]


def check(
    site: Annotated[str | None, typer.Option(help="Look at one site too, as the hub sees it.")] = None,
    site_kubeconfig: Annotated[Path | None, typer.Option(help="At a site: its own cluster.")] = None,
    state: Annotated[Path | None, typer.Option(help="At a site: the agent's state folder.", file_okay=False)] = None,
    namespace: Annotated[str, typer.Option("-n", "--namespace", help="Where the hub keeps its own objects.")] = "edgefleet-system",
    timeout: Annotated[str, typer.Option(help="How long each line may take.")] = "10s",
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Say whether the hub, or a site, has all that it needs: one line each, and what to do where it has not.

    \b
      edgefleet check                                      the hub
      edgefleet check --site berlin                        the hub, and what it knows of one site
      edgefleet check --site-kubeconfig FILE --state DIR   at a site: its cluster, its agent's state, its gateway

    \b
    OK    as it should be
    WARN  works, but look at it; or you may not ask
    FAIL  does not work

    It changes nothing and reads no Secret. Of the hub it asks the API server of your kubeconfig, best as an administrator: who may read
    less knows less. Registries are asked from here, which is not where the hub is; what the hub met there is said too.

    Exit codes: 0 no line says FAIL, 1 some do (or nothing could be asked: stderr says why), 2 wrong usage.
    """
    if site and (site_kubeconfig or state):
        raise typer.BadParameter(
            "--site looks from the hub, --site-kubeconfig and --state from the site: give one kind", param_hint="--site"
        )
    try:
        limit = parse_duration(timeout).total_seconds()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--timeout") from error
    if not 1 <= limit <= 300:
        raise typer.BadParameter(f"{timeout}: 1s to 5m", param_hint="--timeout")
    if site_kubeconfig or state:
        lines = asyncio.run(look_at_site_itself(site_kubeconfig, state, limit))
    else:
        lines = asyncio.run(_look_at_hub(kubeconfig, context, namespace, site, limit))
    _print(lines, output)
    raise typer.Exit(int(any(line.level is Level.FAIL for line in lines)))


async def _look_at_hub(kubeconfig: Path | None, context: str | None, namespace: str, site: str | None, limit: float) -> list[Line]:
    from edgefleet.cli.check_hub import HubProbes
    from edgefleet.cli.check_site import SiteProbes

    async with connecting(kubeconfig, context) as api:
        hub = HubProbes(api, namespace)
        if site is None:
            return await run_probes({"api server": hub.server}, hub.probes(), limit)
        return await run_probes({"api server": hub.server}, {**hub.probes(), **SiteProbes(api, site).probes()}, limit)


async def look_at_site_itself(kubeconfig: Path | None, state: Path | None, limit: float) -> list[Line]:
    """The lines of a site, from its own cluster and its agent's state; either may be left out. Raises CommandFailed."""
    from edgefleet.cli.check_local import ClusterProbes, StateProbes, find_site

    lines: list[Line] = []
    async with AsyncExitStack() as stack:
        if kubeconfig is not None:
            api = await stack.enter_async_context(connecting(kubeconfig, None))
            cluster = ClusterProbes(api, find_site(state) if state is not None else None)
            lines += await run_probes({"site cluster": cluster.server}, cluster.probes(), limit)
        if state is not None:
            if not (state / "state.json").is_file():
                raise CommandFailed("StateMissing", f"{state} is no state folder of an agent: there is no state.json in it")
            lines += await run_probes({}, StateProbes(state).probes(), limit)
    return lines


async def run_probes(first: Mapping[str, Probe], others: Mapping[str, Probe], limit: float) -> list[Line]:
    """All lines, in order. Where one of `first` fails, the others could say nothing else and are not asked."""
    lines = await _run(first, limit)
    if any(line.level is Level.FAIL for line in lines):
        return lines
    return lines + await _run(others, limit)


async def _run(probes: Mapping[str, Probe], limit: float) -> list[Line]:
    found = await asyncio.gather(*(_ask(name, probe, limit) for name, probe in probes.items()))
    return [line for lines in found for line in lines]


async def _ask(name: str, probe: Probe, limit: float) -> Iterable[Line]:
    try:
        async with asyncio.timeout(limit):
            return await probe()
    except TimeoutError:
        return [Line(name, Level.FAIL, f"no answer within {limit:g} s", "look at the way there, or give it longer with --timeout")]
    except Denied as error:
        return [Line(name, Level.WARN, f"you may not ask: {error.message}", "run it with an administrator's kubeconfig")]
    except ApiError as error:
        return [Line(name, Level.FAIL, error.message, "look at the API server and the way to it; is edgefleet installed there?")]
    except Exception as error:
        # One line that cannot be had must not hide the others.
        return [
            Line(
                name,
                Level.FAIL,
                f"it cannot be read: {type(error).__name__}: {error}"[:300],
                "report this, with `edgefleet support-bundle`",
            )
        ]


async def in_thread(work: Callable[[], T]) -> T:
    """Run what blocks. A thread that never returns is left behind: it must not hold up the command's end."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    result: dict[str, Any] = {}

    def run() -> None:
        try:
            result["value"] = work()
        except Exception as error:
            result["error"] = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, daemon=True).start()
    await done.wait()
    if "error" in result:
        raise result["error"]
    value: T = result["value"]
    return value


def show(lines: Sequence[Line]) -> dict[str, Any]:
    """For `-o json`, and for a support bundle."""
    worst = next((level for level in (Level.FAIL, Level.WARN) if any(line.level is level for line in lines)), Level.OK)
    rows = [{"check": one.check, "level": one.level, "found": one.found, "remedy": one.remedy or None} for one in lines]
    return {"level": worst, "lines": rows}


def _print(lines: Sequence[Line], output: Format) -> None:
    if output is Format.JSON:
        print_json(show(lines))
        return
    width = max(len(line.check) for line in lines) + 2
    for line in lines:
        head = f"{line.level:<6}{line.check:<{width}}"
        _fold(line.found, head)
        if line.remedy:
            _fold(line.remedy, f"{'':6}{'do:':<{width}}")


def _fold(text: str, head: str) -> None:
    folded = textwrap.wrap(
        text, 100, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False, break_on_hyphens=False
    )
    typer.echo("\n".join(folded))
