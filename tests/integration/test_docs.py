"""The pages' commands, run as they stand there, from two empty clusters to a site that serves a release, and what comes after.

No command is left out but those that `LEFT_OUT` names. There are no nodes: tests/docs/pods.py plays the kubelet. tests/unit/docs holds what
can be known of a page without servers.
"""

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgefleet.kube.resources import ROLLOUT_POLICIES
from edgefleet.oci import media
from edgefleet.oci.reference import Repository
from tests.docs.desk import Desk
from tests.docs.pages import PAGES, ROOT, read_blocks, read_commands
from tests.docs.pods import Kubelet
from tests.integration.fakesites import FakeSites
from tests.integration.site_rig import start_tiny_server, tensor
from tests.integration.test_adopt import push_alone
from tests.integration.world import POLICY, World, four_sites
from tests.lab import LabError
from tests.lab.cluster import Cluster, Lab
from tests.lab.cosign import Cosign
from tests.lab.processes import POLL, free_ports
from tests.lab.registry import Registry
from tests.lab.server import ModelServer, ServerEnvironment
from tests.lab.sigstore.private import PrivateSigstore
from tests.lab.tpm import Maker

pytestmark = pytest.mark.timeout(900)

OURS = ("edgefleet", "kubectl", "helm")
LEFT_OUT = {
    "docs/runbooks/hub-deaf.md": ["kubectl -n edgefleet-system logs"],  # pods have logs, and there are no nodes
    "docs/judge/README.md": ["make", ".venv"],  # the bench
    "README.md": ["make"],
}
SITE = {"root.json": "trust/root.json", "publisher.pub": "trust/publisher.pub"}
"""Where pages that begin in the middle have what install.md made."""
RUNBOOKS = {
    **SITE,
    "FLEET-N": "plants-1",
    "FLEET": "plants",
    "NAMESPACE": "vision",
    "SITE": "plant-7",
    "MODEL": "digits",
    "FILE": "plant-7.yaml",
    "REPOSITORY:TAG": "registry.example/vision/digits:1",
    "bundle.json": "trust/bundle.json",
}


@dataclass
class Place:
    """The reader's two clusters, registry and model server, and the desk from which everything is done."""

    hub: Cluster
    site: Cluster
    desk: Desk
    hub_pods: Kubelet
    site_pods: Kubelet
    registry: Registry
    server: ModelServer

    def get(self, *words: str) -> Any:
        """An object of the hub's cluster."""
        return json.loads(self.hub.kubectl("get", *words, "-o", "json"))

    def until(self, what: str, fact: Callable[[], Any], limit: float = 120) -> Any:
        """The first true answer of `fact`, in which no object may be missing for ever. Raises AssertionError with tables and logs."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            try:
                if found := fact():
                    return found
            except LabError:
                pass  # not there yet
            time.sleep(4 * POLL)
        tables = self.hub.kubectl("get", "edgemodels,edgefleets,modelrollouts,edgesites,siteassignments", "-A", "-o", "wide")
        raise AssertionError(f"{what} did not happen within {limit:.0f} s:\n{tables}\n{self.hub_pods.log()}\n{self.site_pods.log()}")

    def until_connected(self, site: str) -> None:
        """Waits until the hub hears the site."""
        self.until(f"{site} is heard", lambda: says(self.get("edgesite", site), "Connected") == "True")


def says(body: dict[str, Any], condition: str) -> str:
    """The status of a condition, empty where there is none."""
    return next((one["status"] for one in body.get("status", {}).get("conditions", []) if one["type"] == condition), "")


@pytest.fixture(scope="module")
def place(server_env: ServerEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Nothing of edgefleet is in either cluster."""
    folder = tmp_path_factory.mktemp("docs")
    lab = Lab.start(folder / "lab", ["plant"])
    server = start_tiny_server(server_env, _make(folder / "server"))
    hub_pods = Kubelet(lab.hub, folder / "hub-pods")
    site_pods = Kubelet(lab.sites["plant"], folder / "site-pods", server.repository)
    with Registry() as registry:
        stand_ins = {"registry.example": registry.host, "http://model-server:8080": server.url}
        desk = Desk(folder / "desk", lab.hub.kubeconfig, stand_ins, lambda: (hub_pods.sync(), site_pods.sync()))
        (desk.folder / "plant-7.yaml").write_bytes(lab.sites["plant"].kubeconfig.read_bytes())
        try:
            yield Place(lab.hub, lab.sites["plant"], desk, hub_pods, site_pods, registry, server)
        finally:
            desk.stop()
            hub_pods.stop()
            site_pods.stop()
            server.stop()
            lab.stop()


