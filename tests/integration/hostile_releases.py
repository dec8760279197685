"""Releases as a hostile or careless publisher makes them, and what a hostile registry attaches to good ones, by what is wrong with each.

Content is put into the lab's registry unchecked: its own checks at a push would refuse most of it.
"""

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from edgefleet.api.assignment import FrozenRevision, Order
from edgefleet.api.model import Golden, Serving, Variant
from edgefleet.oci import media
from edgefleet.oci.client import digest_of
from edgefleet.oci.index import variant_annotations
from edgefleet.trust.bundle import make_bundle, make_root
from edgefleet.trust.bundle_content import BundleContent
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.publishers import Publisher
from edgefleet.trust.release import GoldenFacts, ReleaseFacts, attest_golden, attest_release, sign_digest
from tests.lab.registry import Registry

NOW = datetime(2026, 11, 28, tzinfo=UTC)
KEY, STRANGER, ROOT_KEY, HUB_KEY = (PrivateKey.generate() for _ in range(4))
MODEL = "weld"
WEIGHTS = bytes(range(256)) * 1200
SETTINGS = b'{"name":"weld"}'
LINES = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}],"expect":{"output":"y","label":3}}\n'
FACTS = Variant(name="cpu", digest="sha256:" + "0" * 64, size=0, arch="amd64")


def write_trust(folder: Path) -> tuple[Path, Path]:
    """A root and a trust bundle under it that believes KEY of MODEL."""
    root = make_root([ROOT_KEY.public], signers=[ROOT_KEY], threshold=1, version=1, expires_at=NOW + timedelta(days=90))
    content = BundleContent({MODEL: Publisher((KEY.public,), 1, 5)}, (HUB_KEY.public,))
    bundle = make_bundle(roots=[root], signers=[ROOT_KEY], version=1, content=content, expires_at=NOW + timedelta(days=30))
    paths = folder / "root.json", folder / "trust.json"
    for path, data in zip(paths, (root, bundle), strict=True):
        path.write_bytes(data)
    return paths


def document(media_type: str, **fields: Any) -> bytes:
    """A manifest or index."""
    return json.dumps({"schemaVersion": 2, "mediaType": media_type, **fields}).encode()


def layer(path: str, data: bytes, media_type: str = media.WEIGHT_LAYER) -> dict[str, Any]:
    """A descriptor of a model's file."""
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), "annotations": {media.FILEPATH: path}}


