"""An HTTP proxy that speaks CONNECT alone, on 127.0.0.1: it counts what was asked, knows its few hosts, and refuses all others."""

import socket
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


class ConnectProxy:
    """A running proxy; a context manager. `hosts` says where `name:port` really is, as `127.0.0.1:port`; all others get 403.

    `asked` lists each CONNECT's target; anything but CONNECT stands there as `METHOD path` and gets 405.
    """

    def __init__(self, hosts: Mapping[str, str] | None = None) -> None:
        self.hosts = dict(hosts or {})
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.proxy = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def __enter__(self) -> "ConnectProxy":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Silent: `asked` is the log."""

    def do_CONNECT(self) -> None:
        proxy: ConnectProxy = self.server.proxy  # type: ignore[attr-defined]
        proxy.asked.append(self.path)
        target = proxy.hosts.get(self.path)
        if target is None:
            self.send_error(403)
            return
        host, _, port = target.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as there:
            there.settimeout(None)
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_pump, args=(there, self.connection), daemon=True)
            back.start()
            _pump(self.connection, there)
            back.join()
        self.close_connection = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def _refuse(self) -> None:
        self.server.proxy.asked.append(f"{self.command} {self.path}")  # type: ignore[attr-defined]
        self.send_error(405)


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65_536):
            target.sendall(data)
    except OSError:
        pass
    finally:
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
