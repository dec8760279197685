"""What live traffic said of a run: `edgefleet rollout explain` and `export`, and `edgefleet judge replay`, which needs no cluster."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from edgefleet.api.meta import format_time
from edgefleet.api.report import MARK_SECONDS
from edgefleet.api.rollout import GateRecord, ModelRollout
from edgefleet.cli.cluster import ContextOption, KubeconfigOption, NamespaceOption, connecting
from edgefleet.cli.output import (
    CommandFailed,
    Format,
    FormatOption,
    print_facts,
    print_json,
    print_note,
    print_prose,
    print_table,
)
from edgefleet.cli.rollout import NameArgument
from edgefleet.core.case import Case, Outline, Streams
from edgefleet.core.facts import FleetKey
from edgefleet.core.live import describe_gate, foresee_case, judge_case, record_gate, worst_sites
from edgefleet.core.outlook import Outlook
from edgefleet.core.replay import Record, RecordError, read_record
from edgefleet.core.replay import replay as judge_again
from edgefleet.core.traffic import GateVerdict
from edgefleet.kube.client import Api
from edgefleet.kube.errors import Denied
from edgefleet.kube.resources import CONFIG_MAPS, MODEL_ROLLOUTS

COLUMNS = ("GATE", "KIND", "VERDICT", "SEEN", "OF", "ALLOWED", "EVIDENCE", "BOUND")
VERDICTS = {
    "Quiet": "nothing is proved against it",
    "Fail": "proved worse",
    "Hold": "it would be proved worse, but too few unchanged sites were heard to tell it from a bad hour",
    "NotApplicable": "there is nothing to compare a first release with",
}


def explain(
    name: NameArgument,
    namespace: NamespaceOption = "default",
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Say what live traffic says of a run, gate by gate: seen, allowed, evidence and its bound, the worst sites, and what would change it.

    \b
    seen      bad answers (or predictions) of the new revision, of all of its
    allowed   about so many would be no worse than the SLO, or than what these
              sites and the unchanged ones usually show
    evidence  1 at the start; it grows only if the revision is worse, and a
              healthy one ever reaches the bound with a chance of at most
              analysis.falseRollbackBudget, however often anybody looks
    change    so many more bad answers reach the bound; and how long that takes
              if it is 2 or 4 times as bad as allowed

    While the run goes on, it is judged here from what sites report now; afterwards from the record that decided.
    """
    asyncio.run(_explain(FleetKey(namespace, name), kubeconfig, context, output))


def export(
    name: NameArgument,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where to. [default: stdout]")] = None,
    namespace: NamespaceOption = "default",
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
) -> None:
    """Write a run's record as JSON lines (docs/record.md): what was judged, by what, from which reports, and what was found.

    It is what the hub stored when it last decided (or up to 10 minutes ago, while nothing was decided), and all that the verdict was made
    of: `edgefleet judge replay FILE` takes it again, bit for bit, without a cluster.
    """

    async def fetch() -> list[str]:
        async with connecting(kubeconfig, context) as api:
            run = ModelRollout.parse(await api.get(MODEL_ROLLOUTS, name, namespace))
            outline = Outline(
                run=name,
                namespace=namespace,
                version=run.spec.revision.version,
                exported_at=format_time(datetime.now(UTC)),
                status=run.status,
            )
            return [outline.model_dump_json(by_alias=True, exclude_none=True), *await _fetch_lines(api, name, namespace)]

    lines = asyncio.run(fetch())
    text = "".join(f"{line}\n" for line in lines)
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text)
        print_note(f"{len(lines)} lines written to {output}; take its verdict again with `edgefleet judge replay {output}`")


