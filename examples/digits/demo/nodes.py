"""The demo on real nodes: the hub and every site's agent and model server are pods, and links are cut by `ip link`.

What differs from stage.py is only how programs are started and where customers stand: at their sites, so that a cut link is none of theirs.
The demo itself moves into the lab's network; nothing in it has a way out.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from edgefleet.api.meta import site_namespace
from examples.digits.demo.counts import Counts, Traffic
from examples.digits.demo.links import is_heard
from examples.digits.demo.node_pods import GATEWAY_PORT, SERVER_NAME, plan_hub_line, plan_server, plan_values
from examples.digits.demo.observer import Observer
from examples.digits.demo.person import Person
from examples.digits.demo.places import DIGITS, FEWER, HUB_NAMESPACE, OPERATOR, REPOSITORY, Place
from examples.digits.demo.play import Play
from examples.digits.demo.stage import RATE, Stage, _environment
from examples.digits.demo.story import Story
from tests.lab import tcp_line
from tests.lab.binaries import fetch_kubectl
from tests.lab.control_plane import HUB
from tests.lab.helm import fetch_helm
from tests.lab.nodes import NETWORK, NodeLab
from tests.lab.pod_images import edgefleet_image, server_image
from tests.lab.processes import Process, start_process, stop_processes
from tests.lab.registry import Registry
from tests.lab.server import fetch_server_environment

POD_LIMIT = 600  # seconds until a Deployment is Ready
SITES = ("east", "west")
PODS = ("edgefleet-agent", "edgefleet-gateway", SERVER_NAME)
CUT = "west"
"""The cluster whose link is cut."""


class NodeStage(Stage):
    """A stage whose `lab` has nodes."""

    lab: NodeLab
    places = FEWER

    def __init__(self, root: Path, story: Story) -> None:
        super().__init__(root, story)
        self._is_up = False
        self._clients: list[Process] = []
        self._others: list[Process] = []
        self.traffic: Traffic = SiteTraffic([self._counts(name) for name in SITES])

    def build(self) -> Person:
        """As the base does, with nodes; after it the calling thread, and all that it starts, stands in the lab's network."""
        self._clear()
        environment = fetch_server_environment()
        images = {"hub": [edgefleet_image()], "site": [edgefleet_image(), server_image(DIGITS / "runtime")]}
        self.story.tell("stage", "the lab: three clusters, each with etcd, API server, controllers, scheduler, kubelet, containerd")
        self.lab = NodeLab.start(self.folders.lab, [HUB, *SITES])
        self._is_up = True
        with ThreadPoolExecutor(3) as pool:
            work = [pool.submit(cluster.import_image, image) for cluster in self.lab.sites.values() for image in images["site"]]
            work += [pool.submit(self.lab.hub.import_image, image) for image in images["hub"]]
            for done in work:
                done.result()
        for place in self.places:
            self._start_server(place)
        self.lab.outer.enter()
        self.story.tell("stage", f"three nodes are Ready; `nsenter --target {self.lab.outer.pid} --net` leads into their network")
        self.registry = Registry()
        host, port = self.registry.host.split(":")
        line = [sys.executable, tcp_line.__file__, f"{NETWORK}.1", port, host, port]
        self._others.append(start_process(self.folders.run, "registry-line", line))
        scores = environment.run("-m", "examples.digits.train", self.folders.desk / "releases", cwd=REPOSITORY).strip().replace("\n", "; ")
        self.story.tell("stage", f"trained on real handwriting, share of the golden set answered rightly: {scores}")
        self.observer = Observer(self.lab.hub.kubeconfig, self.story)
        self.observer.start()
        return Person(self.story, self.folders.desk, self.lab.hub.kubeconfig, fetch_kubectl(), OPERATOR, fetch_helm())

    def start_hub(self) -> None:
        """The chart's Deployment runs already; its pods get a line to the registry."""
        assert self.registry is not None
        patch = json.dumps(plan_hub_line(self.registry.host))
        hub = self.lab.hub
        hub.kubectl("-n", HUB_NAMESPACE, "patch", "deployment", "edgefleet-hub", "--type=strategic", "--patch", patch)
        hub.kubectl("-n", HUB_NAMESPACE, "rollout", "status", "deployment/edgefleet-hub", f"--timeout={POD_LIMIT}s", limit=POD_LIMIT + 20)
        self.story.tell("stage", "two hub pods are Ready, as the chart asks for")

    def start_agents(self, person: Person) -> None:
        """Each site joins and gets its chart, by two commands; returns when the pods of all are Ready."""
        assert self.registry is not None
        for name, cluster in self.lab.sites.items():
            (person.desk / f"{name}.yaml").symlink_to(cluster.kubeconfig)
        first = {name: next(place for place in self.places if place.cluster == name) for name in SITES}
        for place in self.places:
            namespace = site_namespace(place.name)
            self._await_ready(place, SERVER_NAME)
            values = plan_values(place, self._address(place, f"app={SERVER_NAME}"), self.registry.host, kinds=place in first.values())
            person.saves(f"sites/{place.name}.yaml", yaml.safe_dump(values))
            config = f"{place.cluster}.yaml"
            join = f"edgefleet site join {place.name} --trusted-root trust/root.json"
            person.types(f"{join} --site-kubeconfig {config} --site-namespace {namespace}")
            install = "helm install edgefleet-agent edgefleet/charts/edgefleet-agent"
            person.types(f"{install} --kubeconfig {config} -n {namespace} -f sites/{place.name}.yaml")
        for place in self.places:
            for name in PODS:
                self._await_ready(place, name)
        self.story.tell("stage", f"agent, gateway and model server of {len(self.places)} sites are Ready on two nodes")

    def start_traffic(self) -> None:
        """The customers of each cluster's sites: a process that stands in that cluster's network."""
        for name, cluster in self.lab.sites.items():
            addresses = [f"{place.name}={self.gateway(place.name)}" for place in self.places if place.cluster == name]
            examples = self.folders.desk / "releases" / "live.jsonl"
            command = [*cluster.space.entering(network_only=True), sys.executable, "-m", "examples.digits.traffic"]
            command += ["--examples", str(examples), "--rate", str(RATE), "--rates", str(self._rates)]
            command += ["--out", str(self._counts(name)), *addresses]
            self._clients.append(start_process(self.folders.run, f"traffic-{name}", command, env=_environment(), cwd=REPOSITORY))

    def stop_traffic(self) -> None:
        """End the customers first, so that the ends of the servers are not counted as losses."""
        stop_processes(self._clients)

    def gateway(self, site: str) -> str:
        """The address of the site's pod, at the gateway's port."""
        place = next(place for place in self.places if place.name == site)
        return f"http://{self._address(place, 'app.kubernetes.io/component=gateway')}:{GATEWAY_PORT}"

    def close(self) -> None:
        """End everything; what a cluster holds goes with it."""
        super().close()
        stop_processes(self._others)
        if self._is_up:
            self.lab.stop()

    def restarts(self, cluster: str) -> Mapping[str, int]:
        """How often each container of a cluster's site pods was started again."""
        pods = json.loads(self.lab.clusters[cluster].kubectl("get", "pods", "--all-namespaces", "-o", "json"))
        return {
            f"{pod['metadata']['namespace']}/{status['name']}": status["restartCount"]
            for pod in pods["items"]
            for status in pod["status"]["containerStatuses"]
        }

    def _counts(self, cluster: str) -> Path:
        return self.folders.out / f"traffic-{cluster}.json"

    def _start_server(self, place: Place) -> None:
        cluster = self.lab.clusters[place.cluster]
        cluster.make_volume(f"site-{place.name}")
        cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(plan_server(place.name)))

    def _await_ready(self, place: Place, deployment: str) -> None:
        words = ("rollout", "status", f"deployment/{deployment}", f"--timeout={POD_LIMIT}s")
        self.lab.clusters[place.cluster].kubectl("-n", site_namespace(place.name), *words, limit=POD_LIMIT + 20)

    def _address(self, place: Place, label: str) -> str:
        """That of the one pod of a site with this label."""
        words = ("get", "pods", "-l", label, "-o", "jsonpath={.items[0].status.podIP}")
        return self.lab.clusters[place.cluster].kubectl("-n", site_namespace(place.name), *words)


