"""The frozen list of sites of a run, in immutable ConfigMaps of at most 2,000 sites each.

A plan is written before its run and gets its owner after it; so a hub that dies in between leaves ConfigMaps without an owner, never a
run without a plan. `delete_leftovers` removes those at the next start.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from typing import Any

from edgefleet.api.meta import FLEET_LABEL
from edgefleet.api.rollout import PlanRef
from edgefleet.core.facts import PlannedSite
from edgefleet.kube.client import Api
from edgefleet.kube.errors import Conflict
from edgefleet.kube.resources import CONFIG_MAPS

SITES_PER_CHUNK = 2000
PLAN_LABEL = "edgefleet.io/plan"
ENTRY = "plan.json.z"


class PlanError(Exception):
    """A run's plan is gone or is not the one that the run froze."""


def encode_plan(plan: Sequence[PlannedSite]) -> tuple[PlanRef, list[bytes]]:
    """The reference (SHA-256 over the joined JSON chunks) and the compressed chunks."""
    chunks = [
        json.dumps([[p.site, p.variant, p.wave] for p in plan[start : start + SITES_PER_CHUNK]], separators=(",", ":")).encode()
        for start in range(0, len(plan), SITES_PER_CHUNK)
    ]
    digest = hashlib.sha256(b"".join(chunks)).hexdigest()
    return PlanRef(hash=digest, sites=len(plan), chunks=len(chunks)), [zlib.compress(chunk, 9) for chunk in chunks]


def decode_plan(ref: PlanRef, chunks: Sequence[bytes]) -> tuple[PlannedSite, ...]:
    """The inverse. Raises PlanError when the content is not what the reference names."""
    try:
        plain = [zlib.decompress(chunk) for chunk in chunks]
    except zlib.error as error:
        raise PlanError(f"plan {ref.hash[:8]} cannot be read: {error}") from error
    if hashlib.sha256(b"".join(plain)).hexdigest() != ref.hash:
        raise PlanError(f"plan {ref.hash[:8]} was changed: abort the run, and name the release again")
    return tuple(PlannedSite(site, variant, wave) for chunk in plain for site, variant, wave in json.loads(chunk))


def chunk_name(ref: PlanRef, index: int) -> str:
    """The ConfigMap of one chunk."""
    return f"plan-{ref.hash[:16]}-{index}"


async def apply_plan(api: Api, namespace: str, fleet: str, plan: Sequence[PlannedSite]) -> PlanRef:
    """Write the chunks; those that exist already are the same, since they are named by their content."""
    ref, chunks = encode_plan(plan)
    for index, chunk in enumerate(chunks):
        body = {
            "metadata": {
                "name": chunk_name(ref, index),
                "namespace": namespace,
                "labels": {FLEET_LABEL: fleet, PLAN_LABEL: ref.hash[:16]},
            },
            "immutable": True,
            "binaryData": {ENTRY: base64.b64encode(chunk).decode()},
        }
        try:
            await api.create(CONFIG_MAPS, body)
        except Conflict:
            continue
    return ref


async def apply_plan_owner(api: Api, namespace: str, ref: PlanRef, run: dict[str, Any]) -> None:
    """Let the run own its plan, so that both go together."""
    meta = run["metadata"]
    owner = {"apiVersion": run["apiVersion"], "kind": run["kind"], "name": meta["name"], "uid": meta["uid"]}
    for index in range(ref.chunks):
        await api.patch(CONFIG_MAPS, chunk_name(ref, index), namespace, {"metadata": {"ownerReferences": [owner]}})


async def fetch_plan(api: Api, namespace: str, ref: PlanRef) -> tuple[PlannedSite, ...]:
    """Read a plan back. Raises PlanError, or NotFound when a chunk is gone."""
    bodies = [await api.get(CONFIG_MAPS, chunk_name(ref, index), namespace) for index in range(ref.chunks)]
    return decode_plan(ref, [base64.b64decode(body["binaryData"][ENTRY]) for body in bodies])


async def delete_leftovers(api: Api) -> int:
    """Delete plans that never got a run; returns how many."""
    gone = 0
    for body in await api.list(CONFIG_MAPS, labels=PLAN_LABEL):
        meta = body["metadata"]
        if not meta.get("ownerReferences"):
            await api.delete(CONFIG_MAPS, meta["name"], meta["namespace"], uid=meta["uid"])
            gone += 1
    return gone
