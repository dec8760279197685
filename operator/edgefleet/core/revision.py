"""What a revision is: one hash over all that a change of a model can change at a site.

The hash is over RFC 8785 JSON with values equal to their default left out, so that a new optional field changes no revision that
exists. A default therefore never changes; tests/unit/core/test_revision.py pins golden vectors.
"""

from hashlib import sha256
from typing import Any

import rfc8785

from edgefleet.api.model import EdgeModelSpec, Golden, Release, Revision, Serving, Slo


def compute_revision(*, model: str, release: Release, source_repository: str, spec: EdgeModelSpec) -> Revision:
    """The revision that this model names now.

    The repository is carried along and not hashed: the same bytes from a mirror are the same revision. `variants`, `version` and
    `seq` follow from the index digest.
    """
    return Revision(
        hash=hash_revision(model=model, digest=release.digest, serving=spec.serving, golden=spec.golden, slo=spec.slo),
        model=model,
        repository=source_repository,
        digest=release.digest,
        version=release.version,
        seq=release.seq,
        variants=release.variants,
        golden=spec.golden,
        serving=spec.serving,
        slo=spec.slo,
    )


def hash_revision(*, model: str, digest: str, serving: tuple[Serving, ...], golden: Golden | None, slo: Slo | None = None) -> str:
    """SHA-256, as 64 hex digits, of the canonical JSON of what the site is told to run."""
    content: dict[str, Any] = {"model": model, "digest": digest, "serving": [_without_defaults(entry) for entry in serving]}
    if golden is not None:
        content["golden"] = _without_defaults(golden)
    if slo is not None and slo != Slo():
        content["slo"] = _without_defaults(slo)
    return sha256(rfc8785.dumps(content)).hexdigest()


def _without_defaults(part: Serving | Golden | Slo) -> dict[str, Any]:
    return part.model_dump(mode="json", by_alias=True, exclude_defaults=True)
