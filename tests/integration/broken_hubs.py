"""Hubs that are broken on purpose, so that the checker can be seen to catch them. Each function breaks the hub of the process it is
called in (`Knobs.mutant`), before that starts."""

from dataclasses import replace
from typing import Any

from edgefleet.core import rollout
from edgefleet.core.actions import AssignSite
from edgefleet.core.facts import FleetFacts
from edgefleet.core.judge import Pass
from edgefleet.hub import fleets
from edgefleet.hub.assignments import AssignmentWriter


def hand_out_old_sequences() -> None:
    """Each order goes out under the sequence that the assignment has already."""
    plain = AssignmentWriter._order

    def order(self: AssignmentWriter, *args: Any) -> Any:
        held = args[-1]
        return plain(self, *args).model_copy(update={"sequence": max(held, 1)})

    AssignmentWriter._order = order  # type: ignore[method-assign]


def open_all_waves() -> None:
    """A run that is under way tells all of its sites at once."""
    plain = fleets.decide_fleet

    def decide(facts: FleetFacts, now: Any) -> Any:
        decision = plain(facts, now)
        run = next((run for run in facts.runs if run.outcome is None and run.status.phase != "Returning"), None)
        if run is None or decision.rollout is None or decision.rollout.returning is not None:
            return decision
        told = {site.name for site in facts.sites if site.assignment and site.assignment.revision == run.revision.hash}
        told |= {action.site for action in decision.actions if isinstance(action, AssignSite)}
        more = tuple(AssignSite(one.site, run.revision, one.variant, run.name) for one in run.plan if one.site not in told)
        return replace(decision, actions=(*more, *decision.actions))

    fleets.decide_fleet = decide


def take_silence_for_success() -> None:
    """A wave has passed as soon as it is open, whether or not its sites said anything."""

    def judge(*_: Any, **__: Any) -> Pass:
        return Pass("SoItSeems", "nobody complained")

    rollout.judge_wave = judge  # type: ignore[assignment]
