"""`edgefleet model adopt`: what real cosign signed and another tool pushed becomes a release; what it did not sign does not."""

import json
from pathlib import Path

import pytest

from edgefleet.cli.app import run
from edgefleet.oci import media
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.push import push_blob, push_manifest
from edgefleet.oci.reference import Repository
from edgefleet.trust.keys import PrivateKey
from tests.lab.cosign import Cosign
from tests.lab.registry import Registry
from tests.lab.registry_content import digest_of


def push_alone(repository: Repository, *, artifact: str, layer: str, path_annotation: str, tag: str) -> str:
    """A single manifest with one file, as other tools push it."""
    weights = b"weights of another tool"
    with RegistryClient() as client:
        for data in (weights, media.EMPTY_BYTES):
            push_blob(client, repository, data, digest_of(data))
        manifest = {
            "schemaVersion": 2,
            "mediaType": media.MANIFEST,
            "artifactType": artifact,
            "config": {"mediaType": media.EMPTY, "digest": digest_of(media.EMPTY_BYTES), "size": 2},
            "layers": [
                {"mediaType": layer, "digest": digest_of(weights), "size": len(weights), "annotations": {path_annotation: "model.onnx"}}
            ],
        }
        return push_manifest(client, repository, json.dumps(manifest).encode(), media.MANIFEST, tag=tag)


@pytest.fixture(scope="module")
def signer(cosign: Path, tmp_path_factory: pytest.TempPathFactory) -> Cosign:
    made = Cosign.make(cosign, tmp_path_factory.mktemp("cosign"))
    made.make_key("theirs")
    return made


@pytest.mark.parametrize(
    ("artifact", "layer", "annotation"),
    [(media.MODEL, media.WEIGHT_LAYER, media.FILEPATH), ("application/x-model", "application/octet-stream", media.TITLE)],
    ids=["ModelPack", "oras"],
)
def test_a_signed_artifact_without_an_index_becomes_a_release(
    artifact: str,
    layer: str,
    annotation: str,
    registry: Registry,
    signer: Cosign,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    own = PrivateKey.generate()
    (tmp_path / "own.key").write_text(own.to_pem())
    (tmp_path / "own.pub").write_text(own.public.to_pem())
    repository = Repository.parse(f"{registry.host}/other/digits")
    digest = push_alone(repository, artifact=artifact, layer=layer, path_annotation=annotation, tag="raw")
    words = ["model", "adopt", f"{repository}:raw", "--to", f"{repository}:1.0", "--signer", str(signer.folder / "theirs.pub")]
    words += ["--key", str(tmp_path / "own.key"), "--name", "digits", "--version", "1.0", "--seq", "3", "--arch", "amd64"]
    words += ["--precision", "int8", "--feature", "vnni", "--min-memory", "512Mi", "-o", "json"]

    held = len(registry.content.manifests["other/digits"])
    assert run(words) == 1
    assert "SignatureMissing" in capsys.readouterr().err
    assert len(registry.content.manifests["other/digits"]) == held

    signer.sign(f"{repository}@{digest}", "theirs")
    stranger = [str(tmp_path / "own.pub") if word.endswith("theirs.pub") else word for word in words]
    assert run(stranger) == 1
    assert "SignatureInvalid" in capsys.readouterr().err

    assert run(words) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["adopted"] == digest
    assert run(words) == 0
    assert json.loads(capsys.readouterr().out) == first

    public = str(tmp_path / "own.pub")
    assert run(["model", "verify", f"{repository}:1.0", "--key", public, "--name", "digits", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["seq"] == 3
    assert run(["model", "inspect", f"{repository}:1.0", "-o", "json"]) == 0
    (variant,) = json.loads(capsys.readouterr().out)["variants"]
    assert (variant["arch"], variant["precision"], variant["features"], variant["minMemory"]) == ("amd64", "int8", ["vnni"], 512 << 20)
    assert (variant["digest"] == digest) == (artifact == media.MODEL)
    out = tmp_path / "out"
    assert run(["model", "pull", f"{repository}:1.0", "--variant", "default", "--to", str(out), "--key", public, "--name", "digits"]) == 0
    assert (out / "model.onnx").read_bytes() == b"weights of another tool"


def test_an_archive_is_refused_by_name(
    registry: Registry, signer: Cosign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    (tmp_path / "own.key").write_text(PrivateKey.generate().to_pem())
    repository = Repository.parse(f"{registry.host}/other/car")
    kind = "application/vnd.oci.image.layer.v1.tar+gzip"
    digest = push_alone(repository, artifact="", layer=kind, path_annotation=media.TITLE, tag="raw")
    signer.sign(f"{repository}@{digest}", "theirs")
    words = ["model", "adopt", f"{repository}:raw", "--to", f"{repository}:1", "--signer", str(signer.folder / "theirs.pub")]
    words += ["--key", str(tmp_path / "own.key"), "--name", "car", "--version", "1", "--seq", "1", "--arch", "amd64"]
    assert run(words) == 1
    said = capsys.readouterr().err
    assert "LayerUnsupported" in said
    assert kind in said
