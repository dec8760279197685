"""Pods at a site: what may be in a template, the Deployment that follows from it, and what pods say for or against a revision. Pure.

A site trusts nobody with its node: whoever signs orders may name an image by digest and say how it is started, and nothing that reaches
out of the pod. So this is a list of what is allowed, as strict as Kubernetes' Pod Security level `restricted` or stricter; all else is
refused by name. Which pods run when is left to site/runtimes/deployment.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgefleet.api.meta import GROUP, SITE_LABEL
from edgefleet.api.model import DeploymentRuntime, PodTemplate
from edgefleet.api.policy import HardChecks
from edgefleet.core.site import Cause

MANAGED_LABEL, MANAGER = "app.kubernetes.io/managed-by", "edgefleet"
SERVED_LABEL = f"{GROUP}/served"
"""On a Deployment and its pods: `<model>--<rev8>`."""
MODEL_VOLUME = "edgefleet-model"
# fmt: off
_POD_FIELDS = frozenset((
    "containers", "initContainers", "volumes", "securityContext", "nodeSelector", "tolerations", "affinity", "runtimeClassName",
    "imagePullSecrets", "terminationGracePeriodSeconds",
))
_CONTAINER_FIELDS = frozenset((
    "name", "image", "imagePullPolicy", "command", "args", "workingDir", "env", "ports", "resources", "readinessProbe", "livenessProbe",
    "startupProbe", "lifecycle", "securityContext", "volumeMounts",
))
_HANDLERS = ("readinessProbe", "livenessProbe", "startupProbe", "lifecycle")
_SECURITY = frozenset(("runAsNonRoot", "runAsUser", "runAsGroup", "seccompProfile"))
_POD_SECURITY = _SECURITY | {"fsGroup", "fsGroupChangePolicy", "supplementalGroups"}
_CONTAINER_SECURITY = _SECURITY | {"allowPrivilegeEscalation", "privileged", "readOnlyRootFilesystem", "capabilities"}
# fmt: on
_DROP_ALL = {"drop": ["ALL"]}
_SECCOMP = {"type": "RuntimeDefault"}


def find_forbidden(template: PodTemplate) -> str:
    """The first thing in a template that no site allows, as `field: found; allowed is ...`; empty if there is none."""
    spec = template.model_dump(mode="json", by_alias=True)["spec"]
    return next(iter(_forbidden(spec)), "")


def _forbidden(spec: Mapping[str, Any]) -> list[str]:
    found = _unknown("spec", spec, _POD_FIELDS) + _insecure("spec.securityContext", spec.get("securityContext"), _POD_SECURITY)
    volumes = spec.get("volumes") or []
    if not isinstance(volumes, list):
        return ["spec.volumes: not a list"]
    for volume in volumes:
        kinds = sorted(set(volume) - {"name"}) if isinstance(volume, dict) else ["not an object"]
        if kinds != ["emptyDir"]:
            found.append(f"spec.volumes: {', '.join(kinds) or 'no source'}; allowed is only emptyDir")
    for group in ("initContainers", "containers"):
        for number, container in enumerate(spec.get(group) or ()):
            found += _forbidden_in(f"spec.{group}[{number}]", container)
    return found


def _forbidden_in(where: str, container: Mapping[str, Any]) -> list[str]:
    found = _unknown(where, container, _CONTAINER_FIELDS)
    found += _insecure(f"{where}.securityContext", container.get("securityContext"), _CONTAINER_SECURITY)
    for port in _objects(container.get("ports")):
        if "hostPort" in port or "hostIP" in port:
            found.append(f"{where}.ports: hostPort {port.get('hostPort')}; allowed are only ports of the pod")
    for entry in _objects(container.get("env")):
        source = entry.get("valueFrom") or {}
        if not isinstance(source, dict) or set(source) - {"fieldRef", "resourceFieldRef"}:
            found.append(
                f"{where}.env {entry.get('name')}: valueFrom {', '.join(sorted(source))}; allowed are fieldRef and resourceFieldRef"
            )
    for mount in _objects(container.get("volumeMounts")):
        if mount.get("name") == MODEL_VOLUME or mount.get("mountPropagation"):
            found.append(f"{where}.volumeMounts: {mount.get('name')}; the site itself mounts {MODEL_VOLUME}, and nothing propagates")
    for handler in _HANDLERS:
        if _names_host(container.get(handler)):
            found.append(f"{where}.{handler}: names a host; allowed is only the pod itself")
    return found


def _insecure(where: str, context: Any, allowed: frozenset[str]) -> list[str]:
    if context is None:
        return []
    if not isinstance(context, dict):
        return [f"{where}: not an object"]
    found = _unknown(where, context, allowed)
    demands: dict[str, tuple[bool, str]] = {
        "privileged": (context.get("privileged") in (None, False), "false"),
        "allowPrivilegeEscalation": (context.get("allowPrivilegeEscalation") in (None, False), "false"),
        "runAsNonRoot": (context.get("runAsNonRoot") in (None, True), "true"),
        "runAsUser": (context.get("runAsUser") != 0, "any but 0"),
        "capabilities": (context.get("capabilities") in (None, _DROP_ALL), "drop: [ALL]"),
        "seccompProfile": (context.get("seccompProfile") in (None, _SECCOMP), "type: RuntimeDefault"),
    }
    return found + [f"{where}.{name}: {context[name]!r}; allowed is {word}" for name, (fine, word) in demands.items() if not fine]


def _unknown(where: str, found: Mapping[str, Any], allowed: frozenset[str]) -> list[str]:
    return [f"{where}.{name}; allowed are {', '.join(sorted(allowed))}" for name in sorted(set(found) - allowed)]


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _names_host(value: Any) -> bool:
    if isinstance(value, dict):
        return "host" in value or any(_names_host(one) for one in value.values())
    return False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a site's pods live: its namespace, and the claim that holds the store with the folder in it."""

    site: str
    namespace: str
    claim: str
    folder: str


