"""Gathering: what core.fleet decides from, for one fleet, read at one moment. Nothing is decided here.

People's objects and the runs come fresh from the API server; sites, Leases and assignments from the inventory's list-watches; plans are
immutable, so they are read once. What a site wrote may be anything that the schema lets pass; it must not stop a fleet's pass (I9).
A site in quarantine (core/attestation.py) has said nothing.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from edgefleet.api.assignment import assignment_name
from edgefleet.api.fleet import EdgeFleet
from edgefleet.api.meta import FLEET_LABEL, OUTCOME_LABEL, QUARANTINE_LABEL, RUN_LABEL, TERMS_ANNOTATION, parse_time, site_namespace
from edgefleet.api.model import EdgeModel
from edgefleet.api.policy import STANDARD_POLICY, RolloutPolicy, RolloutPolicySpec
from edgefleet.api.rollout import ModelRollout
from edgefleet.core.attestation import is_quarantined
from edgefleet.core.case import find_tracked
from edgefleet.core.facts import (
    AssignmentFacts,
    Claim,
    FleetFacts,
    FleetKey,
    ModelFacts,
    PlannedSite,
    ReportFacts,
    RunFacts,
    SiteFacts,
)
from edgefleet.core.health import Stream
from edgefleet.core.memory import recall
from edgefleet.hub.evidence import Evidence
from edgefleet.hub.inventory import Inventory
from edgefleet.hub.models import model_facts
from edgefleet.hub.plans import PlanError, fetch_plan
from edgefleet.hub.records import AssignmentRecord, SiteRecord
from edgefleet.kube.client import Api
from edgefleet.kube.errors import NotFound
from edgefleet.kube.resources import EDGE_FLEETS, EDGE_MODELS, MODEL_ROLLOUTS, ROLLOUT_POLICIES

CLOCK_AHEAD = timedelta(days=1)
"""How far a site's clock may be ahead before its times count as unknown."""


