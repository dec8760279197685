"""A verdict on live traffic, taken again from a run's record (docs/record.md) and from nothing else."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from edgefleet.api.rollout import GateRecord
from edgefleet.core.case import Case, Finding, Outline, Streams, decode_line, digest_streams
from edgefleet.core.health import Stream
from edgefleet.core.live import judge_case, record_gate

T = TypeVar("T", Case, Finding, Outline)


class RecordError(ValueError):
    """What was read is no record of a run. The message names the line."""


@dataclass(frozen=True, slots=True)
class Record:
    """`whole` is false if the streams are not those that the finding was made from: the record was read while it was written, or a line
    was changed. `outline` is there if it was exported."""

    case: Case
    finding: Finding
    streams: Streams
    whole: bool
    outline: Outline | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """What the judge says now and what it said then; `differences` is empty if they are the same, bit for bit."""

    gates: tuple[GateRecord, ...]
    recorded: tuple[GateRecord, ...]
    differences: tuple[str, ...]


def read_record(lines: Iterable[str]) -> Record:
    """Lines in any order; empty ones do not count. Raises RecordError."""
    case: Case | None = None
    finding: Finding | None = None
    outline: Outline | None = None
    streams: dict[str, tuple[Stream, ...]] = {}
    texts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = decode_line(line)
        except ValueError as error:
            raise RecordError(f"line {number} is no line of a record: {' '.join(str(error).split())[:200]}") from error
        if isinstance(found, Case):
            case = _only(case, found, number)
        elif isinstance(found, Finding):
            finding = _only(finding, found, number)
        elif isinstance(found, Outline):
            outline = _only(outline, found, number)
        else:
            streams[found[0]] = (*streams.get(found[0], ()), found[1])
            texts.append(line.strip())
    if case is None or finding is None:
        missing = "case (a line with `analysis`)" if case is None else "finding (a line with `gates`)"
        raise RecordError(f"there is no {missing}: `edgefleet rollout export` writes all lines")
    return Record(case, finding, streams, digest_streams(texts) == finding.streams, outline)


def replay(record: Record) -> Replay:
    """Judge again, and compare."""
    gates, recorded = tuple(map(record_gate, judge_case(record.case, record.streams))), record.finding.gates
    differences = [f"{len(recorded)} gates were recorded, {len(gates)} are judged"] if len(gates) != len(recorded) else []
    for now, then in zip(gates, recorded, strict=False):
        after, before = now.to_json_dict(), then.to_json_dict()
        differences += [
            f"{then.name} {then.kind}: {key} was {before.get(key)}, is {after.get(key)}" for key in after if after[key] != before.get(key)
        ]
    return Replay(gates, recorded, tuple(differences))


def _only(held: T | None, found: T, number: int) -> T:
    if held is not None and held != found:
        raise RecordError(f"line {number} contradicts an earlier one: a record has one of each")
    return found
