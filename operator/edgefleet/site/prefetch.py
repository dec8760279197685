"""Bringing a revision to the store: evidence first, believed before a byte of the model is fetched, then the blobs.

Evidence (index, manifest, signature bundles, the same for the golden set, signatures of images) is taken from the store where it still
convinces, else from what people carried here (inbox.py), else from the registry. Synchronous, for a thread of its own; `stop` ends it at
the next chunk. What is fetched lies in the store under its digest and belongs to nothing until the revision's record is written.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from edgefleet.api.assignment import FrozenRevision, Order
from edgefleet.core.known import find_differing
from edgefleet.core.limits import find_foreign_endpoint, find_unsigned_image, list_images
from edgefleet.core.site import Cause
from edgefleet.oci.errors import ContentError, Unauthorised
from edgefleet.oci.fetch import Blob, fetch
from edgefleet.oci.golden import parse_golden_manifest
from edgefleet.oci.hashes import Hashes
from edgefleet.oci.index import name_variants, parse_index, read_variant
from edgefleet.oci.layout import Layout, copy_blob
from edgefleet.oci.manifest import ModelManifest, parse_model_manifest
from edgefleet.oci.reference import Repository
from edgefleet.oci.referrers import fetch_bundles
from edgefleet.oci.transport import Patience
from edgefleet.site.faults import StepFailed
from edgefleet.site.inbox import Inbox
from edgefleet.site.registries import Access, Source
from edgefleet.site.store import RevisionRecord, Store, StoredBlob, StoredImage
from edgefleet.trust.bundle import TrustBundle
from edgefleet.trust.errors import Rejected
from edgefleet.trust.limits import ImageSigner
from edgefleet.trust.publishers import Publisher
from edgefleet.trust.release import verify_golden, verify_release, verify_signature

log = logging.getLogger(__name__)

Images = Mapping[str, tuple[bytes, ...]]
"""Signature bundles by image, `name@digest`."""
Protected = Callable[[], Collection[str]]
"""Says which revisions must stay in the store now."""


class Stopped(Exception):
    """A newer order made this fetch pointless."""


@dataclass(frozen=True)
class Evidence:
    """What makes a revision believed, as bytes whose digests were checked. The golden parts are None without a golden set.

    `problems` and `golden_problems` say why other candidates never became a bundle.
    """

    index: bytes
    manifest: bytes
    bundles: tuple[bytes, ...]
    golden_manifest: bytes | None = None
    golden_bundles: tuple[bytes, ...] = ()
    problems: tuple[str, ...] = ()
    golden_problems: tuple[str, ...] = ()


class Prefetcher:
    """One site's way from registries, and from what people carried to it, to its store."""

    def __init__(self, store: Store, inbox: Inbox) -> None:
        self._store = store
        self._inbox = inbox
        self._hashes = Hashes()

    def run(
        self, order: Order, trust: TrustBundle, *, access: Access, protected: Protected, now: datetime, stop: threading.Event
    ) -> RevisionRecord:
        """The complete revision of an order. `protected` is asked only when room is made, since other fleets go on meanwhile.

        Raises StepFailed, Rejected, RegistryError, StoreFull, OSError, Stopped.
        """
        revision = order.revision
        if revision is None:
            raise ValueError("an order without a revision has nothing to fetch")
        publisher = trust.publishers.get(order.model)
        if publisher is None:
            raise StepFailed(Cause.TRUST, "TrustNotAtSite", f"trust bundle {trust.version} names no publisher of model {order.model!r}")
        # What serves or served here before was ordered under other limits, perhaps.
        limits = trust.limits.of(order.model)
        excess = find_foreign_endpoint(order, limits) or find_unsigned_image(
            revision, limits, [signer.repository for signer in trust.image_signers]
        )
        if excess is not None:
            raise StepFailed(Cause.TRUST, excess.reason, excess.message)
        # The site asks again by itself, so two tries in a row are enough here.
        patience = Patience(attempts=2, sleep=lambda seconds: _wait(stop, seconds))
        with ExitStack() as stack:
            source = access.open(Repository.parse(revision.repository), patience)
            stack.enter_context(source.client)
            exam = None
            if revision.golden is not None:
                exam = access.open(Repository.parse(revision.golden.repository), patience)
                stack.enter_context(exam.client)
            job = _Job(source, exam, order, revision, publisher, stop)
            try:
                images = self._believe_images(job, trust.image_signers, access, patience)
                return self._run(job, images, protected, now)
            except Unauthorised as error:
                raise StepFailed(Cause.FETCH, "AuthenticationFailed", f"{error.message}. {job.remedy}") from error

    def _run(self, job: "_Job", images: Images, protected: Protected, now: datetime) -> RevisionRecord:
        evidence, manifest = self._believe(job)
        golden_lines = parse_golden_manifest(evidence.golden_manifest, "golden set") if evidence.golden_manifest else None
        if golden_lines is not None:
            _require_not_revoked(job.publisher, golden_lines.digest, "the golden set's lines")
        blobs = [StoredBlob(digest=layer.blob.digest, size=layer.blob.size, name=layer.path) for layer in manifest.layers]
        fetched = [(job.source, blob) for blob in blobs]
        golden = None
        if golden_lines is not None and job.exam is not None:
            golden = StoredBlob(digest=golden_lines.digest, size=golden_lines.size)
            fetched.append((job.exam, golden))
        wanted = {blob.digest: blob.size for _, blob in fetched}
        wanted |= dict(map(_measure, [*_all_bytes(evidence), *(bundle for bundles in images.values() for bundle in bundles)]))
        for gone in self._store.reserve(job.order.fleet, wanted, protected=protected(), storage=job.order.storage):
            log.info("revision %s is removed from the store to make room", gone[:8])
        for source, blob in fetched:
            with self._store.writing(blob.digest) as target:
                if not self._take_carried(job, blob, target):
                    fetch(source.client, source.repository, Blob(blob.digest, blob.size), target, progress=job.check, hashes=self._hashes)
        record = RevisionRecord(
            fleet=job.order.fleet,
            revision=job.revision,
            files=tuple(blobs),
            index=self._store.put(evidence.index),
            manifest=self._store.put(evidence.manifest),
            bundles=tuple(self._store.put(bundle) for bundle in evidence.bundles),
            golden_manifest=self._store.put(evidence.golden_manifest) if evidence.golden_manifest else None,
            golden_lines=golden,
            golden_bundles=tuple(self._store.put(bundle) for bundle in evidence.golden_bundles),
            images=tuple(StoredImage(image=image, bundles=tuple(map(self._store.put, bundles))) for image, bundles in images.items()),
            used_at=now,
        )
        job.check(0)
        self._require_own_hash(job.revision)
        self._store.complete(record)
        self._inbox.remove(job.revision.digest)
        return record

    def _require_own_hash(self, revision: FrozenRevision) -> None:
        """Two fleets may have been ordered different revisions under one hash before either was in the store."""
        found = self._store.find(revision.hash)
        differing = find_differing(revision, found.revision) if found and self._store.agrees(found) else ""
        if differing:
            raise StepFailed(Cause.TRUST, "HashMismatch", f"revision.hash {revision.hash} is in the store with another {differing}")

    def _take_carried(self, job: "_Job", blob: StoredBlob, target: Path) -> bool:
        layout = self._inbox.find(job.revision.digest)
        if layout is None:
            return False
        try:
            copy_blob(layout.path(blob.digest), Blob(blob.digest, blob.size), target, job.check, self._hashes)
        except ContentError as error:
            log.warning("%s: asking the registry", error.message)
            return False
        return True

    def _believe(self, job: "_Job") -> tuple[Evidence, ModelManifest]:
        stored = self._read_stored(job)
        if stored is not None:
            try:
                return stored, verify_evidence(stored, job.revision, job.publisher)
            except Rejected as error:
                log.info("stored evidence of %s does not convince any more (%s): asking the registry", job.revision.hash[:8], error.reason)
        layout = self._inbox.find(job.revision.digest)
        if layout is not None:
            try:
                carried = _read_carried(layout, job.revision)
                return carried, verify_evidence(carried, job.revision, job.publisher)
            except (ContentError, Rejected) as error:
                log.warning("what was carried here of %s cannot be used (%s): asking the registry", job.revision.digest, error)
        fresh = job.fetch_evidence()
        return fresh, verify_evidence(fresh, job.revision, job.publisher)

    def _believe_images(self, job: "_Job", signers: Sequence[ImageSigner], access: Access, patience: Patience) -> Images:
        """The signature bundles of each image that must be signed. What the store has is enough, so that a site starts pods off line."""
        record = self._store.find(job.revision.hash)
        kept = {entry.image: entry.bundles for entry in record.images} if record else {}
        believed: dict[str, tuple[bytes, ...]] = {}
        for name, digest in list_images(job.revision):
            _require_not_revoked(job.publisher, digest, f"image {name}")
            signer = next((one for one in signers if one.covers(name)), None)
            if signer is None:
                continue
            image = f"{name}@{digest}"
            stored = tuple(data for blob in kept.get(image, ()) if (data := self._store.read(blob)))
            try:
                verify_image(image, stored, signer.publisher)
                believed[image] = stored
                continue
            except Rejected:
                log.info("signatures of image %s are not in the store: asking the registry", image)
            source = access.open(Repository.parse(name), patience)
            with source.client:
                found = fetch_bundles(source.client, source.repository, digest)
            verify_image(image, found.bundles, signer.publisher, found.problems)
            believed[image] = found.bundles
            job.check(0)
        return believed

    def _read_stored(self, job: "_Job") -> Evidence | None:
        record = self._store.find(job.revision.hash)
        if record is None or record.revision.digest != job.revision.digest or record.revision.variant != job.revision.variant:
            return None
        index, manifest = self._store.read(record.index), self._store.read(record.manifest)
        bundles = [self._store.read(blob) for blob in record.bundles]
        golden_bundles = [self._store.read(blob) for blob in record.golden_bundles]
        golden = self._store.read(record.golden_manifest) if record.golden_manifest else None
        if index is None or manifest is None or None in (*bundles, *golden_bundles) or (job.revision.golden and golden is None):
            return None
        return Evidence(index, manifest, tuple(b for b in bundles if b), golden, tuple(b for b in golden_bundles if b))


