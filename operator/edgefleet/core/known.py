"""Whether the hash of an ordered revision can be the name of another one here: files, servers and records are kept under it. Pure.

The hash is the hub's word: it is over all variants and all serving entries, of which a site has one each, so that a site cannot compute
it. It can compare with what it knows under that hash, and with other hashes that would be served under the same short name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgefleet.api.assignment import FrozenRevision
from edgefleet.api.model import Golden, Serving, Variant
from edgefleet.api.site import Hardware
from edgefleet.core.variants import fit_serving, fit_variant

SHORT_HASH = 8
"""So many digits of its hash name a revision to a model server."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a site knows: the hashes of all that serves, served, or is ordered here, and by hash all that is complete in its store."""

    hashes: frozenset[str] = frozenset()
    stored: Mapping[str, FrozenRevision] = field(default_factory=dict)


def find_mix_up(revision: FrozenRevision, known: Known, hardware: Hardware) -> str:
    """What of this site's an ordered revision would be taken for, and why it is not that; empty if there is no such thing."""
    alike = min(_others_alike(revision.hash, {*known.hashes, *known.stored}), default=None)
    if alike is not None:
        return f"revision.hash {revision.hash} begins like {alike}, which is known here: both would be served as one"
    found = known.stored.get(revision.hash)
    if found is None:
        return ""
    differing = find_differing(revision, found) or _find_unfit(revision, found, hardware)
    return f"revision.hash {revision.hash} is known here with another {differing}" if differing else ""


def find_differing(revision: FrozenRevision, found: FrozenRevision) -> str:
    """Which field that goes into the hash as it is differs; empty if none does."""
    pairs = {
        "model": (revision.model, found.model),
        "digest": (revision.digest, found.digest),
        "golden": (_plain(revision.golden), _plain(found.golden)),
    }
    return next((name for name, (ordered, stored) in pairs.items() if ordered != stored), "")


def _find_unfit(revision: FrozenRevision, found: FrozenRevision, hardware: Hardware) -> str:
    """Variant and serving entry are chosen by hardware, which may have changed: then only the better choice is another one."""
    if _plain(revision.variant) != _plain(found.variant):
        chosen = fit_variant((found.variant, revision.variant), hardware) if revision.variant.name != found.variant.name else None
        if chosen != revision.variant:
            return "variant"
    same_entry = revision.serving.match == found.serving.match or fit_serving((revision.serving,), hardware) is None
    return "serving" if same_entry and _plain(revision.serving) != _plain(found.serving) else ""


def _others_alike(revision: str, hashes: Iterable[str]) -> list[str]:
    return [other for other in hashes if other != revision and other[:SHORT_HASH] == revision[:SHORT_HASH]]


def _plain(part: Golden | Variant | Serving | None) -> dict[str, Any] | None:
    # As the store's record has it, which leaves out what is None, also in a pod template.
    return part.model_dump(mode="json", by_alias=True, exclude_none=True) if part is not None else None
