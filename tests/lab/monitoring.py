"""Prometheus Operator's own kinds, ServiceMonitor and PrometheusRule, from its Go module: what a cluster with its CRDs would accept.

Only the files are taken: the operator itself is not built, and nobody acts on what is written. What our rules and series do in Prometheus
is prometheus.py's matter.
"""

import json
import shutil
import subprocess
from pathlib import Path

from tests.lab import LabError
from tests.lab.binaries import fetch_go, go_environment
from tests.lab.cache import key_of, provide
from tests.lab.progress import say

_MODULE = "github.com/prometheus-operator/prometheus-operator"
_VERSION = "v0.85.0"
_SUM = "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s="  # as go.sum has it
_KINDS = ("servicemonitors", "prometheusrules")


def fetch_monitoring_kinds() -> Path:
    """A folder with both CRDs, from the cache; the first time 4 MB are fetched. Raises LabError."""
    return provide("monitoring-kinds", key_of(_MODULE, _VERSION, _SUM, *_KINDS), _fetch)


def _fetch(draft: Path) -> None:
    say(f"fetching {_MODULE} {_VERSION}")
    command = [fetch_go(), "mod", "download", "-json", f"{_MODULE}@{_VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=draft, env=go_environment(), check=False)
    if done.returncode:
        raise LabError(f"{_MODULE} {_VERSION} is not to be had: {done.stdout.strip() or done.stderr.strip()}")
    found = json.loads(done.stdout)
    if found["Sum"] != _SUM:
        raise LabError(f"{_MODULE} {_VERSION} has the sum {found['Sum']}, known is {_SUM}")
    for kind in _KINDS:
        shutil.copy(Path(found["Dir"], "example", "prometheus-operator-crd", f"monitoring.coreos.com_{kind}.yaml"), draft)