class _Job:
    """One order being fetched. `exam` is where the golden set is, None without one."""

    def __init__(
        self, source: Source, exam: Source | None, order: Order, revision: FrozenRevision, publisher: Publisher, stop: threading.Event
    ) -> None:
        self.source = source
        self.exam = exam
        self.order = order
        self.revision = revision
        self.publisher = publisher
        self._stop = stop

    @property
    def remedy(self) -> str:
        """What a person does about a login that is refused."""
        used = sorted({source.secret for source in (self.source, self.exam) if source and source.secret})
        if not used:
            return "No pull secret is named: set spec.registries[].secretRef of this EdgeSite"
        return f"Put a good login into {' and '.join(used)}: it is read again at the next try"

    def check(self, _: int) -> None:
        """Raises Stopped when nobody waits for this any more."""
        if self._stop.is_set():
            raise Stopped

    def fetch_evidence(self) -> Evidence:
        """All evidence from the registries. Raises RegistryError."""
        revision, source, exam = self.revision, self.source, self.exam
        index = source.client.fetch_manifest(source.repository, revision.digest)
        manifest = source.client.fetch_manifest(source.repository, revision.variant.digest)
        found = fetch_bundles(source.client, source.repository, revision.digest)
        evidence = Evidence(index, manifest, found.bundles, problems=found.problems)
        self.check(0)
        if revision.golden is None or exam is None:
            return evidence
        golden = exam.client.fetch_manifest(exam.repository, revision.golden.digest)
        found = fetch_bundles(exam.client, exam.repository, revision.golden.digest)
        return replace(evidence, golden_manifest=golden, golden_bundles=found.bundles, golden_problems=found.problems)


