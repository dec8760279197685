"""Container images without a builder: layers from folders, packed the same way each time, and an OCI archive that containerd imports.

What goes into an image is decided elsewhere (pod_images.py). A layer is packed once and kept by its maker, so an image whose last layer
changed is written again without packing the others.
"""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab import LabError

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_INDEX = "application/vnd.oci.image.index.v1+json"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Layer:
    """A packed layer in `folder`: the file `layer.tar.gz`, with the digests of it and of what is inside."""

    folder: Path
    digest: str
    content: str
    size: int

    @property
    def file(self) -> Path:
        """The packed bytes."""
        return self.folder / "layer.tar.gz"


@dataclass(frozen=True)
class ImageConfig:
    """How a container of the image starts: `user` is uid:gid, `env` the whole environment."""

    entrypoint: Sequence[str]
    user: str = "65532:65532"
    env: Mapping[str, str] = field(default_factory=dict)


def pack_layer(root: Path, folder: Path, prefix: str = "") -> None:
    """Packs all of `root` as a layer into `folder`, below `prefix` in the image; owned by root, without times, in order of names."""
    inner, outer = hashlib.sha256(), hashlib.sha256()
    with (folder / "layer.tar.gz").open("wb") as out:
        packed = _Hashing(out, outer)
        with (
            gzip.GzipFile(fileobj=packed, mode="wb", filename="", mtime=0, compresslevel=3) as squeezed,
            tarfile.open(fileobj=_Hashing(squeezed, inner), mode="w|", format=tarfile.PAX_FORMAT) as archive,
        ):
            for path in sorted(root.rglob("*")):
                archive.add(path, arcname=f"{prefix}{path.relative_to(root)}", recursive=False, filter=_plain)
    facts = {"digest": outer.hexdigest(), "content": inner.hexdigest(), "size": (folder / "layer.tar.gz").stat().st_size}
    (folder / "layer.json").write_text(json.dumps(facts))


def load_layer(folder: Path) -> Layer:
    """The layer that `pack_layer` left in `folder`."""
    return Layer(folder, **json.loads((folder / "layer.json").read_text()))


def write_image(target: Path, reference: str, machine: str, layers: Sequence[Layer], config: ImageConfig) -> str:
    """Writes an OCI archive to `target`; the digest of its manifest (`sha256:...`). `machine` is as uname says it."""
    if machine not in _ARCHITECTURES:
        raise LabError(f"images for {machine} are not made: {', '.join(_ARCHITECTURES)} are")
    blobs: dict[str, bytes] = {}

    def keep(value: Mapping[str, Any], media: str) -> dict[str, Any]:
        data = json.dumps(value, sort_keys=True).encode()
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}

    described = keep(
        {
            "architecture": _ARCHITECTURES[machine],
            "os": "linux",
            "config": {
                "Entrypoint": list(config.entrypoint),
                "User": config.user,
                "Env": [f"{name}={value}" for name, value in sorted(config.env.items())],
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.content}" for layer in layers]},
        },
        _CONFIG,
    )
    listed = [{"mediaType": _LAYER, "digest": f"sha256:{layer.digest}", "size": layer.size} for layer in layers]
    manifest = keep({"schemaVersion": 2, "mediaType": _MANIFEST, "config": described, "layers": listed}, _MANIFEST)
    named = {**manifest, "annotations": {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference}}
    index = json.dumps({"schemaVersion": 2, "mediaType": _INDEX, "manifests": [named]}, sort_keys=True).encode()
    with tarfile.open(target, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "index.json", index)
        for digest, data in sorted(blobs.items()):
            _add(archive, f"blobs/sha256/{digest}", data)
        for layer in {layer.digest: layer for layer in layers}.values():
            archive.add(layer.file, arcname=f"blobs/sha256/{layer.digest}", filter=_plain)
    return str(manifest["digest"])


class _Hashing(io.RawIOBase):
    def __init__(self, out: Any, digest: Any) -> None:
        self._out, self._digest = out, digest

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self._out.write(data)
        return len(data)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644  # the umask of the maker decides nothing
    return entry


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
