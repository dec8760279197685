"""`edgefleet site verify`: what a site runs, seen again from the evidence that it kept; with a registry, and without clusters.

That it may run beside an agent is in test_scrub.py.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.assignment import FrozenRevision, Order
from edgefleet.api.model import Serving
from edgefleet.cli.app import run
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.index import fetch_index
from edgefleet.oci.reference import Reference, Repository
from edgefleet.site.inbox import Inbox
from edgefleet.site.prefetch import Prefetcher
from edgefleet.site.registries import Access
from edgefleet.site.state import StateFile
from edgefleet.site.store import RevisionRecord, Store
from edgefleet.trust.bundle import TrustBundle, open_bundle
from tests.lab.registry import Registry

Verify = Callable[..., Any]
FLEET = "vision/plants"


@dataclass
class Desk:
    """A person's folder with `trust/` and `site/`, the agent's state; and the registry that the site has pulled from."""

    folder: Path
    registry: Registry
    records: list[RevisionRecord]

    @property
    def state(self) -> Path:
        return self.folder / "site"

    def blob(self, record: RevisionRecord, name: str) -> Path:
        """A file of a revision, in the store."""
        part = next(part for part in (*record.files, record.index) if part.name == name)
        return self.state / "store" / "blobs" / part.digest.removeprefix("sha256:")

    def trust(self) -> TrustBundle:
        """The bundle as it is now in the person's folder, and from now on at the site."""
        data = (self.folder / "trust" / "bundle.json").read_bytes()
        (self.state / "bundle.json").write_bytes(data)
        return open_bundle(data, pinned_root=(self.folder / "trust" / "root.json").read_bytes(), floor_version=0, now=datetime.now(UTC))

    def pull(self, version: str, seq: int) -> None:
        """Push a release, and bring it to the site's store on its own way."""
        (self.folder / "model.onnx").write_bytes(f"weights {version}".encode())
        line = f"model push {self.registry.host}/digits:{version} --name digits --version {version} --seq {seq}"
        assert run(f"{line} --variant name=cpu,arch=amd64,file=model.onnx --key trust/publisher.key".split()) == 0
        repository = Repository.parse(f"{self.registry.host}/digits")
        with RegistryClient() as client:
            digest = client.resolve(Reference(repository, tag=version))
            variant = fetch_index(client, repository, digest).variants[0]
        release = {"model": "digits", "repository": str(repository), "digest": digest, "version": version, "seq": seq}
        revision = FrozenRevision.model_validate(
            {**release, "hash": digest.removeprefix("sha256:"), "variant": variant, "serving": Serving(repository={})}
        )
        now = datetime.now(UTC)
        told: dict[str, Any] = {"site": "plant-7", "fleet": FLEET, "sequence": seq, "action": "Run", "model": "digits"}
        order = Order.model_validate({**told, "revision": revision, "issued_at": now, "expires_at": now + timedelta(days=14)})
        prefetcher = Prefetcher(Store(self.state / "store"), Inbox(self.state / "inbox"))
        self.records.append(prefetcher.run(order, self.trust(), access=Access(), protected=tuple, now=now, stop=threading.Event()))


