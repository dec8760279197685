"""`edgefleet backup` and `edgefleet restore`: what a hub cannot make again by itself, in one file, and back into an empty cluster.

The file is a Kubernetes List: namespaces, the hub's key and the Secrets that EdgeModels name, plans, all kinds but SiteAssignments. What
runs at a site, and under which sequence, the site knows better than any backup; the hub adopts it. Runs that had not ended come back
paused, since nobody here knows what became of them. A restore creates and never changes what is there.
"""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from edgefleet.api.meta import LEFT_ANNOTATION, OUTCOME_LABEL, RESTORED_ANNOTATION, SITE_LABEL, TRUST_BUNDLE
from edgefleet.cli.cluster import ContextOption, KubeconfigOption, connecting
from edgefleet.cli.output import CommandFailed, print_note
from edgefleet.hub.plans import PLAN_LABEL
from edgefleet.hub.settings import HUB_KEY_SECRET, Settings
from edgefleet.kube.client import Api
from edgefleet.kube.errors import Conflict, NotFound
from edgefleet.kube.resources import (
    CONFIG_MAPS,
    EDGE_FLEETS,
    EDGE_MODELS,
    EDGE_SITES,
    MODEL_ROLLOUTS,
    NAMESPACES,
    ROLLOUT_POLICIES,
    SECRETS,
    Resource,
)

ORDER = (NAMESPACES, SECRETS, CONFIG_MAPS, EDGE_SITES, ROLLOUT_POLICIES, EDGE_MODELS, MODEL_ROLLOUTS, EDGE_FLEETS)
"""A fleet without its runs would start new ones, so it comes last."""
HUB_NAMESPACE = Settings().namespace
_WHO_AM_I = Resource("authentication.k8s.io/v1", "SelfSubjectReview", "selfsubjectreviews", False)
_KEPT = ("name", "namespace", "labels", "annotations")


def backup(
    file: Annotated[Path, typer.Option("-o", "--output", help="Where to write it, readable by you alone. It holds the hub's private key.")],
    hub_namespace: Annotated[str, typer.Option(help="The hub's own namespace.")] = HUB_NAMESPACE,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
) -> None:
    """Write down what a lost hub is made again from. Needs the right to read Secrets.

    Exit codes: 0 done, 1 refused or failed (stderr says why), 2 wrong usage.
    """

    async def collect() -> list[dict[str, Any]]:
        async with connecting(kubeconfig, context) as api:
            return await _collect(api, hub_namespace)

    items = asyncio.run(collect())
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1)
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    part.replace(file)
    print_note(f"{len(items)} objects in {file}; it holds the hub's private key: keep it as you keep that")


def restore(
    file: Annotated[Path, typer.Argument(help="What `edgefleet backup` wrote.", exists=True, dir_okay=False)],
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
) -> None:
    """Create what the backup holds and the cluster lacks. Needs ClusterRole edgefleet-restorer; the hub must not run meanwhile.

    Runs that had not ended come back paused: look at their sites, then `edgefleet rollout resume` or `abort`. Doing it twice does no harm.

    Exit codes: 0 done, 1 refused or failed (stderr says why), 2 wrong usage.
    """
    try:
        items = json.loads(file.read_text())["items"]
        listed = [(kind, body) for kind in ORDER for body in items if (body["apiVersion"], body["kind"]) == (kind.api_version, kind.kind)]
    except (ValueError, KeyError, TypeError) as error:
        raise CommandFailed("NotABackup", f"{file} is not what `edgefleet backup` writes: {error!r}") from error

    async def create() -> tuple[int, list[str]]:
        async with connecting(kubeconfig, context) as api:
            me = str((await api.create(_WHO_AM_I, {"metadata": {}}))["status"]["userInfo"]["username"])
            made, paused = 0, []
            for kind, body in listed:
                ready = _prepare(kind, body, me)
                try:
                    await api.create(kind, ready)
                except Conflict:
                    continue
                made += 1
                if kind is MODEL_ROLLOUTS and OUTCOME_LABEL not in ready["metadata"].get("labels", {}):
                    paused.append(f"{ready['metadata']['namespace']}/{ready['metadata']['name']}")
            return made, paused

    made, paused = asyncio.run(create())
    print_note(f"{made} objects created, {len(listed) - made} were there already")
    for name in paused:
        print_note(f"{name} had not ended and is paused")


