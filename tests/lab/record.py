"""A history read as orders, runs, words of sites: what checker.py judges by. Nothing is judged here."""

import base64
import json
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from edgefleet.api.meta import OUTCOME_LABEL, RUN_LABEL, SITE_NAMESPACE_PREFIX
from edgefleet.api.quantities import parse_duration, parse_share
from edgefleet.api.report import fleet_of_annotation
from tests.lab.history import Entry, accepted_writes


@dataclass(frozen=True, slots=True)
class Order:
    """An assignment as it was written."""

    entry: Entry
    site: str
    fleet: str
    sequence: int
    action: str
    revision: str | None
    run: str | None

    @property
    def what(self) -> str:
        """What it tells the site."""
        return f"{self.action} {(self.revision or '')[:8]}".strip()


@dataclass(frozen=True, slots=True)
class Word:
    """A site's status of an assignment, as it was written at the hub."""

    entry: Entry
    site: str
    fleet: str
    sequence: int
    state: str
    revision: str | None
    active_since: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """What one Lease said of one fleet."""

    entry: Entry
    site: str
    fleet: str
    sequence: int
    revision: str | None
    active_since: float | None


@dataclass(frozen=True, slots=True)
class PlannedWave:
    """A wave of a run's frozen policy. `sites` is None where it is a share."""

    index: int
    name: str
    sites: int | None
    per_variant: bool
    soak: float


@dataclass(frozen=True, slots=True)
class Passed:
    """The status write in which a wave counts as passed for the first time. `opened`: the version at which it opened."""

    entry: Entry
    wave: str
    sites: tuple[str, ...]
    opened: int


@dataclass
class Run:
    """One run. `turned`, `ended`: the versions at which its status first said that it goes back, and its outcome."""

    entry: Entry
    name: str
    fleet: str
    revision: str
    waves: tuple[PlannedWave, ...]
    min_reported: float
    plans: set[str] = field(default_factory=set)
    plan: dict[str, int] = field(default_factory=dict)
    opened: dict[str, int] = field(default_factory=dict)
    passes: list[Passed] = field(default_factory=list)
    turned: int | None = None
    ended: int | None = None
    outcome: str | None = None
    reason: str = ""

    def opened_before(self, version: int) -> set[str]:
        """The waves that the status recorded as open at that moment."""
        return {name for name, at in self.opened.items() if at < version}

    def soak_of(self, site: str) -> float:
        """Seconds."""
        return self.waves[self.plan[site]].soak


@dataclass
class Case:
    """Everything by its kind, each in the order in which API servers accepted it."""

    entries: list[Entry]
    writes: list[Entry]
    orders: list[Order] = field(default_factory=list)
    copies: list[Order] = field(default_factory=list)
    statuses: list[Word] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    leases: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    runs: dict[str, Run] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def site_of(entry: Entry) -> str:
        """The site whose namespace this is."""
        return entry.namespace.removeprefix(SITE_NAMESPACE_PREFIX)

    def spoke_of(self, site: str, run: Run, *, before: int | None) -> bool:
        """Whether the site had said anything, in a status or a Lease, of the run's revision."""
        limit = before if before is not None else 1 << 62
        words: list[Word | Report] = [*self.statuses, *self.reports]
        return any(
            word.site == site
            and word.fleet == run.fleet
            and word.revision == run.revision
            and run.entry.version < word.entry.version < limit
            for word in words
        )

    def lease_between(self, site: str, after: int, before: int) -> bool:
        """Whether the site renewed its Lease in between."""
        return any(after < version < before for version in self.leases[site])

    def proves(self, site: str, run: Run, *, before: int, slack: float) -> bool:
        """Whether a Lease named the newest order's revision and sequence, and its site's activation lay a whole soak back by then."""
        orders = [o for o in self.orders if o.site == site and o.fleet == run.fleet and o.entry.version < before]
        if not orders or orders[-1].revision != run.revision:
            return False
        newest = orders[-1]
        return any(
            report.site == site
            and report.fleet == run.fleet
            and (report.revision, report.sequence) == (newest.revision, newest.sequence)
            and report.active_since is not None
            and report.entry.at - report.active_since >= run.soak_of(site) - slack
            and report.entry.version < before
            for report in self.reports
        )


def read_case(entries: Sequence[Entry]) -> Case:
    """Sort a history out."""
    case = Case(list(entries), accepted_writes(list(entries)))
    chunks: dict[str, dict[str, int]] = {}
    for entry in case.writes:
        # A plan that was lost on its way is written once more after its run.
        if (entry.resource, entry.server) == ("configmaps", "hub"):
            _read_chunk(entry, chunks)
    for entry in case.writes:
        match (entry.resource, entry.subresource, entry.server):
            case ("modelrollouts", "", "hub") if entry.method == "POST":
                _read_run(case, entry, chunks)
            case ("modelrollouts", "", "hub"):
                _read_freeze(case, entry)
            case ("modelrollouts", "status", "hub"):
                _read_run_status(case, entry)
            case ("siteassignments", "", "hub") if entry.method != "DELETE":
                case.orders.append(_read_order(case, entry))
            case ("siteassignments", "", "site") if entry.method != "DELETE":
                case.copies.append(_read_order(case, entry))
            case ("siteassignments", "status", "hub"):
                case.statuses.append(_read_word(case, entry))
            case ("leases", "", "hub") if entry.namespace.startswith(SITE_NAMESPACE_PREFIX):
                case.leases[case.site_of(entry)].append(entry.version)
                case.reports += _read_reports(case, entry)
    return case


