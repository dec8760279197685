"""Whether this site takes a revision back by itself: only while it is cut off, and by the absolute gates alone. While the hub is heard it
decides, as it has other sites to compare with.

Absolute gates need no other site: the same rule as the hub's (core/traffic.py), with this site's own past as what is usual, at the bound
of the order. What failed is remembered under its sequence, and the switch back is the worker's (I10).
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from edgefleet.api.model import Slo
from edgefleet.api.policy import Analysis
from edgefleet.api.report import MARK_SECONDS, MAX_BACKLOG_BYTES, RENEWALS_PER_LEASE, HealthReport
from edgefleet.site.state import Failure, FleetState, StateFile
from edgefleet.site.store import Store
from edgefleet.site.telemetry.meter import Meter
from edgefleet.site.telemetry.report import count_bad, plan_health

if TYPE_CHECKING:
    # The hub's reasoning is imported late: it costs memory that a site needs only on the day when it is alone.
    from edgefleet.core.health import Stream

log = logging.getLogger(__name__)

SITE = "this site"


def judge_alone(stream: "Stream", slo: Slo, analysis: Analysis, *, now: int) -> tuple[str, str] | None:
    """(reason, message) if an absolute gate proves at this one site that the revision is worse; `now` is a mark."""
    from edgefleet.core.gates import REASONS, AbsoluteGate, plan_gates
    from edgefleet.core.live import explain_failure
    from edgefleet.core.traffic import Watched, judge_gates

    verdicts = judge_gates(
        plan_gates(slo, analysis),
        analysis,
        watched=[Watched(SITE, (), stream)],
        controls=(),
        opened=(stream.activation // MARK_SECONDS,),
        now=now,
        first_release=False,
    )
    for one in verdicts:
        if isinstance(one.gate, AbsoluteGate) and not one.gate.dry_run and one.outcome == "Fail":
            return REASONS[one.gate.metric], f"{explain_failure(one, slo)}. Decided here, as the hub could not be reached"
    return None


def may_judge(state: FleetState) -> bool:
    """Whether what serves was switched in by the newest order, is to be judged, and something ran before it."""
    accepted = (state.accepted_action, state.accepted_revision, state.floor)
    return (
        accepted == ("Run", state.active, state.served_sequence)
        and state.failure is None
        and state.previous is not None
        and state.analysis is not None
    )


class OwnJudge:
    """`silence` tells for how long the hub has not been heard; `take_back` remembers a failure and wakes the fleet's worker."""

    def __init__(
        self,
        *,
        state: StateFile,
        store: Store,
        meter: Meter,
        renew: timedelta,
        silence: Callable[[], timedelta],
        take_back: Callable[[str, Failure], None],
    ) -> None:
        self._state = state
        self._store = store
        self._meter = meter
        self._patience = renew * RENEWALS_PER_LEASE
        self._silence = silence
        self._take_back = take_back
        self._seen: dict[str, tuple[int, int]] = {}
        self.taken_back: dict[str, int] = {}

    def look(self) -> None:
        """Judge what has news, if the site is alone."""
        if self._silence() <= self._patience:
            return
        for fleet, state in list(self._state.fleets.items()):
            if state.active and state.analysis and may_judge(state):
                self._judge(fleet, state, state.active, state.analysis)

    def _judge(self, fleet: str, state: FleetState, revision: str, analysis: Analysis) -> None:
        found, previous = self._meter.find(fleet), state.previous or ""
        if found is None or not found[0].may_go_back_to(previous) or self._store.find(previous) is None:
            return
        history, activation = found
        seen = activation.at, count_bad(activation)
        if self._seen.get(fleet) == seen:
            return
        self._seen[fleet] = seen
        from edgefleet.core.health import read_stream

        sequence, now = state.served_sequence, self._meter.mark
        told = plan_health(history, activation, sequence=sequence, skew=0, now=now, backlog=MAX_BACKLOG_BYTES)
        stream = read_stream(HealthReport.model_validate_json(told.text))
        verdict = judge_alone(stream, state.slo, analysis, now=now)
        if verdict is None:
            return
        reason, message = verdict
        failure = Failure(
            sequence=sequence, revision=revision, reason=reason, message=message, golden_score=state.golden_score, at=datetime.now(UTC)
        )
        log.warning("fleet %s: %s is taken back: %s: %s", fleet, revision[:8], reason, message)
        try:
            self._take_back(fleet, failure)
        except OSError as error:
            # What cannot be remembered must not be acted on; the next look comes to the same verdict.
            log.warning("fleet %s: not taken back yet: %s", fleet, error)
            del self._seen[fleet]
            return
        self.taken_back[fleet] = self.taken_back.get(fleet, 0) + 1
