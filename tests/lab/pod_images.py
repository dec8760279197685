"""What goes into the images that the lab's nodes run: packed once into the cache, without a builder and without a registry.

How an image is written is oci_image.py's matter, where Debian packages come from debian.py's.
"""

import platform
import shutil
from pathlib import Path

from tests.lab.cache import key_of, provide
from tests.lab.debian import fetch_node_tools
from tests.lab.oci_image import ImageConfig, load_layer, pack_layer, write_image

_PACKING = Path(__file__).with_name("oci_image.py")


def busybox_image(reference: str, *entrypoint: str) -> Path:
    """An archive of an image with busybox alone (1 MB), which starts as `busybox ENTRYPOINT`."""
    tools = fetch_node_tools()

    def make(draft: Path) -> None:
        root = draft / "root"
        (root / "bin").mkdir(parents=True)
        shutil.copy(tools.busybox, root / "bin" / "busybox")
        for name in ("sh", "wget", "cat", "httpd", "id"):
            (root / "bin" / name).symlink_to("busybox")
        pack_layer(root, draft)
        config = ImageConfig(["/bin/busybox", *entrypoint], env={"PATH": "/bin"})
        write_image(draft / "image.tar", reference, platform.machine(), [load_layer(draft)], config)

    key = key_of(reference, *entrypoint, str(tools.busybox), _PACKING.read_bytes())
    return provide("image-busybox", key, make) / "image.tar"
