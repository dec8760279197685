"""Our client against a registry that lies, breaks, stalls and refuses: each a named error, and no file at its final name."""

import errno
import hashlib
import json
import os
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgefleet.api.model import Variant
from edgefleet.oci import media
from edgefleet.oci.body import Watchdog
from edgefleet.oci.client import RegistryClient, digest_of
from edgefleet.oci.errors import (
    DigestMismatch,
    MalformedManifest,
    NotFound,
    RateLimited,
    RegistryError,
    RegistryRefused,
    SizeMismatch,
    Stalled,
    TooLarge,
    Unauthorised,
    Unreachable,
)
from edgefleet.oci.fetch import Blob, fetch
from edgefleet.oci.golden import fetch_golden
from edgefleet.oci.hashes import Hashes
from edgefleet.oci.index import fetch_index, fetch_variant
from edgefleet.oci.push import VariantFiles, attach_bundle, push_blob, push_golden, push_model, tag_manifest
from edgefleet.oci.reference import Reference, Repository
from edgefleet.oci.referrers import MAX_REFERRERS, fallback_tag, fetch_bundles
from edgefleet.oci.transport import Credentials, Patience
from tests.lab.registry import Registry
from tests.lab.registry_fault import Fault, Request
from tests.lab.registry_tokens import TokenAuth

PATH = "team/model"
SIZE = 3_000_000
GOLDEN_LINE = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2.5]}],"expect":{"output":"y","label":3}}\n'


