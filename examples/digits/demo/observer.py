"""Looks at the hub as a person with `kubectl get` would, twice a second, and tells the story what changed.

It decides nothing: acts ask it for facts, the screen draws its last snapshot.
"""

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from edgefleet.api.assignment import SiteAssignment
from edgefleet.api.conditions import find_condition
from edgefleet.api.fleet import EdgeFleet
from edgefleet.api.meta import Kind
from edgefleet.api.model import EdgeModel
from edgefleet.api.rollout import GateRecord, ModelRollout
from edgefleet.api.site import EdgeSite
from edgefleet.kube.client import Api
from edgefleet.kube.errors import ApiError, NotFound
from edgefleet.kube.resources import EDGE_FLEETS, EDGE_MODELS, EDGE_SITES, MODEL_ROLLOUTS, SITE_ASSIGNMENTS, Resource
from examples.digits.demo.story import Story

LOOK_EVERY = 0.5
AnyKind = TypeVar("AnyKind", bound=Kind)


@dataclass(frozen=True)
class Snapshot:
    """The hub's objects at `at` (monotonic seconds): models, fleets and runs by `<namespace>/<name>`, sites by name,
    assignments by (site, fleet's `<namespace>/<name>`)."""

    at: float = 0.0
    models: dict[str, EdgeModel] = field(default_factory=dict)
    fleets: dict[str, EdgeFleet] = field(default_factory=dict)
    runs: dict[str, ModelRollout] = field(default_factory=dict)
    sites: dict[str, EdgeSite] = field(default_factory=dict)
    assignments: dict[tuple[str, str], SiteAssignment] = field(default_factory=dict)

    def runs_of(self, fleet: str) -> list[ModelRollout]:
        """The runs of a fleet, oldest first."""
        namespace, _, name = fleet.partition("/")
        found = [run for key, run in self.runs.items() if key.startswith(f"{namespace}/") and run.spec.fleet == name]
        return sorted(found, key=lambda run: run.spec.number)

    def assigned(self, fleet: str) -> dict[str, SiteAssignment]:
        """A fleet's assignments by site."""
        return {site: assignment for (site, owner), assignment in self.assignments.items() if owner == fleet}


class Observer(threading.Thread):
    """Looks until `close`. `latest` is the last snapshot; before the first look it is empty, with `at` = 0. `gates` holds for each run, by
    uid, what its status said of live traffic, each change once."""

    def __init__(self, kubeconfig: Path, story: Story) -> None:
        super().__init__(daemon=True, name="observer")
        self._kubeconfig, self._story = kubeconfig, story
        self._closing = threading.Event()
        self.latest = Snapshot()
        self.gates: defaultdict[str, list[tuple[GateRecord, ...]]] = defaultdict(list)
        self.trouble = ""

    def run(self) -> None:
        """The thread's body."""
        asyncio.run(self._look_until_closed())

    def close(self) -> None:
        """End the thread, within a second or so."""
        self._closing.set()
        self.join(10)

    def wait_until(self, fact: Callable[[Snapshot], object], limit: float) -> bool:
        """Wait for a fact to be seen, at most `limit` seconds, in snapshots begun after this call; whether it was."""
        asked = time.monotonic()
        while time.monotonic() < asked + limit:
            seen = self.latest
            if seen.at >= asked and fact(seen):
                return True
            time.sleep(0.1)
        return False

    async def _look_until_closed(self) -> None:
        async with Api.connect(self._kubeconfig, user_agent="edgefleet-demo", attempts=1) as api:
            while not self._closing.is_set():
                before = self.latest
                try:
                    self.latest = await _look(api)
                    self.trouble = ""
                except (ApiError, ValidationError) as error:
                    self.trouble = str(error)
                else:
                    self._keep_gates()
                    for line in describe_changes(before, self.latest):
                        self._story.tell("fleet", line)
                await asyncio.sleep(LOOK_EVERY)

    def _keep_gates(self) -> None:
        for run in self.latest.runs.values():
            kept = self.gates[run.metadata.uid or ""]
            if run.status.gates and (not kept or kept[-1] != run.status.gates):
                kept.append(run.status.gates)


async def _look(api: Api) -> Snapshot:
    at = time.monotonic()
    assignments = await _fetch(api, SITE_ASSIGNMENTS, SiteAssignment)
    return Snapshot(
        at,
        await _fetch(api, EDGE_MODELS, EdgeModel),
        await _fetch(api, EDGE_FLEETS, EdgeFleet),
        await _fetch(api, MODEL_ROLLOUTS, ModelRollout),
        await _fetch(api, EDGE_SITES, EdgeSite),
        {(each.spec.site, each.spec.fleet): each for each in assignments.values()},
    )


