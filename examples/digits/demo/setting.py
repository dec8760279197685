"""What a first user does before a model can roll: keys, trust bundle, CRDs, hub, and the Secrets that hold keys."""

from collections.abc import Sequence

from examples.digits.demo.observer import Snapshot
from examples.digits.demo.person import Person
from examples.digits.demo.places import HUB_NAMESPACE, MANIFESTS, MODEL, PLACES, REPOSITORY, Place
from examples.digits.demo.play import Play
from examples.digits.demo.times import read_manifest

REPORT_LIMIT = 90.0  # seconds: nine agents start at once
BACKUP = "hub-key.backup.yaml"
TEAM_FILES = ("namespaces.yaml", "sites.yaml", "model.yaml", "policy.yaml", "fleet.yaml", "retail.yaml")
"""The team's Git, in the order in which it is applied."""


def set_up(play: Play) -> None:
    """0. Keys, trust bundle, CRDs, the hub, the sites with their agents; the hub key's Secret is backed up."""
    stage, person = play.stage, play.person
    (person.desk / "edgefleet").symlink_to(REPOSITORY)  # the clone that the person has
    person.types(f"edgefleet trust init trust --model {MODEL}")
    person.types("edgefleet trust show trust/bundle.json")
    install_hub(person)
    person.types(f"kubectl -n {HUB_NAMESPACE} create secret generic hub-key --from-file=hub.key=trust/hub.key")
    backup = person.types(f"kubectl -n {HUB_NAMESPACE} get secret hub-key -o yaml").output
    person.saves(BACKUP, backup, private=True)
    person.notes(f"{BACKUP}, the folder trust and Git are all that a lost hub needs")
    stage.start_hub()
    clone_git(person, play.registry, stage.places)
    for file in ("namespaces.yaml", "sites.yaml"):
        person.types(f"kubectl apply -f git/{file}")
    stage.start_agents(person)
    for team in ("vision", "retail"):
        person.types(f"kubectl -n {team} create secret generic {MODEL}-publishers --from-file=trust/publisher.pub")
    sites = len(stage.places)
    what = f"{sites} sites report, their hardware marked as declared"
    play.checks.awaits(what, lambda seen: all_report(seen, sites), REPORT_LIMIT, describe_sites)


def all_report(seen: Snapshot, sites: int) -> bool:
    """Whether the hub heard so many sites, all that it knows, and each says that a person declared its hardware."""
    told = [site.status.hardware for site in seen.sites.values()]
    return len(told) == sites and all(hardware is not None and hardware.declared for hardware in told)


def describe_sites(seen: Snapshot) -> str:
    """What the hub knows of each site's hardware."""
    return "; ".join(f"{name}: {site.status.hardware}" for name, site in seen.sites.items()) or "no EdgeSite"


def install_hub(person: Person) -> None:
    """CRDs, the hub with its rights and its namespace, and the trust bundle; also what a person does again after losing all of it."""
    person.types("kubectl apply --server-side -f edgefleet/charts/install.yaml")
    person.types("kubectl wait --for=condition=Established --timeout=30s -f edgefleet/crds/")
    person.types(f"kubectl -n {HUB_NAMESPACE} create configmap trust-bundle --from-file=bundle.json=trust/bundle.json")


def clone_git(person: Person, registry: str, places: Sequence[Place] = PLACES) -> None:
    """The team's Git at the desk: the example's manifests with this run's registry, sites and demo times."""
    for file in TEAM_FILES:
        text = read_manifest(MANIFESTS, file, {"registry.example": registry})
        if file == "sites.yaml":
            text = "---\n".join(part for part in text.split("---\n") if any(f"name: {place.name}\n" in part for place in places))
        person.saves(f"git/{file}", text)
