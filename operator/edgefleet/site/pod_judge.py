"""Whether the pods that serve keep what the hard checks ask, while the old ones are still kept: restarts, and kills for want of memory.

What breaks them is taken back here and now, whether the hub can be reached or not: a crash is no statistics. Before the switch it is the
trial that looks (trial.py); what is too much is decided in core/pods.py.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from edgefleet.core.pods import judge_history
from edgefleet.site.gateway_config import Target
from edgefleet.site.runtimes.deployment import Pods
from edgefleet.site.state import Failure, StateFile
from edgefleet.site.store import Store
from edgefleet.site.telemetry.verdict import may_judge

log = logging.getLogger(__name__)


class PodJudge:
    """`keep` is for how long after a switch it looks, where no run's soak says it; `take_back` remembers a failure and wakes the worker."""

    def __init__(self, *, state: StateFile, store: Store, pods: Pods, keep: timedelta, take_back: Callable[[str, Failure], None]) -> None:
        self._state = state
        self._store = store
        self._pods = pods
        self._keep = keep
        self._take_back = take_back
        self.taken_back: dict[str, int] = {}

    def look(self) -> None:
        """Judge all that was switched in lately and has something to go back to."""
        now = datetime.now(UTC)
        for fleet, state in list(self._state.fleets.items()):
            if state.active is None or state.active_since is None or state.checks is None or not may_judge(state):
                continue
            trouble = judge_history(self._pods.history(Target(state.model, state.active).served_name), state.checks)
            if trouble is None or now - state.active_since > state.watch_for(self._keep) or self._store.find(state.previous or "") is None:
                continue
            failure = Failure(
                sequence=state.served_sequence,
                revision=state.active,
                reason=trouble.reason,
                message=f"after the switch: {trouble.message}",
                golden_score=state.golden_score,
                at=now,
            )
            log.warning("fleet %s: %s is taken back: %s: %s", fleet, state.active[:8], failure.reason, failure.message)
            try:
                self._take_back(fleet, failure)
            except OSError as error:
                # What cannot be remembered must not be acted on; the next change of a pod brings it up again.
                log.warning("fleet %s: not taken back yet: %s", fleet, error)
                continue
            self.taken_back[fleet] = self.taken_back.get(fleet, 0) + 1