async def _fetch(api: Api, resource: Resource, kind: type[AnyKind]) -> dict[str, AnyKind]:
    try:
        bodies = await api.list(resource)
    except NotFound:  # the CRD does not exist, as in act 6
        return {}
    found = [kind.parse(body) for body in bodies]
    return {"/".join(filter(None, (each.metadata.namespace, each.metadata.name))): each for each in found}


def describe_changes(old: Snapshot, new: Snapshot) -> list[str]:
    """One line for each thing that a person following the rollout would want to know."""
    return [
        *_model_changes(old, new),
        *_run_changes(old, new),
        *_site_changes(old, new),
        *(f"{kind} {key} is gone" for kind, key in sorted(_keys(old) - _keys(new))),
    ]


def _keys(snapshot: Snapshot) -> set[tuple[str, str]]:
    return {*(("fleet", key) for key in snapshot.fleets), *(("run", key) for key in snapshot.runs)}


def _model_changes(old: Snapshot, new: Snapshot) -> list[str]:
    lines = []
    for key, model in new.models.items():
        said = find_condition(model.status.conditions, "SourceVerified")
        before = find_condition(old.models[key].status.conditions, "SourceVerified") if key in old.models else None
        release = model.status.release
        was = old.models[key].status.release if key in old.models else None
        if said and said.status == "False" and (before is None or (before.status, before.message) != (said.status, said.message)):
            lines.append(f"model {key}: refused, {said.reason}: {said.message}")
        if release and (was is None or was.digest != release.digest):
            names = ", ".join(variant.name for variant in release.variants)
            lines.append(f"model {key}: release {release.version} verified ({names})")
    return lines


def _run_changes(old: Snapshot, new: Snapshot) -> list[str]:
    lines = []
    for key, run in new.runs.items():
        before = old.runs.get(key)
        if before is None:
            lines.append(f"run {key}: {run.spec.revision.version} planned for {run.spec.plan.sites} sites")
        opened = {wave.name for wave in before.status.waves if wave.opened_at} if before else set()
        passed = {wave.name for wave in before.status.waves if wave.passed_at} if before else set()
        for wave in run.status.waves:
            if wave.opened_at and wave.name not in opened:
                lines.append(f"run {key}: wave {wave.name} opens ({wave.sites} sites)")
            if wave.passed_at and wave.name not in passed:
                lines.append(f"run {key}: wave {wave.name} passed")
        lines += [f"run {key}: {line}" for line in _gate_changes(before, run)]
        if run.status.phase == "Returning" and (before is None or before.status.phase != "Returning"):
            lines.append(f"run {key}: going back, {run.status.reason}: {run.status.message}")
        if run.status.outcome and (before is None or before.status.outcome is None):
            told = before is not None and before.status.message == run.status.message
            lines.append(f"run {key}: {run.status.outcome} ({run.status.reason}) {'' if told else run.status.message}".rstrip())
    return lines


def _gate_changes(before: ModelRollout | None, run: ModelRollout) -> list[str]:
    """Gates whose evidence moved away from nothing."""
    known = {(gate.name, gate.kind): gate.evidence for gate in before.status.gates} if before else {}
    return [
        f"{gate.name}, {gate.seen} of {gate.requests} bad: evidence {float(gate.evidence):.3g} of {float(gate.bound):g}"
        for gate in run.status.gates
        if float(gate.evidence) > 1 and known.get((gate.name, gate.kind)) != gate.evidence
    ]


def _site_changes(old: Snapshot, new: Snapshot) -> list[str]:
    lines = []
    for key, assignment in new.assignments.items():
        status = assignment.status
        before = old.assignments.get(key)
        was = (before.status.sequence, before.status.state, before.status.reason) if before else (0, "", "")
        is_new = (status.sequence, status.state, status.reason) != was
        if is_new and status.sequence == assignment.spec.sequence and status.state != "Progressing":
            what = f"{assignment.spec.version} {assignment.spec.variant}".strip() or assignment.spec.action
            why = f" {status.reason}: {status.message}" if status.state != "Active" else ""
            lines.append(f"site {key[0]}: {what} {status.state}{why}")
    return lines