async def _collect(api: Api, hub_namespace: str) -> list[dict[str, Any]]:
    found = {kind: await api.list(kind) for kind in (EDGE_SITES, ROLLOUT_POLICIES, EDGE_MODELS, MODEL_ROLLOUTS, EDGE_FLEETS)}
    found[ROLLOUT_POLICIES] = [body for body in found[ROLLOUT_POLICIES] if body["metadata"]["namespace"] != hub_namespace]
    found[CONFIG_MAPS] = await api.list(CONFIG_MAPS, labels=PLAN_LABEL) + await _one(api, CONFIG_MAPS, TRUST_BUNDLE, hub_namespace)
    found[SECRETS] = await _one(api, SECRETS, HUB_KEY_SECRET, hub_namespace)
    if not found[SECRETS]:
        message = f"Secret {hub_namespace}/{HUB_KEY_SECRET} does not exist: name the hub's namespace with --hub-namespace"
        raise CommandFailed("HubKeyNotFound", message)
    named = {(body["metadata"]["namespace"], name) for body in found[EDGE_MODELS] for name in _secrets_in(body["spec"])}
    for namespace, name in sorted(named):
        found[SECRETS] += await _one(api, SECRETS, name, namespace)
    teams = {body["metadata"]["namespace"] for kind in (ROLLOUT_POLICIES, EDGE_MODELS, MODEL_ROLLOUTS, EDGE_FLEETS) for body in found[kind]}
    found[NAMESPACES] = await api.list(NAMESPACES, labels=SITE_LABEL)
    for name in sorted({*teams, hub_namespace}):
        found[NAMESPACES] += await _one(api, NAMESPACES, name, None)
    return [_strip(kind, body) for kind in ORDER for body in found[kind]]


async def _one(api: Api, kind: Resource, name: str, namespace: str | None) -> list[dict[str, Any]]:
    try:
        return [await api.get(kind, name, namespace)]
    except NotFound:
        return []


def _secrets_in(value: Any) -> Iterator[str]:
    """The names in all fields `secretRef` and `caRef`."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        if key in ("secretRef", "caRef") and isinstance(inner, str):
            yield inner
        else:
            yield from _secrets_in(inner)


def _strip(kind: Resource, body: dict[str, Any]) -> dict[str, Any]:
    """Without what belongs to the cluster that it came from. A run keeps its outcome in its label, as status is the hub's to write."""
    meta = {key: body["metadata"][key] for key in _KEPT if body["metadata"].get(key)}
    rest = {key: value for key, value in body.items() if key not in ("metadata", "status", "apiVersion", "kind")}
    if kind is NAMESPACES:
        # What the hub noted there was true of the old cluster; that a site was thrown out is a person's word.
        meta["annotations"] = {key: text for key, text in meta.get("annotations", {}).items() if key == LEFT_ANNOTATION}
        rest = {}
    outcome = body.get("status", {}).get("outcome") if kind is MODEL_ROLLOUTS else None
    if outcome:
        meta["labels"] = {**meta.get("labels", {}), OUTCOME_LABEL: outcome}
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta, **rest}


def _prepare(kind: Resource, body: dict[str, Any], me: str) -> dict[str, Any]:
    """The object as it is created: the admission policies let a person make a run only as a restore in their own name."""
    if kind not in (MODEL_ROLLOUTS, EDGE_MODELS):
        return body
    meta = {**body["metadata"], "annotations": {**body["metadata"].get("annotations", {}), RESTORED_ANNOTATION: me}}
    spec = body["spec"]
    if kind is MODEL_ROLLOUTS and OUTCOME_LABEL not in meta.get("labels", {}):
        spec = {**spec, "control": {**spec.get("control", {}), "paused": True, "by": me}}
    return {**body, "metadata": meta, "spec": spec}
