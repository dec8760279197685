"""Signatures of real cosign 3 are believed by us, and ours by cosign: over the referrers API and over the fallback tag."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgefleet.api.model import Variant
from edgefleet.cli.artifacts import sign_release
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.push import VariantFiles, push_model
from edgefleet.oci.reference import Repository
from edgefleet.oci.referrers import fallback_tag, fetch_bundles
from edgefleet.oci.transport import Patience
from edgefleet.trust.errors import Rejected
from edgefleet.trust.keys import PrivateKey, PublicKey
from edgefleet.trust.publishers import Publisher
from edgefleet.trust.release import RELEASE_PREDICATE, VerifiedRelease, verify_release
from tests.lab import LabError
from tests.lab.cosign import Cosign
from tests.lab.docker_registry import DockerRegistry
from tests.lab.registry import Registry

MODEL = "digits"
PushModel = Callable[[Repository], str]


@pytest.fixture(scope="module")
def signer(cosign: Path, tmp_path_factory: pytest.TempPathFactory) -> Cosign:
    """cosign with one key pair, `publisher`, and a predicate file that states a release."""
    made = Cosign.make(cosign, tmp_path_factory.mktemp("cosign"))
    made.make_key("publisher")
    facts = {"model": MODEL, "version": "2.4", "releaseSeq": 7, "createdAt": "2026-01-02T03:04:05Z"}
    (made.folder / "release.json").write_text(json.dumps(facts))
    return made


@pytest.fixture
def client() -> Iterator[RegistryClient]:
    """A client that does not wait long."""
    with RegistryClient(patience=Patience(read=10, attempts=2)) as opened:
        yield opened


@pytest.fixture
def push(client: RegistryClient, tmp_path: Path) -> PushModel:
    """Pushes a small unsigned model to a repository; the digest of its index."""
    file = tmp_path / "model.onnx"
    file.write_bytes(b"weights")
    facts = Variant(name="fp32", digest="sha256:" + "0" * 64, size=0, arch="amd64")
    variants = [VariantFiles(facts, {"model.onnx": file})]
    return lambda repository: push_model(client, repository, name=MODEL, version="2.4", variants=variants)


def repository_of(server: Registry | DockerRegistry, path: str) -> Repository:
    return Repository.parse(f"{server.host}/{path}")


def verdict(client: RegistryClient, repository: Repository, digest: str, key: PublicKey) -> VerifiedRelease:
    """What hub and site do: find bundles, then believe them or not."""
    bundles = fetch_bundles(client, repository, digest).bundles
    return verify_release(digest=digest, model=MODEL, bundles=bundles, publisher=Publisher((key,)))


@pytest.mark.parametrize("kind", ["referrers API", "fallback tag", "docker-registry"])
def test_what_cosign_signs_and_attests_is_believed(
    kind: str, request: pytest.FixtureRequest, client: RegistryClient, push: PushModel, signer: Cosign
) -> None:
    server: Registry | DockerRegistry = request.getfixturevalue("docker_registry" if kind == "docker-registry" else "registry")
    if isinstance(server, Registry):
        server.referrers = kind == "referrers API"
    repository = repository_of(server, "cosign/signs")
    digest = push(repository)
    key = PublicKey.from_pem((signer.folder / "publisher.pub").read_bytes())

    signer.sign(f"{repository}@{digest}", "publisher")
    with pytest.raises(Rejected) as refused:
        verdict(client, repository, digest, key)
    assert refused.value.reason == "AttestationMissing"

    signer.attest(f"{repository}@{digest}", "publisher", RELEASE_PREDICATE, signer.folder / "release.json")
    found = verdict(client, repository, digest, key)
    assert (found.version, found.seq, found.signed_by) == ("2.4", 7, (key.id,))


def test_a_strangers_cosign_signature_is_refused(registry: Registry, client: RegistryClient, push: PushModel, signer: Cosign) -> None:
    repository = repository_of(registry, "cosign/stranger")
    digest = push(repository)
    signer.sign(f"{repository}@{digest}", "publisher")
    with pytest.raises(Rejected) as refused:
        verdict(client, repository, digest, PrivateKey.generate().public)
    assert refused.value.reason == "SignatureInvalid"


@pytest.mark.parametrize("referrers", [True, False], ids=["referrers API", "fallback tag"])
def test_cosign_verifies_what_we_sign(
    referrers: bool, registry: Registry, client: RegistryClient, push: PushModel, signer: Cosign, tmp_path: Path
) -> None:
    registry.referrers = referrers
    repository = repository_of(registry, "ours/signed")
    digest = push(repository)
    key = PrivateKey.generate()
    assert sign_release(client, repository, digest, key, model=MODEL, version="2.4", seq=7)
    public = tmp_path / "ours.pub"
    public.write_text(key.public.to_pem())

    said = json.loads(signer.verify(f"{repository}@{digest}", public))
    assert said[0]["critical"]["image"]["docker-manifest-digest"] == digest

    arguments = ["--key", str(public), "--trusted-root", "tr.json", "--insecure-ignore-tlog", "--allow-http-registry"]
    attested = signer.run("verify-attestation", *arguments, "--type", RELEASE_PREDICATE, f"{repository}@{digest}")
    statement = json.loads(base64.b64decode(json.loads(attested)["payload"]))
    assert (statement["predicateType"], statement["predicate"]["releaseSeq"]) == (RELEASE_PREDICATE, 7)

    with pytest.raises(LabError):
        signer.verify(f"{repository}@{digest}", signer.folder / "publisher.pub")


def test_ours_and_cosigns_stand_side_by_side_under_the_fallback_tag(
    registry: Registry, client: RegistryClient, push: PushModel, signer: Cosign
) -> None:
    registry.referrers = False
    repository = repository_of(registry, "both/signed")
    digest = push(repository)
    signer.sign(f"{repository}@{digest}", "publisher")
    ours = PrivateKey.generate()
    sign_release(client, repository, digest, ours, model=MODEL, version="2.4", seq=7)
    signer.attest(f"{repository}@{digest}", "publisher", RELEASE_PREDICATE, signer.folder / "release.json")

    listed = json.loads(client.fetch_tagged(repository, fallback_tag(digest)) or b"{}")["manifests"]
    assert len(listed) == 4
    theirs = PublicKey.from_pem((signer.folder / "publisher.pub").read_bytes())
    bundles = fetch_bundles(client, repository, digest).bundles
    found = verify_release(digest=digest, model=MODEL, bundles=bundles, publisher=Publisher((ours.public, theirs), 2, 7))
    assert set(found.signed_by) == {ours.public.id, theirs.id}
