"""Starts the world that the demo plays in, and ends it: clusters, a registry, model servers, agents, the hub, the customers.

What a person would do is not here (setting.py, and the modules of the acts), but for starting programs. Every process is registered in the
lab's run folder by pid and start time, so that the next start ends what a killed demo left behind.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from edgefleet.api.meta import site_namespace
from examples.digits.demo.cable import Cable
from examples.digits.demo.counts import Traffic
from examples.digits.demo.hubpod import HubPod
from examples.digits.demo.observer import Observer
from examples.digits.demo.person import Person
from examples.digits.demo.places import CUT_OFF, DIGITS, MEMORY, OPERATOR, PLACES, REFUSED, REPOSITORY, Folders, Place
from examples.digits.demo.story import Story
from examples.digits.demo.times import RENEW
from tests.lab.binaries import fetch_kubectl
from tests.lab.cluster import Cluster, Lab, down
from tests.lab.helm import render
from tests.lab.installed import hub_kubeconfig, install_site
from tests.lab.manifests import AGENT_CHART, read_documents
from tests.lab.processes import Process, free_ports, start_process, stop_processes
from tests.lab.registry import Registry
from tests.lab.server import ModelServer, ServerEnvironment, fetch_server_environment, start_model_server

RATE = 10.0  # requests a second and site


class Stage:
    """Made by `build`; `close` ends everything, whatever was reached. `places` are its sites."""

    places = PLACES

    def __init__(self, root: Path, story: Story) -> None:
        self.folders = Folders(root.resolve())
        self.story = story
        self.registry: Registry | None = None
        self.hub: HubPod | None = None
        self.observer: Observer | None = None
        self.cable: Cable | None = None
        self.traffic = Traffic(self.folders.out / "traffic.json")
        self._servers: dict[str, ModelServer] = {}
        self._agents: list[Process] = []
        self._client: Process | None = None
        self._gateways: dict[str, int] = {}

    @property
    def eligible(self) -> frozenset[str]:
        """The sites that may serve the model."""
        return frozenset(place.name for place in self.places if place.name != REFUSED)

    @property
    def _rates(self) -> Path:
        return self.folders.out / "rates.json"

    def build(self) -> Person:
        """Clusters, registry, model servers and trained releases; nothing of edgefleet runs yet. Returns the person."""
        self._clear()
        self.story.tell("stage", "the lab: etcd, three API servers, a controller-manager, a registry, nine model servers")
        environment = fetch_server_environment()
        self.lab = Lab.start(self.folders.lab)
        self.story.tell("stage", "hub and two site clusters (east, west) are up: upstream Kubernetes, not K3s")
        self.registry = Registry()
        self._gateways = dict(zip((place.name for place in self.places), free_ports(len(self.places)), strict=True))
        releases = self.folders.desk / "releases"
        # Two at a time: each takes two seconds of a core to start, and the machine may have only two.
        with ThreadPoolExecutor(2) as pool:
            training = pool.submit(environment.run, "-m", "examples.digits.train", releases, cwd=REPOSITORY)
            servers = pool.map(lambda place: self._start_server(environment, place), self.places)
            for place, server in zip(self.places, servers, strict=True):
                self._servers[place.name] = server
            scores = training.result().strip().replace("\n", "; ")
        self.story.tell("stage", f"trained on real handwriting, share of the golden set answered rightly: {scores}")
        self.observer = Observer(self.lab.hub.kubeconfig, self.story)
        self.observer.start()
        return Person(self.story, self.folders.desk, self.lab.hub.kubeconfig, fetch_kubectl(), OPERATOR)

    def start_hub(self) -> None:
        """The hub, under its chart's ServiceAccount with the rights that the chart gives it."""
        kubeconfig = hub_kubeconfig(self.lab.hub)  # a new token each time: it dies with the account
        if self.hub is None:
            command = [sys.executable, "-m", "edgefleet", "hub", "--kubeconfig", str(kubeconfig), "--identity", "demo"]
            self.hub = HubPod(command, self.folders.run, _environment(), self.story)
        self.hub.start()

    def start_agents(self, person: Person) -> None:
        """Nine agents, each with two kubeconfigs that reach nothing but its own namespaces; they pin the person's trust/root.json."""
        for name, cluster in self.lab.sites.items():
            here = [place.name for place in self.places if place.cluster == name]
            install_site(cluster)
            for site in here:
                give_agent_rights(cluster, site)
            self.story.tell("stage", f"cluster {name} gets SiteAssignment and namespaces {', '.join(map(site_namespace, here))}")
        for place in self.places:
            self._agents.append(self._start_agent(place, person.desk / "trust" / "root.json"))

    def start_traffic(self) -> None:
        """The customers: one independent process that knows nothing but nine addresses."""
        addresses = [f"{place.name}={self.gateway(place.name)}" for place in self.places]
        examples = self.folders.desk / "releases" / "live.jsonl"
        command = [sys.executable, "-m", "examples.digits.traffic", "--examples", str(examples), "--rate", str(RATE)]
        command += ["--rates", str(self._rates), "--out", str(self.folders.out / "traffic.json"), *addresses]
        self._client = start_process(self.folders.run, "traffic", command, env=_environment(), cwd=REPOSITORY)

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """From now on the customers of these sites send so many requests a second, all others the usual number."""
        fresh = self._rates.with_suffix(".new")
        fresh.write_text(json.dumps(dict(rates)))
        fresh.replace(self._rates)

    def stop_traffic(self) -> None:
        """End the customers first, so that the ends of the servers are not counted as losses."""
        if self._client is not None:
            stop_processes([self._client])

    def gateway(self, site: str) -> str:
        """The address that a site's clients know."""
        return f"http://127.0.0.1:{self._gateways[site]}"

    def close(self) -> None:
        """End everything, by pid."""
        self.stop_traffic()
        if self.observer is not None:
            self.observer.close()
        if self.hub is not None:
            self.hub.stop()
        stop_processes(self._agents)
        if self.cable is not None:
            self.cable.cut()
        end_leftovers(self.folders)
        if self.registry is not None:
            self.registry.stop()

    def _clear(self) -> None:
        """Start from an empty folder."""
        ended = end_leftovers(self.folders)
        if ended:
            self.story.tell("stage", f"ended what an earlier demo left running: {ended} processes")
        shutil.rmtree(self.folders.root, ignore_errors=True)
        for folder in (self.folders.desk, self.folders.out):
            folder.mkdir(parents=True)

    def _start_server(self, environment: ServerEnvironment, place: Place) -> ModelServer:
        models = self.folders.site(place.name) / "models"
        return start_model_server(environment, self.folders.run, f"server-{place.name}", models, DIGITS / "runtime")

    def _start_agent(self, place: Place, root: Path) -> Process:
        disk = self.folders.site(place.name)
        # JSON is YAML too. Declared, not discovered: one machine cannot have two kinds of CPU.
        hardware = {"arch": "amd64", "memory": MEMORY, "features": list(place.features)}
        (disk / "hardware.yaml").write_text(json.dumps(hardware))
        hub = self.lab.client_kubeconfig("hub", f"edgefleet:site:{place.name}", ["edgefleet:sites"])
        if place.name == CUT_OFF:
            self.cable = Cable(hub)
            self.cable.mend()
            hub = self.cable.through()
        own = self.lab.sites[place.cluster].account_kubeconfig(site_namespace(place.name), "edgefleet-agent")
        server = self._servers[place.name]
        options: dict[str, object] = {
            "--site": place.name,
            "--hub-kubeconfig": hub,
            "--site-kubeconfig": own,
            "--state": disk / "state",
            "--trusted-root": root,
            "--server-url": server.url,
            "--server-models": server.repository,
            "--server-metrics": server.metrics_url,
            "--gateway-port": self._gateways[place.name],
            "--hardware": disk / "hardware.yaml",
            RENEW.key: RENEW.demo,
        }
        words = [str(word) for option in options.items() for word in option]
        command = [sys.executable, "-m", "edgefleet", "agent", *words]
        return start_process(self.folders.run, f"agent-{place.name}", command, env=_environment())


