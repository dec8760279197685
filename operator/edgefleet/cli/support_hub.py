"""What a support bundle takes of a hub: objects and their Events, and the hub's own pods. Never a Secret, never a ConfigMap of others."""

import platform
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from edgefleet import __version__
from edgefleet.api.meta import GROUP, SITE_LABEL
from edgefleet.cli.check import run_probes, show
from edgefleet.cli.check_hub import BINDINGS, CRDS, POLICIES, HubProbes
from edgefleet.cli.support import Part
from edgefleet.kube.client import Api
from edgefleet.kube.errors import ApiError
from edgefleet.kube.resources import EVENTS, LEASES, OUR_KINDS, Resource

PODS = Resource("v1", "Pod", "pods", True)
LINE_SECONDS = 10.0
LOG_LINES = 5000
METRICS_PORT = "metrics"


def hub_parts(api: Api, namespace: str) -> Mapping[str, Part]:
    """By name; `namespace` holds the hub's own objects."""

    async def versions() -> Mapping[str, Any]:
        server = await api.get_raw("/version")
        return {"versions.json": {"edgefleet": __version__, "python": platform.python_version(), "server": server, "address": api.server}}

    async def check() -> Mapping[str, Any]:
        hub = HubProbes(api, namespace)
        return {"check.json": show(await run_probes({"api server": hub.server}, hub.probes(), LINE_SECONDS))}

    async def installed() -> Mapping[str, Any]:
        found: dict[str, Any] = {}
        for resource in (CRDS, POLICIES, BINDINGS):
            bodies = await api.list(resource)
            found[f"installed/{resource.plural}.json"] = [_brief(body) for body in bodies if _is_ours(body)]
        return found

    async def events() -> Mapping[str, Any]:
        found = [body for body in await api.list(EVENTS) if str(body.get("involvedObject", {}).get("apiVersion", "")).startswith(GROUP)]
        known = {body["metadata"]["uid"] for body in found}
        own = [body for body in await api.list(EVENTS, namespace) if body["metadata"]["uid"] not in known]
        return {"events.json": sorted(found + own, key=lambda body: str(body.get("lastTimestamp") or ""))}

    async def leases() -> Mapping[str, Any]:
        sites = await api.list(LEASES, labels=SITE_LABEL)
        known = {body["metadata"]["uid"] for body in sites}
        own = [body for body in await api.list(LEASES, namespace) if body["metadata"]["uid"] not in known]
        return {"leases.json": sites + own}

    def kind(resource: Resource) -> Part:
        async def collect() -> Mapping[str, Any]:
            return {f"kinds/{resource.plural}.json": await api.list(resource)}

        return collect

    async def pods() -> Mapping[str, Any]:
        found = await api.list(PODS, namespace)
        return {"pods.json": found, **await _look_into(api, namespace, found)}

    return {
        "versions": versions,
        "check": check,
        "installed": installed,
        **{resource.plural: kind(resource) for resource in OUR_KINDS},
        "events": events,
        "leases": leases,
        "pods": pods,
    }


async def _look_into(api: Api, namespace: str, pods: list[dict[str, Any]]) -> Mapping[str, Any]:
    """Logs and metrics of pods; for what cannot be had, the reason."""
    found: dict[str, Any] = {}
    for body in pods:
        name = body["metadata"]["name"]
        path = f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(name)}"
        for container in body["spec"]["containers"]:
            log = f"{path}/log?container={quote(container['name'])}&tailLines={LOG_LINES}"
            found[f"logs/{name}.{container['name']}.log"] = await _fetch(api, log)
            if any(
                one.get("restartCount") for one in body.get("status", {}).get("containerStatuses", ()) if one["name"] == container["name"]
            ):
                found[f"logs/{name}.{container['name']}.previous.log"] = await _fetch(api, log + "&previous=true")
            for port in container.get("ports", ()):
                if port.get("name") == METRICS_PORT:
                    # The proxy to a pod takes a number, not a port's name.
                    found[f"metrics/{name}.txt"] = await _fetch(api, f"{path}:{port['containerPort']}/proxy/metrics")
    return found


async def _fetch(api: Api, path: str) -> bytes | Exception:
    try:
        return await api.get_bytes(path)
    except ApiError as error:
        return error


def _is_ours(body: Mapping[str, Any]) -> bool:
    name = str(body["metadata"]["name"])
    return name.startswith("edgefleet") or name.endswith(f".{GROUP}")


def _brief(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """A kind without its schema, which is that of its version."""
    if "versions" not in body.get("spec", {}):
        return {"metadata": body["metadata"], "spec": body.get("spec")}
    versions = [{key: one[key] for key in ("name", "served", "storage")} for one in body["spec"]["versions"]]
    return {"metadata": body["metadata"], "versions": versions, "conditions": body.get("status", {}).get("conditions")}
