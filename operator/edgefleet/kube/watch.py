"""A typed list-watch: the objects of one kind, kept current, decoded from bytes straight into the fields that we read.

Every list *replaces* the content, so that nothing deleted during a gap survives as a ghost; a watch that ends is resumed where it
was; 410 and any other trouble lists again after a jittered pause, which grows until things went well for a while. Kopf's own watching
keeps ghosts and costs ten times the CPU (measured: 1.85 ms per event against 0.17), so hot kinds come through here.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from edgefleet.api.meta import ObjectMeta
from edgefleet.kube.backoff import Backoff
from edgefleet.kube.client import Api
from edgefleet.kube.errors import ApiError, Gone, Unavailable
from edgefleet.kube.resources import Resource

log = logging.getLogger(__name__)

SHORT_WATCH_SECONDS = 1.0
"""A watch that the server ends sooner is not resumed at once."""
STEADY_SECONDS = 30.0
"""What went well for so long makes the next trouble a first one."""

Key = tuple[str, str]
"""Namespace (empty for cluster-scoped kinds) and name."""


class Record(BaseModel):
    """Base of what a list-watch keeps: metadata, and in subclasses the fields that are read."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")
    metadata: ObjectMeta

    @property
    def key(self) -> Key:
        """Where the object lives."""
        return (self.metadata.namespace or "", self.metadata.name)


R = TypeVar("R", bound=Record)
OnChange = Callable[[Key, R | None, R | None], None]
"""Called with the key, the old and the new record; None for absent. Must not block."""


class _Bare(Record):
    """Enough to say which object could not be read."""


class _ListMeta(BaseModel):
    resource_version: str = Field("", alias="resourceVersion")


class _Page(BaseModel):
    metadata: _ListMeta | None = None
    items: list[dict[str, Any]] | None = None


class _Event(BaseModel):
    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: dict[str, Any]