def replay(
    record: Annotated[Path, typer.Argument(help="A file that `edgefleet rollout export` wrote.")],
    output: FormatOption = Format.TABLE,
) -> None:
    """Take a verdict again, from a run's record and nothing else, and say whether it is the one that the hub recorded, bit for bit.

    Another verdict is refused: exit code 1, and stderr says what differs.
    """
    found = _read(record)
    again = judge_again(found)
    if output is Format.JSON:
        print_json(
            {
                "run": found.case.run,
                "equal": not again.differences,
                "whole": found.whole,
                "differences": list(again.differences),
                "gates": [gate.to_json_dict() for gate in again.gates],
                "recorded": [gate.to_json_dict() for gate in again.recorded],
            }
        )
    else:
        print_facts(_describe_record(found))
        print_table(
            ("GATE", "KIND", "VERDICT", "SEEN", "OF", "ALLOWED", "EVIDENCE", "BOUND"), [_row(gate) for gate in again.gates], title="Gates"
        )
        if not again.differences:
            typer.echo("\nthe same as recorded, bit for bit")
    if again.differences:
        raise CommandFailed("VerdictDiffers", "; ".join(again.differences) + ("" if found.whole else ". " + _BROKEN))


_BROKEN = (
    "The streams in it are not those that the verdict was made from: it was exported while the hub wrote it (export it again), or a line"
    " was lost or changed"
)


def _describe_record(found: Record) -> dict[str, object]:
    case, outline = found.case, found.outline
    ended = f"{outline.status.outcome or outline.status.phase} {outline.status.reason}".strip() if outline else "-"
    return {
        "Run": f"{outline.namespace}/{case.run}, version {outline.version}" if outline else case.run,
        "State": ended,
        "Judged": f"at {_judged_at(case)}, {len(case.watched)} site(s) with the revision, {len(case.controls)} to compare with",
        "Streams": f"{sum(map(len, found.streams.values()))} of {len(found.streams)} site(s){'' if found.whole else ', not those judged'}",
    }


def _row(gate: GateRecord) -> tuple[object, ...]:
    kind = f"{gate.kind}{' (dry run)' if gate.dry_run else ''}"
    return (
        gate.name,
        kind,
        gate.verdict,
        gate.seen,
        gate.requests,
        *(f"{float(one):.4g}" for one in (gate.allowed, gate.evidence, gate.bound)),
    )


def _read(path: Path) -> Record:
    try:
        return read_record(path.read_text().splitlines())
    except (RecordError, UnicodeDecodeError) as error:
        raise CommandFailed("RecordInvalid", f"{path}: {error}") from error


async def _fetch_lines(api: Api, run: str, namespace: str) -> list[str]:
    """The stored lines. Raises CommandFailed if there are none."""
    from edgefleet.hub.evidence import EVIDENCE_LABEL, read_lines

    lines = read_lines(await api.list(CONFIG_MAPS, namespace, labels=f"{EVIDENCE_LABEL}={run}"))
    if not lines:
        raise CommandFailed(
            "NoRecord",
            f"nothing is stored of live traffic in {run}: no gate on live traffic was in force, or the run has not gone on for 10 minutes"
            " nor opened a wave yet; `edgefleet policy show` and the EdgeModel's spec.slo say which gates there are",
        )
    return lines


async def _explain(key: FleetKey, kubeconfig: Path | None, context: str | None, output: Format) -> None:
    async with connecting(kubeconfig, context) as api:
        run = ModelRollout.parse(await api.get(MODEL_ROLLOUTS, key.name, key.namespace))
        found = await _judge_now(api, run, key.namespace) if run.status.phase == "Rolling" else None
        source = "what sites report now"
        if found is None:
            record = read_record(await _fetch_lines(api, key.name, key.namespace))
            found, source = (record.case, record.streams), "the stored record"
    case, streams = found
    verdicts, outlooks = judge_case(case, streams), {one.gate: one for one in foresee_case(case, streams)}
    if output is Format.JSON:
        gates = [_show(verdict, outlooks.get(verdict.gate), case) for verdict in verdicts]
        print_json({"run": key.name, "source": source, "judgedAt": _judged_at(case), "gates": gates})
        return
    status = run.status
    print_facts(
        {
            "Run": f"{key.namespace}/{key.name}, version {run.spec.revision.version}",
            "State": f"{status.outcome or status.phase} {status.reason}".strip(),
            "Judged": f"at {_judged_at(case)} by {source}",
            "Sites": f"{len(case.watched)} with the revision, {len(case.controls)} drawn to compare with",
        }
    )
    for verdict in verdicts:
        _print_gate(verdict, outlooks.get(verdict.gate), case)


