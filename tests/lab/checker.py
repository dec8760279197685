"""The one judge of what happened: reads a history and the state at its end, and says which of I1 to I12 (DESIGN section 5) was broken.

It knows nothing of how the hub decides. What each rule looks at stands at its function; what cannot be seen in a history (bytes on a
wire, I8's telemetry) is not claimed. `END` is no invariant: the state at the end is not that of the undisturbed run.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.lab.history import Entry
from tests.lab.record import Case, Order, Run, read_case

OBEYED = {"Run": ("Active", "Failed"), "Withdraw": ("Withdrawn",)}
CLOCK_SLACK = 0.2
"""Seconds between a site's clock and ours: they are one clock, read at two moments."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What the scenario knows. `good` and `bad`: versions; a bad one fails its golden set. `golden`: how many lines that set has.
    `denied`: sites that residency shuts out. `withdrawn`: fleets (namespace/name) that were deleted with onDelete: Withdraw.
    `ends`: how often a process may end by itself, for faults that make it deaf."""

    good: frozenset[str] = frozenset()
    bad: frozenset[str] = frozenset()
    golden: int = 0
    denied: frozenset[str] = frozenset()
    withdrawn: frozenset[str] = frozenset()
    ends: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Final:
    """The end: what each process logged, what the objects and sites say (anything that compares), and what they should."""

    logs: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    undisturbed: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule; `n` is the line of the history that shows it, 0 for the end."""

    rule: str
    message: str
    n: int = 0

    def __str__(self) -> str:
        return f"{self.rule} (line {self.n}): {self.message}"


def check(entries: Sequence[Entry], truth: Truth, final: Final) -> list[Violation]:
    """Every broken rule, in the order of the rules."""
    case = read_case(entries)
    return [violation for rule in RULES for violation in rule(case, truth, final)]


def check_verified(case: Case, truth: Truth, final: Final) -> Iterator[Violation]:
    """I1: what clients get, or a site calls Active, is a signed release that passed its golden set there since it was loaded."""
    asked: dict[tuple[str, str], int] = defaultdict(int)
    told: set[tuple[str, str]] = set()
    for entry in case.entries:
        if entry.kind == "model":
            site = entry.actor.removeprefix("runtime-")
            if entry.method == "load":
                asked[site, entry.name] = 0
            elif entry.method == "infer" and entry.code == 200:
                asked[site, entry.name] += 1
        elif entry.kind == "probe" and entry.code == 200:
            site = entry.actor.removeprefix("client-")
            if asked[site, entry.name] < truth.golden and (site, entry.name) not in told:
                told.add((site, entry.name))
                message = f"site {site} serves {entry.name}, which answered {asked[site, entry.name]} of {truth.golden} golden lines there"
                yield Violation("I1", message, entry.n)
    for said in case.statuses:
        if said.state == "Active" and case.versions.get(said.revision or "", "") not in truth.good:
            version = case.versions.get(said.revision or "", "unknown")
            yield Violation("I1", f"site {said.site} activated version {version}, which is not a good signed release", said.entry.n)


def check_serving(case: Case, truth: Truth, final: Final) -> Iterator[Violation]:
    """I2: once a site has answered a client, it answers every one, until a withdrawal was ordered; and its store is whole at the end.
    A 500 is an answer: it is the model's own."""
    serving: set[str] = set()
    withdrawn: set[str] = set()
    for entry in case.entries:
        if entry.kind == "request" and entry.resource == "siteassignments" and not entry.subresource:
            spec = entry.body.get("spec") or {}
            (withdrawn.add if spec.get("action") == "Withdraw" else withdrawn.discard)(case.site_of(entry))
        elif entry.kind == "probe":
            site = entry.actor.removeprefix("client-")
            if entry.code in (200, 500):
                serving.add(site)
            elif site in withdrawn:
                serving.discard(site)
            elif site in serving:
                yield Violation("I2", f"a client of site {site} got {entry.code or 'no answer'}: {entry.text}", entry.n)
    for site, whole in (final.state.get("stores") or {}).items():
        if not whole:
            yield Violation("I2", f"site {site} has no whole model on disk at the end")


def check_waves(case: Case, truth: Truth, final: Final) -> Iterator[Violation]:
    """I3: a site is told the new revision only in a wave that the run's status records as open; plans are frozen, as the policy says."""
    for run in case.runs.values():
        if len(run.plans) > 1:
            yield Violation("I3", f"run {run.name} has the plans {sorted(run.plans)}: a plan is frozen", run.entry.n)
        for wave in run.waves:
            sizes = [where for where in run.plan.values() if where == wave.index]
            if wave.sites is not None and not wave.per_variant and len(sizes) > wave.sites:
                yield Violation(
                    "I3", f"wave {wave.name} of run {run.name} has {len(sizes)} sites, its policy says {wave.sites}", run.entry.n
                )
        for order in case.orders:
            if not _is_forward(order, run):
                continue
            index = run.plan.get(order.site)
            opened = run.opened_before(order.entry.version)
            if index is None:
                yield Violation("I3", f"site {order.site} was told run {run.name}'s revision and is not in its plan", order.entry.n)
            elif run.waves[index].name not in opened:
                found = f"open are {sorted(opened) or 'none'}"
                yield Violation("I3", f"site {order.site} of wave {run.waves[index].name} was told run {run.name}; {found}", order.entry.n)