@pytest.fixture(scope="module")
def commands_of_install(place: Place) -> int:
    """docs/install.md is done; how many commands it took."""
    return place.desk.run_page("docs/install.md", then={"kubectl get edgesites": lambda _: place.until_connected("plant-7")})


@pytest.fixture(scope="module")
def released(place: Place, commands_of_install: int) -> Place:
    """README's release runs at plant-7."""
    desk = place.desk
    (desk.folder / "model.onnx").write_text(json.dumps({"bias": 0}))
    settings = {"name": "digits", "implementation": "tiny_model.Tiny", "parameters": {"uri": "./model.onnx"}}
    (desk.folder / "model-settings.json").write_text(json.dumps(settings))
    lines = [json.dumps({"inputs": [tensor(x)], "expect": {"output": "y", "label": x}}) for x in range(20)]
    (desk.folder / "golden.jsonl").write_text("\n".join(lines))
    desk.run_page("README.md", skip=LEFT_OUT["README.md"])
    pushed = desk.run(
        "edgefleet golden push registry.example/vision/digits-golden:1 golden.jsonl --key trust/publisher.key --name digits -o json"
    )
    policy = {"apiVersion": "edgefleet.io/v1alpha1", "kind": "RolloutPolicy", "metadata": {"name": "careful", "namespace": "vision"}}
    # The agent reports once a minute, as its chart says, so a soak lasts longer than that of fake sites; one client is all there is.
    desk.apply(json.dumps({**policy, "spec": {**POLICY, "soak": {"min": "1s", "max": "10m", "minRequests": 1}}}))
    (manifests,) = (block.text for block in read_blocks(ROOT / "README.md") if block.language == "yaml")
    desk.apply(manifests, {"sha256:" + "0" * 64: json.loads(pushed)["digest"]})

    def serves() -> bool:
        found = place.get("siteassignments", "-n", "edgesite-plant-7")["items"]
        return [one.get("status", {}).get("state") for one in found] == ["Active"]

    place.until("plant-7 serves the release", serves)
    return place


def test_the_install_page_leads_from_empty_clusters_to_a_site_that_is_heard(place: Place, commands_of_install: int) -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    assert f"in {commands_of_install} commands" in page
    assert says(place.get("edgesite", "plant-7"), "Connected") == "True"
    assert place.hub_pods.sync() == ["edgefleet-hub"]
    assert place.site_pods.sync() == ["edgefleet-agent", "edgefleet-gateway"]


def test_the_readme_leads_on_to_a_release_that_answers(released: Place) -> None:
    question = json.dumps({"inputs": [tensor(5)]}).encode()
    url = f"http://127.0.0.1:{released.site_pods.port}/v2/models/digits/infer"
    with urllib.request.urlopen(urllib.request.Request(url, question, {"Content-Type": "application/json"}), timeout=30) as answer:
        assert json.load(answer)["outputs"][0]["data"] == [5]
    released.until(
        "the run ended", lambda: released.get("modelrollout", "plants-1", "-n", "vision")["status"].get("outcome") == "Promoted", 240
    )


@pytest.mark.parametrize("page", sorted(path.relative_to(ROOT).as_posix() for path in PAGES if path.parent.name == "runbooks"))
def test_a_runbook(page: str, released: Place) -> None:
    stand_ins = {**RUNBOOKS, "DIR": str(released.site_pods.state)}
    asked = released.desk.run_page(page, stand_ins, skip=LEFT_OUT.get(page, ()))
    assert bool(asked) == bool(read_commands(ROOT / page))


