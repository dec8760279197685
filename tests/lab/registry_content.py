"""What a registry holds: blobs by digest, manifests per repository, tags, uploads under way, and who refers to whom.

No HTTP here. The checks of a push (digest, blobs present) are `store_manifest`'s and `finish_upload`'s; `put_*` store
whatever a test wants to have served, lies included.
"""

import hashlib
import json
import threading
import uuid
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

OCI_INDEX = "application/vnd.oci.image.index.v1+json"


def digest_of(data: bytes) -> str:
    """`sha256:<hex>` of the bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Refused(Exception):
    """A request that the registry refuses: HTTP status, distribution error code, message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class Manifest:
    """A stored manifest or index; its `data` are the pushed bytes."""

    digest: str
    media_type: str
    data: bytes

    @cached_property
    def parsed(self) -> dict[str, Any]:
        """The JSON object; an empty one where the bytes are none."""
        try:
            found = json.loads(self.data)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


class Content:
    """Thread-safe storage in memory. `blobs` is shared by all repositories; `linked` says which may see which."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.linked: dict[str, set[str]] = defaultdict(set)
        self.manifests: dict[str, dict[str, Manifest]] = defaultdict(dict)
        self.tags: dict[str, dict[str, str]] = defaultdict(dict)
        self._uploads: dict[tuple[str, str], bytearray] = {}
        self._served: dict[str, bytes] = {}
        self._lock = threading.RLock()

    def put_blob(self, repository: str, data: bytes) -> str:
        """Stores a blob as if it had been pushed; its digest."""
        digest = digest_of(data)
        with self._lock:
            self.blobs[digest] = data
            self.linked[repository].add(digest)
        return digest

    def put_manifest(self, repository: str, data: bytes, media_type: str, tag: str | None = None) -> str:
        """Stores a manifest without any check of what it names; its digest."""
        manifest = Manifest(digest_of(data), media_type, data)
        with self._lock:
            self.manifests[repository][manifest.digest] = manifest
            if tag:
                self.tags[repository][tag] = manifest.digest
        return manifest.digest

    def corrupt_blob(self, digest: str) -> None:
        """From now on this blob or manifest is served with one bit flipped in its middle, under the same digest."""
        with self._lock:
            data = bytearray(self._stored(digest))
            data[len(data) // 2] ^= 1
            self._served[digest] = bytes(data)

    def swap_blob(self, digest: str, data: bytes) -> None:
        """From now on `data` is served under this digest, whatever it is."""
        with self._lock:
            self._stored(digest)
            self._served[digest] = data

    def restore(self, digest: str | None = None) -> None:
        """Undoes corrupt_blob and swap_blob, for one digest or all."""
        with self._lock:
            for found in [digest] if digest else list(self._served):
                self._served.pop(found, None)

    def find_blob(self, repository: str, digest: str) -> bytes:
        """What is served for the blob. Raises Refused (404)."""
        with self._lock:
            if digest not in self.linked[repository]:
                raise Refused(404, "BLOB_UNKNOWN", f"no blob {digest} in {repository}")
            return self._served.get(digest, self.blobs[digest])

    def find_manifest(self, repository: str, reference: str) -> Manifest:
        """What is served for a tag or digest. Raises Refused (404)."""
        with self._lock:
            digest = reference if ":" in reference else self.tags[repository].get(reference, "")
            found = self.manifests[repository].get(digest)
            if found is None:
                raise Refused(404, "MANIFEST_UNKNOWN", f"no manifest {reference} in {repository}")
            return Manifest(digest, found.media_type, self._served.get(digest, found.data))

    def store_manifest(self, repository: str, reference: str, data: bytes, media_type: str) -> Manifest:
        """A pushed manifest. Raises Refused (400, 404) on a wrong digest, no JSON object, or a blob that was not pushed."""
        digest = digest_of(data)
        if ":" in reference and reference != digest:
            raise Refused(400, "DIGEST_INVALID", f"pushed as {reference}, but the bytes are {digest}")
        parsed = Manifest(digest, media_type, data).parsed
        if not parsed:
            raise Refused(400, "MANIFEST_INVALID", "not a JSON object")
        if parsed.get("mediaType", media_type) != media_type:
            raise Refused(400, "MANIFEST_INVALID", f"Content-Type {media_type}, but mediaType {parsed['mediaType']}")
        with self._lock:
            try:
                blobs = [part["digest"] for part in (parsed.get("config"), *parsed.get("layers", [])) if part]
                children = [part["digest"] for part in parsed.get("manifests", [])]
            except (KeyError, TypeError) as error:
                raise Refused(400, "MANIFEST_INVALID", "config, layers and manifests need descriptors") from error
            missing = {*blobs} - self.linked[repository] | {*children} - self.manifests[repository].keys()
            if missing:
                raise Refused(404, "MANIFEST_BLOB_UNKNOWN", f"not pushed to {repository}: {', '.join(sorted(missing))}")
            self.put_manifest(repository, data, media_type, None if ":" in reference else reference)
            return self.manifests[repository][digest]

    def delete_manifest(self, repository: str, reference: str) -> None:
        """Removes a tag, or a manifest with its tags. Raises Refused (404)."""
        with self._lock:
            digest = self.find_manifest(repository, reference).digest
            if ":" not in reference:
                del self.tags[repository][reference]
                return
            del self.manifests[repository][digest]
            self.tags[repository] = {tag: of for tag, of in self.tags[repository].items() if of != digest}

    def mount(self, repository: str, source: str, digest: str) -> bool:
        """Makes a blob of `source` visible in `repository`; False where `source` has no such blob."""
        with self._lock:
            if digest not in self.linked[source]:
                return False
            self.linked[repository].add(digest)
            return True

    def begin_upload(self, repository: str) -> str:
        """A new upload session."""
        session = uuid.uuid4().hex
        with self._lock:
            self._uploads[repository, session] = bytearray()
        return session

    def append_upload(self, repository: str, session: str, data: bytes, start: int | None) -> int:
        """Adds a chunk; bytes so far. Raises Refused: 404 without session, 416 where `start` is not the end so far."""
        with self._lock:
            upload = self._uploads.get((repository, session))
            if upload is None:
                raise Refused(404, "BLOB_UPLOAD_UNKNOWN", f"no upload {session} in {repository}")
            if start is not None and start != len(upload):
                raise Refused(416, "BLOB_UPLOAD_INVALID", f"the chunk starts at {start}, {len(upload)} bytes are here")
            upload += data
            return len(upload)

    def finish_upload(self, repository: str, session: str, digest: str) -> None:
        """Makes the upload a blob. Raises Refused (400) where its bytes are not `digest`."""
        with self._lock:
            data = bytes(self._uploads.pop((repository, session)))
            if digest_of(data) != digest:
                raise Refused(400, "DIGEST_INVALID", f"pushed as {digest}, but the bytes are {digest_of(data)}")
            self.put_blob(repository, data)

    def list_referrers(self, repository: str, digest: str, artifact_type: str | None) -> list[dict[str, Any]]:
        """Descriptors of the manifests whose `subject` is `digest`, in order of their push."""
        found = []
        with self._lock:
            manifests = list(self.manifests[repository].values())
        for manifest in manifests:
            parsed = manifest.parsed
            if parsed.get("subject", {}).get("digest") != digest:
                continue
            kind = parsed.get("artifactType") or parsed.get("config", {}).get("mediaType", "")
            if artifact_type and kind != artifact_type:
                continue
            descriptor = {"mediaType": manifest.media_type, "digest": manifest.digest, "size": len(manifest.data)}
            descriptor |= {"artifactType": kind}
            descriptor |= {"annotations": parsed["annotations"]} if parsed.get("annotations") else {}
            found.append(descriptor)
        return found

    def list_tags(self, repository: str) -> list[str]:
        """Tags in order. Raises Refused (404) where the repository holds nothing."""
        with self._lock:
            if not self.manifests[repository] and not self.linked[repository]:
                raise Refused(404, "NAME_UNKNOWN", f"no repository {repository}")
            return sorted(self.tags[repository])

    def _stored(self, digest: str) -> bytes:
        if digest in self.blobs:
            return self.blobs[digest]
        for manifests in self.manifests.values():
            if digest in manifests:
                return manifests[digest].data
        raise KeyError(f"the registry holds no {digest}")