async def _judge_now(api: Api, run: ModelRollout, namespace: str) -> tuple[Case, Streams] | None:
    """What the hub would judge by now; None if the run is not the fleet's active one, or may not be seen so closely."""
    from edgefleet.cli.snapshot import Snapshot

    try:
        look = await Snapshot.fetch(api)
    except Denied as error:
        print_note(f"taken from the stored record, which may be 10 minutes old: {error.message}")
        return None
    key = FleetKey(namespace, run.spec.fleet)
    decided = await look.decide(key) if key in look.fleets else None
    if decided is None or decided[1].run != run.metadata.name or decided[1].rollout is None or decided[1].rollout.case is None:
        return None
    return decided[1].rollout.case, decided[0].health


def _print_gate(verdict: GateVerdict, outlook: Outlook | None, case: Case) -> None:
    gate, minimum = verdict.gate, case.analysis.controls.min
    typer.echo(f"\n{gate.metric}, {gate.kind.lower()}{', dry run' if gate.dry_run else ''}: {verdict.outcome}")
    heard = f" ({verdict.controls} unchanged site(s) heard, controls.min is {minimum})" if gate.kind == "Relative" else ""
    facts = {"gate": describe_gate(verdict, case.slo), "so far": f"{VERDICTS[verdict.outcome]}{heard}"}
    if verdict.outcome != "NotApplicable":
        facts["seen"] = f"{verdict.seen} bad of {verdict.requests} at {len(verdict.sites)} site(s); about {verdict.allowed:.1f} allowed"
        facts["evidence"] = f"{verdict.evidence:.4g}, {verdict.bound:g} is enough"
        facts["worst"] = "; ".join(
            f"{one.site}: {one.seen} of {one.requests}, {one.allowed:.1f} allowed, own evidence {one.evidence:.3g}"
            for one in worst_sites(verdict)
            if one.seen
        )
    if outlook is not None and verdict.outcome == "Quiet":
        facts["change"] = _describe_outlook(outlook)
    print_prose(facts, indent=2)


def _describe_outlook(outlook: Outlook) -> str:
    if outlook.per_minute == 0:
        return "nothing while these sites have no traffic"
    if outlook.more_bad is None:
        return "nothing: so few sites cannot prove that much, however bad it is"
    twice, four = map(_describe_minutes, (outlook.minutes_if_twice, outlook.minutes_if_four_times))
    if outlook.young:
        return f"{outlook.more_bad} more bad answers now would make it {outlook.would}; how long that takes is known after 5 minutes"
    return (
        f"{outlook.more_bad} more bad answers now would make it {outlook.would}; at today's {outlook.per_minute:.3g} answers a minute that"
        f" takes {twice} if it is twice as bad as allowed, {four} if four times"
    )


def _describe_minutes(minutes: int | None) -> str:
    if minutes is None:
        return "more than a week"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _show(verdict: GateVerdict, outlook: Outlook | None, case: Case) -> dict[str, Any]:
    return {
        **record_gate(verdict).to_json_dict(),
        "gate": describe_gate(verdict, case.slo),
        "controlsHeard": verdict.controls,
        "worstSites": [
            {"site": one.site, "seen": one.seen, "requests": one.requests, "allowed": one.allowed, "evidence": one.evidence}
            for one in worst_sites(verdict)
        ],
        "outlook": None
        if outlook is None
        else {
            "would": outlook.would,
            "moreBad": outlook.more_bad,
            # Of a rate that was taken over a few seconds nothing is told, rather than something wrong.
            "answersPerMinute": None if outlook.young else outlook.per_minute,
            "minutesIfTwiceAsBad": None if outlook.young else outlook.minutes_if_twice,
            "minutesIfFourTimesAsBad": None if outlook.young else outlook.minutes_if_four_times,
        },
    }


def _judged_at(case: Case) -> str:
    """The beginning of the 5 minutes of the look."""
    return format_time(datetime.fromtimestamp(case.now * MARK_SECONDS, UTC))
