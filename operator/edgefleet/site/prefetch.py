"""Bringing a revision to the store: evidence first, believed before a byte of the model is fetched, then the blobs.

Evidence (index, manifest, signature bundles, the same for the golden set) is taken from the store where it still convinces, else from
the registry. Synchronous, for a thread of its own; `stop` ends it at the next chunk. What is fetched lies in the store under its
digest and belongs to nothing until the revision's record is written.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime

from edgefleet.api.assignment import FrozenRevision, Order
from edgefleet.core.site import Cause
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.fetch import Blob, fetch
from edgefleet.oci.golden import parse_golden_manifest
from edgefleet.oci.index import parse_index, read_variant
from edgefleet.oci.manifest import ModelManifest, parse_model_manifest
from edgefleet.oci.reference import Repository
from edgefleet.oci.referrers import fetch_bundles
from edgefleet.oci.transport import Patience
from edgefleet.site.faults import StepFailed
from edgefleet.site.store import RevisionRecord, Store, StoredBlob
from edgefleet.trust.bundle import Publisher, TrustBundle
from edgefleet.trust.errors import Rejected
from edgefleet.trust.release import verify_golden, verify_release

log = logging.getLogger(__name__)

Protected = Callable[[], Collection[str]]
"""Says which revisions must stay in the store now."""


class Stopped(Exception):
    """A newer order made this fetch pointless."""


@dataclass(frozen=True)
class Evidence:
    """What makes a revision believed, as bytes whose digests were checked. The golden parts are None without a golden set."""

    index: bytes
    manifest: bytes
    bundles: tuple[bytes, ...]
    golden_manifest: bytes | None = None
    golden_bundles: tuple[bytes, ...] = ()


class Prefetcher:
    """One site's way to registries. `client` makes a client whose waits can be ended."""

    def __init__(self, store: Store, client: Callable[[Patience], RegistryClient] | None = None) -> None:
        self._store = store
        self._client = client or (lambda patience: RegistryClient(patience=patience))

    def run(self, order: Order, trust: TrustBundle, *, protected: Protected, now: datetime, stop: threading.Event) -> RevisionRecord:
        """The complete revision of an order. `protected` is asked only when room is made, since other fleets go on meanwhile.

        Raises StepFailed, Rejected, RegistryError, StoreFull, OSError, Stopped.
        """
        revision = order.revision
        if revision is None:
            raise ValueError("an order without a revision has nothing to fetch")
        publisher = trust.publishers.get(order.model)
        if publisher is None:
            raise StepFailed(Cause.TRUST, "TrustNotAtSite", f"trust bundle {trust.version} names no publisher of model {order.model!r}")
        # The site asks again by itself, so two tries in a row are enough here.
        with self._client(Patience(attempts=2, sleep=lambda seconds: _wait(stop, seconds))) as client:
            return self._run(_Job(client, order, revision, publisher, stop), protected, now)

    def _run(self, job: "_Job", protected: Protected, now: datetime) -> RevisionRecord:
        evidence, manifest = self._believe(job)
        golden_lines = parse_golden_manifest(evidence.golden_manifest, "golden set") if evidence.golden_manifest else None
        blobs = [StoredBlob(digest=layer.blob.digest, size=layer.blob.size, name=layer.path) for layer in manifest.layers]
        fetched = [(job.repository, blob) for blob in blobs]
        golden = None
        if golden_lines is not None and job.golden_repository is not None:
            golden = StoredBlob(digest=golden_lines.digest, size=golden_lines.size)
            fetched.append((job.golden_repository, golden))
        wanted = {blob.digest: blob.size for _, blob in fetched}
        wanted |= dict(map(_measure, _all_bytes(evidence)))
        for gone in self._store.reserve(job.order.fleet, wanted, protected=protected(), storage=job.order.storage):
            log.info("revision %s is removed from the store to make room", gone[:8])
        for repository, blob in fetched:
            with self._store.writing(blob.digest) as target:
                fetch(job.client, repository, Blob(blob.digest, blob.size), target, progress=job.check)
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
            used_at=now,
        )
        job.check(0)
        self._store.complete(record)
        return record

    def _believe(self, job: "_Job") -> tuple[Evidence, ModelManifest]:
        stored = self._read_stored(job)
        if stored is not None:
            try:
                return stored, verify_evidence(stored, job.revision, job.publisher)
            except Rejected as error:
                log.info("stored evidence of %s does not convince any more (%s): asking the registry", job.revision.hash[:8], error.reason)
        fresh = job.fetch_evidence()
        return fresh, verify_evidence(fresh, job.revision, job.publisher)

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
    """One order being fetched."""

    def __init__(self, client: RegistryClient, order: Order, revision: FrozenRevision, publisher: Publisher, stop: threading.Event) -> None:
        self.client = client
        self.order = order
        self.revision = revision
        self.publisher = publisher
        self.repository = Repository.parse(revision.repository)
        self.golden_repository = Repository.parse(revision.golden.repository) if revision.golden else None
        self._stop = stop

    def check(self, _: int) -> None:
        """Raises Stopped when nobody waits for this any more."""
        if self._stop.is_set():
            raise Stopped

    def fetch_evidence(self) -> Evidence:
        """All evidence from the registries. Raises RegistryError."""
        revision = self.revision
        evidence = Evidence(
            index=self.client.fetch_manifest(self.repository, revision.digest),
            manifest=self.client.fetch_manifest(self.repository, revision.variant.digest),
            bundles=fetch_bundles(self.client, self.repository, revision.digest).bundles,
        )
        self.check(0)
        if revision.golden is None or self.golden_repository is None:
            return evidence
        return replace(
            evidence,
            golden_manifest=self.client.fetch_manifest(self.golden_repository, revision.golden.digest),
            golden_bundles=fetch_bundles(self.client, self.golden_repository, revision.golden.digest).bundles,
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
        keys=publisher.keys,
        threshold=publisher.threshold,
        min_seq=publisher.min_release_seq,
    )
    if (release.version, release.seq) != (revision.version, revision.seq):
        raise Rejected(
            "ReleaseMismatch",
            f"the order says version {revision.version} with sequence {revision.seq}, attested is {release.version} with {release.seq}",
        )
    what = f"{revision.repository}@{revision.digest}"
    manifest = parse_model_manifest(evidence.manifest, what)
    entry = next((entry for entry in parse_index(evidence.index, what) if entry.digest == revision.variant.digest), None)
    if entry is None or read_variant(entry, manifest.size, what) != revision.variant:
        raise Rejected("VariantMismatch", f"the signed index has no variant {revision.variant.name!r} as the order describes it")
    if revision.golden is not None:
        _require_digest(evidence.golden_manifest or b"", revision.golden.digest, "golden set")
        verify_golden(
            digest=revision.golden.digest,
            model=revision.model,
            bundles=evidence.golden_bundles,
            keys=publisher.keys,
            threshold=publisher.threshold,
        )
    return manifest


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
