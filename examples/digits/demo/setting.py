"""What a first user does before a model can roll: keys, trust bundle, CRDs, hub, and the Secrets that hold keys."""

from examples.digits.demo.person import Person
from examples.digits.demo.places import HUB_NAMESPACE, MANIFESTS, MODEL, OPERATOR
from examples.digits.demo.stage import Stage, apply_site_clusters
from examples.digits.demo.times import read_manifest

BACKUP = "hub-key.backup.yaml"
TEAM_FILES = ("namespaces.yaml", "sites.yaml", "model.yaml", "policy.yaml", "fleet.yaml", "retail.yaml")
"""The team's Git, in the order in which it is applied."""


def set_up(stage: Stage, person: Person) -> None:
    """From an empty cluster to a running hub and nine agents; the hub key's Secret is backed up."""
    person.types(f"edgefleet trust init trust --model {MODEL}")
    person.types("edgefleet trust show trust/bundle.json")
    install_hub(person)
    person.types(f"kubectl -n {HUB_NAMESPACE} create secret generic hub-key --from-file=hub.key=trust/hub.key")
    backup = person.types(f"kubectl -n {HUB_NAMESPACE} get secret hub-key -o yaml").output
    person.saves(BACKUP, backup, private=True)
    person.notes(f"{BACKUP}, the folder trust and Git are all that a lost hub needs")
    stage.start_hub()
    apply_site_clusters(stage, person)
    stage.start_agents(person.desk / "trust" / "root.json")


def install_hub(person: Person) -> None:
    """CRDs, the hub's rights, its namespace and the trust bundle; also what a person does again after losing all of it."""
    person.types(f"kubectl apply -f {OPERATOR.parent / 'crds'}")
    person.types(f"kubectl wait --for=condition=Established --timeout=30s -f {OPERATOR.parent / 'crds'}")
    person.types(f"kubectl apply -f {OPERATOR.parent / 'charts/edgefleet/templates'}")
    person.types(f"kubectl create namespace {HUB_NAMESPACE}")
    person.types(f"kubectl -n {HUB_NAMESPACE} create configmap trust-bundle --from-file=bundle.json=trust/bundle.json")


def clone_git(person: Person, registry: str, golden: str) -> None:
    """The team's Git at the desk: the example's manifests with this run's registry, the golden set's digest and demo times."""
    replacements = {"registry.example": registry, f"sha256:{'0' * 64}": golden}
    for file in TEAM_FILES:
        person.saves(f"git/{file}", read_manifest(MANIFESTS, file, replacements))