def test_the_record_of_a_run(released: Place) -> None:
    assert released.desk.run_page("docs/record.md", {"plants-7": "plants-1"}) == 3


def test_a_policy_is_tried_before_it_is_used(released: Place) -> None:
    released.desk.run("edgefleet policy show > policy.yaml")
    assert released.desk.run_page("docs/judge/README.md", skip=LEFT_OUT["docs/judge/README.md"]) == 1


def test_backup_and_restore(released: Place) -> None:
    before = released.get("modelrollouts,edgefleets,edgemodels", "-A")["items"]
    assert released.desk.run_page("docs/backup.md", users={"edgefleet restore": released.hub.client_kubeconfig("dora")}) == 6
    after = released.get("modelrollouts,edgefleets,edgemodels", "-A")["items"]
    assert [one["metadata"]["uid"] for one in after] == [one["metadata"]["uid"] for one in before]
    released.until_connected("plant-7")


def test_a_site_joins_by_hand_is_let_in_again_and_leaves(released: Place) -> None:
    desk, state = released.desk, released.desk.folder / "plant-8"
    desk.apply("{apiVersion: edgefleet.io/v1alpha1, kind: EdgeSite, metadata: {name: plant-8}, spec: {region: de}}")
    (desk.folder / "maker.pem").write_text(Maker().pem)
    (port,) = free_ports(1)
    stand_ins = {
        "plant-7": "plant-8",
        "https://hub.example:6443": released.hub.url,
        "k3s.yaml": "plant-7.yaml",
        "/var/lib/edgefleet": str(state),
        "http://127.0.0.1:8080": released.server.url,
        "/srv/models": str(released.server.repository),
        "--gateway-port 8000": f"--gateway-port {port}",
        **SITE,
    }

    def run_at_site(said: str) -> None:
        """What the command printed is tried at the site; its cluster is plant-7's too, whose Secret is to stay."""
        if said.startswith("kubectl apply"):
            desk.run(said.replace("kubectl apply", "kubectl apply --dry-run=server", 1), user=released.site.kubeconfig)

    def joined(_: str) -> None:
        desk.run("edgefleet site identity --state /var/lib/edgefleet", stand_ins)
        released.until_connected("plant-8")

    count = desk.run_page("docs/join.md", stand_ins, then={"edgefleet site join": run_at_site, "edgefleet agent": joined})
    desk.run("edgefleet gateway stop --state /var/lib/edgefleet", stand_ins)
    assert count == 6
    (attested,) = (yaml.safe_load(block.text) for block in read_blocks(ROOT / "docs" / "join.md") if block.language == "yaml")
    desk.run(f"kubectl patch edgesite plant-8 --type=merge --dry-run=server -p '{json.dumps({'spec': attested['spec']})}'")
    assert released.get("namespace", "edgesite-plant-8")["metadata"]["annotations"]["edgefleet.io/left"]


def test_releases_go_over_a_stick_and_strangers_are_adopted(released: Place, cosign: Path) -> None:
    desk, registry = released.desk, released.registry
    desk.run(
        "edgefleet model push registry.example/digits:1.0 --key trust/publisher.key --name digits --version 1.0 --seq 2 "
        "--variant name=fp32,arch=amd64,file=model.onnx,file=model-settings.json"
    )
    desk.run("edgefleet golden push registry.example/digits-golden:1 golden.jsonl --key trust/publisher.key --name digits")
    repository = Repository.parse(f"{registry.host}/digits")
    raw = push_alone(repository, artifact=media.MODEL, layer=media.WEIGHT_LAYER, path_annotation=media.FILEPATH, tag="raw")
    theirs = Cosign.make(cosign, _make(desk.folder / "theirs"))
    (desk.folder / "theirs.pub").write_bytes(theirs.make_key("theirs").read_bytes())
    theirs.sign(f"{repository}@{raw}", "theirs")
    stand_ins = {"/media/stick": str(desk.folder / "stick"), "/var/lib/edgefleet": str(released.site_pods.state), **SITE}
    assert desk.run_page("docs/registries.md", stand_ins) == 3