def check_sequences(case: Case, truth: Truth, final: Final) -> Iterator[Violation]:
    """I4: per (site, fleet) the sequence never falls, and one sequence never stands for two things."""
    last: dict[tuple[str, str], Order] = {}
    for order in case.orders:
        before = last.get((order.site, order.fleet))
        if before is not None and order.sequence < before.sequence:
            yield Violation("I4", f"site {order.site}: sequence {order.sequence} after {before.sequence}", order.entry.n)
        if before is not None and order.sequence == before.sequence and order.what != before.what:
            yield Violation("I4", f"site {order.site}: sequence {order.sequence} was {before.what} and is {order.what}", order.entry.n)
        last[order.site, order.fleet] = order


def check_silence(case: Case, truth: Truth, final: Final) -> Iterator[Violation]:
    """I5: no wave passes without a word of its sites on the revision; no run is taken back when no exposed site said anything of it."""
    for run in case.runs.values():
        for passed in run.passes:
            heard = [site for site in passed.sites if case.spoke_of(site, run, before=passed.entry.version)]
            if not heard:
                message = (
                    f"wave {passed.wave} of run {run.name} passed; none of {', '.join(passed.sites) or 'no site'} had said a word of it"
                )
                yield Violation("I5", message, passed.entry.n)
        if run.outcome == "RolledBack" and run.reason not in ("Revoked", "TrustWithdrawn"):
            exposed = {order.site for order in case.orders if _is_forward(order, run)}
            if not any(case.spoke_of(site, run, before=run.turned) for site in exposed):
                yield Violation(
                    "I5", f"run {run.name} was taken back ({run.reason}), and no exposed site had said a word of it", run.entry.n
                )


def check_evidence(case: Case, truth: Truth, final: Final) -> Iterator[Violation]:
    """I6: a wave passes on Leases that name the assigned revision and sequence, renewed after the soak from the site's own activation."""
    for run in case.runs.values():
        for passed in run.passes:
            known = [site for site in passed.sites if case.lease_between(site, passed.opened, passed.entry.version)]
            proven = [site for site in known if case.proves(site, run, before=passed.entry.version, slack=CLOCK_SLACK)]
            if known and len(proven) * 100 < len(known) * run.min_reported:
                lacking = ", ".join(sorted(set(known) - set(proven)))
                yield Violation(
                    "I6", f"wave {passed.wave} of run {run.name} passed on {len(proven)}; not proven: {lacking}", passed.entry.n
                )


def check_ends(case: Case, truth: Truth, final: Final) -> Iterator[Violation]:
    """I7: at the end every run has an outcome, or says what it waits for and since when."""
    for name, run in (final.state.get("runs") or {}).items():
        if not run.get("outcome") and not (run.get("waitingFor") and run.get("since")):
            yield Violation("I7", f"run {name} neither ended nor says what it waits for and since when: {run}")


def check_residency(case: Case, truth: Truth, final: Final) -> Iterator[Violation]:
    """I8: no site that residency shuts out is ever told anything. (Bytes on the wire are not in a history.)"""
    for order in case.orders:
        if order.site in truth.denied:
            yield Violation("I8", f"site {order.site} was told {order.what}, and residency shuts it out", order.entry.n)


def check_processes(case: Case, truth: Truth, final: Final) -> Iterator[Violation]:
    """I9: no process ends but by our hand, none logs a traceback, and no private key stands in a log, status or annotation."""
    ended: dict[str, int] = defaultdict(int)
    for entry in case.entries:
        if entry.kind == "end" and entry.text != "ours":
            ended[entry.actor] += 1
            if ended[entry.actor] > truth.ends.get(entry.actor, 0):
                yield Violation("I9", f"{entry.actor} ended by itself with {entry.code}", entry.n)
        elif entry.is_write and entry.actor != "person" and "PRIVATE KEY" in json.dumps(entry.body):
            yield Violation("I9", f"{entry.actor} wrote a private key into {entry.resource} {entry.namespace}/{entry.name}", entry.n)
    for actor, text in final.logs.items():
        if "Traceback (most recent call last)" in text:
            trace = text[text.index("Traceback (most recent call last)") :]
            yield Violation("I9", f"{actor} logged a traceback: {trace[:1500]}")
        if re.search(r"PRIVATE KEY", text):
            yield Violation("I9", f"{actor} logged a private key")


