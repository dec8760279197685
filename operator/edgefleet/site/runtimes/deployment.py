"""Pods of a site's own cluster: one Deployment for each revision, with the revision's files from the site's store mounted read-only.

The files are links in a folder beside the store, on the volume that the pods mount; the folder is complete as soon as it is there. The
cluster is watched, never polled, and what it last said holds while it does not answer. Clients reach a pod by its address: no Service is
needed. What a template may contain, and what pods say against a revision, is decided in core/pods.py.
"""

import asyncio
import contextlib
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from edgefleet.api.meta import SITE_LABEL
from edgefleet.api.model import DeploymentRuntime
from edgefleet.api.policy import HardChecks
from edgefleet.core.pods import (
    MANAGED_LABEL,
    MANAGER,
    SERVED_LABEL,
    Place,
    PodFacts,
    PodHistory,
    Trouble,
    judge_history,
    judge_start,
    plan_deployment,
)
from edgefleet.kube.client import Api
from edgefleet.kube.errors import ApiError, Invalid
from edgefleet.kube.resources import DEPLOYMENTS, PODS
from edgefleet.kube.watch import Key, ListWatch, Record
from edgefleet.site.gateway_config import Endpoint, Upstream
from edgefleet.site.runtimes import LoadFailed, ServerUnreachable
from edgefleet.site.runtimes.http import ask, open_session

log = logging.getLogger(__name__)

FIELD_MANAGER = "edgefleet-agent"
FIRST_WORD_SECONDS = 5.0
GONE_SECONDS = 60.0
"""How long a stopped pod may take to end before the next is started in its place."""


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


class _Condition(_Part):
    type: str
    status: str
    reason: str = ""
    message: str = ""


class _Why(_Part):
    reason: str = ""
    message: str = ""
    exit_code: int = 0
    finished_at: str | None = None


class _State(_Part):
    waiting: _Why | None = None
    terminated: _Why | None = None


class _ContainerStatus(_Part):
    name: str
    restart_count: int = 0
    state: _State = _State()
    last_state: _State = _State()


class _PodStatus(_Part):
    phase: str = ""
    pod_ip: str = Field("", alias="podIP")
    conditions: tuple[_Condition, ...] = ()
    container_statuses: tuple[_ContainerStatus, ...] = ()
    init_container_statuses: tuple[_ContainerStatus, ...] = ()


class PodRecord(Record):
    """What is read of a pod."""

    status: _PodStatus = _PodStatus()


class _DeploymentStatus(_Part):
    conditions: tuple[_Condition, ...] = ()


class DeploymentRecord(Record):
    """What is read of a Deployment."""

    status: _DeploymentStatus = _DeploymentStatus()


@dataclass(slots=True)
class _Seen:
    """All that pods of one Deployment have been through: restarts by pod, and each kill for want of memory once."""

    restarts: dict[str, int] = field(default_factory=dict)
    kills: set[tuple[str, str, str]] = field(default_factory=set)
    said: str = ""


