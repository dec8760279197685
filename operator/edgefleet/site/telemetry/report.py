"""What of a fleet's past fits into its annotation in the Lease, and when it is worth a write of its own. Pure.

Always there: the newest record of each life of the gateway, from which the hub has the sums. Then the latest 5-minute records, as many as
fit into 1 kB (about 12). If the hub has missed more than those, the report may take up to 32 kB: hourly records first, then finer ones.
"""

import json
from typing import NamedTuple

from edgefleet.api.report import MAX_BACKLOG_BYTES, MAX_HEALTH_BYTES, HealthCounts, HealthEpoch, HealthReport
from edgefleet.site.telemetry.events import Edges
from edgefleet.site.telemetry.history import MARKS_PER_HOUR, Activation, Epoch, History

ALL_BACKLOGS_BYTES = 196_608
"""Of all fleets of a site together: an API server takes 256 kB of annotations on one object."""
EARLY_GROWTH = 1.25
YOUNG_SECONDS = 24 * 3600
CLOCK_GRAIN_SECONDS = 1

Row = tuple[int, int, int, int, int, int]


class Told(NamedTuple):
    """A report's text. `whole`: it has all that the hub has not had yet."""

    text: str
    whole: bool


def plan_health(history: History, activation: Activation, *, sequence: int, skew: int, now: int, backlog: int = 0) -> Told:
    """The report of what serves, made anew each time from what is known; `now` is a mark. `backlog`: how many bytes it may have after a
    cut, if that is not 0."""
    edges = activation.delivered
    rows = [(epoch.start, row) for epoch in activation.epochs for row in _list_rows(epoch, edges)]
    blank = HealthReport(
        revision=activation.revision,
        sequence=sequence,
        activation=activation.at,
        le_ms=edges.le_ms,
        ge=edges.ge,
        skew=skew if abs(skew) > CLOCK_GRAIN_SECONDS else 0,
        lost=history.lost,
        usual=history.usual([one for one in history.activations if one.revision == activation.revision], edges, now),
        before=activation.before,
    )
    left = (backlog or MAX_HEALTH_BYTES) - len(_write(blank))
    chosen: dict[int, list[Row]] = {}
    ranked = _rank(rows, hours_first=bool(backlog))
    for start, row in ranked:
        size = len(json.dumps(row, separators=(",", ":"))) + 1
        if start not in chosen:
            size += len(f'{{"start":{start},"records":[]}},')
        if size > left:
            break
        left -= size
        chosen.setdefault(start, []).append(row)
    epochs = tuple(HealthEpoch(start=start, records=tuple(sorted(found))) for start, found in sorted(chosen.items()))
    told = sum(map(len, chosen.values()))
    return Told(_write(blank.model_copy(update={"epochs": epochs})), all(row[0] < history.told for _, row in ranked[told:]))


def plan_backlog(fleets: int) -> int:
    """How many bytes each of so many fleets may have after a cut."""
    return min(MAX_BACKLOG_BYTES, ALL_BACKLOGS_BYTES // max(1, fleets))


def count_bad(activation: Activation) -> int:
    """Failed, slow and unsure answers since the switch: what a judge would count."""
    counts: HealthCounts = activation.total.measure(activation.delivered)
    return counts.failed + counts.slow + counts.unsure


def is_young(activation: Activation, second: float) -> bool:
    """Whether a revision was switched in less than a day ago."""
    return second - activation.at < YOUNG_SECONDS


def is_urgent(bad: int, told: int) -> bool:
    """Whether a young revision's bad answers are worth a report of their own: a quarter more than the hub knows of.

    So the first ones are told at once, and a regression at each step that could change a verdict; a site with its usual few writes about
    ten reports more for each tenfold of its bad answers, however much traffic it has.
    """
    return bad > told * EARLY_GROWTH


def _write(report: HealthReport) -> str:
    return report.model_dump_json(by_alias=True, exclude_none=True)


def _list_rows(epoch: Epoch, edges: Edges) -> list[Row]:
    """Cumulative counts at each mark, oldest first."""
    sums, rows = epoch.base.measure(edges), []
    for mark, events in sorted(epoch.marks.items()):
        sums = HealthCounts(*(old + new for old, new in zip(sums, events.measure(edges), strict=True)))
        rows.append((mark, *sums))
    return rows


def _rank(rows: list[tuple[int, Row]], *, hours_first: bool) -> list[tuple[int, Row]]:
    """What is needed most first: the last of each epoch; the last of each hour, if asked for; the others. Newest first in each."""
    lasts = {start: row[0] for start, row in rows}

    def need(pair: tuple[int, Row]) -> tuple[int, int, int]:
        start, (mark, *_) = pair
        hour = hours_first and mark % MARKS_PER_HOUR == MARKS_PER_HOUR - 1
        return 0 if lasts[start] == mark else 1 if hour else 2, -mark, -start

    return sorted(rows, key=need)
