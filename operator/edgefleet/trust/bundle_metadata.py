"""The TUF half of a trust bundle: roots and signatures in the one spelling that is read here. python-tuf counts who signed.

What a bundle must look like as a whole is decided in bundle.py; who may sign one that is on its way, in bundle_draft.py.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]
from tuf.api.metadata import Metadata, Role, Root  # type: ignore[attr-defined]

from edgefleet.trust.errors import Rejected
from edgefleet.trust.keys import PrivateKey, PublicKey

ROLES = ("root", "targets")


@dataclass(frozen=True)
class RootFacts:
    """What a root says: `threshold` of `keys` sign bundles and the next root."""

    version: int
    keys: tuple[PublicKey, ...]
    threshold: int
    expires_at: datetime


def read_root(document: Any) -> Metadata[Root]:
    """A root that enough of its own keys have signed. Raises ValueError, Rejected(BundleUnderSigned)."""
    root: Metadata[Root] = read_metadata(document, Root)
    require_signed(root.signed, "root", root)
    return root


def read_root_facts(document: Any) -> RootFacts:
    """What a root says, signed or not. Raises ValueError; also for one whose keys for bundles are not those for the next root."""
    root: Root = read_metadata(document, Root).signed
    _require_distinct_keys(root)
    first, second = (root.roles[role] for role in ROLES)
    if (set(first.keyids), first.threshold) != (set(second.keyids), second.threshold) or set(root.keys) != set(first.keyids):
        raise ValueError(f"root {root.version} has different keys for bundles and for the next root")
    keys = tuple(PublicKey.from_pem(root.keys[keyid].keyval["public"]) for keyid in first.keyids)
    return RootFacts(root.version, keys, first.threshold, root.expires)


def require_successor(current: Root, step: Metadata[Root]) -> None:
    """Raises Rejected: BundleRootMismatch for a version that does not follow, BundleUnderSigned for too few keys of the one before."""
    if step.signed.version != current.version + 1:
        raise Rejected("BundleRootMismatch", f"root {step.signed.version} does not follow root {current.version}")
    if not step.signed.get_root_verification_result(current, step.signed_bytes, step.signatures):
        raise Rejected("BundleUnderSigned", f"root {step.signed.version} is not signed by enough keys of root {current.version}")


def require_signed(root: Root, role: str, metadata: Metadata[Any]) -> None:
    """Raises Rejected(BundleUnderSigned) unless as many keys of the root's role signed as it demands; ValueError for one that repeats."""
    _require_distinct_keys(root)
    result = root.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    if not result:
        raise Rejected(
            "BundleUnderSigned",
            f"{role} {metadata.signed.version} is signed by {len(result.signed)} root keys, {result.threshold} are needed",
        )


def read_metadata(document: Any, kind: Any) -> Any:
    """TUF metadata of one kind, whoever signed it. Raises ValueError."""
    # Only fields that the signature covers, in the one spelling that we write, so that no unsigned byte has a meaning.
    if not isinstance(document, dict) or set(document) != {"signed", "signatures"}:
        raise ValueError("TUF metadata has exactly the fields signed and signatures")
    for entry in document["signatures"]:
        if set(entry) != {"keyid", "sig"} or not re.fullmatch(r"[0-9a-f]{2,512}", entry["sig"]):
            raise ValueError("a TUF signature has exactly the fields keyid and sig, in lower-case hex")
    # from_dict consumes what it is given
    metadata: Metadata[Any] = Metadata.from_dict(json.loads(json.dumps(document)))
    signed: Any = metadata.signed
    if type(signed) is not kind:
        raise ValueError(f"{kind.__name__.lower()} metadata was expected, found {signed.type}")
    if json.dumps(signed.to_dict(), sort_keys=True) != json.dumps(document["signed"], sort_keys=True):
        # The signature is checked over what was understood: it must be what is written.
        raise ValueError(f"{signed.type} metadata is not in its canonical spelling")
    return metadata


def signed_bytes(metadata: Metadata[Any], signers: Sequence[PrivateKey]) -> bytes:
    """The metadata with these signatures beside those that it has."""
    for signer in signers:
        metadata.sign(CryptoSigner(signer.to_crypto()), append=True)
    return metadata.to_bytes() + b"\n"


def whole_utc(moment: datetime) -> datetime:
    """TUF times have whole seconds."""
    return moment.astimezone(UTC).replace(microsecond=0)


def _require_distinct_keys(root: Root) -> None:
    # TUF does not bind a key id to a key: one key under two ids would count twice.
    publics = [key.keyval.get("public") for key in root.keys.values()]
    if len(set(publics)) != len(publics):
        raise ValueError(f"root {root.version} lists one key under two ids")
    for name in ROLES:
        role: Role = root.roles[name]
        if len(set(role.keyids)) != len(role.keyids):
            raise ValueError(f"root {root.version} lists one key twice for {name}")


def tuf_key(key: PublicKey) -> Any:
    """The key as TUF documents name it."""
    return SSlibKey.from_crypto(key.to_crypto())
