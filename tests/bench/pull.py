"""`python -m tests.bench.pull [MiB]`: a verified pull beside curl, which verifies nothing, from the same registry in the same run.

Both write to disk; rounds alternate, the best of each counts (a shared machine is noisy one way only). Prints MiB/s and the ratio, and
how many bytes are fetched twice when the connection is cut ten times.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from edgefleet.oci.client import RegistryClient
from edgefleet.oci.fetch import Blob, fetch
from edgefleet.oci.reference import Repository
from tests.lab.registry import Fault, Registry, Request

ROUNDS = 4
CUTS = 10


def main() -> None:
    """Run it; exits 1 if a pull is not what it should be."""
    mebibytes = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    data = os.urandom(1 << 20) * mebibytes
    blob = Blob("sha256:" + hashlib.sha256(data).hexdigest(), len(data))
    with Registry() as registry, RegistryClient() as client, tempfile.TemporaryDirectory() as folder:
        repository = Repository.parse(f"{registry.host}/bench/model")
        registry.content.put_blob(repository.path, data)
        ours, curls = [], []
        for _ in range(ROUNDS):
            ours.append(_timed(lambda: _pull(client, repository, blob, Path(folder) / "ours")))
            url = f"{registry.url}/v2/{repository.path}/blobs/{blob.digest}"
            command = ["curl", "-sSf", "-o", f"{folder}/curl", url]
            curls.append(_timed(lambda command=command: subprocess.run(command, check=True)))
        cut = _cut(client, registry, repository, blob, Path(folder) / "cut")
    print(f"verified pull  {mebibytes / min(ours):7.0f} MiB/s")
    print(f"curl, no hash  {mebibytes / min(curls):7.0f} MiB/s")
    print(f"ratio          {min(curls) / min(ours):7.2f}   (goal 0.85)")
    print(f"cut {CUTS} times   {cut - len(data):7d} bytes fetched twice")


def _pull(client: RegistryClient, repository: Repository, blob: Blob, target: Path) -> None:
    target.unlink(missing_ok=True)
    fetch(client, repository, blob, target)


def _cut(client: RegistryClient, registry: Registry, repository: Repository, blob: Blob, target: Path) -> int:
    """Bytes that the registry sent for one pull whose connection breaks CUTS times."""
    left = CUTS
    registry.requests.clear()

    def cutting(request: Request) -> Fault | None:
        nonlocal left
        if request.method != "GET" or "/blobs/" not in request.path or not left:
            return None
        left -= 1
        return Fault(cut_after=blob.size // (CUTS + 1))

    registry.fault = cutting
    fetch(client, repository, blob, target)
    registry.fault = None
    return sum(one.sent for one in registry.requests if one.method == "GET")


def _timed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


if __name__ == "__main__":
    main()
