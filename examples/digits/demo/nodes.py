"""The demo on real nodes: the hub and every site's agent and model server are pods, and links are cut by `ip link`.

What differs from stage.py is only how programs are started and where customers stand: at their sites, so that a cut link is none of theirs.
The demo itself moves into the lab's network; nothing in it has a way out.
"""

import base64
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from edgefleet.api.meta import site_namespace
from examples.digits.demo.counts import Counts, Traffic
from examples.digits.demo.links import is_heard
from examples.digits.demo.node_pods import AGENT, plan_hub_line, plan_site
from examples.digits.demo.observer import Observer
from examples.digits.demo.person import Person
from examples.digits.demo.places import DIGITS, HUB_NAMESPACE, OPERATOR, PLACES, REPOSITORY, Place
from examples.digits.demo.play import Play
from examples.digits.demo.stage import MEMORY, RATE, Stage, _environment
from examples.digits.demo.story import Story
from tests.lab import tcp_line
from tests.lab.binaries import fetch_kubectl
from tests.lab.control_plane import HUB
from tests.lab.nodes import NETWORK, NodeLab
from tests.lab.pod_images import edgefleet_image, server_image
from tests.lab.processes import Process, start_process, stop_processes
from tests.lab.registry import Registry
from tests.lab.server import fetch_server_environment

POD_LIMIT = 400  # seconds until nine pods with a model server each are Ready; half a minute on an idle machine
SITES = ("east", "west")
CUT = "west"
"""The cluster whose link is cut."""


class NodeStage(Stage):
    """A stage whose `lab` has nodes."""

    lab: NodeLab

    def __init__(self, root: Path, story: Story) -> None:
        super().__init__(root, story)
        self._is_up = False
        self._clients: list[Process] = []
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
        self.lab.outer.enter()
        self.story.tell("stage", f"three nodes are Ready; `nsenter --target {self.lab.outer.pid} --net` leads into their network")
        self.registry = Registry()
        host, port = self.registry.host.split(":")
        line = [sys.executable, tcp_line.__file__, f"{NETWORK}.1", port, host, port]
        start_process(self.folders.run, "registry-line", line)
        scores = environment.run("-m", "examples.digits.train", self.folders.desk / "releases", cwd=REPOSITORY).strip().replace("\n", "; ")
        self.story.tell("stage", f"trained on real handwriting, share of the golden set answered rightly: {scores}")
        self.observer = Observer(self.lab.hub.kubeconfig, self.story)
        self.observer.start()
        return Person(self.story, self.folders.desk, self.lab.hub.kubeconfig, fetch_kubectl(), OPERATOR)

    def start_hub(self) -> None:
        """The chart's Deployment runs already; its pods get a line to the registry."""
        assert self.registry is not None
        patch = json.dumps(plan_hub_line(self.registry.host))
        hub = self.lab.hub
        hub.kubectl("-n", HUB_NAMESPACE, "patch", "deployment", "edgefleet-hub", "--type=strategic", "--patch", patch)
        hub.kubectl("-n", HUB_NAMESPACE, "rollout", "status", "deployment/edgefleet-hub", "--timeout=180s", limit=200)
        self.story.tell("stage", "two hub pods are Ready, as the chart asks for")

    def start_agents(self, root: Path) -> None:
        """A pod for each site, with a volume of its own; returns when all are Ready."""
        for place in PLACES:
            self._apply(place, root)
        for place in PLACES:
            cluster = self.lab.clusters[place.cluster]
            words = ("rollout", "status", f"deployment/{AGENT}", f"--timeout={POD_LIMIT}s")
            cluster.kubectl("-n", site_namespace(place.name), *words, limit=POD_LIMIT + 20)
        self.story.tell("stage", f"{len(PLACES)} agent pods are Ready on two nodes")

    def start_traffic(self) -> None:
        """The customers of each cluster's sites: a process that stands in that cluster's network."""
        for name, cluster in self.lab.sites.items():
            addresses = [f"{place.name}={self.gateway(place.name)}" for place in PLACES if place.cluster == name]
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
        cluster = self.lab.clusters[next(place.cluster for place in PLACES if place.name == site)]
        found = cluster.kubectl("-n", site_namespace(site), "get", "pods", "-o", "jsonpath={.items[0].status.podIP}")
        return f"http://{found}:8000"

    def close(self) -> None:
        """End everything; what a cluster holds goes with it."""
        super().close()
        if self._is_up:
            self.lab.stop()

    def restarts(self, cluster: str) -> Mapping[str, int]:
        """How often each container of a cluster's site pods was started again."""
        pods = json.loads(self.lab.clusters[cluster].kubectl("get", "pods", "--all-namespaces", "-l", f"app={AGENT}", "-o", "json"))
        return {
            f"{pod['metadata']['namespace']}/{status['name']}": status["restartCount"]
            for pod in pods["items"]
            for status in pod["status"]["containerStatuses"]
        }

    def _counts(self, cluster: str) -> Path:
        return self.folders.out / f"traffic-{cluster}.json"

    def _apply(self, place: Place, root: Path) -> None:
        assert self.registry is not None
        cluster = self.lab.clusters[place.cluster]
        hub = self.lab.hub.client_kubeconfig(f"edgefleet:site:{place.name}", ["edgefleet:sites"])
        own = cluster.client_kubeconfig(f"edgefleet:agent:{place.name}")
        hardware = {"arch": "amd64", "memory": MEMORY, "features": list(place.features)}
        files = {
            "hub.kubeconfig": hub.read_bytes(),
            "site.kubeconfig": own.read_bytes(),
            "root.json": root.read_bytes(),
            "hardware.yaml": json.dumps(hardware).encode(),
        }
        cluster.make_volume(f"site-{place.name}")
        secret = {name: base64.b64encode(data).decode() for name, data in files.items()}
        cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(plan_site(place.name, secret, self.registry.host)))


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
    """12. The link of a whole site cluster is cut (`ip link set down`): its customers notice nothing, and the hub says whom it misses."""
    stage, checks = play.stage, play.checks
    assert isinstance(stage, NodeStage)
    gone = [place.name for place in PLACES if place.cluster == CUT]
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
