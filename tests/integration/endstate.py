"""The end of a ten-second fleet: what the objects and the sites say, so that ends can be compared."""

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from edgefleet.api.meta import OUTCOME_LABEL
from edgefleet.hub.plans import PLAN_LABEL
from edgefleet.kube.errors import NotFound
from edgefleet.kube.resources import CONFIG_MAPS, EDGE_FLEETS, EDGE_SITES, MODEL_ROLLOUTS, SITE_ASSIGNMENTS
from edgefleet.site.gateway import read_status
from edgefleet.site.gateway_config import gateway_folder
from edgefleet.site.store import Store

if TYPE_CHECKING:
    from tests.integration.tensecond import TenSecondFleet

FLEET = "plants"


async def read_state(fleet: "TenSecondFleet") -> dict[str, Any]:
    """What is there, without times, identities and words: equal for equal ends."""
    runs = await fleet.admin.list(MODEL_ROLLOUTS, fleet.team)
    fleets = await fleet.admin.list(EDGE_FLEETS, fleet.team)
    plans = await fleet.admin.list(CONFIG_MAPS, fleet.team, labels=PLAN_LABEL)
    names = {body["metadata"]["uid"]: body["metadata"]["name"] for body in runs}
    sites = await fleet.admin.list(EDGE_SITES, labels=f"line={fleet.mark}")
    owners = [{owner["uid"] for owner in body["metadata"].get("ownerReferences") or ()} for body in plans]
    state = {
        "fleets": {body["metadata"]["name"]: _fleet_state(body) for body in fleets},
        "runs": {body["metadata"]["name"]: _run_state(body) for body in runs},
        # Whether two runs share a plan depends on what their names hash to.
        "plans": {"owned by": sorted(names[uid] for uid in names.keys() & set().union(*owners)), "nobody's": owners.count(set())},
        "edgesites": {body["metadata"]["name"]: _conditions(body) for body in sites},
        "sites": {letter: await _read_site(fleet, letter) for letter in fleet.SITES},
        "stores": {letter: await asyncio.to_thread(_has_whole_model, fleet, letter) for letter in fleet.SITES},
    }
    found: dict[str, Any] = json.loads(json.dumps(state).replace(fleet.mark, "MARK"))
    return found


def is_tidy(state: dict[str, Any]) -> bool:
    """Whether each site's model server holds what the gateway routes to, and nothing that is to be unloaded yet."""
    sites = state["sites"].values()
    return all(site["loaded"] == sorted(f"{model}--{revision[:8]}" for model, revision in site["routes"].items()) for site in sites)


async def _read_site(fleet: "TenSecondFleet", letter: str) -> dict[str, Any]:
    namespace, name = f"edgesite-{fleet.site(letter)}", f"{fleet.team}.{FLEET}"
    found: dict[str, Any] = {}
    for where, api in (("hub", fleet.admin), ("site", fleet.local)):
        with suppress(NotFound):
            found[where] = _assignment_state(await api.get(SITE_ASSIGNMENTS, name, namespace))
    gateway = read_status(gateway_folder(fleet.state(letter)))
    return {**found, "routes": gateway["models"], "gateway": gateway["pid"] is not None, "loaded": fleet.runtimes[letter].loaded}


def _has_whole_model(fleet: "TenSecondFleet", letter: str) -> bool:
    """Whether every file of what serves is in the store; a site that serves nothing needs none."""
    state_file = fleet.state(letter) / "state.json"
    if not state_file.exists():
        return True
    store = Store(fleet.state(letter) / "store")
    active = [one["active"] for one in json.loads(state_file.read_bytes())["fleets"].values() if one.get("active")]
    records = [store.find(revision) for revision in active]
    return all(record is not None and all(store.path(blob.digest).exists() for blob in record.files) for record in records)


def _conditions(body: dict[str, Any]) -> dict[str, str]:
    return {one["type"]: f"{one['status']} {one['reason']}" for one in body.get("status", {}).get("conditions", ())}


def _fleet_state(body: dict[str, Any]) -> dict[str, Any]:
    status = body.get("status", {})
    kept = {key: status.get(key) for key in ("stableVersion", "sites", "rollout")}
    return {**kept, "conditions": _conditions(body), "finalizers": body["metadata"].get("finalizers")}


def _run_state(body: dict[str, Any]) -> dict[str, Any]:
    status = body.get("status", {})
    kept = {key: status[key] for key in ("phase", "outcome", "reason", "waitingFor") if status.get(key)}
    # How many sites were heard of late is true of the moment in which the run ended.
    kept["sites"] = {name: count for name, count in status.get("sites", {}).items() if name != "unreachable"}
    if status.get("waitingFor"):
        kept["since"] = bool(status.get("since"))
    waves = [[wave["name"], "openedAt" in wave, "passedAt" in wave] for wave in status.get("waves", ())]
    return {**kept, "waves": waves, "label": body["metadata"]["labels"].get(OUTCOME_LABEL), "version": body["spec"]["revision"]["version"]}


def _assignment_state(body: dict[str, Any]) -> dict[str, Any]:
    spec, status = body["spec"], body.get("status", {})
    said = [status.get(key) for key in ("sequence", "state", "reason")]
    return {
        "told": [spec["sequence"], spec["action"], spec.get("version")],
        "said": said,
        "active": (status.get("active") or {}).get("version"),
    }
