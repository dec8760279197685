"""`edgefleet model` and `edgefleet golden` against a registry: from files to a signed release, and back to files."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edgefleet.cli.app import run
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.push import attach_bundle
from edgefleet.oci.reference import Repository
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.release import RELEASE_PREDICATE, SIGN_PREDICATE, ReleaseFacts, attest_release, sign_digest
from tests.lab.registry import Registry
from tests.lab.registry_tokens import TokenAuth
from tests.lab.sigstore.private import PrivateSigstore

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
        "signers": [{"signer": pushed["signedBy"]}],
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


def test_other_files_under_a_sequence_that_is_taken_are_warned_of(
    registry: Registry, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warned = []
    for weights, seq in ((b"1", 2), (b"2", 2), (b"2", 2), (b"3", 1), (b"4", 3)):
        (desk / "int8.onnx").write_bytes(weights)
        capsys.readouterr()
        assert run(push_line(registry.host, seq=seq).split()) == 0
        warned.append("a new release needs a higher --seq" in capsys.readouterr().err)
    assert warned == [False, True, False, True, False], "the first is new, the third is the second again"


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


def variants_of(told: Command, ref: str) -> dict[str, str]:
    return {one["name"]: one["digest"] for one in told(f"model inspect {ref} -o json")["variants"]}


def test_a_second_publisher_signs_what_the_first_attested(registry: Registry, told: Command) -> None:
    ref = f"{registry.host}/vision/digits:v1"
    pushed = told(push_line(registry.host, seq=4))
    both = f"model verify {ref} --key t/publisher.pub --key s/publisher.pub --threshold 2 -o json"
    assert "ThresholdNotMet" in told(both, 1)
    # Whom nobody named is not asked what this release is.
    assert "SignatureInvalid" in told(f"model sign {ref} --key s/publisher.key --signer s/publisher.pub", 1)
    held = len(registry.content.manifests["vision/digits"])
    signed = told(f"model sign {ref} --key s/publisher.key --signer t/publisher.pub -o json")
    assert (signed["version"], signed["seq"], signed["digest"]) == ("v1", 4, pushed["digest"])
    found = told(both)
    assert {one["signer"] for one in found["signers"]} == {pushed["signedBy"], signed["signedBy"]}
    assert len(registry.content.manifests["vision/digits"]) == held + 2
    told(f"model sign {ref} --key s/publisher.key --version v1 --seq 4")
    assert len(registry.content.manifests["vision/digits"]) == held + 2
    attached = told(f"model inspect {ref} -o json")["attached"]
    said = [one["predicate"] for one in attached if one["predicateType"].endswith("/release/v1")]
    assert [one["variants"] for one in said] == [variants_of(told, ref)] * 2


@pytest.mark.parametrize("more", ["--version v2 --seq 1", "--version v1 --seq 2", "--version v1 --seq 1 --name other"])
def test_what_contradicts_an_attestation_is_not_signed_unless_told(more: str, registry: Registry, told: Command) -> None:
    ref = f"{registry.host}/vision/digits:v1"
    told(push_line(registry.host))
    held = len(registry.content.manifests["vision/digits"])
    assert "AttestationContradicted" in told(f"model sign {ref} --key s/publisher.key {more}", 1)
    assert len(registry.content.manifests["vision/digits"]) == held
    told(f"model sign {ref} --key s/publisher.key {more} --contradict")
    assert len(registry.content.manifests["vision/digits"]) == held + 2


def test_whom_a_trust_bundle_names_is_believed(registry: Registry, told: Command) -> None:
    ref = f"{registry.host}/vision/digits:v1"
    told(push_line(registry.host))
    trust = "--bundle t/bundle.json --root t/root.json"
    assert told(f"model verify {ref} {trust} -o json")["seq"] == 1
    told(f"model pull {ref} --variant fp32 --to out {trust}")
    # A person may ask for more than a bundle does, and never for less.
    told("trust add-publisher t --model digits --key s/publisher.pub --threshold 2 --min-seq 1")
    for line, reason in (
        (f"model verify {ref} {trust} --threshold 1", "ThresholdNotMet"),
        (f"model verify {ref} {trust} --name weld-qc", "TrustNotAtSite"),
        (f"model verify {ref} --bundle t/bundle.json --root s/root.json", "BundleRootMismatch"),
        (f"model verify {ref} --bundle nowhere.json --root t/root.json", "TrustMissing"),
    ):
        assert reason in told(line, 1)
    told(f"model sign {ref} --key s/publisher.key {trust}")
    assert told(f"model verify {ref} {trust} -o json")["verified"]
    assert "SeqTooLow" in told(f"model verify {ref} {trust} --min-seq 2", 1)
    assert "PredicateMissing" in told(f"model verify {ref} {trust} --require-predicate https://slsa.dev/provenance/v1", 1)


def test_who_signed_without_a_key_is_named_with_issuer_time_and_log(registry: Registry, told: Command, desk: Path) -> None:
    ref, sigstore = f"{registry.host}/vision/digits:v1", PrivateSigstore()
    (desk / "sigstore.json").write_text(json.dumps(sigstore.trusted_root()))
    digest = told(push_line(registry.host, "--no-sign -o json"))["digest"]
    predicate = {
        "model": "digits",
        "version": "v1",
        "releaseSeq": 1,
        "createdAt": "2026-01-02T03:04:05Z",
        "variants": variants_of(told, ref),
    }
    who: dict[str, Any] = {"subject": "release@acme.test", "issuer": "https://token.test", "rekor": 2, "stamped": True}
    with RegistryClient() as client:
        for kind, said in ((SIGN_PREDICATE, {}), (RELEASE_PREDICATE, predicate)):
            attach_bundle(
                client, Repository.parse(f"{registry.host}/vision/digits"), digest, sigstore.sign(kind, digest, said, **who), kind
            )
    trust = "--issuer https://token.test --sigstore-root sigstore.json"
    (signer,) = told(f"model verify {ref} --identity release@acme.test {trust} -o json")["signers"]
    assert (signer["signer"], signer["issuer"]) == ("release@acme.test", "https://token.test")
    assert set(signer) == {"signer", "issuer", "loggedAt", "log"}
    page = told(f"model verify {ref} --identity-regex .*@acme[.]test {trust}")
    for label, value in (
        ("signer", "release@acme.test"),
        ("issuer", "https://token.test"),
        ("logged", signer["loggedAt"]),
        ("log", signer["log"]),
    ):
        assert any(line.split() == [label, value] for line in page.splitlines()), page
    assert "IdentityMismatch" in told(f"model verify {ref} --identity other@acme.test {trust}", 1)
    # What nobody has verified is shown as a claim.
    attached = told(f"model inspect {ref} -o json")["attached"]
    assert [(one["namesSubject"], one["namesIssuer"]) for one in attached] == [("release@acme.test", "https://token.test")] * 2
    assert "not verified" in told(f"model inspect {ref}")


@pytest.mark.parametrize("wrong", [{"fp32": "sha256:" + "0" * 64}, {"fp32": "", "int8": "", "more": "sha256:" + "0" * 64}])
def test_a_release_whose_variants_are_attested_otherwise_is_refused(wrong: dict[str, str], registry: Registry, told: Command) -> None:
    """Whoever built it meant another index than the one that was signed, such as one with a variant that was swapped."""
    ref = f"{registry.host}/vision/digits:v1"
    digest = told(push_line(registry.host, "--no-sign -o json"))["digest"]
    key, found = PrivateKey.from_pem(Path("t/publisher.key").read_bytes()), variants_of(told, ref)
    variants = {name: value or found[name] for name, value in wrong.items()}
    facts = ReleaseFacts(model="digits", version="v1", release_seq=1, created_at=datetime.now(UTC), variants=variants)
    with RegistryClient() as client:
        for bundle in (sign_digest(key, digest), attest_release(key, digest, facts)):
            attach_bundle(client, Repository.parse(f"{registry.host}/vision/digits"), digest, bundle, "any")
    for line in (f"model verify {ref}", f"model pull {ref} --variant fp32 --to out", f"model export {ref} --to out"):
        assert "VariantMismatch" in told(f"{line} --key t/publisher.pub", 1)
    assert "VariantMismatch" in told(f"model sign {ref} --key s/publisher.key --signer t/publisher.pub", 1)
    assert not Path("out").exists()


def test_a_refusal_is_told_as_json_too(registry: Registry, told: Command, capsys: pytest.CaptureFixture[str]) -> None:
    pushed = told(push_line(registry.host, "--key s/publisher.key -o json"))
    assert run(f"model verify {registry.host}/vision/digits:v1 --key t/publisher.pub -o json".split()) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["verified"], found["digest"], found["reason"]) == (False, pushed["digest"], "SignatureInvalid")
    assert "candidates 1, 2: not signed by a trusted key" in found["message"]


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--key t/publisher.pub --bundle t/bundle.json --root t/root.json",
        "--bundle t/bundle.json",
        "--root t/root.json",
        "--identity a@b",
        "--issuer https://issuer.example",
        "--identity a@b --issuer https://issuer.example",
    ],
)
def test_whom_to_trust_is_said_in_one_way_and_wholly(options: str, told: Command, registry: Registry) -> None:
    for line in (
        "model verify REF",
        "model pull REF --variant fp32 --to out",
        "golden verify REF --name digits",
        "model export REF --to out",
    ):
        told(f"{line.replace('REF', f'{registry.host}/vision/digits:v1')} {options}", 2)
    assert not registry.requests


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
