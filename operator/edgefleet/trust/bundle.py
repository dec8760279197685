"""The trust bundle: one document, signed by the offline root keys, that says whom a site believes.

    {"formatVersion": 1, "roots": [root 1, root 2, ...], "targets": {...}, "trust": {...}}

`roots` and `targets` are python-tuf metadata. A site pins one root; each following root must be signed by enough keys of the one
before it and of its own; the last one's `targets` keys sign the targets, which name the SHA-256 of `trust` in RFC 8785 JSON.
The bundle's version is the targets' version and only grows: what a site has seen (`floor_version`) it keeps itself.
What `trust` says is read in bundle_content.py; which release is good under it is left to release.py.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tuf.api.metadata import Metadata, Root, TargetFile, Targets  # type: ignore[attr-defined]

from edgefleet.api.meta import format_time
from edgefleet.trust.bundle_content import FORMATS, BundleContent, read_content, write_content
from edgefleet.trust.bundle_metadata import (
    ROLES,
    read_metadata,
    read_root,
    require_signed,
    require_successor,
    signed_bytes,
    tuf_key,
    whole_utc,
)
from edgefleet.trust.documents import format_canonical, parse_json_object
from edgefleet.trust.errors import Rejected, rejecting
from edgefleet.trust.keys import PrivateKey, PublicKey

TRUST_FILE = "trust.json"
MAX_ROOTS = 64


@dataclass(frozen=True, kw_only=True)
class TrustBundle(BundleContent):
    """What a verified bundle says; `expires_at` is the earlier end of root and targets, `root_version` that of its last root."""

    version: int
    expires_at: datetime
    root_version: int = 1


def make_root(keys: Sequence[PublicKey], *, signers: Sequence[PrivateKey], threshold: int, version: int, expires_at: datetime) -> bytes:
    """A root: `threshold` of `keys` sign bundles and the next root. For version n+1, `signers` hold enough keys of n and n+1.

    Raises ValueError when fewer different keys are given than the threshold.
    """
    unique = {key.id: key for key in keys}
    if not 1 <= threshold <= len(unique):
        raise ValueError(f"threshold {threshold} cannot be met by {len(unique)} different keys")
    root = Root(version=version, expires=whole_utc(expires_at), consistent_snapshot=False)
    for key in unique.values():
        for role in ROLES:
            root.add_key(tuf_key(key), role)
    for role in ROLES:
        root.roles[role].threshold = threshold
    return signed_bytes(Metadata(root), signers)


def make_bundle(
    *, roots: Sequence[bytes], signers: Sequence[PrivateKey], version: int, content: BundleContent, expires_at: datetime
) -> bytes:
    """A bundle under the last of `roots` (oldest first). Raises ValueError for values that open_bundle would refuse."""
    trust = write_content(content)
    targets = Targets(version=version, expires=whole_utc(expires_at))
    targets.targets[TRUST_FILE] = TargetFile.from_data(TRUST_FILE, format_canonical(trust), ["sha256"])
    document = {
        "formatVersion": trust["formatVersion"],
        "roots": [json.loads(root) for root in roots],
        "targets": json.loads(signed_bytes(Metadata(targets), signers)),
        "trust": trust,
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def open_bundle(data: bytes, *, pinned_root: bytes, floor_version: int, now: datetime, floor_root: int = 0) -> TrustBundle:
    """The verified bundle.

    `pinned_root` is the root that the site got at its join, `floor_version` the highest bundle version that it has acted on, `floor_root`
    that of such a bundle's last root, `now` its clock (never earlier than the latest time it has seen). Raises Rejected with a Bundle...
    reason.
    """
    with rejecting("BundleMalformed", "the trust bundle"):
        document = parse_json_object(data)
        found = document.get("formatVersion")
        if type(found) is not int or found not in FORMATS:
            raise Rejected(
                "BundleFormatUnknown", f"the trust bundle has formatVersion {found!r}, this edgefleet reads up to {FORMATS[-1]}: upgrade it"
            )
        if set(document) != {"formatVersion", "roots", "targets", "trust"}:
            raise ValueError(f"it has the fields {', '.join(sorted(document))}")
        root = _follow_roots(pinned_root, document["roots"])
        targets: Metadata[Targets] = read_metadata(document["targets"], Targets)
        require_signed(root, "targets", targets)
        signed = targets.signed
        if set(signed.targets) != {TRUST_FILE} or signed.delegations is not None:
            raise ValueError(f"its targets must name {TRUST_FILE} alone")
        signed.targets[TRUST_FILE].verify_length_and_hashes(format_canonical(document["trust"]))
        expires_at = min(signed.expires, root.expires)
        if now >= expires_at:
            raise Rejected("BundleExpired", f"the trust bundle ended {format_time(expires_at)}: `edgefleet trust renew` makes a new one")
        if signed.version < floor_version:
            raise Rejected(
                "BundleRollback", f"the trust bundle has version {signed.version}, version {floor_version} was already seen here"
            )
        if root.version < floor_root:
            # Without this, keys that a later root dropped could sign for ever: a bundle would only have to leave that root out.
            raise Rejected("BundleRollback", f"the trust bundle ends with root {root.version}, root {floor_root} was already seen here")
        content = read_content(document["trust"])
        if document["trust"].get("formatVersion") != found:
            raise ValueError("it says one formatVersion outside and another inside of what is signed")
        return TrustBundle(**vars(content), version=signed.version, expires_at=expires_at, root_version=root.version)


def require_root(data: bytes) -> None:
    """Check that a document is a root that a site can pin. Raises Rejected(RootMalformed, BundleUnderSigned)."""
    with rejecting("RootMalformed", "not a root document, such as root.json of `edgefleet trust init`"):
        read_root(parse_json_object(data))


def read_roots(data: bytes) -> list[bytes]:
    """The roots of a bundle that was opened before, for make_bundle. Raises Rejected(BundleMalformed)."""
    with rejecting("BundleMalformed", "the trust bundle"):
        return [json.dumps(root).encode() for root in parse_json_object(data)["roots"]]


def require_root_kept(data: bytes, root: bytes) -> None:
    """Check that a bundle, opened before, goes on from this root, the last of the bundle in force. Raises Rejected(BundleRootMismatch).

    From the pinned root alone, keys that a later root dropped could sign another one in its place, for ever.
    """
    with rejecting("BundleMalformed", "the trust bundle"):
        kept = parse_json_object(root)["signed"]
        if all(format_canonical(parse_json_object(one)["signed"]) != format_canonical(kept) for one in read_roots(data)):
            raise Rejected(
                "BundleRootMismatch",
                f"the trust bundle has another root {kept['version']} than the one that was in force here: root keys that were taken out, "
                "or two sets of holders, signed it",
            )


def read_expiry(data: bytes) -> datetime:
    """When a bundle says that it ends, for warnings alone: no signature is looked at. Raises Rejected(BundleMalformed)."""
    with rejecting("BundleMalformed", "the trust bundle"):
        document = parse_json_object(data)
        signed = [document["targets"]["signed"], document["roots"][-1]["signed"]]
        return min(datetime.fromisoformat(one["expires"].replace("Z", "+00:00")) for one in signed)


def _follow_roots(pinned_root: bytes, documents: Any) -> Root:
    if not isinstance(documents, list) or not 1 <= len(documents) <= MAX_ROOTS:
        raise ValueError(f"roots must be a list of 1 to {MAX_ROOTS} root documents")
    pinned = read_root(parse_json_object(pinned_root))
    current: Root | None = None
    met_the_pinned = False
    for document in documents:
        step: Metadata[Root] = read_metadata(document, Root)
        require_signed(step.signed, "root", step)
        if current is not None:
            require_successor(current, step)
        if step.signed.version == pinned.signed.version:
            if step.signed_bytes != pinned.signed_bytes:
                raise Rejected(
                    "BundleRootMismatch",
                    f"the trust bundle's root {step.signed.version} is not the one pinned here: it is another installation's",
                )
            met_the_pinned = True
        current = step.signed
    if current is None or not met_the_pinned:
        raise Rejected("BundleRootMismatch", f"the trust bundle does not contain the pinned root, version {pinned.signed.version}")
    return current
