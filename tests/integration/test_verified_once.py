"""The hub verifies once per digest, policy and trusted root: a pass that finds nothing new costs the registry one question.

Under a new root it looks again at what it had verified, and a registry cannot make it disown that.
"""

import base64
import json
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.model import Variant
from edgefleet.hub import models
from edgefleet.hub.registries import Registries
from edgefleet.kube.errors import NotFound
from edgefleet.kube.resources import CONFIG_MAPS, EDGE_MODELS, SECRETS
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.push import VariantFiles, attach_bundle, push_model, tag_manifest
from edgefleet.oci.reference import Repository
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.release import RELEASE_PREDICATE, SIGN_PREDICATE
from tests.lab.registry import Fault, Registry
from tests.lab.registry_content import Content
from tests.lab.sigstore.private import PrivateSigstore

KEY = ("vision", "weld")
ISSUER, SUBJECT = "https://token.test", "https://github.com/acme/weld/release"
POLICY = {"keyless": {"identities": [{"issuer": ISSUER, "subject": SUBJECT}], "trustedRootRef": "sigstore"}}


class FakeApi:
    """An API server with one model, as far as models.py asks it."""

    def __init__(self, repository: Repository, sigstore: PrivateSigstore) -> None:
        self.model: dict[str, Any] = {
            "metadata": {"name": KEY[1], "namespace": KEY[0], "generation": 1},
            "spec": {
                "source": {"repository": str(repository), "tag": "latest"},
                "verify": POLICY,
                "serving": [{"match": {"arch": "amd64"}, "repository": {}}],
            },
        }
        self.root = {"trusted_root.json": json.dumps(sigstore.trusted_root()), "version": "1"}
        self.keys: dict[str, str] = {}

    async def get(self, kind: object, name: str, namespace: str) -> dict[str, Any]:
        """The model, or what it names."""
        found: dict[Any, dict[str, Any]] = {EDGE_MODELS: self.model, CONFIG_MAPS: {"data": self.root}, SECRETS: {"data": self.keys}}
        if kind not in found:
            raise NotFound(404, name)
        return json.loads(json.dumps(found[kind]))  # type: ignore[no-any-return]

    async def apply(self, kind: object, body: dict[str, Any], **_: Any) -> None:
        """The hub's status."""
        self.model["status"] = body["status"]


class FakeEvents:
    """Nobody listens."""

    async def tell(self, *_: object) -> None:
        """Forget."""


def release(folder: Path, client: RegistryClient, repository: Repository, sigstore: PrivateSigstore, seq: int, **more: Any) -> None:
    """Pushed, signed and attested by the identity, and named by the tag."""
    folder.mkdir()
    (folder / "weights").write_text(str(seq))
    variant = VariantFiles(Variant(name="cpu", digest="sha256:" + "0" * 64, size=0, arch="amd64"), {"weights": folder / "weights"})
    digest = push_model(client, repository, name="weld", version=str(seq), variants=[variant])
    facts = {"model": "weld", "version": str(seq), "releaseSeq": seq, "createdAt": "2026-01-02T03:04:05Z", **more}
    for kind, predicate in ((SIGN_PREDICATE, {}), (RELEASE_PREDICATE, facts)):
        attach_bundle(client, repository, digest, sigstore.sign(kind, digest, predicate, subject=SUBJECT, issuer=ISSUER), kind)
    tag_manifest(client, repository, digest, "latest")


