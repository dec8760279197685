"""What every act needs at hand, and the steps that several acts share."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from edgefleet.api.assignment import SiteAssignment
from edgefleet.api.rollout import ModelRollout
from examples.digits.demo.checks import Checks, describe_fleet
from examples.digits.demo.counts import Counts
from examples.digits.demo.observer import Snapshot
from examples.digits.demo.person import Person
from examples.digits.demo.places import FLEET, MODEL, REFUSED
from examples.digits.demo.stage import Stage

KEY = "trust/publisher.key"
ROLL_LIMIT = 240.0  # seconds for a whole rollout


@dataclass
class Play:
    """`tag` is what Git names now; `registry` is the host of the registry. `cut_off` is the site whose link is cut, if one is; `failing`
    are the served names of releases whose own errors (500) belong to the story."""

    stage: Stage
    person: Person
    checks: Checks
    registry: str
    tag: str = "v1"
    cut_off: str = ""
    failing: set[str] = field(default_factory=set)

    @property
    def sites(self) -> frozenset[str]:
        """The eligible sites that have a link to the hub."""
        return self.stage.eligible - {self.cut_off}

    @property
    def counts(self) -> Counts:
        """What the customers counted so far."""
        return self.stage.traffic.read()

    @property
    def seen(self) -> Snapshot:
        """The hub's objects as last seen."""
        return self.stage.observer.latest if self.stage.observer else Snapshot()

    def push(self, tag: str, seq: int, files: str, key: str | None = KEY) -> None:
        """The publisher builds and signs a release; `key` None leaves it unsigned."""
        folder = self.person.desk / "releases" / files
        words = [f"edgefleet model push {self.registry}/vision/{MODEL}:{tag} --name {MODEL} --version {tag} --seq {seq}"]
        words += [f"--variant {variant_words(path)}" for path in sorted(folder.iterdir())]
        words += ["--no-sign" if key is None else f"--key {key}"]
        self.person.types(" ".join(words))

    def names(self, tag: str) -> None:
        """Git names another release."""
        if tag != self.tag:
            self.person.edits("git/model.yaml", f"tag: {self.tag}", f"tag: {tag}")
            self.tag = tag
        self.person.types("kubectl apply -f git/model.yaml")

    def awaits_version(self, version: str, limit: float = ROLL_LIMIT) -> Snapshot:
        """Wait until each site with a link serves `version`, and no other does."""
        what = f"all {len(self.sites)} sites{' that have a link' if self.cut_off else ''} serve {version}"
        return self.checks.awaits(what, lambda seen: all_serve(seen, version, self.sites), limit, self.found)

    def checks_traffic(self) -> None:
        """Nothing was lost so far, whoever asks, and no release failed that was not meant to."""
        counts = self.counts
        failed = {name: count for name, count in counts.failed.items() if name not in self.failing}
        self.checks.holds(
            f"no request lost: {counts.answered} answered so far",
            counts.lost == 0 and counts.answered > 0 and not failed,
            f"{counts.lost} lost of {counts.answered + counts.lost}; errors (500) of models that should not have any: {failed or 'none'};"
            f" the last losses:\n{counts.describe_losses()}",
        )

    def waits_for_customers(self, fact: Callable[[Counts], bool], limit: float = 20) -> None:
        """Wait until the customers' counts show it; whether they do is checked by whoever asks."""
        end = time.monotonic() + limit
        while not fact(self.counts) and time.monotonic() < end:
            time.sleep(0.2)

    def checks_customers(self) -> None:
        """What the customers can say when it is over."""
        counts = self.counts
        refused = counts.sites[REFUSED]
        self.checks.holds(
            f"{REFUSED} never served the model", refused.answered == 0 and refused.before > 0, f"{refused.answered} answers came from there"
        )
        share = counts.right / max(1, counts.answered)
        self.checks.holds(f"{share:.1%} of the answers name the right digit", share >= 0.9, f"{counts.right} of {counts.answered}")

    def found(self, seen: Snapshot) -> str:
        """What a failed check shows of the fleet."""
        return describe_fleet(seen, FLEET)


def variant_words(folder: Path) -> str:
    """One variant of a release as `edgefleet model push --variant` takes it: int8 is for CPUs with VNNI, and goes first there."""
    name = folder.name
    needs = "features=avx512_vnni,priority=10," if name == "int8" else ""
    path = folder.relative_to(folder.parents[2])
    return f"name={name},arch=amd64,precision={name},{needs}file={path}/model.onnx,file={path}/model-settings.json"


def last_run(seen: Snapshot) -> ModelRollout | None:
    """The fleet's newest run."""
    runs = seen.runs_of(FLEET)
    return runs[-1] if runs else None


def ended(seen: Snapshot, version: str, outcome: str) -> bool:
    """Whether the newest run is one of `version` that ended so."""
    run = last_run(seen)
    return run is not None and run.spec.revision.version == version and run.status.outcome == outcome


def serving(seen: Snapshot, version: str) -> dict[str, SiteAssignment]:
    """The sites that said, of the assignment they have now, that they serve `version`."""
    return {
        site: assignment
        for site, assignment in seen.assigned(FLEET).items()
        if assignment.status.state == "Active"
        and assignment.status.sequence == assignment.spec.sequence
        and assignment.status.active is not None
        and assignment.status.active.version == version
    }


def all_serve(seen: Snapshot, version: str, sites: Collection[str]) -> bool:
    """Whether exactly these sites serve `version`."""
    return set(serving(seen, version)) == set(sites)


def served_name(run: ModelRollout) -> str:
    """The name under which the run's revision answers customers."""
    return f"{MODEL}--{run.spec.revision.short}"
