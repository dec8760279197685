"""MLServer for a site: its own environment, made once from a hashed lock, and one process per site.

Speaks the Open Inference Protocol v2 with the repository API. Which models it loads, and when, is the site agent's
matter: it starts empty. The runtime classes are the user's and come in as a folder.
"""

import json
import os
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tests.lab.cache import key_of, provide
from tests.lab.processes import Process, free_ports, start_process, stop_processes
from tests.lab.progress import run_shown

LOCK = Path(__file__).parent / "server.lock"
READY_LIMIT = 90.0  # seconds; about 3 s on an idle machine, eight at once on two cores take longer


@dataclass(frozen=True)
class ServerEnvironment:
    """A virtual environment with MLServer, ONNX Runtime, scikit-learn and skl2onnx, apart from ours."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter; also the one that trains and converts the example models."""
        return self.folder / "bin" / "python"

    def run(self, *arguments: str | Path, cwd: Path | None = None, limit: float = 300) -> str:
        """Output of `python ARGUMENTS` in this environment. Raises CalledProcessError (stderr is passed through)."""
        command = [str(self.python), *map(str, arguments)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=cwd, timeout=limit, env=_environment()).stdout


@dataclass(frozen=True)
class ModelServer:
    """A running MLServer: `url` is its HTTP root, `metrics_url` where Prometheus would read it, `repository` the folder whose sub-folders
    are its models."""

    url: str
    metrics_url: str
    repository: Path
    process: Process

    def stop(self) -> None:
        """Ends the process; the repository stays."""
        stop_processes([self.process])


def fetch_server_environment() -> ServerEnvironment:
    """The environment from the cache, else installed there by pip from server.lock (about 1 minute). Raises LabError."""
    key = key_of(LOCK.read_bytes(), sys.version)
    return ServerEnvironment(provide("server", key, _install))


def start_model_server(
    environment: ServerEnvironment,
    run: Path,
    name: str,
    repository: Path,
    runtime: Path,
    port: int | None = None,
) -> ModelServer:
    """Starts one MLServer on free loopback ports and waits until it is ready. It has no model loaded.

    It is registered as `name` in the folder `run` (see processes.py), so `down` of a lab whose run folder that is ends
    it too. `runtime` is a folder of Python modules with the classes that `model-settings.json` names. `port` fixes the
    HTTP port. Raises LabError with the end of its log.
    """
    repository.mkdir(parents=True, exist_ok=True)
    http, grpc, metrics = free_ports(3)
    http = port or http
    settings = {
        "host": "127.0.0.1",
        "http_port": http,
        "grpc_port": grpc,
        "metrics_port": metrics,
        "load_models_at_startup": False,
        "parallel_workers": 0,
        "debug": False,
    }
    (repository / "settings.json").write_text(json.dumps(settings))
    command: list[str | Path] = [environment.python, "-m", "mlserver.cli.main", "start", str(repository)]
    url = f"http://127.0.0.1:{http}"
    process = start_process(run, name, command, env=_environment(runtime), cwd=repository)
    try:
        process.wait_until(lambda: _is_ready(url), "ready", READY_LIMIT)
    except BaseException:
        stop_processes([process])
        raise
    return ModelServer(url, f"http://127.0.0.1:{metrics}/metrics", repository, process)


def _install(draft: Path) -> None:
    # A venv is moved by its maker here, so nothing may start by its scripts: they name the draft's interpreter.
    subprocess.run([sys.executable, "-m", "venv", draft], check=True)
    run_shown(
        [str(draft / "bin" / "python"), "-m", "pip", "install", "--require-hashes", "--only-binary=:all:", "-r", str(LOCK)],
        "installing the model server",
        60,
        draft / "install.log",
    )


def _environment(runtime: Path | None = None) -> dict[str, str]:
    # One thread per numeric library: several servers share few cores, and the models are small.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLSERVER_"))}
    return {**kept, **threads, **({"PYTHONPATH": str(runtime.resolve())} if runtime else {})}


def _is_ready(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
