"""Whom a policy believes: publishers by key or identity, how many of them, and what is not believed any more.

The hub makes a Publisher of `EdgeModel.spec.verify`, a site of its trust bundle, a command of its options; release.py verifies under it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from edgefleet.trust.errors import Rejected
from edgefleet.trust.identities import Identity, Keyless
from edgefleet.trust.keys import PublicKey


@dataclass(frozen=True)
class Revoked:
    """What is refused whoever vouches for it: artifacts by digest (`sha256:<hex>`), publishers by key id or identity.

    `stops` says of some of `digests` from when on a site that serves one serves nothing rather than that.
    """

    digests: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    identities: tuple[Identity, ...] = ()
    stops: Mapping[str, datetime] = field(default_factory=dict)

    def require_digest(self, digest: str) -> None:
        """Raises Rejected(Revoked)."""
        if digest in self.digests:
            raise Rejected("Revoked", f"{digest} is revoked: name another release")

    def require_key(self, key: str) -> None:
        """Raises Rejected(PublisherRevoked)."""
        if key in self.keys:
            raise Rejected("PublisherRevoked", f"signed by key {key}, which is revoked")

    def require_identity(self, issuer: str, subject: str) -> None:
        """Raises Rejected(PublisherRevoked)."""
        found = next((one for one in self.identities if one.admits(issuer, subject)), None)
        if found is not None:
            raise Rejected("PublisherRevoked", f"signed by {subject[:200]} of issuer {issuer[:120]}: {found.id[:300]} is revoked")


@dataclass(frozen=True)
class Publisher:
    """Who may release one model: `threshold` of `keys` and identities must sign, and nothing below `min_release_seq` is accepted.

    `predicates` are predicate types that one of them must have attested to the release, beside what every release needs.
    """

    keys: tuple[PublicKey, ...]
    threshold: int = 1
    min_release_seq: int = 0
    keyless: Keyless | None = None
    predicates: tuple[str, ...] = ()
    revoked: Revoked = field(default_factory=Revoked)

    @property
    def identities(self) -> tuple[Identity, ...]:
        """Those who sign without a key of their own."""
        return self.keyless.identities if self.keyless else ()

    @property
    def names(self) -> tuple[str, ...]:
        """Everybody who counts towards the threshold, by id."""
        return tuple(dict.fromkeys([key.id for key in self.keys] + [one.id for one in self.identities]))