def end_leftovers(folders: Folders) -> int:
    """End what a killed demo left running; how many processes that were, gateways not counted. The files stay."""
    ended = down(folders.lab)
    _stop_gateways(folders, (place.name for place in PLACES))
    return len(ended)


def give_agent_rights(cluster: Cluster, site: str) -> None:
    """The site's namespace in its own cluster, and its agent's account with the rights that the chart gives it."""
    namespace = site_namespace(site)
    # What is served where is told to the agent on its command line here: no pod reads this address.
    settings = [f"site={site}", "server.url=http://localhost:8080", "crds=false"]
    rendered = read_documents(render(AGENT_CHART, namespace=namespace, settings=settings))
    objects: list[dict[str, object]] = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}]
    objects += [body for body in rendered if body["kind"] in ("ServiceAccount", "Role", "RoleBinding")]
    cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(OPERATOR), os.environ.get("PYTHONPATH"))))}


def _stop_gateways(folders: Folders, sites: Iterable[str]) -> None:
    """Gateways outlive their agents by design, so they are ended by name of their site's state folder."""

    def stop(site: str) -> None:
        command = [sys.executable, "-m", "edgefleet", "gateway", "stop", "--state", str(folders.site(site) / "state")]
        subprocess.run(command, env=_environment(), check=False, timeout=60, capture_output=True)

    started = [site for site in sites if any(folders.site(site).glob("state/**/envoy.pid"))]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(stop, started))
