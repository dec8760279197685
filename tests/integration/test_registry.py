"""The in-process registry, seen through a plain HTTP client and through oras: what other tests build on."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import oras.client
import pytest
import requests

from tests.lab import pki
from tests.lab.registry import Fault, Registry, Request
from tests.lab.registry_content import OCI_INDEX
from tests.lab.registry_tokens import TokenAuth

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DATA = bytes(range(256)) * 40


@pytest.fixture
def client() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _manifest(registry: Registry, subject: str | None = None, kind: str = "text/x-model") -> bytes:
    config = registry.content.put_blob("team/model", b"{}")
    body: dict[str, object] = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "layers": []}
    body["config"] = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2}
    if subject:
        body["subject"] = {"mediaType": MANIFEST, "digest": subject, "size": 1}
    return json.dumps(body).encode()


@pytest.mark.parametrize("way", ["monolithic", "put", "chunked", "streamed"])
def test_push_a_blob(registry: Registry, client: requests.Session, way: str) -> None:
    uploads = f"{registry.url}/v2/team/model/blobs/uploads/"
    if way == "monolithic":
        done = client.post(uploads, params={"digest": _digest(DATA)}, data=DATA)
    else:
        place = registry.url + client.post(uploads).headers["Location"]
        half = len(DATA) // 2
        if way == "chunked":
            for start, part in ((0, DATA[:half]), (half, DATA[half:])):
                sent = client.patch(place, data=part, headers={"Content-Range": f"{start}-{start + len(part) - 1}"})
                assert sent.status_code == 202
        if way == "streamed":
            assert client.patch(place, data=iter([DATA[:100], DATA[100:]])).status_code == 202
        done = client.put(place, params={"digest": _digest(DATA)}, data=DATA if way == "put" else b"")
    assert done.status_code == 201
    assert registry.blobs[_digest(DATA)] == DATA
    assert client.get(f"{registry.url}/v2/team/model/blobs/{_digest(DATA)}").content == DATA


def test_push_refuses_lies(registry: Registry, client: requests.Session) -> None:
    uploads = f"{registry.url}/v2/team/model/blobs/uploads/"
    assert client.post(uploads, params={"digest": _digest(b"other")}, data=DATA).status_code == 400
    place = registry.url + client.post(uploads).headers["Location"]
    assert client.patch(place, data=DATA, headers={"Content-Range": "7-9"}).status_code == 416
    lacking = _manifest(registry).replace(_digest(b"{}").encode(), _digest(b"absent").encode())
    put = client.put(f"{registry.url}/v2/team/model/manifests/v1", data=lacking, headers={"Content-Type": MANIFEST})
    assert (put.status_code, put.json()["errors"][0]["code"]) == (404, "MANIFEST_BLOB_UNKNOWN")


def test_mount_needs_the_blob_at_its_source(registry: Registry, client: requests.Session) -> None:
    digest = registry.content.put_blob("team/a", DATA)
    uploads = f"{registry.url}/v2/team/b/blobs/uploads/"
    assert client.head(f"{registry.url}/v2/team/b/blobs/{digest}").status_code == 404
    assert client.post(uploads, params={"mount": digest, "from": "team/c"}).status_code == 202
    assert client.post(uploads, params={"mount": digest, "from": "team/a"}).status_code == 201
    assert client.head(f"{registry.url}/v2/team/b/blobs/{digest}").headers["Content-Length"] == str(len(DATA))


@pytest.mark.parametrize(
    ("asked", "status", "span"),
    [("bytes=0-9", 206, (0, 10)), ("bytes=10000-", 206, (10000, 10240)), ("bytes=-5", 206, (10235, 10240)), ("bytes=10240-", 416, (0, 0))],
)
def test_ranges(registry: Registry, client: requests.Session, asked: str, status: int, span: tuple[int, int]) -> None:
    digest = registry.content.put_blob("team/model", DATA)
    answer = client.get(f"{registry.url}/v2/team/model/blobs/{digest}", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (status, DATA[slice(*span)])
    shown = f"bytes {span[0]}-{span[1] - 1}/10240" if status == 206 else "bytes */10240"
    assert answer.headers["Content-Range"] == shown


def test_tags_and_referrers_come_in_pages(client: requests.Session) -> None:
    with Registry(page=2) as registry:
        base = f"{registry.url}/v2/team/model"
        subject = registry.content.put_manifest("team/model", _manifest(registry), MANIFEST, "v1")
        for kind in ("a/1", "a/2", "a/3"):
            data = _manifest(registry, subject, kind)
            put = client.put(f"{base}/manifests/{kind[-1]}", data=data, headers={"Content-Type": MANIFEST})
            assert put.headers["OCI-Subject"] == subject
        found, url = [], f"{base}/referrers/{subject}"
        while url:
            answer = client.get(url)
            assert answer.headers["Content-Type"] == OCI_INDEX
            found += [entry["artifactType"] for entry in answer.json()["manifests"]]
            url = registry.url + answer.links["next"]["url"] if "next" in answer.links else ""
        assert found == ["a/1", "a/2", "a/3"]
        one = client.get(f"{base}/referrers/{subject}", params={"artifactType": "a/2"})
        assert [entry["artifactType"] for entry in one.json()["manifests"]] == ["a/2"]
        assert one.headers["OCI-Filters-Applied"] == "artifactType"
        assert client.get(f"{base}/tags/list").json()["tags"] == ["1", "2"]


def test_referrers_can_be_switched_off(client: requests.Session) -> None:
    with Registry(referrers=False) as registry:
        subject = registry.content.put_manifest("team/model", _manifest(registry), MANIFEST)
        assert client.get(f"{registry.url}/v2/team/model/referrers/{subject}").status_code == 404


def test_tokens_are_for_a_scope_and_expire(client: requests.Session) -> None:
    auth = TokenAuth(username="ci", password="pw")
    with Registry(auth=auth) as registry:
        digest = registry.content.put_blob("team/model", DATA)
        url = f"{registry.url}/v2/team/model/blobs/{digest}"
        refused = client.get(url)
        assert refused.status_code == 401
        assert 'scope="repository:team/model:pull"' in refused.headers["WWW-Authenticate"]

        def login(scope: str, password: str) -> dict[str, str]:
            answer = client.get(f"{registry.url}/token", params={"scope": scope}, auth=("ci", password))
            return {"Authorization": f"Bearer {answer.json().get('token')}"}

        mine = login("repository:team/model:pull", "pw")
        assert client.get(url, headers=mine).content == DATA
        assert client.post(f"{registry.url}/v2/team/model/blobs/uploads/", headers=mine).status_code == 401
        assert client.get(url, headers=login("repository:team/other:pull", "pw")).status_code == 401
        assert client.get(url, headers=login("repository:team/model:pull", "wrong")).status_code == 401
        auth.expire_all()
        assert client.get(url, headers=mine).status_code == 401


def test_faults(registry: Registry, client: requests.Session) -> None:
    digest = registry.content.put_blob("team/model", DATA)
    url = f"{registry.url}/v2/team/model/blobs/{digest}"
    faults = iter(
        [
            Fault(status=429, headers={"Retry-After": "1"}),
            Fault(corrupt=True),
            Fault(extra=b"more"),
            Fault(body=b"swapped"),
            Fault(cut_after=100),
            Fault(close=True),
        ]
    )
    registry.fault = lambda request: next(faults) if request.method == "GET" else None
    busy = client.get(url)
    assert (busy.status_code, busy.headers["Retry-After"], busy.content) == (429, "1", b"")
    corrupt = client.get(url).content
    assert sum(a != b for a, b in zip(corrupt, DATA, strict=True)) == 1
    assert client.get(url).content == DATA + b"more"
    assert client.get(url).content == b"swapped"
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        client.get(url)
    with pytest.raises(requests.exceptions.ConnectionError):
        client.get(url)
    registry.fault = None
    assert client.get(url).content == DATA
    assert [(seen.status, seen.sent) for seen in registry.requests if seen.method == "GET"] == [
        (429, 0),
        (200, 10240),
        (200, 10244),
        (200, 7),
        (200, 100),
        (0, 0),
        (200, 10240),
    ]


def test_a_stall_ends_with_the_registry(client: requests.Session) -> None:
    with Registry() as registry:
        digest = registry.content.put_blob("team/model", DATA)
        registry.fault = lambda request: Fault(stall=3600, stall_after=100)
        with pytest.raises(requests.exceptions.ConnectionError, match="Read timed out"):
            client.get(f"{registry.url}/v2/team/model/blobs/{digest}", timeout=(5, 0.2))
        assert registry.requests[-1].sent == 100


def test_corruption_at_rest_is_undone(registry: Registry, client: requests.Session) -> None:
    digest = registry.content.put_blob("team/model", DATA)
    url = f"{registry.url}/v2/team/model/blobs/{digest}"
    registry.corrupt_blob(digest)
    assert _digest(client.get(url).content) != digest
    registry.restore(digest)
    assert client.get(url).content == DATA


def test_a_hook_sees_the_request(registry: Registry, client: requests.Session) -> None:
    seen: list[Request] = []
    registry.fault = lambda request: seen.append(request)
    client.get(f"{registry.url}/v2/?x=1", headers={"X-Probe": "yes"})
    assert (seen[0].method, seen[0].path, seen[0].headers["x-probe"]) == ("GET", "/v2/?x=1", "yes")


def test_tls(tmp_path: Path, client: requests.Session) -> None:
    authority = pki.Authority.make(tmp_path, "registry-ca")
    serving = authority.issue_server("registry")
    with Registry(tls=(serving.cert, serving.key)) as registry:
        assert client.get(f"{registry.url}/v2/", verify=str(authority.pair.cert)).status_code == 200
        with pytest.raises(requests.exceptions.SSLError):
            client.get(f"{registry.url}/v2/")


def test_oras_pushes_and_pulls(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(DATA)
    target = f"{registry.host}/team/model:v1"
    oras_client = oras.client.OrasClient(hostname=registry.host, insecure=True)
    oras_client.push(target, files=[f"{tmp_path / 'model.bin'}:text/x-weights"], disable_path_validation=True)
    (out,) = oras_client.pull(target, outdir=str(tmp_path / "out"))
    assert Path(out).read_bytes() == DATA
