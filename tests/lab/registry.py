"""An OCI distribution registry over HTTP on 127.0.0.1, inside the test process: its traffic can be counted and spoilt.

Speaks what oras-py, the oras CLI and cosign 3 use: registry_http. What it holds is registry_content's matter, who may log
in registry_tokens'. Single servers for single tests: everything is in memory.
"""

import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tests.lab.registry_content import Content
from tests.lab.registry_fault import Fault, Request, Served
from tests.lab.registry_http import RegistryServer
from tests.lab.registry_tokens import TokenAuth

__all__ = ["Fault", "Registry", "Request", "Served"]


class Registry:
    """A running registry; a context manager. `content` is what it holds; `fault` may be set and unset at any time.

    `referrers=False` answers 404 there, as older registries do. `ranges=False` answers a Range with 200 and everything.
    `page` is the longest page of referrers and tags. `tls` is (certificate, key) as PEM files.
    """

    def __init__(
        self,
        referrers: bool = True,
        ranges: bool = True,
        page: int = 100,
        auth: TokenAuth | None = None,
        tls: tuple[Path, Path] | None = None,
        port: int = 0,
    ) -> None:
        self.content = Content()
        self.referrers, self.ranges, self.page, self.auth = referrers, ranges, page, auth
        self.fault: Callable[[Request], Fault | None] | None = None
        self.requests: list[Served] = []
        self.errors: list[BaseException] = []
        self.stopping = threading.Event()
        self._server = RegistryServer(self, port)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            # The handshake belongs to the thread of the connection: a silent client must not block all others.
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def blobs(self) -> dict[str, bytes]:
        """The blobs held, by digest."""
        return self.content.blobs

    def corrupt_blob(self, digest: str) -> None:
        """Serves this blob or manifest with one bit flipped, until `restore`."""
        self.content.corrupt_blob(digest)

    def restore(self, digest: str | None = None) -> None:
        """Serves the right bytes again, of one digest or all."""
        self.content.restore(digest)

    def count(self, method: str, part: str = "") -> int:
        """How many requests with this method and `part` in their path were answered."""
        return sum(1 for seen in list(self.requests) if seen.method == method and part in seen.path)

    def wait_stopped(self) -> None:
        """Blocks until the registry is stopped."""
        self._thread.join()

    def stop(self) -> None:
        """Closes every connection and ends every thread. Raises the first error of the registry itself, if there was one."""
        self.stopping.set()
        self._server.shutdown()
        self._server.close_connections()
        self._server.server_close()
        self._thread.join()
        if self.errors:
            raise self.errors[0]

    def __enter__(self) -> "Registry":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