def _read_carried(layout: Layout, revision: FrozenRevision) -> Evidence:
    golden = revision.golden
    return Evidence(
        index=layout.read(revision.digest),
        manifest=layout.read(revision.variant.digest),
        bundles=layout.bundles(revision.digest),
        golden_manifest=layout.read(golden.digest) if golden else None,
        golden_bundles=layout.bundles(golden.digest) if golden else (),
    )


def verify_evidence(evidence: Evidence, revision: FrozenRevision, publisher: Publisher) -> ModelManifest:
    """The files of the variant, if all of it holds together under this publisher. Raises Rejected and RegistryError.

    The chain: publishers sign the index's digest and attest model, version and sequence to it; the index names the variant's manifest and
    what hardware it needs; the manifest names the files. The order must say the same at each link.
    """
    _require_digest(evidence.index, revision.digest, "index")
    _require_digest(evidence.manifest, revision.variant.digest, "manifest")
    release = verify_release(
        digest=revision.digest,
        model=revision.model,
        bundles=evidence.bundles,
        publisher=publisher,
        problems=evidence.problems,
    )
    if (release.version, release.seq) != (revision.version, revision.seq):
        raise Rejected(
            "ReleaseMismatch",
            f"the order says version {revision.version} with sequence {revision.seq}, attested is {release.version} with {release.seq}",
        )
    what = f"{revision.repository}@{revision.digest}"
    manifest = parse_model_manifest(evidence.manifest, what)
    _require_not_revoked(publisher, revision.variant.digest, f"variant {revision.variant.name}")
    for layer in manifest.layers:
        _require_not_revoked(publisher, layer.blob.digest, layer.path)
    entries = parse_index(evidence.index, what)
    release.require_variants(name_variants(entries))
    entry = next((entry for entry in entries if entry.digest == revision.variant.digest), None)
    if entry is None or read_variant(entry, manifest.size, what) != revision.variant:
        raise Rejected("VariantMismatch", f"the signed index has no variant {revision.variant.name!r} as the order describes it")
    if revision.golden is not None:
        _require_digest(evidence.golden_manifest or b"", revision.golden.digest, "golden set")
        verify_golden(
            digest=revision.golden.digest,
            model=revision.model,
            bundles=evidence.golden_bundles,
            publisher=publisher,
            problems=evidence.golden_problems,
        )
    return manifest


