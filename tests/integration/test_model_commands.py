"""`edgefleet model` and `edgefleet golden` against a registry: from files to a signed release, and back to files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefleet.cli.app import run
from tests.lab.registry import Registry
from tests.lab.registry_tokens import TokenAuth

Command = Callable[..., Any]
GOLDEN = '{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2.5]}],"expect":{"output":"y","label":3}}\n'


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with keys (`t`, and a stranger's `s`), two model files and an exam; the commands run in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    assert run(["trust", "init", "t", "--model", "digits"]) == 0
    assert run(["trust", "init", "s", "--model", "digits"]) == 0
    Path("fp32.onnx").write_bytes(b"w" * 1000)
    Path("int8.onnx").write_bytes(b"w" * 300)
    Path("exam.jsonl").write_text(GOLDEN)
    return tmp_path


@pytest.fixture
def told(desk: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line that must end with `code`; what it printed as JSON, or its stderr if it failed."""

    def call(line: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert run(line.split()) == code, capsys.readouterr().err
        out, err = capsys.readouterr()
        return err if code else json.loads(out) if "-o json" in line else out

    return call


def push_line(host: str, more: str = "--key t/publisher.key -o json", seq: int = 1) -> str:
    variants = "--variant name=fp32,arch=amd64,file=fp32.onnx --variant name=int8,arch=amd64,features=vnni,priority=5,file=int8.onnx"
    return f"model push {host}/vision/digits:v1 --name digits --version v1 --seq {seq} {variants} {more}"


def test_from_files_to_a_signed_release_and_back(registry: Registry, told: Command, desk: Path) -> None:
    pushed = told(push_line(registry.host))
    ref = f"{registry.host}/vision/digits:v1"
    verified = told(f"model verify {ref} --key t/publisher.pub -o json")
    assert verified == {
        "verified": True,
        "digest": pushed["digest"],
        "model": "digits",
        "version": "v1",
        "seq": 1,
        "createdAt": verified["createdAt"],
        "signedBy": [pushed["signedBy"]],
    }
    seen = told(f"model inspect {ref} -o json")
    assert [(found["name"], found["size"]) for found in seen["variants"]] == [("fp32", 1000), ("int8", 300)]
    assert [claim["namesKey"] for claim in seen["attached"]] == [pushed["signedBy"]] * 2
    told(f"model pull {ref} --variant int8 --to out/int8 --key t/publisher.pub")
    assert Path("out/int8/int8.onnx").read_bytes() == Path("int8.onnx").read_bytes()


@pytest.mark.parametrize("referrers", [True, False], ids=["referrers API", "fallback tag"])
def test_pushing_again_changes_nothing(referrers: bool, registry: Registry, told: Command) -> None:
    registry.referrers = referrers
    first = told(push_line(registry.host))
    held = (set(registry.blobs), set(registry.content.manifests["vision/digits"]))
    assert told(push_line(registry.host)) == first
    assert (set(registry.blobs), set(registry.content.manifests["vision/digits"])) == held


def test_a_new_sequence_is_attested_anew(registry: Registry, told: Command) -> None:
    told(push_line(registry.host))
    told(push_line(registry.host, seq=2))
    assert told(f"model verify {registry.host}/vision/digits:v1 --key t/publisher.pub --min-seq 2 -o json")["seq"] == 2


def test_what_is_not_to_be_believed_is_neither_verified_nor_pulled(registry: Registry, told: Command) -> None:
    ref = f"{registry.host}/vision/digits:v1"
    told(push_line(registry.host, "--no-sign"))
    assert "SignatureMissing" in told(f"model verify {ref} --key t/publisher.pub", 1)
    told(push_line(registry.host, "--key s/publisher.key"))
    for line, reason in (
        (f"model verify {ref} --key t/publisher.pub", "SignatureInvalid"),
        (f"model pull {ref} --variant fp32 --to out --key t/publisher.pub", "SignatureInvalid"),
        (f"model verify {ref} --key s/publisher.pub --name weld-qc", "ModelMismatch"),
        (f"model verify {ref} --key s/publisher.pub --min-seq 2", "SeqTooLow"),
        (f"model verify {ref} --key s/publisher.pub --key t/publisher.pub --threshold 2", "ThresholdNotMet"),
        (f"model verify {registry.host}/vision/digits:v9 --key t/publisher.pub", "NotFound"),
        (f"model pull {ref} --variant gpu --to out --key s/publisher.pub", "NoVariant"),
    ):
        assert reason in told(line, 1)
    assert not Path("out").exists()


def test_a_flipped_byte_is_not_pulled(registry: Registry, told: Command) -> None:
    told(push_line(registry.host))
    weights = next(digest for digest, data in registry.blobs.items() if data == Path("fp32.onnx").read_bytes())
    registry.corrupt_blob(weights)
    said = told(f"model pull {registry.host}/vision/digits:v1 --variant fp32 --to out --key t/publisher.pub", 1)
    assert "DigestMismatch" in said
    assert not list(Path("out").iterdir())


def test_a_golden_set_is_pushed_and_verified_like_a_model(registry: Registry, told: Command) -> None:
    ref = f"{registry.host}/vision/digits-golden:1"
    line = f"golden push {ref} exam.jsonl --name digits --key t/publisher.key -o json"
    pushed = told(line)
    assert pushed["lines"] == 1
    held = set(registry.content.manifests["vision/digits-golden"])
    assert told(line) == pushed
    assert set(registry.content.manifests["vision/digits-golden"]) == held
    assert told(f"golden verify {ref} --name digits --key t/publisher.pub -o json")["digest"] == pushed["digest"]
    assert "ModelMismatch" in told(f"golden verify {ref} --name weld-qc --key t/publisher.pub", 1)
    assert "SignatureInvalid" in told(f"golden verify {ref} --name digits --key s/publisher.pub", 1)


def test_a_bad_golden_set_is_not_pushed(registry: Registry, told: Command) -> None:
    Path("exam.jsonl").write_text(GOLDEN + GOLDEN.replace("FP32", "FP8"))
    said = told(f"golden push {registry.host}/vision/digits-golden:1 exam.jsonl --name digits --key t/publisher.key", 1)
    assert "line 2" in said
    assert not registry.requests


def test_logins_of_docker_are_used(told: Command, desk: Path) -> None:
    with Registry(auth=TokenAuth()) as registry:
        assert "Unauthorised" in told(push_line(registry.host), 1)
        (desk / "docker").mkdir()
        login = {"auths": {registry.host: {"username": "user", "password": TokenAuth().password}}}
        (desk / "docker" / "config.json").write_text(json.dumps(login))
        told(push_line(registry.host))
        told(f"model verify {registry.host}/vision/digits:v1 --key t/publisher.pub")


def test_tables_fit_80_columns(registry: Registry, told: Command) -> None:
    told(push_line(registry.host))
    for line in ("model verify REF --key t/publisher.pub", "model inspect REF"):
        out = told(line.replace("REF", f"{registry.host}/vision/digits:v1"))
        assert max(len(row.rstrip()) for row in out.splitlines()) <= 80, out