@pytest.fixture
def desk(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A site that runs 1.1, and ran 1.0 before. Nothing of it needs the registry any more."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    (tmp_path / "site").mkdir()
    assert run(["trust", "init", "trust", "--model", "digits"]) == 0
    made = Desk(tmp_path, registry, [])
    for version, seq in (("1.0", 1), ("1.1", 2)):
        made.pull(version, seq)
    first, second = made.records
    state = StateFile.open(made.state / "state.json", site="plant-7")
    state.raise_bundle_version(1, 1)
    state.change_fleet(FLEET, active=second.revision.hash, previous=first.revision.hash, model="digits", floor=2, served_sequence=2)
    registry.stop()
    return made


@pytest.fixture
def verify(desk: Desk, capsys: pytest.CaptureFixture[str]) -> Verify:
    """The command's JSON and its stderr."""

    def call(code: int, root: str = "trust/root.json") -> tuple[Any, str]:
        capsys.readouterr()
        assert run(f"site verify --state site --root {root} -o json".split()) == code, capsys.readouterr().err
        out, err = capsys.readouterr()
        return json.loads(out) if out else None, err

    return call


def test_what_a_site_runs_is_verified_and_named_without_a_network(desk: Desk, verify: Verify, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in desk.state.rglob("*") if path.is_file()}
    found, _ = verify(0)
    assert (found["site"], found["verified"], found["bundleVersion"], found["bundleEnded"]) == ("plant-7", True, 1, False)
    publisher = desk.trust().publishers["digits"].keys[0].id
    assert [
        (one["role"], one["version"], one["seq"], one["signers"], one["digest"] == record.revision.digest)
        for one, record in zip(found["revisions"], reversed(desk.records), strict=True)
    ] == [("serves", "1.1", 2, [{"signer": publisher}], True), ("served before", "1.0", 1, [{"signer": publisher}], True)]
    assert run(["site", "verify", "--state", "site", "--root", "trust/root.json"]) == 0
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= 80, page
    assert {path: path.read_bytes() for path in desk.state.rglob("*") if path.is_file()} == before


def test_a_flipped_byte_is_named_and_left_as_it_is(desk: Desk, verify: Verify) -> None:
    first, second = desk.records
    for record, name in ((first, "model.onnx"), (second, "")):
        path = desk.blob(record, name)
        whole = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(whole[:-1] + b"!")
        found, said = verify(1)
        wrong = [one for one in found["revisions"] if not one["verified"]]
        assert [(one["version"], one["reason"]) for one in wrong] == [(record.revision.version, "StoreDamaged")]
        assert (name or "evidence") in wrong[0]["message"]
        assert FLEET in said
        assert path.read_bytes() == whole[:-1] + b"!"
        path.write_bytes(whole)
    verify(0)


def rewrite(desk: Desk, record: RevisionRecord) -> None:
    """Whoever has a site's disk may write a record as they like."""
    path = desk.state / "store" / "revisions" / f"{record.revision.hash}.json"
    path.write_text(record.model_dump_json(by_alias=True, exclude_none=True))


def test_a_record_that_says_something_else_than_was_signed_is_not_believed(desk: Desk, verify: Verify) -> None:
    store = Store(desk.state / "store")
    record, other = desk.records[1], desk.records[0]
    evil = store.put(b"weights of nobody", "model.onnx")
    revision = record.revision
    for forged, reason in (
        (record.model_copy(update={"files": (evil,)}), "EvidenceMismatch"),
        (record.model_copy(update={"files": ()}), "EvidenceMismatch"),
        (record.model_copy(update={"index": other.index}), "EvidenceMismatch"),
        (record.model_copy(update={"bundles": ()}), "SignatureMissing"),
        (record.model_copy(update={"bundles": other.bundles}), "SignatureInvalid"),
        (record.model_copy(update={"revision": revision.model_copy(update={"seq": 9})}), "ReleaseMismatch"),
        (
            record.model_copy(
                update={"revision": revision.model_copy(update={"variant": revision.variant.model_copy(update={"arch": "arm64"})})}
            ),
            "VariantMismatch",
        ),
    ):
        rewrite(desk, forged)
        found, _ = verify(1)
        assert [one["reason"] for one in found["revisions"] if not one["verified"]] == [reason]
    (desk.state / "store" / "revisions" / f"{revision.hash}.json").unlink()
    found, _ = verify(1)
    assert found["revisions"][0]["reason"] == "StoreDamaged"
    rewrite(desk, record)
    verify(0)


def test_it_is_the_trust_in_force_that_counts(desk: Desk, verify: Verify) -> None:
    assert run(["trust", "init", "other", "--model", "digits"]) == 0
    assert "BundleRootMismatch" in verify(1, root="other/root.json")[1]
    digest = desk.records[1].revision.digest
    assert run(["trust", "revoke", "trust", "--digest", digest]) == 0
    desk.trust()
    found, _ = verify(1)
    assert [(one["version"], one.get("reason")) for one in found["revisions"]] == [("1.1", "Revoked"), ("1.0", None)]
    assert found["bundleVersion"] == 2
    # An older bundle, put back by whoever has the disk.
    state = StateFile.open(desk.state / "state.json", site="plant-7")
    state.raise_bundle_version(3, 1)
    assert "BundleRollback" in verify(1)[1]


def test_what_is_not_there_is_said(desk: Desk, verify: Verify) -> None:
    (desk.state / "bundle.json").unlink()
    assert "TrustMissing" in verify(1)[1]
    (desk.state / "state.json").write_text("{")
    assert "StateUnreadable" in verify(1)[1]
    (desk.state / "state.json").unlink()
    assert "StateMissing" in verify(1)[1]
