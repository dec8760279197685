"""What makes a site believe a revision, and the images that serve it: each link of the chain, broken once."""

import json
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgefleet.api.assignment import FrozenRevision, Order
from edgefleet.api.model import Golden, Serving, Variant
from edgefleet.core.limits import Limits, LimitsByModel
from edgefleet.oci import media
from edgefleet.oci.client import RegistryClient, digest_of
from edgefleet.oci.errors import MalformedManifest, RegistryError
from edgefleet.oci.index import variant_annotations
from edgefleet.oci.manifest import ModelManifest
from edgefleet.oci.reference import Repository
from edgefleet.oci.transport import Patience
from edgefleet.site import prefetch as module
from edgefleet.site.faults import StepFailed
from edgefleet.site.inbox import Inbox
from edgefleet.site.prefetch import Evidence, Prefetcher, verify_evidence, verify_image
from edgefleet.site.registries import Access, Source
from edgefleet.site.store import RevisionRecord, Store
from edgefleet.trust.bundle import TrustBundle
from edgefleet.trust.errors import Rejected
from edgefleet.trust.identities import Identity, Keyless
from edgefleet.trust.keys import PrivateKey, PublicKey
from edgefleet.trust.limits import ImageSigner
from edgefleet.trust.publishers import Publisher, Revoked
from edgefleet.trust.release import RELEASE_PREDICATE, SIGN_PREDICATE, GoldenFacts, ReleaseFacts, attest_golden, attest_release, sign_digest
from edgefleet.trust.signatures import read_claim
from tests.lab.sigstore.private import PrivateSigstore
from tests.lab.sigstore.vectors import ISSUER, KINDS, SUBJECT

KEY, STRANGER = PrivateKey.generate(), PrivateKey.generate()
PUBLISHER = Publisher((KEY.public,), 1, 5)
NOW = datetime(2026, 11, 24, tzinfo=UTC)
FACTS = Variant(name="cpu", digest="sha256:" + "0" * 64, size=0, arch="amd64", features=("avx2",))


