"""Short ways to write down facts in tests: revisions, sites, runs and fleets with everything but the point left at its default."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from edgefleet.api.assignment import SiteState
from edgefleet.api.fleet import EdgeFleetSpec
from edgefleet.api.meta import LabelSelector, format_time
from edgefleet.api.model import RepositoryRuntime, Revision, Serving, Variant
from edgefleet.api.policy import RolloutPolicySpec
from edgefleet.api.rollout import Control, ModelRolloutStatus, Outcome, WaveRecord
from edgefleet.api.site import EdgeSiteSpec, Hardware
from edgefleet.core.facts import (
    AssignmentFacts,
    FleetFacts,
    FleetKey,
    ModelFacts,
    PlannedSite,
    ReportFacts,
    RunFacts,
    SiteFacts,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
KEY = FleetKey("plants", "weld")
AMD64 = Hardware(arch="amd64", memory=8 << 30)
ARM64 = Hardware(arch="arm64", memory=4 << 30)


def minutes(count: float) -> timedelta:
    return timedelta(minutes=count)


def digest_of(text: str) -> str:
    return "sha256:" + sha256(text.encode()).hexdigest()


def variant(name: str, arch: str = "amd64", **more: Any) -> Variant:
    return Variant(name=name, digest=digest_of(name), size=1000, arch=arch, **more)


def revision(version: str, variants: Sequence[Variant] | None = None) -> Revision:
    return Revision(
        hash=sha256(version.encode()).hexdigest(),
        model="weld-qc",
        repository="registry.example/vision/weld-qc",
        digest=digest_of(version),
        version=version,
        seq=1,
        variants=tuple(variants) if variants is not None else (variant("fp32"), variant("int8", arch="arm64")),
        serving=(Serving(repository=RepositoryRuntime()),),
    )


A, B, C = revision("1.0"), revision("2.0"), revision("3.0")


def policy(*waves: dict[str, Any], **more: Any) -> RolloutPolicySpec:
    """A policy with short times: soak 10 to 60 minutes, skipAfter 60 minutes, deadline 10 hours."""
    base: dict[str, Any] = {
        "waves": waves or ({"name": "canary", "sites": 1}, {"name": "all", "percent": 100}),
        "soak": {"min": "10m", "max": "60m"},
        "unreachable": {"skipAfter": "60m"},
        "progressDeadline": "10h",
    }
    return RolloutPolicySpec.model_validate({**base, **more})


def site(name: str, **more: Any) -> SiteFacts:
    """A reachable amd64 site in region kz that every namespace may use. `spec` is a dict that is merged in."""
    spec = {"region": "kz", "allowedNamespaces": {}, **more.pop("spec", {})}
    base: dict[str, Any] = {"labels": {"line": "weld"}, "hardware": AMD64, "last_heard": NOW}
    return SiteFacts(name=name, spec=EdgeSiteSpec.model_validate(spec), **{**base, **more})


def told(
    facts: SiteFacts,
    what: Revision | None,
    run: str | None,
    state: SiteState | None = "Active",
    *,
    sequence: int = 1,
    since: datetime = NOW,
    reported: bool = True,
    **more: Any,
) -> SiteFacts:
    """The site with an assignment (what None: a withdrawal) and, unless state is None, a status and report of that sequence."""
    assignment = AssignmentFacts(
        sequence=sequence,
        action="Run" if what else "Withdraw",
        model="weld-qc",
        revision=what.hash if what else None,
        run=run,
        expires_at=NOW + timedelta(days=14),
        status_sequence=sequence if state else 0,
        state=state or "Progressing",
        since=since,
        active_since=since if state == "Active" else None,
    )
    report = None
    if state == "Active" and reported and what:
        report = ReportFacts(what.hash, sequence, sequence, since)
    return replace(facts, assignment=replace(assignment, **more), report=report or facts.report)


def run(
    number: int,
    what: Revision,
    *,
    plan: Sequence[tuple[str, int]] = (),
    outcome: Outcome | None = None,
    under: RolloutPolicySpec | None = None,
    control: Control | None = None,
    author: str = "",
    **status: Any,
) -> RunFacts:
    """Run `weld-<number>`. `plan` holds (site, wave). `status` are fields of ModelRolloutStatus."""
    if outcome:
        status = {"phase": "Ended", "outcome": outcome, "reason": outcome, **status}
    return RunFacts(
        name=f"weld-{number}",
        number=number,
        revision=what,
        policy=under or policy(),
        control=control or Control(),
        status=ModelRolloutStatus(**status),
        created_at=NOW - timedelta(days=1) + timedelta(minutes=number),
        outcome=outcome,
        plan=tuple(PlannedSite(name, "fp32", wave) for name, wave in plan),
        author=author,
    )


def opened(*waves: tuple[str, float, float | None]) -> tuple[WaveRecord, ...]:
    """Wave records from (name, opened minutes ago, passed minutes ago or None)."""
    return tuple(
        WaveRecord(
            name=name,
            opened_at=format_time(NOW - minutes(since)),
            passed_at=None if passed is None else format_time(NOW - minutes(passed)),
        )
        for name, since, passed in waves
    )


def model(target: Revision | None, **more: Any) -> ModelFacts:
    return ModelFacts(**{"target": target, "verified": target is not None, "reason": "Verified" if target else "", **more})


def fleet(target: Revision | None, *, runs: Sequence[RunFacts] = (), sites: Sequence[SiteFacts] = (), **more: Any) -> FleetFacts:
    """`spec` is a dict of EdgeFleet.spec that is merged in."""
    spec = {"siteSelector": {}, "modelRef": {"name": "weld-qc"}, **more.pop("spec", {})}
    base: dict[str, Any] = {
        "key": KEY,
        "spec": EdgeFleetSpec.model_validate(spec),
        "created_at": NOW - timedelta(days=2),
        "namespace_labels": {"team": "welding"},
        "model": model(target),
        "policy": policy(),
        "runs": tuple(runs),
        "sites": tuple(sites),
    }
    return FleetFacts(**{**base, **more})


def matching(**labels: str) -> LabelSelector:
    return LabelSelector(match_labels=labels)
