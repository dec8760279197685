"""Writing ModelRollouts. A run is made in this order: plan, run, owner of the plan; and ends in its status first, its label second.

The label `edgefleet.io/outcome` repeats the outcome for restores that drop status.
"""

import logging
from datetime import UTC, datetime
from typing import Any

from edgefleet.api.meta import FLEET_LABEL, OUTCOME_LABEL, format_time
from edgefleet.api.rollout import ModelRollout, ModelRolloutStatus, Outcome, PlanRef
from edgefleet.core.actions import AdoptRun, EndRun, StartRun
from edgefleet.core.events import plan_run_events
from edgefleet.core.facts import FleetKey, PlannedSite
from edgefleet.hub.events import Events
from edgefleet.hub.plans import apply_plan, apply_plan_owner, encode_plan
from edgefleet.hub.settings import FIELD_MANAGER
from edgefleet.kube.client import Api
from edgefleet.kube.errors import Conflict
from edgefleet.kube.resources import MODEL_ROLLOUTS

log = logging.getLogger(__name__)

ADOPTED = ("Adopted", "the sites ran this revision before this hub knew of it")


class Runs:
    """Makes, records, ends and forgets runs."""

    def __init__(self, api: Api, events: Events) -> None:
        self._api = api
        self._events = events

    async def start(self, fleet: FleetKey, action: StartRun) -> None:
        """Make a run; if it exists already, this was done before."""
        ref = await apply_plan(self._api, fleet.namespace, fleet.name, action.plan)
        body = self._body(fleet, action, ref, action.plan)
        body["spec"]["author"] = action.author
        try:
            run = await self._api.create(MODEL_ROLLOUTS, body)
        except Conflict:
            run = await self._api.get(MODEL_ROLLOUTS, action.name, fleet.namespace)
        await apply_plan_owner(self._api, run, action.plan)
        log.info("fleet %s: run %s of version %s over %d sites", fleet, action.name, action.revision.version, ref.sites)

    async def adopt(self, fleet: FleetKey, action: AdoptRun) -> None:
        """Make a run that has ended already: what it stands for was there before this hub."""
        ref, _ = encode_plan(())
        body = self._body(fleet, action, ref, ())
        body["metadata"]["labels"][OUTCOME_LABEL] = "Promoted"
        try:
            await self._api.create(MODEL_ROLLOUTS, body)
        except Conflict:
            log.info("run %s exists already", action.name)
        await self.end(fleet, EndRun(action.name, "Promoted", *ADOPTED))
        log.info("fleet %s: adopted version %s as %s", fleet, action.revision.version, action.name)

    async def apply_status(self, fleet: FleetKey, run: str, status: ModelRolloutStatus) -> None:
        """Write the run's record, if it is not there already."""
        body = await self._api.get(MODEL_ROLLOUTS, run, fleet.namespace)
        if body.get("status") == status.to_json_dict():
            return
        old = ModelRollout.parse(body)
        await self._events.tell_of_run(fleet, old, plan_run_events(run, old.spec.revision.version, old.status, status))
        await self._api.apply(
            MODEL_ROLLOUTS,
            {"metadata": {"name": run, "namespace": fleet.namespace}, "status": status.to_json_dict()},
            manager=FIELD_MANAGER,
            subresource="status",
        )

    async def end(self, fleet: FleetKey, action: EndRun) -> None:
        """Record the outcome: in the status, unless the run's own decision wrote it there already, and in the label."""
        run = ModelRollout.parse(await self._api.get(MODEL_ROLLOUTS, action.run, fleet.namespace))
        if run.status.outcome is None:
            ended = {
                "phase": "Ended",
                "outcome": action.outcome,
                "reason": action.reason,
                "message": action.message,
                "waiting_for": "",
                "ended_at": format_time(datetime.now(UTC)),
            }
            await self.apply_status(fleet, action.run, run.status.model_copy(update=ended))
        labels: dict[str, Outcome] = {OUTCOME_LABEL: action.outcome}
        await self._api.patch(MODEL_ROLLOUTS, action.run, fleet.namespace, {"metadata": {"labels": labels}})
        log.info("fleet %s: run %s ended %s: %s %s", fleet, action.run, action.outcome, action.reason, action.message)

    async def complete(self, fleet: FleetKey, run: str, outcome: Outcome) -> None:
        """Record the half of an end that is missing: a hub died after the other one, or a restore dropped the status."""
        found = ModelRollout.parse(await self._api.get(MODEL_ROLLOUTS, run, fleet.namespace))
        # Only what was adopted has a plan without sites.
        reason, message = ADOPTED if found.spec.plan.sites == 0 else ("Restored", "the run's label says so; what its status said is lost")
        await self.end(fleet, EndRun(run, outcome, reason, message))

    async def forget(self, fleet: FleetKey, run: str) -> None:
        """Delete a run that nothing remembers any more."""
        await self._api.delete(MODEL_ROLLOUTS, run, fleet.namespace)

    @staticmethod
    def _body(fleet: FleetKey, action: StartRun | AdoptRun, ref: PlanRef, plan: tuple[PlannedSite, ...]) -> dict[str, Any]:
        return {
            "metadata": {
                "name": action.name,
                "namespace": fleet.namespace,
                "labels": {FLEET_LABEL: fleet.name},
            },
            "spec": {
                "fleet": fleet.name,
                "number": action.number,
                "revision": action.revision.to_json_dict(),
                "policy": action.policy.to_json_dict(),
                "plan": ref.to_json_dict(),
            },
        }
