"""When the hub may start: its API server is ready and serves every kind that we need.

kopf that starts while an API server comes up can stay deaf for ever, alive and without an error (measured: 3 of 6 tries). So nothing
starts before the facts are there, and `heartbeat` ends a process that goes deaf later.
"""

import asyncio
import logging

from edgefleet.api.meta import API_VERSION
from edgefleet.kube.client import Api
from edgefleet.kube.errors import ApiError, NotFound
from edgefleet.kube.resources import NAMESPACES, OUR_KINDS

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0


async def wait_until_served(api: Api, namespace: str) -> None:
    """Return when /readyz is ok, all our kinds are in discovery, and the hub's namespace exists. Logs what it waits for, once each."""
    said = ""
    while True:
        missing = await _missing(api, namespace)
        if not missing:
            return
        if missing != said:
            log.info("waiting: %s", missing)
            said = missing
        await asyncio.sleep(POLL_SECONDS)


async def _missing(api: Api, namespace: str) -> str:
    if trouble := await api.fetch_trouble():
        return f"{api.server} is not ready: {trouble}"
    try:
        served = {entry["name"] for entry in (await api.get_raw(f"/apis/{API_VERSION}"))["resources"]}
    except NotFound:
        served = set()
    except ApiError as error:
        return f"{api.server}: {error}"
    lacking = [kind.plural for kind in OUR_KINDS if kind.plural not in served]
    if lacking:
        return f"kinds {', '.join(lacking)} are not served by {api.server}: apply crds/ first"
    try:
        body = await api.get(NAMESPACES, namespace)
    except NotFound:
        return f"namespace {namespace} does not exist: create it and its Secret first"
    except ApiError as error:
        return f"{api.server}: {error}"
    return f"namespace {namespace} is being deleted" if body["metadata"].get("deletionTimestamp") else ""
