"""The line that the demo cuts: whole while it is mended, dead at once when it is cut, and whole again."""

import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from examples.digits.demo.cable import Cable


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(1024):
            self.request.sendall(data)


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[Path]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        file = tmp_path / "hub.yaml"
        file.write_text(yaml.safe_dump({"clusters": [{"cluster": {"server": f"https://127.0.0.1:{server.server_address[1]}"}}]}))
        yield file
        server.shutdown()


def _address(cable: Cable) -> tuple[str, int]:
    copy = cable.through()
    assert copy.stat().st_mode & 0o777 == 0o600
    parts = urlsplit(yaml.safe_load(copy.read_text())["clusters"][0]["cluster"]["server"])
    return parts.hostname or "", parts.port or 0


def _says_back(line: socket.socket) -> bool:
    line.sendall(b"hello")
    return line.recv(5) == b"hello"


def _is_over(line: socket.socket) -> bool:
    try:
        return line.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_cable_carries_until_it_is_cut_and_again_when_it_is_mended(kubeconfig: Path) -> None:
    cable = Cable(kubeconfig)
    address = _address(cable)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 5)
    cable.mend()
    with socket.create_connection(address, 5) as one, socket.create_connection(address, 5) as two:
        assert _says_back(one)
        assert _says_back(two)
        cable.cut()
        for line in (one, two):
            assert _is_over(line)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 5)
    cable.mend()
    with socket.create_connection(address, 5) as line:
        assert _says_back(line)
    cable.cut()