def hostile_tar(mode: str) -> bytes:
    """An archive with each member that unpacks to a place or thing of its own choice; `mode` as tarfile has it."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:  # type: ignore[call-overload]
        for name, kind, target in (
            ("link", tarfile.SYMTYPE, "/etc"),
            ("link/passwd", tarfile.REGTYPE, ""),
            ("hard", tarfile.LNKTYPE, "/etc/shadow"),
            ("device", tarfile.CHRTYPE, ""),
            ("/etc/cron.d/x", tarfile.REGTYPE, ""),
            ("../../x", tarfile.REGTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
        zeros = tarfile.TarInfo("bomb")
        zeros.size = 8 << 20
        archive.addfile(zeros, io.BytesIO(bytes(zeros.size)))
    return made.getvalue()


def entry_of(manifest: bytes, **changes: Any) -> dict[str, Any]:
    """An index entry for a variant."""
    return {
        "mediaType": media.MANIFEST,
        "digest": digest_of(manifest),
        "size": len(manifest),
        "platform": {"os": "linux", "architecture": "amd64"},
        "annotations": variant_annotations(FACTS),
        **changes,
    }


def signed(digest: str, key: PrivateKey = KEY, model: str = MODEL, seq: int = 7) -> tuple[bytes, ...]:
    """A signature and a release attestation."""
    facts = ReleaseFacts(model=model, version="1.0", release_seq=seq, created_at=NOW)
    return sign_digest(key, digest), attest_release(key, digest, facts)


Bundles = Callable[[str], Sequence[bytes]]
"""What is attached to an index, by its digest."""


@dataclass(frozen=True)
class Made:
    """A release: its parts, and the reason for which a site must refuse it. None: it is good."""

    reason: str = ""
    layers: Sequence[Mapping[str, Any]] = (layer("model.onnx", WEIGHTS), layer("model-settings.json", SETTINGS))
    index: Callable[[bytes], bytes] = lambda manifest: document(media.INDEX, manifests=[entry_of(manifest)])
    bundles: Bundles = signed
    subject: Callable[[str], str] = lambda digest: digest
    blobs: Sequence[bytes] = (WEIGHTS, SETTINGS)


def _of_layers(reason: str, *layers: Mapping[str, Any], blobs: Sequence[bytes] = (WEIGHTS, SETTINGS)) -> Made:
    return Made(reason, layers, blobs=blobs)


def _of_index(reason: str, index: Callable[[bytes], bytes]) -> Made:
    return Made(reason, index=index)


def _of_bundles(reason: str, bundles: Bundles, subject: Callable[[str], str] = lambda digest: digest) -> Made:
    return Made(reason, bundles=bundles, subject=subject)


TAR, GZIP = hostile_tar("w"), hostile_tar("w:gz")
OTHER = digest_of(b"another release")
MODEL_TAR, IMAGE_TAR = "application/vnd.cncf.model.weight.v1.tar", "application/vnd.oci.image.layer.v1.tar+gzip"

RELEASES: dict[str, Made] = {
    "good": Made(),
    # Signed by the publisher, and still not to be taken.
    "tar with links, devices, absolute and dotted paths": _of_layers("LayerUnsupported", layer("a", TAR, MODEL_TAR), blobs=[TAR]),
    "gzip bomb": _of_layers("LayerUnsupported", layer("a", GZIP, MODEL_TAR + "+gzip"), blobs=[GZIP]),
    "layer of a container image": _of_layers("LayerUnsupported", layer("a", GZIP, IMAGE_TAR), blobs=[GZIP]),
    "absolute path": _of_layers("MalformedManifest", layer("/etc/cron.d/x", WEIGHTS)),
    "dotted path": _of_layers("MalformedManifest", layer("a/../../x", WEIGHTS)),
    "hidden file": _of_layers("MalformedManifest", layer(".bashrc", WEIGHTS)),
    "path with a line break": _of_layers("MalformedManifest", layer("a\n/b", WEIGHTS)),
    "path that is no text": _of_layers("MalformedManifest", layer("a\ud800", WEIGHTS)),
    "duplicate names": _of_layers("MalformedManifest", layer("a", WEIGHTS), layer("a", SETTINGS)),
    "file and folder of one name": _of_layers("MalformedManifest", layer("a", WEIGHTS), layer("a/b", SETTINGS)),
    "too many layers": _of_layers("TooLarge", *[layer(f"f{number}", SETTINGS) for number in range(65)]),
    "file larger than any disk": _of_layers("StoreFull", {**layer("a", WEIGHTS), "size": 1 << 49}),
    "index of 10^5 entries": _of_index("TooLarge", lambda one: document(media.INDEX, manifests=[entry_of(one)] * 100_000)),
    "index of 10^4 entries": _of_index("TooLarge", lambda one: document(media.INDEX, manifests=[entry_of(one)] * 10_000)),
    "index in an index": _of_index(
        "MalformedManifest", lambda one: document(media.INDEX, manifests=[entry_of(one, mediaType=media.INDEX)])
    ),
    "nested 10^4 deep": _of_index("MalformedManifest", lambda _: b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "as many objects as fit": _of_index("TooLarge", lambda _: b"[" + b'{"":0},' * 599_000 + b"0]"),
    # Good, and not signed for what it is offered as.
    "unsigned": _of_bundles("SignatureMissing", lambda _: ()),
    "foreign signature": _of_bundles("SignatureInvalid", lambda digest: signed(digest, STRANGER)),
    "signature moved from another model": _of_bundles("ModelMismatch", lambda digest: signed(digest, model="paint")),
    "signature of another release": _of_bundles("SignatureInvalid", lambda _: signed(OTHER)),
    "signature of an older release": _of_bundles("ReleaseMismatch", lambda digest: signed(digest, seq=6)),
    "signature below the floor": _of_bundles("SeqTooLow", lambda digest: signed(digest, seq=4)),
    "signature alone": _of_bundles("AttestationMissing", lambda digest: signed(digest)[:1]),
    "referrer of another subject": _of_bundles("SignatureInvalid", signed, lambda _: OTHER),
    "bundle larger than 1 MiB": _of_bundles("SignatureInvalid", lambda digest: [signed(digest)[0] + b" " * (1 << 20)]),
    "70 referrers before the right one": _of_bundles(
        "SignatureInvalid", lambda digest: [*[b"%d" % number for number in range(70)], *signed(digest)]
    ),
}


def put_release(registry: Registry, name: str) -> Order:
    """Have the registry hold RELEASES[name]; the order of a hub that names it."""
    made, path = RELEASES[name], "plant/" + "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    content = registry.content
    manifest = document(media.MANIFEST, artifactType=media.MODEL, layers=list(made.layers))
    index = made.index(manifest)
    golden = document(media.MANIFEST, artifactType=media.GOLDEN, layers=[layer("lines", LINES, media.GOLDEN_LINES)])
    for blob in (*made.blobs, LINES):
        content.put_blob(path, blob)
    for data, media_type in ((manifest, media.MANIFEST), (index, media.INDEX), (golden, media.MANIFEST)):
        content.put_manifest(path, data, media_type)
    bundles = attach(registry, path, made.subject(digest_of(index)), made.bundles(digest_of(index)))
    list_referrers(registry, path, digest_of(index), bundles)
    facts = GoldenFacts(model=MODEL, created_at=NOW)
    exam = digest_of(golden)
    list_referrers(registry, path, exam, attach(registry, path, exam, (sign_digest(KEY, exam), attest_golden(KEY, exam, facts))))
    revision = FrozenRevision(
        hash=digest_of(index).removeprefix("sha256:"),
        model=MODEL,
        repository=f"{registry.host}/{path}",
        digest=digest_of(index),
        version="1.0",
        seq=7,
        variant=FACTS.model_copy(update={"digest": digest_of(manifest), "size": sum(one["size"] for one in made.layers)}),
        serving=Serving(repository={}),
        golden=Golden(repository=f"{registry.host}/{path}", digest=exam, min="90%"),
    )
    return Order(
        site="plant-7",
        fleet="vision/plants",
        sequence=1,
        action="Run",
        model=MODEL,
        revision=revision,
        issued_at=NOW,
        expires_at=NOW + timedelta(days=14),
    )


def attach(registry: Registry, path: str, subject: str, bundles: Sequence[bytes]) -> list[dict[str, Any]]:
    """Have the registry hold bundles that name `subject`; descriptors of their manifests."""
    made = []
    for bundle in bundles:
        registry.content.put_blob(path, bundle)
        about = {"mediaType": media.INDEX, "digest": subject, "size": 1}
        one = {"mediaType": media.SIGSTORE_BUNDLE, "digest": digest_of(bundle), "size": len(bundle)}
        manifest = document(media.MANIFEST, artifactType=media.SIGSTORE_BUNDLE, subject=about, layers=[one])
        registry.content.put_manifest(path, manifest, media.MANIFEST)
        made.append({"mediaType": media.MANIFEST, "digest": digest_of(manifest), "size": len(manifest)})
    return made


def list_referrers(registry: Registry, path: str, digest: str, listed: Sequence[Mapping[str, Any]]) -> None:
    """Have the registry list these for a digest, under the fallback tag, whatever they are."""
    tag = digest.replace(":", "-")
    registry.content.put_manifest(path, document(media.INDEX, manifests=list(listed)), media.INDEX, tag=tag)
