"""The frozen list of sites of a run, in immutable ConfigMaps of at most 2,000 sites each.

A plan is written before its run and gets its owner after it; so a hub that dies in between leaves ConfigMaps without an owner, never a
run without a plan. `settle_leftovers` gives those to their run at the next start, or removes them if there is none. Runs whose plans
are equal share the ConfigMaps and own them together.
"""

import base64
import hashlib
import json
import zlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from edgefleet.api.meta import FLEET_LABEL
from edgefleet.api.rollout import PlanRef
from edgefleet.core.facts import PlannedSite
from edgefleet.hub.settings import FIELD_MANAGER
from edgefleet.kube.client import Api
from edgefleet.kube.errors import Conflict, NotFound
from edgefleet.kube.resources import CONFIG_MAPS, MODEL_ROLLOUTS

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
        raise PlanError(f"plan {ref.hash[:8]} was changed")
    return tuple(PlannedSite(site, variant, wave) for chunk in plain for site, variant, wave in json.loads(chunk))


def chunk_name(ref: PlanRef, index: int) -> str:
    """The ConfigMap of one chunk."""
    return f"plan-{ref.hash[:16]}-{index}"


async def apply_plan(api: Api, namespace: str, fleet: str, plan: Sequence[PlannedSite]) -> PlanRef:
    """Write the chunks; those that exist already are the same, since they are named by their content."""
    ref, chunks = encode_plan(plan)
    for index, chunk in enumerate(chunks):
        try:
            await api.create(CONFIG_MAPS, _body(namespace, fleet, ref, index, chunk))
        except Conflict:
            continue
    return ref


async def apply_plan_owner(api: Api, run: dict[str, Any], plan: Sequence[PlannedSite]) -> None:
    """Let the run own its plan, beside other owners of the same one, so that the last of them takes it along."""
    meta, (ref, chunks) = run["metadata"], encode_plan(plan)
    for index, chunk in enumerate(chunks):
        # The whole content again: the plan of an equal run that was forgotten a moment ago may have gone meanwhile.
        body = _body(meta["namespace"], run["spec"]["fleet"], ref, index, chunk)
        body["metadata"]["ownerReferences"] = [_owner(run)]
        # Owners that one manager applied before would be replaced.
        await api.apply(CONFIG_MAPS, body, manager=f"{FIELD_MANAGER}-{meta['name']}")


def _body(namespace: str, fleet: str, ref: PlanRef, index: int, chunk: bytes) -> dict[str, Any]:
    return {
        "metadata": {
            "name": chunk_name(ref, index),
            "namespace": namespace,
            "labels": {FLEET_LABEL: fleet, PLAN_LABEL: ref.hash[:16]},
        },
        "immutable": True,
        "binaryData": {ENTRY: base64.b64encode(chunk).decode()},
    }


def _owner(run: dict[str, Any]) -> dict[str, str]:
    meta = run["metadata"]
    return {"apiVersion": MODEL_ROLLOUTS.api_version, "kind": MODEL_ROLLOUTS.kind, "name": meta["name"], "uid": meta["uid"]}


async def fetch_plan(api: Api, namespace: str, ref: PlanRef) -> tuple[PlannedSite, ...]:
    """Read a plan back. Raises PlanError, or NotFound when a chunk is gone."""
    bodies = [await api.get(CONFIG_MAPS, chunk_name(ref, index), namespace) for index in range(ref.chunks)]
    return decode_plan(ref, [base64.b64decode((body.get("binaryData") or {}).get(ENTRY, "")) for body in bodies])


async def settle_leftovers(api: Api, *, looks: int = 3) -> int:
    """What a hub that died left behind: each run that lacks it becomes an owner of its plan, and plans without a run are deleted; returns
    how many of these. An equal plan of an older run has an owner already, and would go with it. What changes meanwhile is looked at again,
    at most `looks` times; the next start settles the rest."""
    plans = [body["metadata"] for body in await api.list(CONFIG_MAPS, labels=PLAN_LABEL)]
    if not plans:
        return 0
    # Listed after the plans: a run that is made later has a plan that is not among them.
    runs = defaultdict(list)
    for run in await api.list(MODEL_ROLLOUTS):
        runs[run["metadata"]["namespace"], run["spec"]["plan"]["hash"][:16]].append(_owner(run))
    gone, changed = 0, False
    for meta in plans:
        owners = meta.get("ownerReferences") or []
        known = {owner["uid"] for owner in owners}
        lacking = [owner for owner in runs[meta["namespace"], meta["labels"][PLAN_LABEL]] if owner["uid"] not in known]
        try:
            if lacking:
                body = {"metadata": {"ownerReferences": [*owners, *lacking], "resourceVersion": meta["resourceVersion"]}}
                await api.patch(CONFIG_MAPS, meta["name"], meta["namespace"], body)
            elif not owners:
                await api.delete(CONFIG_MAPS, meta["name"], meta["namespace"], uid=meta["uid"])
                gone += 1
        except (Conflict, NotFound):
            changed = True
    return gone + await settle_leftovers(api, looks=looks - 1) if changed and looks > 1 else gone
