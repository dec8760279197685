"""Real cosign 3 against the registries of the lab, keyed and off line."""

import hashlib
import json
from pathlib import Path

import pytest
import requests

from tests.lab import LabError
from tests.lab.cosign import Cosign
from tests.lab.docker_registry import DockerRegistry
from tests.lab.registry import Registry
from tests.lab.registry_content import OCI_INDEX

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


@pytest.fixture
def signer(cosign: Path, tmp_path: Path) -> Cosign:
    return Cosign.make(cosign, tmp_path / "cosign")


def _push(host: str, repository: str) -> str:
    """Pushes an empty artifact; its reference by digest."""
    with requests.Session() as session:
        session.trust_env = False
        config = b"{}"
        descriptor = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": _digest(config), "size": len(config)}
        place = session.post(f"http://{host}/v2/{repository}/blobs/uploads/", timeout=10).headers["Location"]
        place = place if place.startswith("http") else f"http://{host}{place}"
        assert session.put(place, params={"digest": _digest(config)}, data=config, timeout=10).status_code == 201
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "text/x-model", "config": descriptor, "layers": []}
        data = json.dumps({**manifest, "layers": [descriptor]}).encode()
        url = f"http://{host}/v2/{repository}/manifests/v1"
        assert session.put(url, data=data, headers={"Content-Type": MANIFEST}, timeout=10).status_code == 201
    return f"{host}/{repository}@{_digest(data)}"


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _check(signer: Cosign, reference: str) -> None:
    mine, other = signer.make_key("mine"), signer.make_key("other")
    with pytest.raises(LabError, match=r"no signatures found|no matching"):
        signer.verify(reference, mine)
    signer.sign(reference, "mine")
    signer.verify(reference, mine)
    with pytest.raises(LabError):
        signer.verify(reference, other)


def test_signature_as_referrer(registry: Registry, signer: Cosign) -> None:
    reference = _push(registry.host, "team/model")
    _check(signer, reference)
    (bundle,) = registry.content.list_referrers("team/model", reference.partition("@")[2], None)
    assert bundle["artifactType"] == BUNDLE


def test_signature_under_the_fallback_tag(signer: Cosign) -> None:
    with Registry(referrers=False) as registry:
        reference = _push(registry.host, "team/model")
        _check(signer, reference)
        fallback = reference.partition("@")[2].replace(":", "-")
        assert registry.content.find_manifest("team/model", fallback).media_type == OCI_INDEX


def test_signature_in_the_real_docker_registry(docker_registry: DockerRegistry, signer: Cosign) -> None:
    _check(signer, _push(docker_registry.host, "lab/signed"))
