"""All that a verdict on live traffic is made of: a case says who is judged by what, the streams say what was seen.

Together they are a run's record: one JSON line for the case, one for what the hub found then, one for each stream (docs/record.md). The
hub stores them, `edgefleet rollout export` writes them out, and whoever reads them back gets the same verdict, bit for bit.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Literal

from pydantic import Field

from edgefleet.api.meta import Schema, parse_time
from edgefleet.api.model import Slo
from edgefleet.api.policy import Analysis
from edgefleet.api.report import MARK_SECONDS, HealthEpoch, HealthReport
from edgefleet.api.rollout import GateRecord, ModelRolloutStatus
from edgefleet.core.controls import draw_controls, group_of
from edgefleet.core.facts import FleetFacts, RunFacts, SiteFacts
from edgefleet.core.gates import plan_gates
from edgefleet.core.health import Stream, read_stream
from edgefleet.core.memory import exposed_to, recall

Streams = Mapping[str, tuple[Stream, ...]]
"""Site name to what it reported, one stream for each activation."""


class Member(Schema):
    """A site of a case. `group`: what it must have in common with its controls; `sequence`: of the order that its reports must name."""

    group: tuple[str, ...]
    sequence: int = 0


class Case(Schema):
    """One look at one run. `opened` and `now` are 5-minute marks (UTC seconds // 300): when waves opened, and the time of the look."""

    format_version: Literal[1] = 1
    run: str
    revision: str
    slo: Slo
    analysis: Analysis
    first_release: bool
    opened: tuple[int, ...]
    now: int
    watched: Annotated[dict[str, Member], Field(default_factory=dict)]
    controls: Annotated[dict[str, Member], Field(default_factory=dict)]


class Finding(Schema):
    """What the hub found in a case: its gates, and the SHA-256 over the sorted lines of the streams that it looked at."""

    gates: tuple[GateRecord, ...]
    streams: str


class Outline(Schema):
    """What an exported record begins with: which run it is of, and the run's status then. Nothing is judged by it."""

    run: str
    namespace: str
    version: str
    exported_at: str
    status: ModelRolloutStatus


def find_tracked(run: RunFacts, sites: Mapping[str, SiteFacts]) -> frozenset[str]:
    """The sites whose reports matter for this run: those that were told to run its revision, and the controls. None without gates."""
    if not plan_gates(run.revision.slo, run.policy.analysis):
        return frozenset()
    return frozenset(site.name for site in _find_exposed(run, sites)) | draw_controls(run, sites)


def plan_case(run: RunFacts, sites: Mapping[str, SiteFacts], fleet: FleetFacts, now: datetime) -> Case | None:
    """The case of this run now; None if no gate on live traffic is in force."""
    if not plan_gates(run.revision.slo, run.policy.analysis):
        return None
    controls = run.policy.analysis.controls
    watched = {
        site.name: Member(group=group_of(site, controls), sequence=site.assignment.sequence)
        for site in _find_exposed(run, sites)
        if site.assignment is not None
    }
    return Case(
        run=run.name,
        revision=run.revision.hash,
        slo=run.revision.slo,
        analysis=run.policy.analysis,
        first_release=recall(fleet).stable is None,
        opened=tuple(sorted({mark_of(parse_time(record.opened_at)) for record in run.status.waves if record.opened_at})),
        now=mark_of(now),
        watched=watched,
        controls={name: Member(group=group_of(sites[name], controls)) for name in sorted(draw_controls(run, sites))},
    )


def _find_exposed(run: RunFacts, sites: Mapping[str, SiteFacts]) -> list[SiteFacts]:
    """The planned sites that were told to run the run's revision, in plan order."""
    return [sites[one.site] for one in run.plan if one.site in sites and exposed_to(sites[one.site], run.revision.hash)]


def find_watched(case: Case, streams: Streams) -> dict[str, Stream]:
    """What each watched site says of the revision since its newest activation under the assigned sequence (I6)."""
    found = {}
    for site, member in case.watched.items():
        own = [one for one in streams.get(site, ()) if (one.revision, one.sequence) == (case.revision, member.sequence)]
        if own:
            found[site] = max(own, key=lambda one: one.activation)
    return found


def mark_of(moment: datetime) -> int:
    """The 5-minute mark of a moment."""
    return int(moment.timestamp()) // MARK_SECONDS


def encode_case(case: Case) -> str:
    """One line of JSON."""
    return case.model_dump_json(by_alias=True, exclude_none=True)


def encode_record(case: Case, gates: tuple[GateRecord, ...], streams: Streams) -> tuple[list[str], dict[str, list[str]]]:
    """A record's lines: those of the case and of what was found in it, and those of each site's streams."""
    lines = {site: [encode_stream(site, one) for one in sorted(found, key=_order)] for site, found in sorted(streams.items())}
    finding = Finding(gates=gates, streams=digest_streams(line for own in lines.values() for line in own))
    return [encode_case(case), finding.model_dump_json(by_alias=True, exclude_none=True)], lines


def digest_streams(lines: Iterable[str]) -> str:
    """SHA-256 (hex) over the lines of streams, sorted, each with its newline."""
    return sha256("".join(f"{line}\n" for line in sorted(lines)).encode()).hexdigest()


def encode_stream(site: str, stream: Stream) -> str:
    """One line of JSON: a HealthReport with the site's name."""
    epochs = tuple(
        HealthEpoch(start=start, records=tuple((mark, *counts) for mark, counts in sorted(records.items())))
        for start, records in sorted(stream.epochs.items())
    )
    report = HealthReport(
        revision=stream.revision,
        sequence=stream.sequence,
        activation=stream.activation,
        le_ms=stream.le_ms,
        ge=stream.ge,
        skew=stream.skew,
        lost=stream.lost,
        usual=stream.usual,
        before=stream.before,
        epochs=epochs,
    )
    return json.dumps({"site": site, **report.model_dump(mode="json", by_alias=True, exclude_none=True)}, separators=(",", ":"))


def decode_line(line: str) -> Case | Finding | Outline | tuple[str, Stream]:
    """One line of a record. Raises ValueError (pydantic.ValidationError is one)."""
    body = json.loads(line)
    if not isinstance(body, dict):
        raise ValueError(f"not a line of a record: {line[:80]!r}")
    if "status" in body:
        return Outline.model_validate(body)
    if "gates" in body:
        return Finding.model_validate(body)
    if "site" not in body:
        return Case.model_validate(body)
    return str(body.pop("site")), read_stream(HealthReport.model_validate(body))


def _order(stream: Stream) -> tuple[str, int]:
    return stream.revision, stream.activation