def verify_image(image: str, bundles: Sequence[bytes], publisher: Publisher, problems: Sequence[str] = ()) -> None:
    """Check that enough of `publisher` signed an image, `name@digest`, as `cosign sign` does. Raises Rejected with an Image... reason."""
    try:
        verify_signature(digest=image.rpartition("@")[2], bundles=bundles, publisher=publisher, problems=problems)
    except Rejected as rejected:
        raise Rejected(f"Image{rejected.reason}", f"image {image}: {rejected.message}") from rejected


def _require_not_revoked(publisher: Publisher, digest: str, what: str) -> None:
    """The release or the golden set as a whole is asked for in trust/; people may also revoke one file that several releases have."""
    if digest in publisher.revoked.digests:
        raise Rejected("Revoked", f"{what}, {digest}, is revoked by the trust bundle: name a release without it")


def _require_digest(data: bytes, digest: str, what: str) -> None:
    found, _ = _measure(data)
    if found != digest:
        raise Rejected("EvidenceMismatch", f"the {what} has digest {found}, the order says {digest}")


def _measure(data: bytes) -> tuple[str, int]:
    return "sha256:" + hashlib.sha256(data).hexdigest(), len(data)


def _all_bytes(evidence: Evidence) -> list[bytes]:
    golden = [evidence.golden_manifest] if evidence.golden_manifest else []
    return [evidence.index, evidence.manifest, *evidence.bundles, *golden, *evidence.golden_bundles]


def _wait(stop: threading.Event, seconds: float) -> None:
    if stop.wait(seconds):
        raise Stopped