def check_taken_back(case: Case, truth: Truth, final: Final) -> Iterator[Violation]:
    """I10: from the moment that a run turns back, its revision is told to no site of its fleet under a new sequence, by no run."""
    for run in case.runs.values():
        if run.turned is None or run.outcome not in ("RolledBack", "AbortedByUser", None):
            continue
        seen: dict[str, int] = {}
        for order in case.orders:
            if order.fleet != run.fleet:
                continue
            again = order.revision == run.revision and order.sequence > seen.get(order.site, 0)
            if again and order.entry.version > run.turned:
                yield Violation("I10", f"site {order.site} was told {order.what} after run {run.name} had taken it back", order.entry.n)
            seen[order.site] = max(order.sequence, seen.get(order.site, 0))


def check_superseded(case: Case, truth: Truth, final: Final) -> Iterator[Violation]:
    """I11: at the end each site obeys the newest order, and speaks of it; in the site's own cluster no order gives way to an older one."""
    held: dict[tuple[str, str], int] = {}
    for order in case.copies:
        if order.sequence < held.get((order.site, order.fleet), 0):
            yield Violation(
                "I11", f"site {order.site} replaced sequence {held[order.site, order.fleet]} by {order.sequence}", order.entry.n
            )
        held[order.site, order.fleet] = order.sequence
    newest = {(order.site, order.fleet): order for order in case.orders}
    last = {(said.site, said.fleet): said for said in case.statuses}
    for key, order in newest.items():
        said = last.get(key)
        if held.get(key) != order.sequence:
            yield Violation(
                "I11", f"site {order.site}: the newest order is {order.sequence}, its cluster has {held.get(key)}", order.entry.n
            )
        elif said is not None and said.sequence == order.sequence and said.state not in OBEYED[order.action]:
            yield Violation("I11", f"site {order.site} has not obeyed {order.what}: it is {said.state}", order.entry.n)
        elif said is None or said.sequence != order.sequence:
            yield Violation(
                "I11", f"site {order.site}: the newest order is {order.sequence}, it speaks of {said and said.sequence}", order.entry.n
            )


def check_absence(case: Case, truth: Truth, final: Final) -> Iterator[Violation]:
    """I12: nobody but a person deletes an assignment, a site or a namespace; nothing is withdrawn but for a deleted fleet that asked
    for it, or to take back a fleet's first release."""
    for entry in case.writes:
        if (
            entry.method == "DELETE"
            and entry.actor != "person"
            and entry.resource in ("siteassignments", "namespaces", "edgesites", "leases")
        ):
            yield Violation("I12", f"{entry.actor} deleted {entry.resource} {entry.namespace}/{entry.name}", entry.n)
    for order in case.orders:
        if order.action == "Withdraw" and order.fleet not in truth.withdrawn and not _takes_back_first(case, order):
            yield Violation("I12", f"site {order.site} was told to withdraw, and nothing asked for that", order.entry.n)


def check_end_state(case: Case, truth: Truth, final: Final) -> Iterator[Violation]:
    """END: what the undisturbed run came to."""
    if final.undisturbed is not None:
        for where, wanted, found in _differences(final.undisturbed, final.state, ""):
            yield Violation("END", f"{where.lstrip('.')}: {found!r}, undisturbed {wanted!r}")


Rule = Callable[[Case, Truth, Final], Iterator[Violation]]
RULES: tuple[Rule, ...] = (
    check_verified,
    check_serving,
    check_waves,
    check_sequences,
    check_silence,
    check_evidence,
    check_ends,
    check_residency,
    check_processes,
    check_taken_back,
    check_superseded,
    check_absence,
    check_end_state,
)


def _is_forward(order: Order, run: Run) -> bool:
    """Told this run's revision by this run, while it was under way."""
    return (
        order.fleet == run.fleet
        and order.run == run.name
        and order.revision == run.revision
        and order.entry.version >= run.entry.version
        and (run.ended is None or order.entry.version < run.ended)
    )


def _takes_back_first(case: Case, order: Order) -> bool:
    runs = [run for run in case.runs.values() if run.fleet == order.fleet]
    promoted = any(run.outcome == "Promoted" and run.ended is not None and run.ended < order.entry.version for run in runs)
    return not promoted and any(run.turned is not None and run.turned <= order.entry.version for run in runs)


def _differences(wanted: Any, found: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        for key in sorted(wanted.keys() | found.keys(), key=str):
            yield from _differences(wanted.get(key), found.get(key), f"{where}.{key}")
    elif wanted != found:
        yield where, wanted, found