class Waits:
    """Notes how long the client would have slept."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def client(waits: Waits) -> Iterator[RegistryClient]:
    patience = Patience(connect=2, read=0.5, attempts=3, sleep=waits)
    with RegistryClient(patience=patience) as opened:
        yield opened


@pytest.fixture
def repository(registry: Registry) -> Repository:
    return Repository.parse(f"{registry.host}/{PATH}")


@pytest.fixture
def data() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture
def blob(registry: Registry, data: bytes) -> Blob:
    return Blob(registry.content.put_blob(PATH, data), len(data))


def only(part: str, fault: Fault, times: int | None = None) -> Callable[[Request], Fault | None]:
    """A hook that spoils answers to paths with `part`, the first `times` of them."""
    left = [times]

    def hook(request: Request) -> Fault | None:
        if part not in request.path or left[0] == 0:
            return None
        if left[0] is not None:
            left[0] -= 1
        return fault

    return hook


# Fetching blobs


def test_a_blob_comes_whole_and_leaves_nothing_else(
    client: RegistryClient, repository: Repository, blob: Blob, data: bytes, tmp_path: Path
) -> None:
    seen: list[int] = []
    fetch(client, repository, blob, tmp_path / "model", progress=seen.append)
    assert (tmp_path / "model").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert seen == sorted(seen)
    assert seen[-1] == SIZE


def test_what_is_there_already_is_not_asked_for(
    registry: Registry, client: RegistryClient, repository: Repository, blob: Blob, data: bytes, tmp_path: Path
) -> None:
    (tmp_path / "model").write_bytes(data)
    fetch(client, repository, blob, tmp_path / "model")
    assert not registry.requests


def test_a_wrong_file_at_the_final_name_is_replaced(
    client: RegistryClient, repository: Repository, blob: Blob, data: bytes, tmp_path: Path
) -> None:
    (tmp_path / "model").write_bytes(b"x" * SIZE)
    fetch(client, repository, blob, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == data


def test_an_empty_blob_is_fetched(registry: Registry, client: RegistryClient, repository: Repository, tmp_path: Path) -> None:
    digest = registry.content.put_blob(PATH, b"")
    fetch(client, repository, Blob(digest, 0), tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""


@pytest.mark.parametrize(
    ("fault", "error", "part_stays"),
    [
        pytest.param(Fault(corrupt=True), DigestMismatch, False, id="corrupt"),
        pytest.param(Fault(body=b"y" * SIZE), DigestMismatch, False, id="swapped"),
        pytest.param(Fault(extra=b"more"), SizeMismatch, False, id="longer"),
        pytest.param(Fault(body=b"y" * 1000), SizeMismatch, False, id="shorter"),
        pytest.param(Fault(cut_after=1000), Unreachable, True, id="truncated, each time"),
        pytest.param(Fault(stall=30, stall_after=1000), Stalled, True, id="stalled in the body"),
        pytest.param(Fault(stall=30), Stalled, True, id="stalled before the answer"),
        pytest.param(Fault(close=True), Unreachable, True, id="closed without an answer"),
        pytest.param(Fault(status=429), RateLimited, True, id="429"),
        pytest.param(Fault(status=503), Unreachable, True, id="503"),
        pytest.param(Fault(status=404), NotFound, True, id="404"),
        pytest.param(Fault(status=400), RegistryRefused, True, id="400"),
        pytest.param(Fault(status=403), Unauthorised, True, id="403"),
        pytest.param(Fault(status=307), RegistryRefused, True, id="redirect to nowhere"),
    ],
)
def test_a_spoilt_blob_is_a_named_error_and_no_file(
    fault: Fault,
    error: type[RegistryError],
    part_stays: bool,
    registry: Registry,
    client: RegistryClient,
    repository: Repository,
    blob: Blob,
    tmp_path: Path,
) -> None:
    registry.fault = only("/blobs/", fault)
    with pytest.raises(error) as raised:
        fetch(client, repository, blob, tmp_path / "model")
    assert type(raised.value) is error
    assert PATH in raised.value.message
    assert not (tmp_path / "model").exists()
    assert (tmp_path / "model.part").exists() == part_stays


def test_a_lying_size_is_refused_before_much_is_read(
    registry: Registry, client: RegistryClient, repository: Repository, blob: Blob, tmp_path: Path
) -> None:
    for size in (blob.size - 1, blob.size + 1):
        with pytest.raises(SizeMismatch, match="announces"):
            fetch(client, repository, Blob(blob.digest, size), tmp_path / "model")
        assert not list(tmp_path.iterdir())


class _Unannounced(socketserver.StreamRequestHandler):
    """Answers each request with `body` without saying how long it is, then closes."""

    body = b""

    def handle(self) -> None:
        while self.rfile.readline().strip():
            continue
        self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + self.body)


@pytest.mark.parametrize("change", [4, -4], ids=["longer", "shorter"])
def test_a_body_without_announced_length_is_measured(change: int, client: RegistryClient, data: bytes, tmp_path: Path) -> None:
    handler = type("Handler", (_Unannounced,), {"body": (data + b"more")[: SIZE + change]})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            repository = Repository.parse(f"127.0.0.1:{server.server_address[1]}/{PATH}")
            with pytest.raises(SizeMismatch):
                fetch(client, repository, Blob(digest_of(data), SIZE), tmp_path / "model")
        finally:
            server.shutdown()
            thread.join()
    assert not list(tmp_path.iterdir())


def test_a_broken_line_is_resumed_and_no_byte_comes_twice(
    registry: Registry, client: RegistryClient, repository: Repository, blob: Blob, data: bytes, tmp_path: Path
) -> None:
    registry.fault = only("/blobs/", Fault(cut_after=1_000_000), times=2)
    fetch(client, repository, blob, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == data
    assert [served.status for served in registry.requests] == [200, 206, 206]
    assert sum(served.sent for served in registry.requests) == SIZE


def test_a_later_call_goes_on_where_an_earlier_one_broke(
    registry: Registry, client: RegistryClient, repository: Repository, blob: Blob, data: bytes, tmp_path: Path
) -> None:
    (tmp_path / "model.part").write_bytes(data[:2_000_000])
    fetch(client, repository, blob, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == data
    assert registry.requests[0].status == 206
    assert registry.requests[0].sent == SIZE - 2_000_000


@pytest.mark.parametrize("left", [b"z" * 1000, b"z" * (SIZE + 5)], ids=["wrong bytes", "too many bytes"])
def test_a_wrong_part_is_dropped_and_fetched_anew(
    left: bytes, registry: Registry, client: RegistryClient, repository: Repository, blob: Blob, data: bytes, tmp_path: Path
) -> None:
    (tmp_path / "model.part").write_bytes(left)
    fetch(client, repository, blob, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == data


def test_a_registry_without_ranges_starts_again(
    registry: Registry, client: RegistryClient, repository: Repository, blob: Blob, data: bytes, tmp_path: Path
) -> None:
    registry.ranges = False
    registry.fault = only("/blobs/", Fault(cut_after=1_000_000), times=1)
    fetch(client, repository, blob, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == data
    assert [served.status for served in registry.requests] == [200, 200]


def test_a_wrong_range_is_not_believed(
    registry: Registry, client: RegistryClient, repository: Repository, blob: Blob, data: bytes, tmp_path: Path
) -> None:
    (tmp_path / "model.part").write_bytes(data[:1_000_000])
    registry.fault = only("/blobs/", Fault(headers={"Content-Range": f"bytes 7-{SIZE - 1}/{SIZE}"}), times=1)
    fetch(client, repository, blob, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == data
    assert [served.status for served in registry.requests] == [206, 200]


def test_a_trickle_ends(registry: Registry, repository: Repository, blob: Blob, tmp_path: Path) -> None:
    ticks = iter(range(0, 1_000_000, 40))
    watchdog = Watchdog(min_bytes=SIZE, window=30, clock=lambda: float(next(ticks)))
    patience = Patience(read=5, attempts=1, sleep=Waits(), watchdog=watchdog)
    with RegistryClient(patience=patience) as client, pytest.raises(Stalled, match="at least"):
        fetch(client, repository, blob, tmp_path / "model")
    assert not (tmp_path / "model").exists()


class CountedHash:
    """SHA-256 that adds what it takes in to `taken`."""

    taken = 0

    def __init__(self, state: object | None = None) -> None:
        self._state: Any = state or hashlib.sha256()

    def update(self, data: bytes) -> None:
        CountedHash.taken += len(data)
        self._state.update(data)

    def copy(self) -> "CountedHash":
        return CountedHash(self._state.copy())

    def hexdigest(self) -> str:
        return str(self._state.hexdigest())


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> type[CountedHash]:
    """How many bytes fetch hashes."""
    counting = SimpleNamespace(sha256=CountedHash)
    monkeypatch.setattr("edgefleet.oci.fetch.hashlib", counting)
    monkeypatch.setattr("edgefleet.oci.hashes.hashlib", counting)
    CountedHash.taken = 0
    return CountedHash


def test_fifty_cuts_cost_no_byte_twice(
    registry: Registry, client: RegistryClient, repository: Repository, hashed: type[CountedHash], tmp_path: Path
) -> None:
    data = os.urandom(51 * 300_000)
    blob = Blob(registry.content.put_blob(PATH, data), len(data))
    registry.fault = only("/blobs/", Fault(cut_after=300_000), times=50)
    fetch(client, repository, blob, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == data
    assert [served.status for served in registry.requests] == [200] + [206] * 50
    assert sum(served.sent for served in registry.requests) == len(data)
    assert hashed.taken == len(data)


def test_calls_of_one_process_hash_nothing_twice(
    registry: Registry, client: RegistryClient, repository: Repository, blob: Blob, data: bytes, hashed: type[CountedHash], tmp_path: Path
) -> None:
    registry.fault = only("/blobs/", Fault(cut_after=200_000), times=14)
    hashes, calls = Hashes(), 0
    while not (tmp_path / "model").exists():
        calls += 1
        with suppress(Unreachable):
            fetch(client, repository, blob, tmp_path / "model", hashes=hashes)
    assert calls == 5
    fetch(client, repository, blob, tmp_path / "model", hashes=hashes)
    assert (tmp_path / "model").read_bytes() == data
    assert sum(served.sent for served in registry.requests) == SIZE
    assert hashed.taken == SIZE


@pytest.mark.parametrize("name", ["model", "model.part"])
def test_what_changed_since_is_hashed_again(
    name: str, registry: Registry, client: RegistryClient, repository: Repository, blob: Blob, data: bytes, tmp_path: Path
) -> None:
    hashes = Hashes()
    registry.fault = only("/blobs/", Fault(cut_after=200_000))
    with suppress(Unreachable):
        fetch(client, repository, blob, tmp_path / "model", hashes=hashes)
    registry.fault = None
    if name == "model":
        fetch(client, repository, blob, tmp_path / "model", hashes=hashes)
    spoilt = bytearray((tmp_path / name).read_bytes())
    spoilt[1000] ^= 1
    (tmp_path / name).write_bytes(spoilt)
    fetch(client, repository, blob, tmp_path / "model", hashes=hashes)
    assert (tmp_path / "model").read_bytes() == data


def test_a_disk_that_fails_in_the_middle_is_heard(
    registry: Registry, client: RegistryClient, repository: Repository, blob: Blob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr("edgefleet.oci.fetch.UNSYNCED_BYTES", 500_000)
    monkeypatch.setattr("os.fdatasync", fail)
    with pytest.raises(OSError, match="the disk is broken"):
        fetch(client, repository, blob, tmp_path / "model")
    assert not (tmp_path / "model").exists()


# Patience


def test_429_is_waited_for_as_told(
    registry: Registry, client: RegistryClient, repository: Repository, blob: Blob, waits: Waits, tmp_path: Path
) -> None:
    registry.fault = only("/blobs/", Fault(status=429, headers={"Retry-After": "7"}), times=2)
    fetch(client, repository, blob, tmp_path / "model")
    assert waits.seconds == [7, 7]


def test_a_longer_wait_is_the_callers(registry: Registry, client: RegistryClient, repository: Repository, waits: Waits) -> None:
    registry.fault = only("/manifests/", Fault(status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(RateLimited) as raised:
        client.resolve(Reference(repository, tag="v1"))
    assert raised.value.retry_after == 3600
    assert not waits.seconds


def test_waits_are_jittered_and_capped(registry: Registry, repository: Repository, waits: Waits) -> None:
    registry.fault = only("/manifests/", Fault(status=503))
    patience = Patience(attempts=8, backoff=1, max_backoff=4, sleep=waits)
    with RegistryClient(patience=patience) as client, pytest.raises(Unreachable):
        client.resolve(Reference(repository, tag="v1"))
    assert len(waits.seconds) == 7
    assert all(0 <= wait <= bound for wait, bound in zip(waits.seconds, [1, 2, 4, 4, 4, 4, 4], strict=True))
    assert len(set(waits.seconds)) == 7


def test_nobody_listening_is_unreachable(client: RegistryClient) -> None:
    with Registry() as gone:
        host = gone.host
    with pytest.raises(Unreachable):
        client.resolve(Reference.parse(f"{host}/{PATH}:v1"))


def test_a_stalled_registry_takes_no_longer_than_told(registry: Registry, repository: Repository) -> None:
    registry.fault = lambda _: Fault(stall=30)
    started = time.monotonic()
    with RegistryClient(patience=Patience(read=0.3, attempts=2, sleep=Waits())) as client, pytest.raises(Stalled):
        client.resolve(Reference(repository, tag="v1"))
    assert time.monotonic() - started < 5


# Manifests


def test_a_manifest_that_is_not_what_its_digest_says_is_refused(registry: Registry, client: RegistryClient, repository: Repository) -> None:
    digest = registry.content.put_manifest(PATH, b'{"schemaVersion":2}', media.MANIFEST, tag="v1")
    assert client.resolve(Reference(repository, tag="v1")) == digest
    registry.content.swap_blob(digest, b'{"schemaVersion":2,"evil":1}')
    with pytest.raises(DigestMismatch):
        client.fetch_manifest(repository, digest)


def test_a_tag_without_digest_header_is_hashed(registry: Registry, client: RegistryClient, repository: Repository) -> None:
    digest = registry.content.put_manifest(PATH, b'{"schemaVersion":2}', media.MANIFEST, tag="v1")
    registry.fault = only("/manifests/", Fault(headers={"Docker-Content-Digest": "sha256:nonsense"}))
    assert client.resolve(Reference(repository, tag="v1")) == digest


def test_an_endless_manifest_is_not_read_to_its_end(registry: Registry, client: RegistryClient, repository: Repository) -> None:
    digest = registry.content.put_manifest(PATH, b" " * (5 << 20), media.MANIFEST)
    with pytest.raises(TooLarge):
        client.fetch_manifest(repository, digest)


def test_small_blobs_are_checked_and_capped(registry: Registry, client: RegistryClient, repository: Repository) -> None:
    digest = registry.content.put_blob(PATH, b"hello")
    assert client.fetch_small_blob(repository, digest, 5, 100) == b"hello"
    for size, limit, error in ((5, 4, SizeMismatch), (4, 100, TooLarge), (6, 100, SizeMismatch)):
        with pytest.raises(error):
            client.fetch_small_blob(repository, digest, size, limit)
    registry.corrupt_blob(digest)
    with pytest.raises(DigestMismatch):
        client.fetch_small_blob(repository, digest, 5, 100)


# Tokens and redirects


PASSWORD = TokenAuth().password


def logged_in(host: str, password: str = PASSWORD) -> RegistryClient:
    return RegistryClient(credentials={host: Credentials("user", password)}, patience=Patience(read=2, attempts=2, sleep=Waits()))


def test_each_repository_has_its_own_token_and_an_expired_one_is_renewed_once() -> None:
    auth = TokenAuth()
    with Registry(auth=auth) as registry, logged_in(registry.host) as client:
        digests = {path: registry.content.put_manifest(path, b'{"schemaVersion":2}', media.MANIFEST) for path in ("a/one", "b/two")}
        repositories = {path: Repository.parse(f"{registry.host}/{path}") for path in digests}
        for _ in range(3):
            for path, digest in digests.items():
                client.fetch_manifest(repositories[path], digest)
        assert auth.issued == 2
        auth.expire_all()
        for path, digest in digests.items():
            client.fetch_manifest(repositories[path], digest)
        assert auth.issued == 4
        push_blob(client, repositories["a/one"], b"data", digest_of(b"data"))
        assert auth.issued == 5


@pytest.mark.parametrize("password", ["wrong", None], ids=["wrong password", "no login"])
def test_a_login_that_does_not_suffice_is_unauthorised_at_once(password: str | None) -> None:
    with Registry(auth=TokenAuth()) as registry:
        client = logged_in(registry.host, password) if password else RegistryClient(patience=Patience(sleep=Waits()))
        with client, pytest.raises(Unauthorised) as raised:
            client.resolve(Reference.parse(f"{registry.host}/{PATH}:v1"))
        assert "wrong" not in str(raised.value)
        assert len(registry.requests) == 2


def test_a_token_that_never_suffices_is_not_asked_for_for_ever(registry: Registry, repository: Repository) -> None:
    challenge = {"WWW-Authenticate": f'Bearer realm="{registry.url}/token",service="x"'}

    def hook(request: Request) -> Fault:
        return Fault(status=200, body=b'{"token":"abc"}') if "/token" in request.path else Fault(status=401, headers=challenge)

    registry.fault = hook
    with RegistryClient(patience=Patience(sleep=Waits())) as client, pytest.raises(Unauthorised):
        client.resolve(Reference(repository, tag="v1"))
    assert len(registry.requests) == 3


@pytest.mark.parametrize(
    "challenge",
    ['Bearer realm="https://[x"', "", "Negotiate", 'Bearer realm="http://registry.example/token"', 'Bearer service="x"', "Basic"],
)
def test_a_challenge_that_we_do_not_follow_is_unauthorised_or_refused(
    challenge: str, registry: Registry, client: RegistryClient, repository: Repository
) -> None:
    registry.fault = lambda _: Fault(status=401, headers={"WWW-Authenticate": challenge})
    with pytest.raises((Unauthorised, RegistryRefused)):
        client.resolve(Reference(repository, tag="v1"))
    assert len(registry.requests) == 1


def test_a_redirect_to_another_host_is_followed_without_the_token(data: bytes, tmp_path: Path) -> None:
    seen: list[Request] = []
    with Registry(auth=TokenAuth()) as registry, Registry() as store, logged_in(registry.host) as client:
        blob = Blob(registry.content.put_blob(PATH, data), len(data))
        store.content.put_blob(PATH, data)
        there = f"{store.url}/v2/{PATH}/blobs/{blob.digest}?signature=s3cret"
        store.fault = lambda request: seen.append(request)

        def hook(request: Request) -> Fault | None:
            if "/blobs/" in request.path and "authorization" in request.headers:
                return Fault(status=307, headers={"Location": there})
            return None

        registry.fault = hook
        fetch(client, Repository.parse(f"{registry.host}/{PATH}"), blob, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == data
    assert len(seen) == 1
    assert "authorization" not in seen[0].headers
    assert seen[0].headers["accept-encoding"] == "identity"


def test_a_redirect_within_the_registry_keeps_the_token() -> None:
    with Registry(auth=TokenAuth()) as registry, logged_in(registry.host) as client:
        digest = registry.content.put_manifest(PATH, b'{"schemaVersion":2}', media.MANIFEST, tag="v2")
        there = f"/v2/{PATH}/manifests/v2"
        registry.fault = only("/manifests/v1", Fault(status=301, headers={"Location": there}))
        assert client.resolve(Reference.parse(f"{registry.host}/{PATH}:v1")) == digest


@pytest.mark.parametrize(
    "target",
    ["http://registry.example/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "https://[x", "https://registry.example:99999/?key=s3cret"],
)
def test_a_redirect_away_from_https_is_not_followed(
    target: str, registry: Registry, client: RegistryClient, repository: Repository, blob: Blob, tmp_path: Path
) -> None:
    registry.fault = only("/blobs/", Fault(status=302, headers={"Location": target}))
    with pytest.raises(RegistryRefused) as raised:
        fetch(client, repository, blob, tmp_path / "model")
    assert "s3cret" not in str(raised.value)
    assert len(registry.requests) == 1


def test_the_body_of_a_redirect_is_not_read(
    registry: Registry, client: RegistryClient, repository: Repository, blob: Blob, tmp_path: Path
) -> None:
    there = f"{registry.url}/v2/{PATH}/blobs/{blob.digest}?there"

    def hook(request: Request) -> Fault | None:
        endless = Fault(status=307, headers={"Location": there}, body=b"x" * 1000, stall=30, stall_after=10)
        return None if "there" in request.path else endless

    registry.fault = hook
    fetch(client, repository, blob, tmp_path / "model")
    assert len(registry.requests) == 2


def test_redirects_end(registry: Registry, client: RegistryClient, repository: Repository) -> None:
    registry.fault = lambda request: Fault(status=302, headers={"Location": request.path})
    with pytest.raises(RegistryRefused, match="redirects"):
        client.resolve(Reference(repository, tag="v1"))
    assert len(registry.requests) <= 6


# Pushing and finding


def model_of(tmp_path: Path) -> list[VariantFiles]:
    (tmp_path / "fp32.onnx").write_bytes(b"w" * 1000)
    (tmp_path / "int8.onnx").write_bytes(b"w" * 250)
    (tmp_path / "empty.json").write_bytes(b"")
    nothing = "sha256:" + "0" * 64
    fp32 = Variant(name="fp32", digest=nothing, size=0, arch="amd64", precision="fp32")
    int8 = Variant(
        name="int8", digest=nothing, size=0, arch="arm64", accelerator="nvidia", features=("a", "b"), min_memory=1 << 20, priority=7
    )
    return [
        VariantFiles(fp32, {"model.onnx": tmp_path / "fp32.onnx"}),
        VariantFiles(int8, {"model.onnx": tmp_path / "int8.onnx", "conf/empty.json": tmp_path / "empty.json"}),
    ]


def test_what_is_pushed_is_what_is_read_back(client: RegistryClient, repository: Repository, tmp_path: Path) -> None:
    variants = model_of(tmp_path)
    digest = push_model(client, repository, name="digits", version="1", variants=variants)
    index = fetch_index(client, repository, digest)
    pairs = zip(index.variants, variants, strict=True)
    unplaced = [found.model_copy(update={"digest": given.facts.digest, "size": 0}) for found, given in pairs]
    assert unplaced == [given.facts for given in variants]
    assert [found.size for found in index.variants] == [1000, 250]
    files = fetch_variant(client, repository, digest, index.variants[1].digest)
    for layer in files.layers:
        fetch(client, repository, layer.blob, tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == variants[1].files[layer.path].read_bytes()


def test_pushing_again_writes_no_blob_and_gives_the_same_digest(
    registry: Registry, client: RegistryClient, repository: Repository, tmp_path: Path
) -> None:
    variants = model_of(tmp_path)
    first = push_model(client, repository, name="digits", version="1", variants=variants)
    uploads = registry.count("POST")
    assert push_model(client, repository, name="digits", version="1", variants=variants) == first
    assert registry.count("POST") == uploads


def test_a_tag_names_a_release_only_when_told(client: RegistryClient, repository: Repository, tmp_path: Path) -> None:
    digest = push_model(client, repository, name="digits", version="1", variants=model_of(tmp_path))
    with pytest.raises(NotFound):
        client.resolve(Reference(repository, tag="v1"))
    tag_manifest(client, repository, digest, "v1")
    assert client.resolve(Reference(repository, tag="v1")) == digest


def test_a_broken_upload_is_tried_again_with_all_bytes(
    registry: Registry, client: RegistryClient, repository: Repository, tmp_path: Path
) -> None:
    registry.fault = lambda request: Fault(status=503) if request.method == "PUT" and registry.count("PUT") < 1 else None
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(500_000))
    digest = digest_of(file.read_bytes())
    push_blob(client, repository, file, digest)
    assert registry.blobs[digest] == file.read_bytes()
    assert registry.count("PUT") == 2


@pytest.mark.parametrize("referrers", [True, False], ids=["referrers API", "fallback tag"])
def test_attached_bundles_are_found(
    referrers: bool, registry: Registry, client: RegistryClient, repository: Repository, tmp_path: Path
) -> None:
    registry.referrers = referrers
    registry.page = 2
    digest = push_model(client, repository, name="digits", version="1", variants=model_of(tmp_path))
    assert fetch_bundles(client, repository, digest).candidates == ()
    wanted = [b"bundle %d" % number for number in range(5)]
    for bundle in wanted:
        attach_bundle(client, repository, digest, bundle, "https://predicate.example/v1")
        attach_bundle(client, repository, digest, bundle, "https://predicate.example/v1")
    found = fetch_bundles(client, repository, digest)
    assert sorted(found.bundles) == sorted(wanted)
    assert found.problems == ()
    assert (client.fetch_tagged(repository, fallback_tag(digest)) is None) == referrers


def test_a_next_page_that_is_no_address_does_not_end_the_search(
    registry: Registry, client: RegistryClient, repository: Repository, tmp_path: Path
) -> None:
    digest = push_model(client, repository, name="digits", version="1", variants=model_of(tmp_path))
    attach_bundle(client, repository, digest, b"good", "p")
    registry.fault = only("/referrers/", Fault(headers={"Link": '<https://[x>; rel="next"'}))
    found = fetch_bundles(client, repository, digest)
    assert found.bundles == (b"good",)
    assert "no address" in found.problems[0]


def test_what_a_registry_lists_is_opened_and_not_believed(
    registry: Registry, client: RegistryClient, repository: Repository, tmp_path: Path
) -> None:
    registry.referrers = False
    digest = push_model(client, repository, name="digits", version="1", variants=model_of(tmp_path))
    other = push_golden(client, repository, GOLDEN_LINE)
    good = attach_bundle(client, repository, digest, b"good", "p")
    foreign = attach_bundle(client, repository, other, b"foreign", "p")
    spoilt = attach_bundle(client, repository, digest, b"spoilt", "p")
    registry.corrupt_blob(digest_of(b"spoilt"))
    missing = "sha256:" + "5" * 64
    # cosign's Debian build lists bundles under a wrong artifactType: nothing may be filtered by it.
    listed = [
        {"mediaType": media.MANIFEST, "digest": each, "size": 1, "artifactType": media.EMPTY}
        for each in (missing, foreign, spoilt, good, good)
    ]
    push_index(registry, fallback_tag(digest), listed)
    found = fetch_bundles(client, repository, digest)
    assert found.bundles == (b"good",)
    assert len(found.problems) == 3
    assert any("subject" in problem for problem in found.problems)


def test_no_more_than_64_referrers_are_opened(registry: Registry, client: RegistryClient, repository: Repository, tmp_path: Path) -> None:
    registry.referrers = False
    digest = push_model(client, repository, name="digits", version="1", variants=model_of(tmp_path))
    listed = [{"mediaType": media.MANIFEST, "digest": f"sha256:{number:064x}", "size": 1} for number in range(100)]
    push_index(registry, fallback_tag(digest), listed)
    before = registry.count("GET", "/manifests/sha256:")
    found = fetch_bundles(client, repository, digest)
    assert registry.count("GET", "/manifests/sha256:") - before == MAX_REFERRERS
    assert "only the first 64" in found.problems[-1]


def test_a_registry_that_cannot_be_asked_is_not_an_unsigned_model(
    registry: Registry, client: RegistryClient, repository: Repository, tmp_path: Path
) -> None:
    digest = push_model(client, repository, name="digits", version="1", variants=model_of(tmp_path))
    attach_bundle(client, repository, digest, b"good", "p")
    for part in ("/referrers/", "/blobs/"):
        registry.fault = only(part, Fault(status=503))
        with pytest.raises(Unreachable):
            fetch_bundles(client, repository, digest)


def test_a_golden_set_is_read_back(client: RegistryClient, repository: Repository) -> None:
    digest = push_golden(client, repository, GOLDEN_LINE * 3)
    lines = fetch_golden(client, repository, digest)
    assert [(line.output, line.label) for line in lines] == [("y", 3)] * 3
    assert lines[0].inputs[0]["data"] == [1, 2.5]
    with pytest.raises(MalformedManifest, match="artifactType"):
        fetch_golden(client, repository, push_other_manifest(client, repository))


def push_index(registry: Registry, tag: str, listed: list[dict[str, object]]) -> None:
    """Has the registry list these under a tag, unchecked."""
    document = {"schemaVersion": 2, "mediaType": media.INDEX, "manifests": listed}
    registry.content.put_manifest(PATH, json.dumps(document).encode(), media.INDEX, tag=tag)


def push_other_manifest(client: RegistryClient, repository: Repository) -> str:
    return attach_bundle(client, repository, push_golden(client, repository, GOLDEN_LINE), b"x", "p")
