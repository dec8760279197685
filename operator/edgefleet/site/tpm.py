"""The few TPM 2.0 commands that attestation takes, spoken to the kernel's device (/dev/tpmrm0) or to a software TPM's unix socket.

Objects are made anew from the TPM's own seeds each time, so nothing of it is kept on disk, and each is flushed as soon as it is done with:
a TPM without a resource manager has three slots. What is proved with these commands is decided in tpm_device.py, what is believed of it at
the hub. Source of codes and layouts: TCG TPM 2.0 Library, parts 2 and 3.
"""

import os
import socket
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

ENDORSEMENT = 0x4000000B
"""The hierarchy whose seed the TPM's maker put in."""
ANSWER_SECONDS = 60.0
"""Making an RSA key takes a slow TPM half a minute. The kernel has limits of its own for its device."""
_PASSWORD = 0x40000009
_SESSIONS, _NO_SESSIONS = 0x8002, 0x8001
_NULL, _SHA256, _ECDSA = 0x0010, 0x000B, 0x0018
_MOST_BYTES = 4096
_NV_CHUNK = 512
_RETRY = frozenset({0x908, 0x922})  # TPM_RC_YIELDED, TPM_RC_RETRY
_TRIES = 10


class TpmError(Exception):
    """The TPM cannot be reached, or says no. `code` is its response code, 0 if there was none."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class Tpm:
    """One connection. Others wait for a software TPM as long as it is open; the kernel's /dev/tpmrm0 serves many."""

    def __init__(self, path: Path) -> None:
        """Raises TpmError if nothing can be opened there."""
        self._path = path
        self._socket: socket.socket | None = None
        self._file = -1
        try:
            if stat.S_ISSOCK(path.stat().st_mode):
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.settimeout(ANSWER_SECONDS)
                self._socket.connect(str(path))
            else:
                self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            self.close()
            raise TpmError(
                f"{path}: {error.strerror or error}: a TPM 2.0 is /dev/tpmrm0, and the agent needs the right to use it"
            ) from error

    def __enter__(self) -> "Tpm":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """It may be done twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @contextmanager
    def primary(self, hierarchy: int, template: bytes) -> Iterator[tuple[int, bytes]]:
        """A primary key of this template (TPMT_PUBLIC): its handle while inside, and its public area. The same template gives the same
        key until the hierarchy's owner changes its seed."""
        body = _sized(_sized(b"") + _sized(b"")) + _sized(template) + _sized(b"") + struct.pack(">I", 0)
        answer = self.run(0x131, (hierarchy,), body, ("password",), gives_handle=True)
        handle, rest = struct.unpack(">I", answer[:4])[0], answer[4:]
        try:
            yield handle, _take(rest)[0]
        finally:
            self._flush(handle)

    @contextmanager
    def endorsed(self) -> Iterator[int]:
        """A policy session that allows the use of the endorsement key."""
        answer = self.run(
            0x176, (0x40000007, 0x40000007), _sized(os.urandom(32)) + _sized(b"") + b"\x01" + struct.pack(">HH", _NULL, _SHA256), ()
        )
        session = struct.unpack(">I", answer[:4])[0]
        try:
            body = _sized(b"") * 3 + struct.pack(">i", 0)
            self.run(0x151, (ENDORSEMENT, session), body, ("password",))
            yield session
        finally:
            self._flush(session)

    def activate(self, key: int, endorsement: int, session: int, credential: bytes, secret: bytes) -> bytes:
        """Open a credential that was made for `key` (its name) and the endorsement key. Raises TpmError if it was made for another."""
        answer = self.run(0x147, (key, endorsement), credential + secret, ("password", session))
        return _take(answer)[0]

    def quote(self, key: int, data: bytes, pcrs: Sequence[int]) -> tuple[bytes, bytes]:
        """What the key attests of these PCRs (SHA-256 bank), and its signature (TPMT_SIGNATURE)."""
        answer = self.run(0x158, (key,), _sized(data) + struct.pack(">H", _NULL) + encode_selection(pcrs), ("password",))
        return _take(answer)

    def certify(self, subject: int, key: int, data: bytes) -> tuple[bytes, bytes]:
        """What `key` attests of `subject`, an object in this TPM, and its signature (TPMT_SIGNATURE)."""
        answer = self.run(0x148, (subject, key), _sized(data) + struct.pack(">H", _NULL), ("password", "password"))
        return _take(answer)

    def sign(self, key: int, digest: bytes) -> bytes:
        """The signature (TPMT_SIGNATURE) of a key that may sign anything. Raises TpmError for a restricted one."""
        ticket = struct.pack(">HIH", 0x8024, 0x40000007, 0)
        return self.run(0x15D, (key,), _sized(digest) + struct.pack(">HH", _ECDSA, _SHA256) + ticket, ("password",))

    def read_pcrs(self, pcrs: Sequence[int]) -> Mapping[int, bytes]:
        """Values of the SHA-256 bank. Raises TpmError if it has none."""
        found: dict[int, bytes] = {}
        # The TPM gives eight at a time, and says which.
        while missing := [pcr for pcr in pcrs if pcr not in found]:
            answer = self.run(0x17E, (), encode_selection(missing), ())
            count = struct.unpack(">I", answer[4:8])[0]
            if count != 1:
                raise TpmError(f"{self._path}: it has no PCRs in SHA-256")
            size = answer[10]
            bits = int.from_bytes(answer[11 : 11 + size], "little")
            given, rest = [pcr for pcr in missing if bits >> pcr & 1], answer[15 + size :]
            if not given:
                raise TpmError(f"{self._path}: it gives no PCR {missing[0]} in SHA-256")
            for pcr in given:
                found[pcr], rest = _take(rest)
        return found

    def read_nv(self, index: int) -> bytes:
        """What the maker stored under an index that all may read. Raises TpmError(code 0x18b) if there is none."""
        public, _ = _take(self.run(0x169, (index,), b"", ()))
        size = struct.unpack(">H", public[-2:])[0]
        found = b""
        while len(found) < size:
            chunk = struct.pack(">HH", min(_NV_CHUNK, size - len(found)), len(found))
            found += _take(self.run(0x14E, (index, index), chunk, ("password",)))[0]
        return found

    def _flush(self, handle: int) -> None:
        # An end that fails must not hide why it came to this.
        with suppress(TpmError):
            self.run(0x165, (), struct.pack(">I", handle), ())

    def run(self, code: int, handles: Sequence[int], body: bytes, sessions: Sequence[str | int], *, gives_handle: bool = False) -> bytes:
        """One command: the answer's parameters, after the handle if it gives one. Each of `sessions` is a policy session's handle, or
        "password" for an empty one. Raises TpmError."""
        auth = b"".join(
            struct.pack(">IHBH", _PASSWORD if one == "password" else one, 0, 0 if one == "password" else 1, 0) for one in sessions
        )
        area = struct.pack(">I", len(auth)) + auth if sessions else b""
        payload = b"".join(struct.pack(">I", handle) for handle in handles) + area + body
        command = struct.pack(">HII", _SESSIONS if sessions else _NO_SESSIONS, 10 + len(payload), code) + payload
        for _ in range(_TRIES):
            answer = self._exchange(command)
            tag, size, result = struct.unpack(">HII", answer[:10])
            if result not in _RETRY:
                break
        if size != len(answer):
            raise TpmError(f"{self._path}: an answer of {len(answer)} bytes that says it has {size}")
        if result:
            raise TpmError(f"{self._path}: command {code:#x} was refused with {result:#x}", result)
        if tag != _SESSIONS:
            return answer[10:]
        handle, rest = (answer[10:14], answer[14:]) if gives_handle else (b"", answer[10:])
        length = struct.unpack(">I", rest[:4])[0]
        return handle + rest[4 : 4 + length]

    def _exchange(self, command: bytes) -> bytes:
        try:
            if self._socket is None:
                os.write(self._file, command)
                answer = os.read(self._file, _MOST_BYTES)
            else:
                self._socket.sendall(command)
                answer = self._receive(self._socket, 10)
                size = min(struct.unpack(">I", answer[2:6])[0], _MOST_BYTES)
                answer += self._receive(self._socket, size - 10)
        except OSError as error:
            raise TpmError(f"{self._path}: {error.strerror or error}") from error
        if len(answer) < 10:
            raise TpmError(f"{self._path}: an answer of {len(answer)} bytes")
        return answer

    def _receive(self, connection: socket.socket, size: int) -> bytes:
        found = b""
        while len(found) < size:
            part = connection.recv(size - len(found))
            if not part:
                raise TpmError(f"{self._path}: the TPM hung up")
            found += part
        return found


def encode_selection(pcrs: Sequence[int]) -> bytes:
    """TPML_PCR_SELECTION of these PCRs (0 to 23) in the SHA-256 bank."""
    return struct.pack(">IHB", 1, _SHA256, 3) + sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _take(data: bytes) -> tuple[bytes, bytes]:
    size = struct.unpack(">H", data[:2])[0]
    return data[2 : 2 + size], data[2 + size :]
