"""What goes into the images that the lab's nodes run: packed once into the cache, without a builder and without a registry.

Ours holds what operator/Containerfile puts into it: Debian's Python, the locked dependencies with Envoy among them, and the package. Layers
are kept apart, so that a changed line of code packs 1 MB. How an image is written is oci_image.py's matter, where Debian packages come
from debian.py's.
"""

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.lab.cache import key_of, provide
from tests.lab.debian import fetch_node_tools, unpack_packages
from tests.lab.oci_image import ImageConfig, Layer, load_layer, pack_layer, write_image
from tests.lab.progress import run_shown
from tests.lab.server import LOCK as SERVER_LOCK

ROOT = Path(__file__).parents[2]
RUNTIME_LOCK = ROOT / "operator" / "requirements.lock"
EDGEFLEET = "registry.example/edgefleet:0.1.0"  # as the chart names it: a node that has it asks no registry
SERVER = "localhost/mlserver:lab"
PYTHON = "/usr/bin/python3.11"
SUITE = "bookworm"
# Python and what its modules, and the wheels, are linked to; no shell and no package manager.
PYTHON_PACKAGES = (
    "base-files",
    "ca-certificates",
    "libbz2-1.0",
    "libc6",
    "libcrypt1",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "liblzma5",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libsqlite3-0",
    "libssl3",
    "libstdc++6",
    "libtirpc3",
    "libuuid1",
    "netbase",
    "python3-minimal",
    "python3.11-minimal",
    "tzdata",
    "zlib1g",
)
_USERS = "root:x:0:0::/nonexistent:/nonexistent\nedgefleet:x:65532:65532::/tmp:/nonexistent\n"
# To be raised when a layer is filled, or packed, otherwise than before from the same sources: packing the wheels takes a minute.
_LAYOUT = "1"


def busybox_image(reference: str, *entrypoint: str) -> Path:
    """An archive of an image with busybox alone (1 MB), which starts as `busybox ENTRYPOINT`."""
    tools = fetch_node_tools()

    def fill(root: Path) -> None:
        (root / "bin").mkdir()
        shutil.copy(tools.busybox, root / "bin" / "busybox")

    layer = _layer("busybox", str(tools.busybox), fill)
    return _image("busybox", reference, [layer], ImageConfig(["/bin/busybox", *entrypoint], env={"PATH": "/bin"}))


def edgefleet_image() -> Path:
    """The archive of our image, `EDGEFLEET`, of the code as it stands now; a minute the first time. Raises LabError."""
    package = ROOT / "operator" / "edgefleet"
    sources = sorted(package.rglob("*.py"))
    code = key_of(*(part for path in sources for part in (str(path.relative_to(package)), path.read_bytes())))

    def fill(root: Path) -> None:
        shutil.copytree(package, root / "app" / "edgefleet", ignore=shutil.ignore_patterns("__pycache__"))
        _compile(root / "app", root)

    layers = [_python_layer(), _wheels_layer("wheels", RUNTIME_LOCK), _layer("code", code, fill)]
    return _image("edgefleet", EDGEFLEET, layers, ImageConfig([PYTHON, "-m", "edgefleet"], env=_environment("/app:/wheels")))


def server_image(runtime: Path) -> Path:
    """The archive of MLServer with the runtime classes of the folder `runtime`, `SERVER`. It starts with a folder of models as argument."""

    def fill(root: Path) -> None:
        shutil.copytree(runtime, root / "runtime", ignore=shutil.ignore_patterns("__pycache__"))

    classes = key_of(*(path.read_bytes() for path in sorted(runtime.glob("*.py"))))
    layers = [_python_layer(), _wheels_layer("server-wheels", SERVER_LOCK), _layer("runtime", classes, fill)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    config = ImageConfig([PYTHON, "-m", "mlserver.cli.main", "start"], env={**_environment("/runtime:/wheels"), **threads})
    return _image("mlserver", SERVER, layers, config)


def _python_layer() -> Layer:
    def fill(root: Path) -> None:
        unpack_packages(SUITE, PYTHON_PACKAGES, root)
        for unread in ("doc", "locale", "man", "lintian"):
            shutil.rmtree(root / "usr/share" / unread, ignore_errors=True)
        (root / "etc" / "passwd").write_text(_USERS)
        (root / "tmp").mkdir(exist_ok=True)
        _compile(root / "usr/lib/python3.11", root)
        certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
        (root / "etc/ssl/certs/ca-certificates.crt").write_bytes(b"".join(path.read_bytes() for path in certificates))

    return _layer("python", key_of(SUITE, *PYTHON_PACKAGES), fill)


def _wheels_layer(name: str, lock: Path) -> Layer:
    def fill(root: Path) -> None:
        command = [sys.executable, "-m", "pip", "install", "--no-compile", "--only-binary=:all:", "--python-version=3.11", "--no-deps"]
        command += ["--require-hashes", "--target", str(root / "wheels"), "-r", str(lock)]
        run_shown(command, f"installing {lock.name} for an image", 60, root / "log")
        (root / "log").unlink()
        _compile(root / "wheels", root)

    return _layer(name, key_of(lock.read_bytes()), fill)


def _compile(folder: Path, root: Path) -> None:
    """Bytecode that is valid without looking at times, since an image has none. A module that no Python can compile is left as it is."""
    command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", root, "-p", "/", folder]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, timeout=600)


def _environment(path: str) -> dict[str, str]:
    return {
        "PATH": "/usr/bin",
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
    }


def _layer(name: str, key: str, fill: Callable[[Path], None]) -> Layer:
    def make(draft: Path) -> None:
        root = draft / "root"
        root.mkdir()
        fill(root)
        pack_layer(root, draft)
        shutil.rmtree(root)

    return load_layer(provide(f"layer-{name}", key_of(key, platform.machine(), sys.version, _LAYOUT), make))


def _image(name: str, reference: str, layers: Sequence[Layer], config: ImageConfig) -> Path:
    def make(draft: Path) -> None:
        write_image(draft / "image.tar", reference, platform.machine(), layers, config)

    key = key_of(reference, repr(config), *(layer.digest for layer in layers), _LAYOUT)
    return provide(f"image-{name}", key, make) / "image.tar"