class Pods:
    """The pods of one site. `folder` is `place.folder` as this process sees it. Use it as an async context manager, and `run` it.

    `on_change` is called when something of the pods has changed.
    """

    def __init__(self, api: Api, place: Place, folder: Path) -> None:
        self._api = api
        self._place = place
        self._folder = folder
        labels = f"{MANAGED_LABEL}={MANAGER},{SITE_LABEL}={place.site}"
        watched: dict[str, Any] = {"namespace": place.namespace, "labels": labels}
        self._deployments = ListWatch(api, DEPLOYMENTS, DeploymentRecord, on_change=self._deployment_changed, **watched)
        self._pods = ListWatch(api, PODS, PodRecord, on_change=self._pod_changed, **watched)
        self._applied: dict[str, int] = {}
        self._seen: defaultdict[str, _Seen] = defaultdict(_Seen)
        self._turned = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._session = open_session()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._deployments.run())
            group.create_task(self._pods.run())
            await self._deployments.synced.wait()
            await self._pods.synced.wait()
            self.on_change()

    def of(self, model: str, wanted: DeploymentRuntime) -> "PodRuntime":
        """The runtime of one revision."""
        return PodRuntime(self, model, wanted)

    def placed(self) -> set[str]:
        """The names of all revisions that have files here or a Deployment."""
        folders = {path.name for path in self._folder.glob("*--*") if not path.name.endswith(".new")}
        return folders | {record.metadata.name for record in self._deployments}

    def history(self, name: str) -> PodHistory:
        """What the pods of a revision have been through since this process saw them first."""
        seen = self._seen.get(name, _Seen())
        return PodHistory(sum(seen.restarts.values()), len(seen.kills), seen.said)

    async def place(self, name: str, files: Mapping[str, Path]) -> None:
        """Link or copy the files into a folder of their own; one that is there is whole, and may be mounted. Raises OSError."""
        await asyncio.to_thread(self._link, self._folder / name, files)

    async def apply(self, name: str, model: str, wanted: DeploymentRuntime) -> None:
        """Make the Deployment what it should be. Raises LoadFailed, ServerUnreachable."""
        self._require_synced()
        record = self._deployments.get(self._place.namespace, name)
        if record is not None and self._applied.get(name) == record.metadata.generation:
            return
        try:
            body = await self._api.apply(DEPLOYMENTS, plan_deployment(name, model, wanted, self._place), manager=FIELD_MANAGER)
        except Invalid as error:
            raise LoadFailed(f"the site's cluster does not take the pod template: {error.message}") from error
        except ApiError as error:
            raise ServerUnreachable(f"Deployment {self._place.namespace}/{name} cannot be written: {error.message}") from error
        self._applied[name] = int(body["metadata"].get("generation", 0))
        self._deployments.observe(body)

    async def unload(self, name: str) -> None:
        """Delete the Deployment, wait until its pods are gone, and take the files back. Raises ServerUnreachable, OSError."""
        self._require_synced()
        try:
            await self._api.delete(DEPLOYMENTS, name, self._place.namespace)
        except ApiError as error:
            raise ServerUnreachable(f"Deployment {self._place.namespace}/{name} cannot be deleted: {error.message}") from error
        try:
            async with asyncio.timeout(GONE_SECONDS):
                while self._deployments.get(self._place.namespace, name) is not None or self._of(name):
                    self._turned.clear()
                    await self._turned.wait()
        except TimeoutError:
            raise ServerUnreachable(f"the pods of {name} are not gone after {GONE_SECONDS:g} s") from None
        self._seen.pop(name, None)
        await asyncio.to_thread(shutil.rmtree, self._folder / name, ignore_errors=True)

    def ready_endpoint(self, name: str, port: int) -> Endpoint | None:
        """Where a pod of this revision answers now."""
        self._require_synced()
        ready = sorted((pod for pod in self._of(name) if _is_ready(pod)), key=lambda pod: pod.metadata.name)
        return Endpoint(ready[-1].status.pod_ip, port) if ready else None

    def judge(self, name: str, checks: HardChecks, *, beside: bool, patient: bool) -> Trouble | None:
        """See Runtime.judge."""
        record = self._deployments.get(self._place.namespace, name)
        conditions = record.status.conditions if record else ()
        refused = next((one.message for one in conditions if one.type == "ReplicaFailure" and one.status == "True"), "")
        facts = [_facts(pod) for pod in self._of(name)]
        return judge_history(self.history(name), checks) or judge_start(facts, refused, beside=beside, patient=patient)

    async def ask(self, endpoint: Endpoint, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        """Ask a pod. Raises ServerUnreachable."""
        return await ask(self._session, "POST", endpoint.url, path, body)

    def _of(self, name: str) -> list[PodRecord]:
        return [pod for pod in self._pods if pod.metadata.labels.get(SERVED_LABEL) == name]

    async def wait_for_first_word(self) -> None:
        """Wait a while for what the cluster says first, so that an agent's start is no trouble to tell of."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_WORD_SECONDS):
                await self._deployments.synced.wait()
                await self._pods.synced.wait()

    def _require_synced(self) -> None:
        if not (self._deployments.synced.is_set() and self._pods.synced.is_set()):
            raise ServerUnreachable(f"{self._api.server}: the site's own cluster has not said yet which pods there are")

    def _link(self, folder: Path, files: Mapping[str, Path]) -> None:
        if folder.exists():
            if all((folder / name).is_file() for name in files):
                return
            shutil.rmtree(folder)
        beside = folder.with_name(folder.name + ".new")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        for name, source in files.items():
            target = beside / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError:
                # A file system without links, or another one.
                shutil.copyfile(source, target)
        # The server runs as another user, whatever this process's umask is.
        for path in (beside, *beside.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o444)
        beside.rename(folder)

    def _deployment_changed(self, key: Key, old: DeploymentRecord | None, new: DeploymentRecord | None) -> None:
        if new is None:
            self._applied.pop(key[1], None)
        self._tell()

    def _pod_changed(self, key: Key, old: PodRecord | None, new: PodRecord | None) -> None:
        if new is not None:
            _note(self._seen[new.metadata.labels.get(SERVED_LABEL, "")], new)
        self._tell()

    def _tell(self) -> None:
        self._turned.set()
        self.on_change()


class PodRuntime:
    """One revision's Runtime."""

    def __init__(self, pods: Pods, model: str, wanted: DeploymentRuntime) -> None:
        self._pods = pods
        self._model = model
        self._wanted = wanted
        self._path = wanted.path or f"/v2/models/{model}"

    async def place(self, name: str, files: Mapping[str, Path]) -> None:
        """See Runtime.place."""
        await self._pods.place(name, files)

    async def load(self, name: str) -> None:
        """See Runtime.load."""
        await self._pods.apply(name, self._model, self._wanted)

    async def is_ready(self, name: str) -> bool:
        """See Runtime.is_ready: the readiness probe's word."""
        await self._pods.wait_for_first_word()
        return self._pods.ready_endpoint(name, self._wanted.port) is not None

    async def infer(self, name: str, request: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """See Runtime.infer."""
        endpoint = self._pods.ready_endpoint(name, self._wanted.port)
        if endpoint is None:
            raise ServerUnreachable(f"no pod of {name} is ready any more")
        status, answer = await self._pods.ask(endpoint, f"{self._path.rstrip('/')}/infer", request)
        return answer if status == 200 and isinstance(answer, dict) else None

    async def unload(self, name: str) -> None:
        """See Runtime.unload."""
        await self._pods.unload(name)

    def find_upstream(self, name: str) -> Upstream | None:
        """See Runtime.find_upstream."""
        endpoint = self._pods.ready_endpoint(name, self._wanted.port)
        return Upstream(endpoint, self._path) if endpoint else None

    def judge(self, name: str, checks: HardChecks, *, beside: bool, patient: bool = True) -> Trouble | None:
        """See Runtime.judge."""
        return self._pods.judge(name, checks, beside=beside, patient=patient)

    def placed(self) -> set[str]:
        """See Runtime.placed."""
        return self._pods.placed()


def _is_ready(pod: PodRecord) -> bool:
    ready = any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions)
    return ready and bool(pod.status.pod_ip) and pod.metadata.deletion_timestamp is None


def _facts(pod: PodRecord) -> PodFacts:
    scheduled = next((one for one in pod.status.conditions if one.type == "PodScheduled" and one.status == "False"), None)
    waiting = next((one.state.waiting for one in _containers(pod) if one.state.waiting), None)
    return PodFacts(
        ip=pod.status.pod_ip,
        ready=_is_ready(pod),
        unschedulable=scheduled.message if scheduled and scheduled.reason == "Unschedulable" else "",
        waiting=(waiting.reason, waiting.message) if waiting else ("", ""),
    )


def _containers(pod: PodRecord) -> tuple[_ContainerStatus, ...]:
    return pod.status.init_container_statuses + pod.status.container_statuses


def _note(seen: _Seen, pod: PodRecord) -> None:
    uid = pod.metadata.uid or pod.metadata.name
    seen.restarts[uid] = max(seen.restarts.get(uid, 0), sum(one.restart_count for one in _containers(pod)))
    for one in _containers(pod):
        for ended in (one.last_state.terminated, one.state.terminated):
            if ended is not None and ended.reason != "Completed":
                seen.said = f"container {one.name}: {ended.reason or 'ended'}, exit code {ended.exit_code} {ended.message}".strip()[:300]
            if ended is not None and ended.reason == "OOMKilled":
                seen.kills.add((uid, one.name, ended.finished_at or ""))
