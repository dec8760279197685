"""A trust bundle on its way to its signatures, as the holder of one root key meets it: what it changes, and who must sign yet.

A draft is a bundle that too few have signed, so it carries nothing that a bundle does not. It is judged against the bundle in force,
which the caller has opened under the pinned root: the same roots and at most the next one, exactly the next version, and content that
every site can read. When nothing is missing it is the bundle; that, too, is for open_bundle to say.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]
from tuf.api.metadata import Metadata, Root, Targets  # type: ignore[attr-defined]

from edgefleet.api.meta import format_time
from edgefleet.trust.bundle import TRUST_FILE, make_bundle, read_roots
from edgefleet.trust.bundle_content import BundleContent, read_content
from edgefleet.trust.bundle_metadata import RootFacts, read_metadata, read_root_facts, tuf_key
from edgefleet.trust.documents import format_canonical, parse_json_object
from edgefleet.trust.errors import Rejected, rejecting
from edgefleet.trust.keys import PrivateKey, PublicKey

PEM_START = "-----BEGIN PUBLIC KEY-----"


@dataclass(frozen=True)
class Missing:
    """So many more signatures, by any of `keys`, on `what`: `root 2 (old keys)`, `root 2 (its own keys)` or `bundle 7`."""

    what: str
    count: int
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Draft:
    """`changes` are lines that begin with + or -, in the order of what they are about; `missing` is empty for a finished bundle."""

    version: int
    changes: tuple[str, ...]
    missing: tuple[Missing, ...]


def make_draft(held: bytes, *, version: int, content: BundleContent, expires_at: datetime, root: bytes | None = None) -> bytes:
    """An unsigned draft upon the bundle in force; `root` is the next root, unsigned. Raises ValueError for content that none can read."""
    roots = read_roots(held) + ([root] if root else [])
    return make_bundle(roots=roots, signers=(), version=version, content=content, expires_at=expires_at)


def read_draft(data: bytes, *, held: bytes, now: datetime) -> Draft:
    """What a draft says and lacks. `held` is the bundle in force, opened before.

    Raises Rejected: DraftForeign, DraftVersion, BundleExpired, BundleMalformed.
    """
    with rejecting("BundleMalformed", "the draft"):
        return _Reading(data, held, now).draft


def sign_draft(data: bytes, key: PrivateKey, *, held: bytes, now: datetime) -> bytes:
    """The draft with this root key's signatures: on the bundle, on a new root, or on both.

    Raises Rejected: RootKeyUnknown for a key that may sign neither, and as read_draft does.
    """
    with rejecting("BundleMalformed", "the draft"):
        reading = _Reading(data, held, now)
        ours = tuf_key(key.public).keyid
        document = reading.document
        signed = False
        for metadata, roots, place in ((reading.root, reading.root_signers, -1), (reading.targets, (reading.last,), None)):
            if metadata is not None and any(ours in root.roles["root"].keyids for root in roots):
                metadata.sign(CryptoSigner(key.to_crypto()), append=True)
                written = json.loads(metadata.to_bytes())
                if place is None:
                    document["targets"] = written
                else:
                    document["roots"][place] = written
                signed = True
        if not signed:
            known = ", ".join(one.id for one in read_root_facts(document["roots"][-1]).keys)
            raise Rejected("RootKeyUnknown", f"{key.public.id} is none of the root keys: {known}")
        return json.dumps(document, indent=1).encode() + b"\n"


def list_facts(bundle: bytes) -> tuple[str, ...]:
    """Everything that a bundle says, one line for each fact: `publishers.weld.keys: sha256:...`. No signature is looked at.

    It walks the document, whatever is in it: what a newer field says cannot be kept from who signs it. Raises Rejected(BundleMalformed).
    """
    with rejecting("BundleMalformed", "the trust bundle"):
        document = parse_json_object(bundle)
        facts = list(_walk("", {name: value for name, value in document["trust"].items() if name != "formatVersion"}))
        root = read_root_facts(document["roots"][-1])
        facts += [f"root.keys: {key.id}" for key in root.keys]
        facts += [f"root.threshold: {root.threshold}", f"root.version: {root.version}", f"root.ends: {format_time(root.expires_at)}"]
        targets: Targets = read_metadata(document["targets"], Targets).signed
        return (*facts, f"bundle.version: {targets.version}", f"bundle.ends: {format_time(targets.expires)}")


def read_last_root(bundle: bytes) -> RootFacts:
    """The root that a bundle in force is signed under. Raises Rejected(BundleMalformed)."""
    with rejecting("BundleMalformed", "the trust bundle"):
        return read_root_facts(parse_json_object(bundle)["roots"][-1])


class _Reading:
    def __init__(self, data: bytes, held: bytes, now: datetime) -> None:
        self.document, known = parse_json_object(data), parse_json_object(held)
        if set(self.document) != set(known):
            raise ValueError(f"it has the fields {', '.join(sorted(self.document))}")
        roots, old = self.document["roots"], known["roots"]
        if roots[: len(old)] != old or len(roots) > len(old) + 1:
            raise Rejected("DraftForeign", "the draft does not follow from the bundle in force: its roots are not that one's and the next")
        before: Root = read_metadata(old[-1], Root).signed
        self.root: Metadata[Root] | None = None
        self.last = before
        if len(roots) > len(old):
            root: Metadata[Root] = read_metadata(roots[-1], Root)
            if root.signed.version != before.version + 1:
                raise Rejected("DraftForeign", f"the draft's root {root.signed.version} does not follow root {before.version}")
            self.root, self.last = root, root.signed
        facts = read_root_facts(roots[-1])
        self.root_signers = (before, self.last) if self.root else ()
        self.targets: Metadata[Targets] = read_metadata(self.document["targets"], Targets)
        self._require_readable(read_metadata(known["targets"], Targets).signed.version)
        for what, ends in (("bundle", self.targets.signed.expires), ("root", facts.expires_at)):
            if now >= ends:
                raise Rejected("BundleExpired", f"the draft's {what} ended {format_time(ends)}: make a new one")
        self.draft = Draft(self.targets.signed.version, _compare(held, data), tuple(self._missing()))

    def _require_readable(self, held_version: int) -> None:
        signed, trust = self.targets.signed, self.document["trust"]
        if signed.version != held_version + 1:
            raise Rejected(
                "DraftVersion",
                f"the draft has version {signed.version}; after version {held_version}, which is in force here, comes the next",
            )
        if set(signed.targets) != {TRUST_FILE} or signed.delegations is not None:
            raise ValueError(f"its targets must name {TRUST_FILE} alone")
        signed.targets[TRUST_FILE].verify_length_and_hashes(format_canonical(trust))
        read_content(trust)
        if trust.get("formatVersion") != self.document["formatVersion"]:
            raise ValueError("it says one formatVersion outside and another inside of what is signed")

    def _missing(self) -> Iterator[Missing]:
        if self.root is not None:
            for root, whose in zip(self.root_signers, ("old keys", "its own keys"), strict=True):
                yield from _lacking(root, "root", self.root, f"root {self.last.version} ({whose})")
        yield from _lacking(self.last, "targets", self.targets, f"bundle {self.targets.signed.version}")


def _lacking(root: Root, role: str, metadata: Metadata[Any], what: str) -> Iterator[Missing]:
    result = root.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    if result.missing:
        keys = tuple(PublicKey.from_pem(key.keyval["public"]).id for key in result.unsigned.values())
        yield Missing(what, result.missing, keys)


def _compare(held: bytes, data: bytes) -> tuple[str, ...]:
    old, new = list_facts(held), list_facts(data)
    lines = [(fact, "-") for fact in old if fact not in set(new)] + [(fact, "+") for fact in new if fact not in set(old)]
    return tuple(f"{sign} {fact}" for fact, sign in sorted(lines, key=lambda line: (line[0].partition(": ")[0], line[1] == "+", line[0])))


def _walk(path: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and path == "trustedRoot":
        # Sigstore's own document: its hash tells one from another, its pages would hide everything else.
        yield f"{path}: sha256:{hashlib.sha256(format_canonical(dict(value))).hexdigest()}"
    elif isinstance(value, Mapping | list) and not value:
        # No line at all could not be told from a field that is not there, and it may mean: none, of anything.
        yield f"{path}: (empty {'list' if isinstance(value, list) else 'map'})"
    elif path == "imageSigners" and isinstance(value, list):
        # Numbered: the first entry that fits counts, so another order is another meaning.
        for number, one in enumerate(value, start=1):
            yield from _walk(f"{path}.{number}", one)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _walk(f"{path}.{name}" if path else name, inner)
    elif isinstance(value, list) and all(isinstance(one, str | int | float | bool) for one in value):
        for one in value:
            yield f"{path}: {_plain(one)}"
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for one in value:
            yield f"{path}: {json.dumps(one, sort_keys=True)}"
    else:
        yield f"{path}: {_plain(value)}"


def _plain(value: Any) -> str:
    if isinstance(value, str) and value.startswith(PEM_START):
        return PublicKey.from_pem(value).id
    text = str(value)
    return text if text.isprintable() else json.dumps(text)
