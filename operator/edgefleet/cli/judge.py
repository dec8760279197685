"""`edgefleet judge`: what the gates on live traffic would do, and did, without a cluster."""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from edgefleet.api.model import ConfidenceSlo, LatencySlo, Slo
from edgefleet.api.policy import STANDARD_POLICY, Metric, RolloutPolicy, RolloutPolicySpec
from edgefleet.api.quantities import parse_percent
from edgefleet.cli.output import EXIT_CODES, CommandFailed, Format, FormatOption, print_facts, print_json, print_note
from edgefleet.cli.simulation import Setting, simulate, summarise
from edgefleet.core.gates import AbsoluteGate, plan_gates
from edgefleet.core.waves import list_waves

app = typer.Typer(help="The judge of live traffic, without a cluster.", no_args_is_help=True, epilog=EXIT_CODES)

NOTE_EVERY = 20
NO_LIMIT = 1.0


@app.command("simulate", epilog=EXIT_CODES)
def simulate_policy(
    policy: Annotated[str, typer.Argument(help="A RolloutPolicy in a YAML file, or `standard`: the built-in one.")] = "standard",
    sites: Annotated[int, typer.Option(help="Sites of the fleet.", min=1, max=10_000)] = 30,
    rate: Annotated[float, typer.Option(help="Requests a second at each site.", min=0.001, max=100_000)] = 2.0,
    base: Annotated[str, typer.Option(help="Share of bad answers today.")] = "0.5%",
    new: Annotated[str, typer.Option(help="Share of bad answers of the release that is tried.")] = "2%",
    metric: Annotated[str, typer.Option(help="What is bad: errors, latency (too slow) or confidence (unsure).")] = "errors",
    slo: Annotated[str | None, typer.Option(help="What EdgeModel spec.slo allows of it, such as 1%. Without: no SLO.")] = None,
    runs: Annotated[int, typer.Option(help="How many rollouts are tried, of the release and of a healthy one.", min=1, max=100_000)] = 100,
    seed: Annotated[int, typer.Option(help="The same seed gives the same numbers.")] = 1,
    output: FormatOption = Format.TABLE,
) -> None:
    """Say what a policy would do to a release, before it is used.

    \b
    How likely is it that a release with 2 % errors is stopped, and how soon, where 0.5 % are usual?
      edgefleet policy show > policy.yaml
      edgefleet judge simulate policy.yaml --sites 30 --rate 2 --base 0.5% --new 2%
    Would a healthy one be?           the same, in the line `healthy`
    Is one canary enough?             edit waves, and try again
    Is less traffic enough?           --rate 0.2

    The sites are made up: they differ from each other (by a factor of 2 is common), from day to day (20 %) and within the day (30 %).
    What is judged, and how, is what a hub does. More sites prove more; more traffic at one site soon does not: a rise at one site
    cannot be told from its bad day.
    """
    spec = STANDARD_POLICY if policy == "standard" else _read(Path(policy))
    kind = _metric(metric)
    usual, tried = _share(base, "--base"), _share(new, "--new")
    planned = (gate for gate in plan_gates(_slo(kind, slo), spec.analysis) if gate.metric == kind)
    gates = tuple(gate for gate in planned if not (isinstance(gate, AbsoluteGate) and gate.limit >= NO_LIMIT))
    if not gates:
        raise CommandFailed(
            "NoGate",
            f"policy {policy} has no gate on {kind}, and without --slo the model has none: add analysis.gates[{kind}], or give --slo",
        )
    waves = [wave.name for wave in list_waves(spec)]
    setting = Setting(spec, gates, kind, sites, rate, usual)
    found: dict[str, dict[str, Any]] = {}
    for name, share in (("healthy", usual), ("release", tried)):
        tick = _Ticker(name, runs)
        found[name] = summarise(simulate(setting, share, runs, seed, tick), waves)
    if output is Format.JSON:
        print_json({"policy": policy, "sites": sites, "rate": rate, "base": base, "new": new, "metric": kind, "seed": seed, **found})
        return
    print_facts(
        {
            "tried": f"{runs} rollouts each of policy {policy} on {sites} sites with {rate:g} requests/s, seed {seed}",
            "gates": [f"{gate.metric} {gate.kind.lower()}{' (dry run)' if gate.dry_run else ''}" for gate in gates],
            "healthy": list(_describe(found["healthy"], base)),
            "release": list(_describe(found["release"], new)),
        }
    )


class _Ticker:
    """Says on stderr how far it is, when it takes long."""

    def __init__(self, name: str, runs: int) -> None:
        self._name, self._runs, self._done = name, runs, 0

    def __call__(self) -> None:
        self._done += 1
        if self._done % NOTE_EVERY == 0 and self._done < self._runs:
            print_note(f"{self._name}: {self._done} of {self._runs} rollouts")


def _describe(found: dict[str, Any], share: str) -> list[str]:
    lines = [f"{share} bad: stopped {found['stopped']:.1%}, promoted {found['promoted']:.1%}, neither {found['inconclusive']:.1%}"]
    if found["stopped"]:
        waves = ", ".join(f"{name} {part:.0%}" for name, part in found["stoppedInWave"].items() if part)
        gates = ", ".join(f"{name} {part:.0%}" for name, part in found["stoppedBy"].items())
        lines.append(f"stopped in wave: {waves}; by: {gates}; after {found['minutesToStop']:.0f} min (median)")
    if found["promoted"]:
        lines.append(f"promoted after {found['minutesToPromotion']:.0f} min (median)")
    lines.append(
        f"answers by the new revision: {found['requests']:.0f} (median), {found['bad']:.0f} of them bad,"
        f" at {found['sitesExposed']:.1f} sites (mean)"
    )
    if found["sitesSentBackAlone"]:
        lines.append(f"sites sent back alone: {found['sitesSentBackAlone']:.2f} (mean)")
    return lines


def _read(path: Path) -> RolloutPolicySpec:
    try:
        body = yaml.safe_load(path.read_text())
        return RolloutPolicy.parse(body).spec
    except FileNotFoundError as error:
        raise CommandFailed("FileNotFound", f"{path} is not a file: write one with `edgefleet policy show > {path}`") from error
    except (yaml.YAMLError, ValidationError, ValueError, TypeError, AttributeError) as error:
        raise CommandFailed("PolicyInvalid", f"{path} is not a RolloutPolicy: {error}") from error


def _share(text: str, option: str) -> float:
    try:
        share = parse_percent(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
    if not 0 < share < 1:
        raise typer.BadParameter(f"{text} must be above 0% and below 100%", param_hint=option)
    return share


def _metric(text: str) -> Metric:
    match text:
        case "errors" | "latency" | "confidence":
            return text
    raise typer.BadParameter(f"{text} is not one of errors, latency, confidence", param_hint="--metric")


def _slo(metric: Metric, limit: str | None) -> Slo:
    """The SLO with this limit; without one, only the edge that a policy's gate needs, at a limit that nothing exceeds."""
    allowed = NO_LIMIT if limit is None else _share(limit, "--slo")
    share = f"{round((1 - allowed) * 100, 3):g}%"
    match metric:
        case "errors":
            return Slo(error_rate=limit)
        case "latency":
            return Slo(latency=LatencySlo(le="1ms", share=share))
        case "confidence":
            return Slo(confidence=ConfidenceSlo(ge="0.5", share=share))