class ListWatch(Generic[R]):
    """Iterate for the records; current while `run()` runs, `synced` after the first list.

    `unreadable` names the objects that do not fit the type, with the reason. `lists` counts whole lists; `heard_at` is when the server last
    said anything (time.monotonic).
    """

    def __init__(
        self,
        api: Api,
        resource: Resource,
        record: type[R],
        *,
        namespace: str | None = None,
        labels: str | None = None,
        fields: str | None = None,
        on_change: OnChange[R] | None = None,
    ) -> None:
        self._api = api
        self._resource = resource
        self._record = record
        self._namespace = namespace
        self._labels = labels
        self._fields = fields
        self._on_change = on_change
        self._items: dict[Key, R] = {}
        self._version = ""
        self.synced = asyncio.Event()
        self.unreadable: dict[Key, str] = {}
        self.lists = 0
        self.heard_at = time.monotonic()

    @property
    def kind(self) -> str:
        """The kind that is watched."""
        return self._resource.kind

    def __iter__(self) -> Iterator[R]:
        return iter(list(self._items.values()))

    def __len__(self) -> int:
        return len(self._items)

    def get(self, namespace: str, name: str) -> R | None:
        """One record, or None."""
        return self._items.get((namespace, name))

    def observe(self, body: dict[str, Any]) -> None:
        """Take in what a write of our own answered, so that the next decision reads it before the watch brings it."""
        meta = _bare(body).metadata
        known = (meta.namespace or "", meta.name) in self._items
        if not known and _is_older(meta.resource_version, self._version):
            # The watch has brought all that happened until later, and this object is gone: it must not come back as a ghost.
            return
        self._take(_Event(type="MODIFIED", object=body))

    async def refresh(self) -> None:
        """List once, now, whatever the watch has brought: what was written before this was called is there. Raises ApiError."""
        await self._list()

    async def run(self) -> None:
        """Keep the items current until cancelled. Never raises for what an API server may do."""
        backoff = Backoff(multiplier=0.2, longest=15)
        said = ""
        while True:
            began = time.monotonic()
            try:
                await self._list()
                while True:
                    started = time.monotonic()
                    await self._watch()
                    if time.monotonic() - started < SHORT_WATCH_SECONDS:
                        raise Unavailable(0, f"{self._api.server} ends watches of {self._resource.plural} at once")
            except ApiError as error:
                if time.monotonic() - began > STEADY_SECONDS:
                    backoff.reset()
                    said = ""
                # An API server that is away for hours is told of once, not at every try.
                if str(error) != said:
                    said = str(error)
                    level = logging.INFO if isinstance(error, Gone) else logging.WARNING
                    log.log(level, "watching %s: %s; listing again", self._resource.plural, error)
                await asyncio.sleep(backoff.draw())

    async def _list(self) -> None:
        found: dict[Key, R] = {}
        version = ""
        self.unreadable.clear()
        async for page in self._api.list_pages(self._resource, self._namespace, labels=self._labels, fields=self._fields):
            try:
                body = _Page.model_validate_json(page)
            except ValidationError as error:
                raise Unavailable(0, f"a list cannot be read: {error.errors()[0]['msg']}") from error
            version = (body.metadata.resource_version if body.metadata else "") or version
            for item in body.items or ():
                record = self._decode(item)
                if record is not None:
                    found[record.key] = record
        self.lists += 1
        self.heard_at = time.monotonic()
        old, self._items, self._version = self._items, found, version
        for key in old.keys() - found.keys():
            self._notify(key, old[key], None)
        for key, record in found.items():
            before = old.get(key)
            if before is None or before.metadata.resource_version != record.metadata.resource_version:
                self._notify(key, before, record)
        self.synced.set()

    async def _watch(self) -> None:
        lines = self._api.watch_lines(self._resource, self._namespace, self._version, labels=self._labels, fields=self._fields)
        async for line in lines:
            self.heard_at = time.monotonic()
            try:
                event = _Event.model_validate_json(line)
            except ValidationError as error:
                # A server that dies in the middle of a line must not take us with it.
                raise Unavailable(0, f"a watch event cannot be read: {error.errors()[0]['msg']}") from error
            self._take(event)
            self._version = _bare(event.object).metadata.resource_version or self._version

    def _take(self, event: _Event) -> None:
        if event.type == "ERROR":
            if event.object.get("code") == 410:
                raise Gone(410, "the watch expired")
            raise Unavailable(0, str(event.object.get("message")))
        bare = _bare(event.object)
        if event.type == "BOOKMARK":
            return
        held = self._items.get(bare.key)
        if held is not None and _is_older(bare.metadata.resource_version, held.metadata.resource_version):
            return
        if held is not None and event.type != "DELETED" and bare.metadata.resource_version == held.metadata.resource_version:
            # Our own write, which was taken in already, or one that changed nothing: no news for anybody.
            return
        record = None if event.type == "DELETED" else self._decode(event.object)
        old = self._items.pop(bare.key, None)
        if record is not None:
            self._items[bare.key] = record
        self._notify(bare.key, old, record)

    def _decode(self, item: dict[str, Any]) -> R | None:
        key = _bare(item).key
        try:
            record = self._record.model_validate(item)
        except ValidationError as error:
            # A bad object hurts only itself (I9): it is named, and the others go on.
            self.unreadable[key] = str(error.errors()[0]["msg"])
            log.warning("%s %s/%s cannot be read: %s", self._resource.kind, *key, self.unreadable[key])
            return None
        self.unreadable.pop(key, None)
        return record

    def _notify(self, key: Key, old: R | None, new: R | None) -> None:
        if self._on_change is not None:
            self._on_change(key, old, new)


def _bare(item: dict[str, Any]) -> _Bare:
    try:
        return _Bare.model_validate(item)
    except ValidationError as error:
        raise Unavailable(0, f"an object has no metadata that can be read: {error.errors()[0]['msg']}") from error


def _is_older(version: str | None, held: str | None) -> bool:
    # Resource versions are comparable as integers, by contract since Kubernetes 1.35 and in fact long before.
    return bool(version and held and version.isdigit() and held.isdigit() and int(version) < int(held))