class Gatherer:
    """`fleets` are all EdgeFleets as last seen: their claims on sites matter to each other."""

    def __init__(self, api: Api, inventory: Inventory, evidence: Evidence, fleets: dict[FleetKey, EdgeFleet], *, hub_key: str = "") -> None:
        self._api = api
        self._inventory = inventory
        self._evidence = evidence
        self._fleets = fleets
        self._hub_key = hub_key
        self._plans: dict[FleetKey, dict[str, tuple[PlannedSite, ...]]] = {}

    async def gather(self, key: FleetKey) -> tuple[EdgeFleet, FleetFacts] | None:
        """The fleet and its facts; None if the fleet is gone."""
        try:
            fleet = EdgeFleet.parse(await self._api.get(EDGE_FLEETS, key.name, key.namespace))
        except NotFound:
            self._fleets.pop(key, None)
            self._plans.pop(key, None)
            self._evidence.forget(key)
            return None
        self._fleets[key] = fleet
        runs, unreadable = await self._runs(key)
        by_site = self._assignments_by_site(fleet.spec.model_ref.name)
        facts = FleetFacts(
            key=key,
            spec=fleet.spec,
            created_at=fleet.metadata.creation_timestamp or datetime.now(UTC),
            namespace_labels=self._inventory.namespace_labels(key.namespace),
            model=await self._model(fleet),
            policy=await self._policy(fleet),
            runs=runs,
            sites=tuple(self._site(key, record, by_site.get(record.metadata.name, ())) for record in self._inventory.sites),
            deleting=fleet.metadata.deletion_timestamp is not None,
            deleted_at=fleet.metadata.deletion_timestamp,
            generation=fleet.metadata.generation,
            unreadable=unreadable,
            hub_key=self._hub_key,
        )
        return fleet, replace(facts, health=await self._health(facts))

    async def _health(self, facts: FleetFacts) -> dict[str, tuple[Stream, ...]]:
        """What was heard of live traffic, if the fleet has a run under way that judges it."""
        run = recall(facts).active
        tracked = find_tracked(run, {site.name: site for site in facts.sites}) if run is not None else ()
        if run is None or not tracked:
            self._evidence.forget(facts.key)
            return {}
        heard = await self._evidence.gather(facts.key, run.name, run.uid, run.revision.hash, tracked)
        silent = {site.name for site in facts.sites if is_quarantined(site.spec, site.attestation, datetime.now(UTC))}
        return {site: () if site in silent else streams for site, streams in heard.items()}

    async def _model(self, fleet: EdgeFleet) -> ModelFacts | None:
        try:
            return model_facts(EdgeModel.parse(await self._api.get(EDGE_MODELS, fleet.spec.model_ref.name, fleet.metadata.namespace)))
        except NotFound:
            return None

    async def _policy(self, fleet: EdgeFleet) -> RolloutPolicySpec | None:
        if fleet.spec.rollout_policy_ref is None:
            return STANDARD_POLICY
        try:
            body = await self._api.get(ROLLOUT_POLICIES, fleet.spec.rollout_policy_ref.name, fleet.metadata.namespace)
        except NotFound:
            return None
        return RolloutPolicy.parse(body).spec

    async def _runs(self, key: FleetKey) -> tuple[tuple[RunFacts, ...], tuple[str, ...]]:
        """The runs, and what is wrong with those that cannot be read."""
        bodies = await self._api.list(MODEL_ROLLOUTS, key.namespace, labels=f"{FLEET_LABEL}={key.name}")
        known, self._plans[key] = self._plans.get(key, {}), {}
        runs, unreadable = [], []
        for body in bodies:
            try:
                run = ModelRollout.parse(body)
                if run.spec.fleet == key.name:
                    runs.append(await self._run(key, run, known))
            except (ValidationError, PlanError, NotFound) as error:
                name, why = body["metadata"]["name"], error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
                remedy = f"delete the run (`edgefleet rollout forget --force {name}`), and a new one is planned"
                unreadable.append(f"ModelRollout {name} cannot be used: {why}. {remedy}")
        return tuple(runs), tuple(unreadable)

    async def _run(self, key: FleetKey, run: ModelRollout, known: dict[str, tuple[PlannedSite, ...]]) -> RunFacts:
        labelled = run.metadata.labels.get(OUTCOME_LABEL)
        outcome = run.status.outcome or labelled
        return RunFacts(
            name=run.metadata.name,
            number=run.spec.number,
            revision=run.spec.revision,
            policy=run.spec.policy,
            control=run.spec.control,
            status=run.status,
            created_at=run.metadata.creation_timestamp or datetime.now(UTC),
            outcome=outcome,  # type: ignore[arg-type]
            recorded=run.status.outcome == labelled,
            plan=() if outcome else await self._plan(key, run, known),
            generation=run.metadata.generation,
            uid=run.metadata.uid or "",
            author=run.spec.author,
        )

    async def _plan(self, key: FleetKey, run: ModelRollout, known: dict[str, tuple[PlannedSite, ...]]) -> tuple[PlannedSite, ...]:
        """Kept as long as a run of the fleet that is under way has it."""
        ref = run.spec.plan
        plan = known.get(ref.hash) or await fetch_plan(self._api, key.namespace, ref)
        self._plans[key][ref.hash] = plan
        return plan

    def _assignments_by_site(self, model: str) -> dict[str, list[AssignmentRecord]]:
        by_site: dict[str, list[AssignmentRecord]] = {}
        for record in self._inventory.assignments:
            if record.spec.model == model:
                by_site.setdefault(record.site, []).append(record)
        return by_site

    def _site(self, key: FleetKey, record: SiteRecord, held: list[AssignmentRecord] | tuple[()]) -> SiteFacts:
        name = record.metadata.name
        own = self._inventory.assignments.get(site_namespace(name), assignment_name(key.namespace, key.name))
        report = self._inventory.fleet_report(name, key)
        about = self._inventory.site_report(name)
        silent = is_quarantined(record.spec, record.status.attestation, datetime.now(UTC))
        assignment = assignment_facts(own) if own else None
        return SiteFacts(
            name=name,
            spec=record.spec,
            labels=dict(record.metadata.labels),
            deleting=record.metadata.deletion_timestamp is not None,
            hardware=about.hardware if about else None,
            last_heard=None if silent else self._inventory.last_heard(name),
            renew_seconds=self._inventory.renew_seconds(name),
            # What no assignment has as its sequence: its status speaks of none.
            assignment=replace(assignment, status_sequence=-1) if assignment and silent else assignment,
            report=ReportFacts(report.revision, report.sequence, report.floor, _plausible(report.active_since))
            if report and not silent
            else None,
            claims=self._claims(key, record, held),
            attestation=record.status.attestation,
        )

    def _claims(self, key: FleetKey, site: SiteRecord, held: list[AssignmentRecord] | tuple[()]) -> tuple[Claim, ...]:
        """Other fleets on the same model: those that have the site (deleted ones too), and those that may have it and want it."""
        ours = self._fleets[key]
        holders = {record.spec.fleet for record in held if record.spec.action == "Run"}
        claims = [
            Claim(left, record.metadata.creation_timestamp or datetime.now(UTC), assigned=True, gone=True)
            for record in held
            if record.spec.action == "Run" and (left := FleetKey.parse(record.spec.fleet)) != key and left not in self._fleets
        ]
        for other, fleet in self._fleets.items():
            if other == key or fleet.spec.model_ref.name != ours.spec.model_ref.name:
                continue
            assigned = str(other) in holders
            if assigned or self._wants(other, fleet, site):
                claims.append(Claim(other, fleet.metadata.creation_timestamp or datetime.now(UTC), assigned))
        return tuple(claims)

    def _wants(self, key: FleetKey, fleet: EdgeFleet, site: SiteRecord) -> bool:
        allowed, residency = site.spec.allowed_namespaces, fleet.spec.residency
        return (
            fleet.metadata.deletion_timestamp is None
            and fleet.spec.site_selector.matches(dict(site.metadata.labels))
            and allowed is not None
            and allowed.matches(self._inventory.namespace_labels(key.namespace))
            and (residency is None or site.spec.region in residency.allowed_regions)
        )


def assignment_facts(record: AssignmentRecord) -> AssignmentFacts:
    """An assignment as decisions see it."""
    spec, status = record.spec, record.status
    return AssignmentFacts(
        sequence=spec.sequence,
        action=spec.action,
        model=spec.model,
        revision=spec.revision,
        run=record.metadata.labels.get(RUN_LABEL),
        expires_at=parse_time(spec.expires_at),
        variant=spec.variant,
        quarantine=record.metadata.labels.get(QUARANTINE_LABEL, ""),
        terms=record.metadata.annotations.get(TERMS_ANNOTATION, ""),
        signer=record.signer,
        status_sequence=status.sequence,
        state=status.state,
        fault=status.fault,
        reason=status.reason,
        message=status.message,
        since=_read_time(status.since),
        active_since=_read_time(status.active.since) if status.active else None,
    )


def _read_time(text: str | None) -> datetime | None:
    """A time that a site wrote into a status; None if it is none."""
    try:
        return _plausible(parse_time(text)) if text else None
    except ValueError:
        return None


def _plausible(moment: datetime | None) -> datetime | None:
    if moment is None or moment.tzinfo is None or moment > datetime.now(UTC) + CLOCK_AHEAD:
        return None
    return moment
