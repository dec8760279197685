"""The line between one site and the hub, made of this machine's loopback, so that it can be cut without touching anything else."""

import contextlib
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from tests.lab.processes import free_ports

CHUNK = 1 << 16


class Cable:
    """Carries TCP to the API server of a kubeconfig between `mend` and `cut`; begins cut."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig
        self._server = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
        parts = urlsplit(self._server)
        self._target = (parts.hostname or "", parts.port or 443)
        (self._port,) = free_ports(1)
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()

    def through(self) -> Path:
        """A copy of the kubeconfig that goes through the cable."""
        copy = self._kubeconfig.with_name(f"cable-{self._kubeconfig.name}")
        copy.touch(mode=0o600)
        copy.write_text(self._kubeconfig.read_text().replace(self._server, f"https://127.0.0.1:{self._port}"))
        return copy

    def mend(self) -> None:
        """Let connections through."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True, name="cable").start()

    def cut(self) -> None:
        """End all connections and refuse new ones."""
        with self._lock:
            ending, self._open = [*self._open, *filter(None, [self._listener])], set()
            self._listener = None
        for each in ending:
            _close(each)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                if self._listener is not listener:
                    return
                continue
            with self._lock:
                mended = self._listener is listener
                self._open |= {near, far} if mended else set()
            if not mended:
                _close(near)
                _close(far)
                return
            for source, drain in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, drain), daemon=True, name="cable").start()

    def _carry(self, source: socket.socket, drain: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                drain.sendall(data)
        with self._lock:
            self._open -= {source, drain}
        _close(source)
        _close(drain)


def _close(one: socket.socket) -> None:
    # shutdown wakes whoever waits in accept or recv; close alone does not.
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