class SiteTraffic(Traffic):
    """Counts of customers in several networks, as one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths[0])
        self._parts = [Traffic(path) for path in paths]

    def read(self) -> Counts:
        """The newest counts of all sites; their age is that of the oldest."""
        parts = [part.read() for part in self._parts]
        counts = Counts(min(part.at for part in parts), {name: site for part in parts for name, site in part.sites.items()})
        if not self._past or self._past[-1].at != counts.at:
            self._past.append(counts)
        return counts


def cut_link(play: Play) -> None:
    """11. The link of a whole site cluster is cut (`ip link set down`): its customers notice nothing, and the hub says whom it misses."""
    stage, checks = play.stage, play.checks
    assert isinstance(stage, NodeStage)
    gone = [place.name for place in stage.places if place.cluster == CUT]
    before, restarts = play.counts, stage.restarts(CUT)
    stage.lab.cut(CUT)
    stage.story.tell("stage", f"the link of cluster {CUT} is down")
    checks.awaits(
        f"the hub says that it hears no more of {', '.join(gone)}", lambda seen: not any(is_heard(seen, s) for s in gone), 60, play.found
    )
    play.waits_for_customers(lambda counts: all(counts.sites[s].answered > before.sites[s].answered + 20 for s in gone))
    now = play.counts
    answered = {site: now.sites[site].answered - before.sites[site].answered for site in gone}
    checks.holds(f"their customers were answered all the while: {answered}", min(answered.values()) > 20, f"{answered}")
    stage.lab.mend(CUT)
    stage.story.tell("stage", f"the link of cluster {CUT} is up")
    checks.awaits("the hub hears of them again", lambda seen: all(is_heard(seen, site) for site in gone), 60, play.found)
    checks.holds("no container was started again", stage.restarts(CUT) == restarts, f"{stage.restarts(CUT)}")