def plan_deployment(name: str, model: str, runtime: DeploymentRuntime, place: Place) -> dict[str, Any]:
    """The Deployment of one revision: one pod, its files read-only at `mountPath`, and no more rights than the level `restricted` gives."""
    template = runtime.template.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    spec = template["spec"]
    ours = {MANAGED_LABEL: MANAGER, SITE_LABEL: place.site, SERVED_LABEL: name, f"{GROUP}/model": model}
    metadata = template.get("metadata", {})
    mount = {
        "name": MODEL_VOLUME,
        "mountPath": runtime.mount_path,
        "subPath": "/".join(filter(None, (place.folder, name))),
        "readOnly": True,
    }
    for group in ("initContainers", "containers"):
        for container in spec.get(group, ()):
            container["volumeMounts"] = [*container.get("volumeMounts", ()), mount]
            container["securityContext"] = {
                **container.get("securityContext", {}),
                "allowPrivilegeEscalation": False,
                "capabilities": _DROP_ALL,
            }
    spec["volumes"] = [*spec.get("volumes", ()), {"name": MODEL_VOLUME, "persistentVolumeClaim": {"claimName": place.claim}}]
    spec["securityContext"] = {**spec.get("securityContext", {}), "runAsNonRoot": True, "seccompProfile": _SECCOMP}
    spec |= {"automountServiceAccountToken": False, "enableServiceLinks": False}
    return {
        "metadata": {"name": name, "namespace": place.namespace, "labels": ours},
        "spec": {
            "replicas": 1,
            "revisionHistoryLimit": 0,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": {SERVED_LABEL: name, SITE_LABEL: place.site}},
            "template": {"metadata": {**metadata, "labels": {**metadata.get("labels", {}), **ours}}, "spec": spec},
        },
    }


@dataclass(frozen=True, slots=True)
class PodFacts:
    """One pod now. `unschedulable` is the scheduler's message; `waiting` is why a container does not start, as (reason, message)."""

    ip: str = ""
    ready: bool = False
    unschedulable: str = ""
    waiting: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True)
class PodHistory:
    """What all pods of a revision have been through since they were first seen."""

    restarts: int = 0
    oom_kills: int = 0
    said: str = ""
    """How the last one ended, in words."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a revision cannot serve here."""

    cause: Cause
    reason: str
    message: str


def judge_history(history: PodHistory, checks: HardChecks) -> Trouble | None:
    """The hard checks on restarts and memory: the revision's fault."""
    said = f" ({history.said})" if history.said else ""
    if history.oom_kills > checks.oom_killed:
        found = f"killed for want of memory {history.oom_kills} time(s), hardChecks.oomKilled allows {checks.oom_killed}"
        return Trouble(Cause.POD, "OOMKilled", found + said)
    if history.restarts > checks.max_restarts:
        found = f"restarted {history.restarts} time(s), hardChecks.maxRestarts allows {checks.max_restarts}"
        return Trouble(Cause.POD, "Restarted", found + said)
    return None


def judge_start(pods: Sequence[PodFacts], refused: str, *, beside: bool, patient: bool) -> Trouble | None:
    """What keeps a revision's pods from starting that is no fault of the revision.

    `refused`: why the cluster makes no pod. `beside`: another revision of the model holds resources now. `patient`: what may pass by
    itself does not count yet (a node that is away, a registry that does not answer).
    """
    if refused:
        return Trouble(Cause.SERVER, "PodRefused", f"the site's cluster makes no pod: {refused}")
    for pod in pods:
        if "Insufficient" in pod.unschedulable and beside:
            remedy = "this hardware holds only one: set switch: Replace in the EdgeModel's serving entry, or ask for less"
            return Trouble(Cause.SERVER, "NoRoomBeside", f"{pod.unschedulable} Beside the serving revision there is no room: {remedy}")
        if "Insufficient" in pod.unschedulable:
            return Trouble(Cause.SERVER, "NoRoom", f"{pod.unschedulable} Ask for less in the template's resources, or free the node")
        if pod.unschedulable and not patient:
            return Trouble(Cause.SERVER, "Unschedulable", pod.unschedulable)
        if pod.waiting[0] in ("ErrImagePull", "ImagePullBackOff") and not patient:
            return Trouble(Cause.FETCH, "ImageUnavailable", f"the image does not come: {pod.waiting[1] or pod.waiting[0]}")
    return None
