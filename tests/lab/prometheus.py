"""The real Prometheus on loopback, with the rules and targets that a test gives it; and promtool beside it."""

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.lab import LabError
from tests.lab.debian import fetch_prometheus
from tests.lab.processes import Process, free_ports, start_process, stop_processes


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus; `url` is its address."""

    url: str
    process: Process

    def firing(self) -> list[dict[str, Any]]:
        """The alerts that fire now: `labels`, `annotations`, `activeAt`."""
        found: list[dict[str, Any]] = self._ask("/api/v1/alerts")["alerts"]
        return [alert for alert in found if alert["state"] == "firing"]

    def rules(self) -> list[dict[str, Any]]:
        """All rules with their `health` and `lastError`."""
        return [rule for group in self._ask("/api/v1/rules")["groups"] for rule in group["rules"]]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The vector that an expression gives now."""
        found: list[dict[str, Any]] = self._ask("/api/v1/query", query=expression)["result"]
        return found

    def stop(self) -> None:
        """Ends the process; its data stays."""
        stop_processes([self.process])

    def _ask(self, path: str, **parameters: str) -> dict[str, Any]:
        with _open(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}") as answer:
            data: dict[str, Any] = json.load(answer)["data"]
            return data


def start_prometheus(folder: Path, rules: Mapping[str, Any], targets: Mapping[str, Sequence[str]]) -> Prometheus:
    """Starts it under `folder`, looking every second at `targets` (job to `HOST:PORT`) and at `rules` (as in a rule file).

    Raises LabError with the end of its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.yaml").write_text(yaml.safe_dump(dict(rules)))
    jobs = [{"job_name": job, "static_configs": [{"targets": list(hosts)}]} for job, hosts in targets.items()]
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    host = f"127.0.0.1:{free_ports(1)[0]}"
    command = [
        fetch_prometheus() / "prometheus",
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={host}",
        "--web.external-url=http://localhost",
    ]
    process = start_process(folder / "run", "prometheus", command)
    try:
        process.wait_until(lambda: _answers(f"http://{host}/-/ready"), "ready", 60)
    except BaseException:
        stop_processes([process])
        raise
    return Prometheus(f"http://{host}", process)


def promtool(*arguments: str | Path, limit: float = 60) -> str:
    """Output of `promtool ARGUMENTS`. Raises LabError with what it said."""
    done = subprocess.run([fetch_prometheus() / "promtool", *map(str, arguments)], capture_output=True, text=True, timeout=limit)
    if done.returncode:
        raise LabError(f"promtool {' '.join(map(str, arguments))}: {done.stdout}{done.stderr}")
    return done.stdout


def _open(url: str) -> Any:
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5)


def _answers(url: str) -> bool:
    try:
        with _open(url) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
