"""What is asked of a registry: tags, manifests and blobs. How a request is made is transport.py's matter.

`RegistryClient` is synchronous and may be shared by threads; asyncio callers use `asyncio.to_thread`. It checks digests of
manifests and bounds everything that it reads into memory. Large blobs are left to fetch.py, writing to push.py.
"""

import hashlib
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

from edgefleet.api.quantities import DIGEST_PATTERN
from edgefleet.oci import media
from edgefleet.oci.body import read_whole
from edgefleet.oci.errors import DigestMismatch, NotFound, SizeMismatch
from edgefleet.oci.reference import Reference, Repository
from edgefleet.oci.transport import PULL, Body, Credentials, Patience, Provider, Proxy

MAX_MANIFEST_BYTES = 4 << 20


class RegistryClient:
    """Reads from and writes to registries. `credentials` are by registry (`host` or `host:port`); `ca` is a PEM file whose authorities are
    believed instead of the public ones, or PEM text for some beside them; without `proxy` none is used, whatever the environment says.

    Raises ValueError for a `ca` that holds no certificate.
    """

    def __init__(
        self,
        *,
        credentials: Mapping[str, Credentials] | None = None,
        ca: Path | str | None = None,
        proxy: Proxy | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.patience = patience or Patience()
        self._provider = Provider(credentials or {}, ca, proxy, self.patience)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._provider.session.close()

    def resolve(self, reference: Reference) -> str:
        """The digest that a tag names now; a reference by digest is answered without asking. Raises RegistryError."""
        if reference.digest:
            return reference.digest
        url = f"{reference.repository.url}/manifests/{reference.tag}"
        with closing(self.request("HEAD", reference.repository, url, headers=_ACCEPT)) as response:
            digest = str(response.headers.get("Docker-Content-Digest", ""))
        if re.fullmatch(DIGEST_PATTERN.strip("^$"), digest):
            return digest
        with closing(self.request("GET", reference.repository, url, headers=_ACCEPT)) as response:
            data = read_whole(response, str(reference), MAX_MANIFEST_BYTES, self.patience.watchdog)
        return digest_of(data)

    def fetch_manifest(self, repository: Repository, digest: str) -> bytes:
        """The manifest or index with this digest: checked, at most 4 MiB. Raises RegistryError."""
        what = f"{repository}@{digest}"
        with closing(self.request("GET", repository, f"{repository.url}/manifests/{digest}", headers=_ACCEPT)) as response:
            data = read_whole(response, what, MAX_MANIFEST_BYTES, self.patience.watchdog)
        return _checked(data, digest, what)

    def fetch_tagged(self, repository: Repository, tag: str) -> bytes | None:
        """The manifest or index that a tag names now, or None. Nothing vouches for its content. Raises RegistryError."""
        url = f"{repository.url}/manifests/{tag}"
        try:
            with closing(self.request("GET", repository, url, headers=_ACCEPT)) as response:
                return read_whole(response, f"{repository}:{tag}", MAX_MANIFEST_BYTES, self.patience.watchdog)
        except NotFound:
            return None

    def fetch_small_blob(self, repository: Repository, digest: str, size: int, limit: int) -> bytes:
        """A blob of `size` bytes, which must not exceed `limit`, in memory. Raises RegistryError."""
        what = f"{repository}@{digest}"
        if size > limit:
            raise SizeMismatch(f"{what}: {size} bytes, at most {limit} are read here")
        with closing(self.open_blob(repository, digest)) as response:
            data = read_whole(response, what, size, self.patience.watchdog)
        if len(data) != size:
            raise SizeMismatch(f"{what}: {len(data)} bytes came, the descriptor says {size}")
        return _checked(data, digest, what)

    def open_blob(self, repository: Repository, digest: str, *, start: int = 0) -> requests.Response:
        """An open answer with the blob's bytes from `start`: status 206, or 200 if the registry sends all, or 416. Raises RegistryError."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        url = f"{repository.url}/blobs/{digest}"
        return self.request("GET", repository, url, headers=headers, accept=(416,) if start else ())

    def request(
        self,
        method: str,
        repository: Repository,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Body = None,
        action: str = PULL,
        accept: tuple[int, ...] = (),
    ) -> requests.Response:
        """One request with retries; an answer with status below 400, or one of `accept`, whose body is still unread.

        The caller closes it. A Path as `data` is opened anew for each try. Raises RegistryError.
        """
        response: requests.Response = self._provider.do_request(
            url, method, data=data, headers=dict(headers or {}), repository=repository, action=action, accept=accept
        )
        return response


_ACCEPT = {"Accept": f"{media.INDEX}, {media.MANIFEST}"}


def digest_of(data: bytes) -> str:
    """`sha256:<hex>` of these bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _checked(data: bytes, digest: str, what: str) -> bytes:
    found = digest_of(data)
    if found != digest:
        raise DigestMismatch(f"{what}: the registry sent {found}")
    return data