def document(media_type: str, **fields: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": media_type, **fields}).encode()


def layer(path: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media.WEIGHT_LAYER, "digest": digest_of(data), "size": len(data), "annotations": {media.FILEPATH: path}}


def release_bundles(digest: str, key: PrivateKey = KEY, **changes: Any) -> tuple[bytes, ...]:
    facts = ReleaseFacts(**{"model": "weld", "version": "1.0", "release_seq": 7, "created_at": NOW, **changes})
    return sign_digest(key, digest), attest_release(key, digest, facts)


def golden_bundles(digest: str, key: PrivateKey = KEY, model: str = "weld") -> tuple[bytes, ...]:
    return sign_digest(key, digest), attest_golden(key, digest, GoldenFacts(model=model, created_at=NOW))


MANIFEST = document(media.MANIFEST, artifactType=media.MODEL, layers=[layer("model.onnx", b"weights"), layer("model-settings.json", b"{}")])
ENTRY = {
    "mediaType": media.MANIFEST,
    "digest": digest_of(MANIFEST),
    "size": len(MANIFEST),
    "platform": {"os": "linux", "architecture": "amd64"},
    "annotations": variant_annotations(FACTS),
}
INDEX = document(media.INDEX, manifests=[ENTRY])
GOLDEN = document(
    media.MANIFEST, artifactType=media.GOLDEN, layers=[{"mediaType": media.GOLDEN_LINES, "digest": digest_of(b"x"), "size": 1}]
)
REVISION = FrozenRevision(
    hash="a" * 64,
    model="weld",
    repository="registry.example/vision/weld",
    digest=digest_of(INDEX),
    version="1.0",
    seq=7,
    variant=FACTS.model_copy(update={"digest": digest_of(MANIFEST), "size": 9}),
    serving=Serving(repository={}),
    golden=Golden(repository="registry.example/vision/golden", digest=digest_of(GOLDEN), min="90%"),
)
EVIDENCE = Evidence(INDEX, MANIFEST, release_bundles(digest_of(INDEX)), GOLDEN, golden_bundles(digest_of(GOLDEN)))


def order_of(revision: FrozenRevision) -> Order:
    return Order(
        site="plant-7",
        fleet="vision/plants",
        sequence=1,
        action="Run",
        model="weld",
        revision=revision,
        issued_at=NOW,
        expires_at=NOW + timedelta(days=14),
    )


class Asked(Exception):
    """Enough was seen."""


def test_what_is_protected_is_asked_only_when_room_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another fleet put into service while the registry took its time must not be evicted."""
    protected, seen = {"a"}, set[str]()
    prefetcher = Prefetcher(Store(tmp_path), Inbox(tmp_path / "inbox"))

    def believe(_: object) -> tuple[Evidence, ModelManifest]:
        protected.add("b")
        return EVIDENCE, verify_evidence(EVIDENCE, REVISION, PUBLISHER)

    def reserve(_: object, __: object, ___: object, *, protected: Collection[str], storage: object) -> None:
        seen.update(protected)
        raise Asked

    monkeypatch.setattr(prefetcher, "_believe", believe)
    monkeypatch.setattr(Store, "reserve", reserve)
    trust = TrustBundle({"weld": PUBLISHER}, (), version=1, expires_at=NOW)
    with pytest.raises(Asked):
        prefetcher.run(order_of(REVISION), trust, access=Access(), protected=lambda: protected, now=NOW, stop=threading.Event())
    assert seen == {"a", "b"}


def test_a_whole_chain_is_believed() -> None:
    manifest = verify_evidence(EVIDENCE, REVISION, PUBLISHER)
    assert [one.path for one in manifest.layers] == ["model.onnx", "model-settings.json"]
    named = release_bundles(REVISION.digest, variants={"cpu": REVISION.variant.digest})
    assert verify_evidence(replace(EVIDENCE, bundles=named), REVISION, PUBLISHER) == manifest
    without = REVISION.model_copy(update={"golden": None})
    assert verify_evidence(replace(EVIDENCE, golden_manifest=None, golden_bundles=()), without, PUBLISHER) == manifest


DIGEST = REVISION.digest


@pytest.mark.parametrize("digest", [digest_of(MANIFEST), digest_of(b"weights"), digest_of(b"{}"), digest_of(INDEX), digest_of(GOLDEN)])
def test_nothing_of_a_release_may_be_revoked(digest: str) -> None:
    """The variant and each file, too: one may be in several releases."""
    with pytest.raises(Rejected, match="Revoked") as caught:
        verify_evidence(EVIDENCE, REVISION, replace(PUBLISHER, revoked=Revoked(frozenset({digest}))))
    assert digest in caught.value.message
    assert verify_evidence(EVIDENCE, REVISION, replace(PUBLISHER, revoked=Revoked(frozenset({digest_of(b"another")}))))


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (replace(EVIDENCE, index=INDEX + b" "), "EvidenceMismatch"),
        (replace(EVIDENCE, manifest=MANIFEST + b" "), "EvidenceMismatch"),
        (replace(EVIDENCE, bundles=()), "SignatureMissing"),
        (replace(EVIDENCE, bundles=EVIDENCE.bundles[:1]), "AttestationMissing"),
        (replace(EVIDENCE, bundles=release_bundles(DIGEST, STRANGER)), "SignatureInvalid"),
        (replace(EVIDENCE, bundles=release_bundles(DIGEST, model="paint")), "ModelMismatch"),
        (replace(EVIDENCE, bundles=release_bundles(DIGEST, release_seq=4)), "SeqTooLow"),
        (replace(EVIDENCE, bundles=release_bundles(DIGEST, version="1.1")), "ReleaseMismatch"),
        (replace(EVIDENCE, bundles=release_bundles(DIGEST, release_seq=8)), "ReleaseMismatch"),
        (replace(EVIDENCE, bundles=release_bundles(DIGEST, variants={"cpu": digest_of(b"another build")})), "VariantMismatch"),
        (replace(EVIDENCE, bundles=(b"\x00not a bundle",)), "SignatureInvalid"),
        (replace(EVIDENCE, golden_manifest=None), "EvidenceMismatch"),
        (replace(EVIDENCE, golden_bundles=()), "SignatureMissing"),
        (replace(EVIDENCE, golden_bundles=golden_bundles(REVISION.golden.digest, model="paint")), "ModelMismatch"),  # type: ignore[union-attr]
        (replace(EVIDENCE, golden_bundles=golden_bundles(REVISION.golden.digest, STRANGER)), "SignatureInvalid"),  # type: ignore[union-attr]
    ],
)
def test_a_broken_link_is_named(evidence: Evidence, reason: str) -> None:
    with pytest.raises(Rejected) as caught:
        verify_evidence(evidence, REVISION, PUBLISHER)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "change",
    [{"name": "gpu"}, {"size": 10}, {"features": ()}, {"arch": "arm64"}, {"min_memory": 1}, {"accelerator": "nvidia"}],
)
def test_a_variant_that_the_order_describes_otherwise_than_the_index_is_refused(change: dict[str, Any]) -> None:
    revision = REVISION.model_copy(update={"variant": REVISION.variant.model_copy(update=change)})
    with pytest.raises(Rejected) as caught:
        verify_evidence(EVIDENCE, revision, PUBLISHER)
    assert caught.value.reason == "VariantMismatch"


def test_a_manifest_that_the_signed_index_does_not_name_is_refused() -> None:
    other = document(media.MANIFEST, artifactType=media.MODEL, layers=[layer("model.onnx", b"evil")])
    revision = REVISION.model_copy(update={"variant": REVISION.variant.model_copy(update={"digest": digest_of(other), "size": 4})})
    with pytest.raises(Rejected) as caught:
        verify_evidence(replace(EVIDENCE, manifest=other), revision, PUBLISHER)
    assert caught.value.reason == "VariantMismatch"


@pytest.mark.parametrize("spoil", [lambda data: b"{}", lambda data: data.replace(b"model.onnx", b"../../etc/x")])
def test_a_signed_manifest_that_cannot_be_read_is_a_content_error(spoil: Callable[[bytes], bytes]) -> None:
    bad = spoil(MANIFEST)
    index = document(media.INDEX, manifests=[{**ENTRY, "digest": digest_of(bad), "size": len(bad)}])
    revision = REVISION.model_copy(
        update={"digest": digest_of(index), "variant": REVISION.variant.model_copy(update={"digest": digest_of(bad)})}
    )
    with pytest.raises(RegistryError) as caught:
        verify_evidence(replace(EVIDENCE, index=index, manifest=bad, bundles=release_bundles(digest_of(index))), revision, PUBLISHER)
    assert isinstance(caught.value, MalformedManifest)


def test_the_lines_of_a_golden_set_may_be_revoked_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = replace(PUBLISHER, revoked=Revoked(frozenset({digest_of(b"x")})))
    prefetcher = Prefetcher(Store(tmp_path), Inbox(tmp_path / "inbox"))
    monkeypatch.setattr(prefetcher, "_believe", lambda _: (EVIDENCE, verify_evidence(EVIDENCE, REVISION, publisher)))
    trust = TrustBundle({"weld": publisher}, (), version=1, expires_at=NOW)
    with pytest.raises(Rejected, match="golden set's lines"):
        prefetcher.run(order_of(REVISION), trust, access=NoWay(), protected=frozenset, now=NOW, stop=threading.Event())


@pytest.mark.parametrize(("agrees", "digest"), [(True, digest_of(b"other")), (False, digest_of(b"other")), (True, DIGEST)])
def test_a_record_is_not_written_over_by_another_revision_of_its_hash(
    agrees: bool, digest: str, tmp_path: Path, place: Callable[..., RevisionRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another fleet's came first while this was fetched; a record that has changed on the disk is written anew."""
    store = Store(tmp_path)
    record = place(store, "a", b"weights")
    held = REVISION.model_copy(update={"digest": digest})
    store.complete(record.model_copy(update={"revision": held}))
    monkeypatch.setattr(Store, "agrees", lambda *_: agrees)
    monkeypatch.setattr(module, "fetch", lambda _, __, blob, target, **___: target.write_bytes(b"x"))
    prefetcher = Prefetcher(store, Inbox(tmp_path / "inbox"))
    monkeypatch.setattr(prefetcher, "_believe", lambda _: (EVIDENCE, verify_evidence(EVIDENCE, REVISION, PUBLISHER)))
    trust, taken = TrustBundle({"weld": PUBLISHER}, (), version=1, expires_at=NOW), agrees and digest != DIGEST
    with pytest.raises(StepFailed, match="HashMismatch") if taken else nullcontext():
        prefetcher.run(order_of(REVISION), trust, access=NoWay(), protected=frozenset, now=NOW, stop=threading.Event())
    found = store.find(REVISION.hash)
    assert found is not None
    assert found.revision.digest == (digest if taken else DIGEST)


# -- images ----------------------------------------------------------------------------------------------------------------------------

VECTORS = Path(__file__).parents[1] / "trust" / "vectors"
NAME, IMAGE = "registry.example/serving/mlserver", "sha256:" + "5" * 64
SIGSTORE = PrivateSigstore()
BOB = "bob@acme.test"


def signed(kind: str = SIGN_PREDICATE, *, subject: str = SUBJECT, digest: str = IMAGE, sigstore: PrivateSigstore = SIGSTORE) -> bytes:
    return sigstore.sign(kind, digest, {}, subject=subject, issuer=ISSUER)


def signers(*subjects: str, threshold: int = 1, revoked: tuple[Identity, ...] = ()) -> Publisher:
    identities = tuple(Identity(ISSUER, subject) for subject in subjects)
    return Publisher(
        (), threshold, keyless=Keyless(identities, json.dumps(SIGSTORE.trusted_root()).encode()), revoked=Revoked(identities=revoked)
    )


class NoWay(Access):
    """Nobody is asked."""

    def open(self, repository: Repository, patience: Patience) -> Source:
        return Source(cast("RegistryClient", nullcontext()), repository, "")


class Believed(Exception):
    """So far all is believed; the model would be fetched next."""


def run(tmp_path: Path, trust: TrustBundle, revision: FrozenRevision, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, tuple[bytes, ...]]:
    """The images that are believed before anything of the model is asked for."""
    found: list[Mapping[str, tuple[bytes, ...]]] = []

    def go_on(_: object, images: Mapping[str, tuple[bytes, ...]], *__: object) -> None:
        found.append(images)
        raise Believed

    prefetcher = Prefetcher(Store(tmp_path), Inbox(tmp_path / "inbox"))
    monkeypatch.setattr(prefetcher, "_run", go_on)
    with pytest.raises(Believed):
        prefetcher.run(order_of(revision), trust, access=NoWay(), protected=frozenset, now=NOW, stop=threading.Event())
    return found[0]


IN_PODS = REVISION.model_copy(
    update={
        "serving": Serving.model_validate(
            {
                "deployment": {
                    "template": {"spec": {"containers": [{"name": "server", "image": f"{NAME}@{IMAGE}"}]}},
                    "port": 8080,
                    "mountPath": "/models",
                }
            }
        )
    }
)


@pytest.mark.parametrize(
    ("covers", "shown", "reason"),
    [
        pytest.param(NAME, (sign_digest(KEY, IMAGE),), "", id="signed"),
        pytest.param(NAME, (), "ImageSignatureMissing", id="unsigned"),
        pytest.param(NAME, (sign_digest(STRANGER, IMAGE),), "ImageSignatureInvalid", id="a stranger's"),
        pytest.param("registry.example/tools/*", (), "ImageNotAllowed", id="nobody is named to sign it"),
    ],
)
def test_images_are_believed_before_anything_of_the_model_is_asked_for(
    covers: str, shown: tuple[bytes, ...], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fetch_bundles", lambda *_: SimpleNamespace(bundles=shown, problems=()))
    trust = TrustBundle({"weld": PUBLISHER}, (), version=1, expires_at=NOW, image_signers=(ImageSigner(covers, PUBLISHER),))
    if reason:
        with pytest.raises((Rejected, StepFailed), match=reason):
            run(tmp_path, trust, IN_PODS, monkeypatch)
    else:
        assert run(tmp_path, trust, IN_PODS, monkeypatch) == ({f"{NAME}@{IMAGE}": shown} if shown else {})


def test_an_image_that_nobody_need_sign_is_one_that_the_bundle_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits, tools = LimitsByModel(Limits(images=(NAME,))), (ImageSigner("registry.example/tools/*", PUBLISHER),)
    trust = TrustBundle({"weld": PUBLISHER}, (), version=1, expires_at=NOW, limits=limits, image_signers=tools)
    assert run(tmp_path, trust, IN_PODS, monkeypatch) == {}


@pytest.mark.parametrize("signed_by", [(), (ImageSigner(NAME, PUBLISHER),)])
def test_a_revoked_image_is_refused_whoever_signed_it(
    signed_by: tuple[ImageSigner, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fetch_bundles", lambda *_: SimpleNamespace(bundles=(sign_digest(KEY, IMAGE),), problems=()))
    publisher = replace(PUBLISHER, revoked=Revoked(frozenset({IMAGE})))
    trust = TrustBundle({"weld": publisher}, (), version=1, expires_at=NOW, image_signers=signed_by)
    with pytest.raises(Rejected, match="Revoked"):
        run(tmp_path, trust, IN_PODS, monkeypatch)


@pytest.mark.parametrize(("allowed", "refused"), [("registry.example", False), ("other.example", True)])
def test_under_a_narrower_bundle_no_other_host_is_asked(
    allowed: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for what served here before: it was ordered under other limits."""
    limits = LimitsByModel(Limits(endpoints=(allowed,)))
    trust = TrustBundle({"weld": PUBLISHER}, (), version=1, expires_at=NOW, limits=limits)
    with pytest.raises(StepFailed, match="EndpointNotAllowed") if refused else nullcontext():
        assert run(tmp_path, trust, REVISION, monkeypatch) == {}


def refusal_of(digest: str, bundles: tuple[bytes, ...], publisher: Publisher) -> str:
    """The reason, if the message names the image; empty if it is believed."""
    try:
        verify_image(f"{NAME}@{digest}", bundles, publisher)
    except Rejected as rejected:
        return rejected.reason if f"{NAME}@{digest}" in rejected.message else rejected.message
    return ""


@pytest.mark.parametrize(
    ("bundles", "publisher", "reason"),
    [
        pytest.param((signed(),), signers(SUBJECT), "", id="by the identity"),
        pytest.param((signed(), signed(subject=BOB)), signers(SUBJECT, BOB, threshold=2), "", id="by both"),
        pytest.param((), signers(SUBJECT), "ImageSignatureMissing", id="by nobody"),
        pytest.param((signed(subject=BOB),), signers(SUBJECT), "ImageSignatureInvalid", id="by another identity"),
        pytest.param((signed(sigstore=PrivateSigstore()),), signers(SUBJECT), "ImageSignatureInvalid", id="by who calls himself so"),
        pytest.param((signed(digest="sha256:" + "6" * 64),), signers(SUBJECT), "ImageSignatureInvalid", id="another image"),
        pytest.param((signed(RELEASE_PREDICATE),), signers(SUBJECT), "ImageSignatureMissing", id="an attestation is no signature"),
        pytest.param((signed(), signed()), signers(SUBJECT, BOB, threshold=2), "ImageThresholdNotMet", id="twice by one of two"),
        pytest.param((signed(),), signers(SUBJECT, revoked=(Identity(ISSUER, SUBJECT),)), "ImageSignatureInvalid", id="by one revoked"),
    ],
)
def test_an_image_is_believed_if_enough_of_the_named_identities_signed_it(
    bundles: tuple[bytes, ...], publisher: Publisher, reason: str
) -> None:
    assert refusal_of(IMAGE, bundles, publisher) == reason


@pytest.mark.parametrize("kind", ["keyed", *KINDS])
def test_an_image_that_real_cosign_signed_is_believed(kind: str) -> None:
    """What it signs is a digest, whatever that is of: these bundles are as good for an image."""
    keys, root = (PublicKey.from_pem((VECTORS / "keyed.pub").read_bytes()),), (VECTORS / "trusted_root.json").read_bytes()
    cosign = Publisher(keys) if kind == "keyed" else Publisher((), keyless=Keyless((Identity(ISSUER, SUBJECT),), root))
    bundle = (VECTORS / f"{kind}.sign.json").read_bytes()
    (digest,) = read_claim(bundle).statement.digests
    assert refusal_of(digest, (bundle,), cosign) == ""
    assert refusal_of(IMAGE, (bundle,), cosign) == "ImageSignatureInvalid"
    assert refusal_of(digest, ((VECTORS / f"{kind}.release.json").read_bytes(),), cosign) == "ImageSignatureMissing"
    assert refusal_of(digest, (bundle,), PUBLISHER) == "ImageSignatureInvalid"
