"""The real docker-registry on loopback: no referrers API, so clients must take the fallback tag."""

import urllib.request
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.lab.debian import fetch_docker_registry
from tests.lab.processes import Process, free_ports, start_process, stop_processes


@dataclass(frozen=True)
class DockerRegistry:
    """A running docker-registry; `host` is `127.0.0.1:PORT`."""

    host: str
    process: Process

    def stop(self) -> None:
        """Ends the process; its storage stays."""
        stop_processes([self.process])


def start_docker_registry(folder: Path) -> DockerRegistry:
    """Starts it with storage under `folder`, registered in `folder/run`. Raises LabError with the end of its log."""
    folder.mkdir(parents=True, exist_ok=True)
    host = f"127.0.0.1:{free_ports(1)[0]}"
    config = folder / "config.yml"
    storage = {"filesystem": {"rootdirectory": str(folder / "storage")}}
    config.write_text(yaml.safe_dump({"version": 0.1, "log": {"level": "warn"}, "storage": storage, "http": {"addr": host}}))
    process = start_process(folder / "run", "docker-registry", [fetch_docker_registry(), "serve", config])
    try:
        process.wait_until(lambda: _answers(host), "answering", 60)
    except BaseException:
        stop_processes([process])
        raise
    return DockerRegistry(host, process)


def _answers(host: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{host}/v2/", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