async def test_once_per_digest_policy_and_root(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verified = []
    really = models.verify_release

    def counted(**arguments: Any) -> Any:
        verified.append(arguments["digest"])
        return really(**arguments)

    monkeypatch.setattr(models, "verify_release", counted)
    sigstore, repository = PrivateSigstore(), Repository.parse(f"{registry.host}/vision/weld")
    api: Any = FakeApi(repository, sigstore)
    events: Any = FakeEvents()

    def source() -> dict[str, str]:
        conditions: dict[str, dict[str, str]] = {one["type"]: one for one in api.model["status"]["conditions"]}
        return conditions["SourceVerified"]

    async def passes(times: int) -> int:
        """How often was verified in so many passes, each of which found the source in order."""
        before = len(verified)
        for _ in range(times):
            await hub.reconcile(KEY)
            assert source()["reason"] == "Verified", source()
        return len(verified) - before

    with RegistryClient() as client, Registries(api) as registries:
        hub = models.Models(api, registries, events)
        release(tmp_path / "1", client, repository, sigstore, 1)
        assert await passes(1) == 1
        asked = len(registry.requests)
        assert await passes(5) == 0
        assert len(registry.requests) - asked == 5, "one question a pass: what the tag names"
        release(tmp_path / "2", client, repository, sigstore, 2)
        assert await passes(3) == 1, "another digest"
        api.model["spec"]["verify"] = POLICY | {"minReleaseSeq": 2}
        assert await passes(3) == 1, "another policy"
        api.root["trusted_root.json"] += "\n"
        assert await passes(3) == 1, "another root"
        api.root["version"] = "2"
        assert await passes(3) == 1, "another version of the root"
        api.root["version"] = "1"
        await hub.reconcile(KEY)
        assert source()["reason"] == "TrustedRootRollback", "who was removed from the root would come back"
        api.root["version"] = "2"
        api.keys["a.pub"] = base64.b64encode(PrivateKey.generate().public.to_pem().encode()).decode()
        api.model["spec"]["verify"] = api.model["spec"]["verify"] | {"keys": {"secretRef": "publishers"}}
        assert await passes(3) == 1, "a key beside the identity"
        api.keys["a.pub"] = base64.b64encode(PrivateKey.generate().public.to_pem().encode()).decode()
        assert await passes(3) == 1, "another key in the same Secret"
        api.model["spec"]["verify"]["revoked"] = {"identities": [{"issuer": ISSUER, "subject": SUBJECT}]}
        await hub.reconcile(KEY)
        assert "PublisherRevoked" in source()["message"], "what was verified before hides no revocation"


async def test_variants_that_are_attested_otherwise_are_refused_at_the_hub(registry: Registry, tmp_path: Path) -> None:
    sigstore, repository = PrivateSigstore(), Repository.parse(f"{registry.host}/vision/weld")
    api: Any = FakeApi(repository, sigstore)
    events: Any = FakeEvents()
    with RegistryClient() as client, Registries(api) as registries:
        release(tmp_path / "1", client, repository, sigstore, 1, variants={"cpu": "sha256:" + "0" * 64})
        await models.Models(api, registries, events).reconcile(KEY)
    (source,) = [one for one in api.model["status"]["conditions"] if one["type"] == "SourceVerified"]
    assert (source["status"], source["reason"]) == ("False", "VariantMismatch")
    assert "release" not in api.model["status"]


@dataclass
class Withdrawn:
    """A release that was verified under version 1 of a root, whose version 2 has other authorities. `hub` passes over the model."""

    api: Any
    hub: models.Models
    registry: Registry
    client: RegistryClient
    repository: Repository
    registries: Registries

    @property
    def digest(self) -> str:
        """The release's."""
        return str(self.api.model["status"]["release"]["digest"])

    async def disowned(self) -> tuple[str, str]:
        """After another pass: why it was refused, and what TrustWithdrawn says."""
        await self.hub.reconcile(KEY)
        said = {one["type"]: one for one in self.api.model["status"]["conditions"]}
        return said["SourceVerified"]["reason"], said.get("TrustWithdrawn", {}).get("message", "")

    def shows(self, show: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
        """The registry lists this of the referrers that it has."""
        really = Content.list_referrers
        self.registry.content.list_referrers = (  # type: ignore[method-assign]
            lambda repository, digest, kind: show(really(self.registry.content, repository, digest, kind))
        )


@pytest.fixture
async def withdrawn(registry: Registry, tmp_path: Path) -> AsyncIterator[Withdrawn]:
    sigstore, repository = PrivateSigstore(), Repository.parse(f"{registry.host}/vision/weld")
    api: Any = FakeApi(repository, sigstore)
    events: Any = FakeEvents()
    with RegistryClient() as client, Registries(api) as registries:
        made = Withdrawn(api, models.Models(api, registries, events), registry, client, repository, registries)
        release(tmp_path / "1", client, repository, sigstore, 1)
        assert await made.disowned() == ("Verified", "")
        others = PrivateSigstore().trusted_root()["certificateAuthorities"]
        api.root = {"trusted_root.json": json.dumps(sigstore.trusted_root() | {"certificateAuthorities": others}), "version": "2"}
        yield made


async def test_a_root_without_its_authority_disowns_a_release_also_after_a_restart(withdrawn: Withdrawn) -> None:
    events: Any = FakeEvents()
    for hub in (withdrawn.hub, models.Models(withdrawn.api, withdrawn.registries, events)):
        withdrawn.hub = hub
        reason, said = await withdrawn.disowned()
        assert reason == "SignatureInvalid"
        assert "CertificateInvalid" in said


async def test_another_root_that_still_has_its_authority_disowns_nothing(withdrawn: Withdrawn, tmp_path: Path) -> None:
    """What the source names now is refused; that says nothing of what was verified before."""
    api, sigstore = withdrawn.api, PrivateSigstore()
    api.root = {"trusted_root.json": json.dumps(sigstore.trusted_root()), "version": "3"}
    release(tmp_path / "2", withdrawn.client, withdrawn.repository, sigstore, 2)
    assert await withdrawn.disowned() == ("Verified", "")
    api.root["version"] = "4"
    release(tmp_path / "3", withdrawn.client, withdrawn.repository, PrivateSigstore(), 3)
    assert await withdrawn.disowned() == ("SignatureInvalid", "")


async def test_the_last_key_that_leaves_its_secret_disowns_what_it_signed(withdrawn: Withdrawn) -> None:
    """A Secret that is not there at all may have been lost: that disowns nothing."""
    api, key = withdrawn.api, PrivateKey.generate()
    api.keys = {"a.pub": base64.b64encode(key.public.to_pem().encode()).decode()}
    api.model["spec"]["verify"] = {"keys": {"secretRef": "publishers"}}
    held = api.model["status"]["release"]
    held |= {"signedBy": [key.public.id]}
    for name in ("identities", "trustedRoot"):
        held.pop(name)
    really = api.get

    async def lost(kind: object, name: str, namespace: str) -> dict[str, Any]:
        if kind == SECRETS:
            raise NotFound(404, name)
        return await really(kind, name, namespace)  # type: ignore[no-any-return]

    api.get = lost
    assert await withdrawn.disowned() == ("KeysNotFound", "")
    api.get, api.keys = really, {"README": ""}
    reason, said = await withdrawn.disowned()
    assert reason == "KeysNotFound"
    assert said.startswith("PublisherRemoved: ")


async def test_what_takes_long_is_not_done_on_the_loop(withdrawn: Withdrawn, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    for name in ("find_disowned", "find_refused", "Identity"):
        really = getattr(models, name)

        def noted(*args: Any, really: Any = really, name: str = name) -> Any:
            asked.append((name, threading.current_thread() is threading.main_thread()))
            return really(*args)

        monkeypatch.setattr(models, name, noted)
    withdrawn.api.model["spec"]["verify"] = POLICY | {"revoked": {"identities": [{"issuer": ISSUER, "subjectRegex": "x"}]}}
    assert (await withdrawn.disowned())[0] == "SignatureInvalid"
    assert sorted(asked) == [("Identity", False), ("Identity", False), ("find_disowned", False), ("find_refused", False)]


def attach(withdrawn: Withdrawn, kind: str, facts: dict[str, Any], stranger: PrivateSigstore) -> None:
    bundle = stranger.sign(kind, withdrawn.digest, facts, subject=SUBJECT, issuer=ISSUER)
    attach_bundle(withdrawn.client, withdrawn.repository, withdrawn.digest, bundle, kind)


def strangers(withdrawn: Withdrawn) -> None:
    """Hides what vouches for the release, and shows who only calls himself so."""
    attach(withdrawn, SIGN_PREDICATE, {}, PrivateSigstore())
    withdrawn.shows(lambda listed: listed[2:])


HOSTILITIES: dict[str, tuple[Callable[[Withdrawn], None], str]] = {
    "is away": (lambda it: setattr(it.registry, "fault", lambda _: Fault(status=503)), "Verified"),
    "hides all signatures": (lambda it: it.shows(lambda _: []), "SignatureMissing"),
    "hides the attestation": (lambda it: it.shows(lambda listed: listed[:1]), "SignatureInvalid"),
    "hides the signature": (lambda it: it.shows(lambda listed: listed[1:]), "SignatureInvalid"),
    "shows a stranger's instead": (strangers, "SignatureInvalid"),
    "lists what it does not have": (
        lambda it: it.shows(lambda listed: [one | {"digest": "sha256:" + "0" * 64} for one in listed]),
        "SignatureInvalid",
    ),
    "spoils one": (lambda it: it.registry.corrupt_blob(bundle_blobs(it)[0]), "SignatureInvalid"),
}


def bundle_blobs(withdrawn: Withdrawn) -> list[str]:
    """The digests of the release's bundles."""
    content, path = withdrawn.registry.content, withdrawn.repository.path
    listed = content.list_referrers(path, withdrawn.digest, None)
    return [str(content.find_manifest(path, one["digest"]).parsed["layers"][0]["digest"]) for one in listed]


@pytest.mark.parametrize("name", HOSTILITIES)
async def test_no_registry_can_have_a_release_disowned(withdrawn: Withdrawn, name: str) -> None:
    """Though its authority is gone: whoever ends runs must show what was believed, and that it is not any more."""
    spoil, reason = HOSTILITIES[name]
    spoil(withdrawn)
    for _ in range(2):
        assert await withdrawn.disowned() == (reason, "")
