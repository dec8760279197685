"""What a fleet's runs remember: which run is active, what is stable, what is barred. Nothing else is remembered anywhere.

A site's part of the memory is its assignment: one that names a run but not that run's revision was taken back by that run.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from edgefleet.api.model import Revision
from edgefleet.api.rollout import Outcome
from edgefleet.core.facts import AssignmentFacts, FleetFacts, RunFacts, SiteFacts

BARRING: frozenset[Outcome] = frozenset({"RolledBack", "AbortedByUser"})
TAKING_BACK: frozenset[Outcome] = BARRING | {"TargetChanged"}
KEPT_RUNS = 3


@dataclass(frozen=True, slots=True)
class Memory:
    """What the runs of one fleet add up to.

    `active` is the newest run without an outcome; `surplus` are older ones (left by a crash). `stable` is the revision of the
    newest Promoted run that is neither revoked nor barred; `promoted_once` tells "never had one" from "none is safe any more".
    `barred` maps a revision's hash to the run that bars it; `runs` are all by name; `revoked` holds hashes.
    """

    active: RunFacts | None
    surplus: tuple[RunFacts, ...]
    stable: Revision | None
    promoted_once: bool
    barred: dict[str, RunFacts]
    runs: dict[str, RunFacts]
    revoked: frozenset[str]

    @property
    def no_safe_target(self) -> bool:
        """There was a stable revision once, and none may be used now: nothing can go back, and nothing is withdrawn."""
        return self.promoted_once and self.stable is None

    def was_taken_back(self, assignment: AssignmentFacts) -> bool:
        """Whether this site still has what a run that ended took back, or what is revoked."""
        if assignment.revision is None or (self.stable is not None and assignment.revision == self.stable.hash):
            return False
        if assignment.revision in self.barred or assignment.revision in self.revoked:
            return True
        sender = self.runs.get(assignment.run or "")
        return (
            sender is not None
            and sender.revision.hash == assignment.revision
            and sender.outcome in TAKING_BACK
            and not sender.control.retry
        )


def bars(run: RunFacts) -> bool:
    """Whether its revision may not be tried again: it was taken back, and nobody has said `control.retry` since."""
    return run.outcome in BARRING and not run.control.retry


def recall(fleet: FleetFacts) -> Memory:
    """Read the runs. Revocation names index digests (EdgeModel spec.revoked), as `ModelFacts.revoked` holds them."""
    runs = sorted(fleet.runs, key=lambda run: run.number, reverse=True)
    digests = fleet.model.revoked if fleet.model else frozenset()
    revoked = frozenset(run.revision.hash for run in runs if run.revision.digest in digests)
    barred = {run.revision.hash: run for run in reversed(runs) if bars(run)}
    promoted = [run.revision for run in runs if run.outcome == "Promoted"]
    under_way = [run for run in runs if run.outcome is None]
    return Memory(
        active=under_way[0] if under_way else None,
        surplus=tuple(under_way[1:]),
        stable=next((one for one in promoted if one.hash not in revoked and one.hash not in barred), None),
        promoted_once=bool(promoted),
        barred=barred,
        runs={run.name: run for run in runs},
        revoked=revoked,
    )


def next_run(fleet: FleetFacts) -> tuple[int, str]:
    """Number and name of the fleet's next run. A number that an assignment still names is not used again, even if its run is gone:
    that label would speak for another run."""
    numbers = [run.number for run in fleet.runs]
    numbers += [_number(site.assignment.run, fleet.key.name) for site in fleet.sites if site.assignment]
    number = max(numbers, default=0) + 1
    return number, f"{fleet.key.name}-{number}"


def plan_forgetting(fleet: FleetFacts) -> tuple[str, ...]:
    """The runs that nothing needs: kept are the active, the barring, those that an assignment names, and of the Promoted and of
    the others the last three each."""
    named = {site.assignment.run for site in fleet.sites if site.assignment}
    ended = sorted((run for run in fleet.runs if run.outcome and not bars(run)), key=lambda run: -run.number)
    promoted = [run.name for run in ended if run.outcome == "Promoted"]
    others = [run.name for run in ended if run.outcome != "Promoted"]
    return tuple(name for name in promoted[KEPT_RUNS:] + others[KEPT_RUNS:] if name not in named)


def exposed_to(site: SiteFacts, revision: str) -> bool:
    """Whether the hub told this site to run this revision (hash), whatever became of it."""
    return site.assignment is not None and site.assignment.action == "Run" and site.assignment.revision == revision


def taken_back_by(site: SiteFacts, run: RunFacts) -> bool:
    """Whether this run sent the site away from its revision."""
    return site.assignment is not None and site.assignment.run == run.name and not exposed_to(site, run.revision.hash)


def count_names(names: Iterable[str]) -> str:
    """At most ten names, sorted, and how many there are beyond: what a message may list."""
    ordered = sorted(names)
    return ", ".join(ordered[:10]) + (f" and {len(ordered) - 10} more" if len(ordered) > 10 else "")


def _number(run: str | None, fleet: str) -> int:
    suffix = (run or "").removeprefix(f"{fleet}-")
    return int(suffix) if suffix.isascii() and suffix.isdecimal() and len(suffix) < 10 else 0