def _read_chunk(entry: Entry, chunks: dict[str, dict[str, int]]) -> None:
    data = (entry.body.get("binaryData") or {}).get("plan.json.z")
    name = (entry.body.get("metadata") or {}).get("name") or entry.name
    if data:
        chunks[f"{entry.namespace}/{name}"] = {site: wave for site, _, wave in json.loads(zlib.decompress(base64.b64decode(data)))}


def _read_run(case: Case, entry: Entry, chunks: Mapping[str, Mapping[str, int]]) -> None:
    spec, meta = entry.body["spec"], entry.body["metadata"]
    policy, ref = spec["policy"], spec["plan"]
    taken = {wave["name"] for wave in policy["waves"]}
    implicit = next(name for name in ("rest", *(f"rest-{n}" for n in range(2, 20))) if name not in taken)
    waves = [*policy["waves"], {"name": implicit}]
    soak = policy.get("soak") or {}
    run = case.runs[f"{entry.namespace}/{meta['name']}"] = Run(
        entry=entry,
        name=meta["name"],
        fleet=f"{entry.namespace}/{spec['fleet']}",
        revision=spec["revision"]["hash"],
        waves=tuple(
            PlannedWave(
                index,
                wave["name"],
                wave.get("sites"),
                bool(wave.get("perVariant")),
                parse_duration((wave.get("soak") or soak).get("min", "30m")).total_seconds(),
            )
            for index, wave in enumerate(waves)
        ),
        min_reported=float(parse_share(soak.get("minReported", "80%"))),
        plans={ref["hash"]},
        outcome=(meta.get("labels") or {}).get(OUTCOME_LABEL),
    )
    for index in range(ref["chunks"]):
        run.plan.update(chunks.get(f"{entry.namespace}/plan-{ref['hash'][:16]}-{index}", {}))
    case.versions[run.revision] = spec["revision"]["version"]


def _read_freeze(case: Case, entry: Entry) -> None:
    run = case.runs.get(f"{entry.namespace}/{entry.name}")
    ref = (entry.body.get("spec") or {}).get("plan")
    if run is not None and ref:
        run.plans.add(ref["hash"])


def _read_run_status(case: Case, entry: Entry) -> None:
    run = case.runs.get(f"{entry.namespace}/{entry.name}")
    if run is None:
        return
    status = entry.body.get("status") or {}
    for wave in status.get("waves") or ():
        if wave.get("openedAt"):
            run.opened.setdefault(wave["name"], entry.version)
        if wave.get("passedAt") and wave["name"] not in {passed.wave for passed in run.passes}:
            index = next((one.index for one in run.waves if one.name == wave["name"]), -1)
            sites = tuple(site for site, where in run.plan.items() if where == index)
            run.passes.append(Passed(entry, wave["name"], sites, run.opened.get(wave["name"], 0)))
    if status.get("phase") == "Returning" and run.turned is None:
        run.turned = entry.version
    if status.get("outcome"):
        run.outcome = status["outcome"]
        run.ended = run.ended or entry.version
        if run.outcome in ("RolledBack", "AbortedByUser") and run.turned is None:
            run.turned = entry.version
    run.reason = status.get("reason") or run.reason


def _read_order(case: Case, entry: Entry) -> Order:
    spec = entry.body["spec"]
    labels = (entry.body.get("metadata") or {}).get("labels") or {}
    return Order(entry, case.site_of(entry), spec["fleet"], spec["sequence"], spec["action"], spec.get("revision"), labels.get(RUN_LABEL))


def _read_word(case: Case, entry: Entry) -> Word:
    status = entry.body.get("status") or {}
    namespace, _, name = entry.name.partition(".")
    active = status.get("active") or {}
    return Word(
        entry,
        case.site_of(entry),
        f"{namespace}/{name}",
        status.get("sequence", 0),
        status.get("state", ""),
        status.get("revision"),
        _seconds(active.get("since")),
    )


def _read_reports(case: Case, entry: Entry) -> Iterator[Report]:
    for key, text in ((entry.body.get("metadata") or {}).get("annotations") or {}).items():
        fleet = fleet_of_annotation(key)
        if fleet is not None:
            said: dict[str, Any] = json.loads(text)
            since = _seconds(said.get("activeSince"))
            yield Report(entry, case.site_of(entry), fleet, said.get("sequence", 0), said.get("revision"), since)


def _seconds(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None