def test_teams_are_given_their_roles(released: Place) -> None:
    desk, hub = released.desk, released.hub
    desk.run("kubectl create namespace welding")
    spec = "{source: {repository: registry.example/weld, tag: '1'}, verify: {keys: {secretRef: publishers}}, serving: [{repository: {}}]}"
    desk.apply(f"{{apiVersion: edgefleet.io/v1alpha1, kind: EdgeModel, metadata: {{name: weld, namespace: welding}}, spec: {spec}}}")
    assert desk.run_page("docs/teams.md", users={"kubectl annotate": hub.client_kubeconfig("ada")}) == 3
    with pytest.raises(LabError, match="forbidden"):
        hub.kubectl("patch", "edgefleet", "plants", "-n", "vision", "--type=merge", "-p", "{}", "--as=ada")


def test_a_site_is_given_pods(released: Place) -> None:
    assert released.desk.run_page("docs/runtimes.md") == 1
    released.until_connected("plant-7")
    assert any(word.startswith("--pods-namespace") for word in released.site_pods.arguments("edgefleet-agent"))


def test_a_model_and_its_sites_believe_an_identity(released: Place) -> None:
    """What keyless releases then do is test_keyless.py's matter."""
    desk = released.desk
    (desk.folder / "trusted_root.json").write_text(json.dumps(PrivateSigstore().trusted_root()))
    desk.run("edgefleet trust make-key second.key")
    assert desk.run_page("docs/security.md", {"/var/lib/edgefleet": str(released.site_pods.state)}) == 5
    blocks = (yaml.safe_load(block.text) for block in read_blocks(ROOT / "docs" / "security.md") if block.language == "yaml")
    (verify,) = (block for block in blocks if "keyless" in block.get("verify", {}))
    desk.run(f"kubectl patch edgemodel digits -n vision --type=merge --dry-run=server -p '{json.dumps({'spec': verify})}'")
    assert "https://github[.]com/acme/weld/.*" in desk.run("edgefleet trust show trust/bundle.json")


async def test_a_run_is_steered_beside_git(world: World, sites: FakeSites) -> None:
    await four_sites(world, sites)
    waves = [{"name": "canary", "sites": 1}, {"name": "all", "percent": 100, "approval": {"required": 1}}]
    for version in ("1", "2"):
        world.push(version)
    await world.name_release("1")
    await world.add_fleet()
    await world.until_ended(1, "Promoted", 120)
    await world.apply(ROLLOUT_POLICIES, "careful", {**POLICY, "waves": waves, "soak": {"min": "10m", "max": "1h"}})
    await world.name_release("2")

    async def reported() -> bool:
        return bool((await world.run(2))["status"].get("waitingFor") == "Soaking")

    await world.until("the canary soaks", reported, 60)
    for namespace in ("flux-system", "argocd"):
        world.lab.hub.kubectl("create", "namespace", namespace)
    world.lab.hub.kubectl("create", "configmap", "argocd-cm", "-n", "argocd")
    desk = Desk(world.folder / "desk", world.lab.hub.kubeconfig, {"team-a": world.team}, lambda: None)
    ended = asyncio.get_running_loop()

    def until_aborted(_: str) -> None:
        asyncio.run_coroutine_threadsafe(world.until_ended(2, "AbortedByUser", 60), ended).result(70)

    count = await asyncio.to_thread(desk.run_page, "docs/gitops.md", then={"edgefleet rollout abort": until_aborted})
    assert count == len(read_commands(ROOT / "docs" / "gitops.md"))
    assert await world.until("what was aborted is tried again", lambda: world.run(3), 60)
    world.lab.hub.kubectl("delete", "clusterrolebinding", "edgefleet-sites")
    world.lab.hub.kubectl("delete", "namespace", "flux-system", "argocd", "--wait=false")


def test_every_page_with_commands_is_played_here() -> None:
    """Pages are named in this file, so a new one is noticed."""
    source = Path(__file__).read_text()
    for page in PAGES:
        if page.parent.name != "runbooks" and any(command.program in OURS for command in read_commands(page)):
            assert f'"{page.relative_to(ROOT).as_posix()}"' in source


def _make(folder: Path) -> Path:
    folder.mkdir()
    return folder
