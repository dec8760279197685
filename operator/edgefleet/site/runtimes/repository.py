"""A model server that runs already and speaks the Open Inference Protocol v2 with the repository extension, such as MLServer.

A revision is a folder in the server's model folder, with a mark in it: folders without the mark are other people's. Its files are
links to the store where the file system allows, else copies; its `model-settings.json` comes signed with the artifact, and only `name`
in it is set here. That file is written last, because a server takes a folder for a model as soon as it is there.
"""

import asyncio
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from edgefleet.api.policy import HardChecks
from edgefleet.core.pods import Trouble
from edgefleet.site.durable import write_durably
from edgefleet.site.gateway_config import Endpoint, Upstream
from edgefleet.site.runtimes import LoadFailed, ServerUnreachable, ServingConfigMissing
from edgefleet.site.runtimes.http import REQUEST_SECONDS, ask, open_session

SETTINGS = "model-settings.json"
MARK = ".edgefleet"
MAX_SETTINGS_BYTES = 1 << 20
LOAD_SECONDS = 3600.0


class RepositoryRuntime:
    """One server. `folder` is its model folder as this process sees it. Use it as an async context manager."""

    def __init__(self, server: Endpoint, folder: Path) -> None:
        self._server = server
        self._folder = folder

    async def __aenter__(self) -> Self:
        self._session = open_session()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def place(self, name: str, files: Mapping[str, Path]) -> None:
        """See Runtime.place."""
        settings = _read_settings(files, name)
        await asyncio.to_thread(self._place, self._folder / name, files, settings)

    async def load(self, name: str) -> None:
        """See Runtime.load. A load may take long: whoever calls sets the limit."""
        if await self.is_ready(name):
            return
        status, answer = await self._ask("POST", f"/v2/repository/models/{name}/load", {}, seconds=LOAD_SECONDS)
        if status >= 400:
            raise LoadFailed(f"the server answers {status} to loading {name}: {_explain(answer)}")

    async def is_ready(self, name: str) -> bool:
        """See Runtime.is_ready."""
        status, _ = await self._ask("GET", f"/v2/models/{name}/ready")
        return status == 200

    async def infer(self, name: str, request: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """See Runtime.infer."""
        status, answer = await self._ask("POST", f"/v2/models/{name}/infer", request)
        return answer if status == 200 and isinstance(answer, dict) else None

    async def unload(self, name: str) -> None:
        """See Runtime.unload."""
        status, answer = await self._ask("POST", f"/v2/repository/models/{name}/unload", {})
        if status >= 500:
            raise ServerUnreachable(f"the server answers {status} to unloading {name}: {_explain(answer)}")
        await asyncio.to_thread(self._remove, self._folder / name)

    def find_upstream(self, name: str) -> Upstream | None:
        """See Runtime.find_upstream."""
        return None

    def judge(self, name: str, checks: HardChecks, *, beside: bool, patient: bool = True) -> Trouble | None:
        """See Runtime.judge. A server that somebody else runs tells nothing of restarts."""
        return None

    def placed(self) -> set[str]:
        """See Runtime.placed."""
        return {mark.parent.name for mark in self._folder.glob(f"*--*/{MARK}")}

    def _place(self, folder: Path, files: Mapping[str, Path], settings: bytes) -> None:
        self._remove(folder)
        # A folder that a crash left without its mark would count as somebody else's.
        beside = folder.with_name(folder.name + ".new")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        (beside / MARK).touch()
        beside.rename(folder)
        for name, source in files.items():
            if name == SETTINGS:
                continue
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError:
                # Another file system, or one without links.
                shutil.copyfile(source, target)
        write_durably(folder / SETTINGS, settings, mode=0o644)

    def _remove(self, folder: Path) -> None:
        if not (folder / MARK).exists():
            return
        # First what makes it a model, last what makes it ours.
        (folder / SETTINGS).unlink(missing_ok=True)
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != MARK:
                path.unlink()
        (folder / MARK).unlink()
        folder.rmdir()

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, seconds: float = REQUEST_SECONDS
    ) -> tuple[int, Any]:
        return await ask(self._session, method, self._server.url, path, body, seconds=seconds)


def _read_settings(files: Mapping[str, Path], name: str) -> bytes:
    source = files.get(SETTINGS)
    if source is None:
        raise ServingConfigMissing(f"the variant has no file {SETTINGS}: push it with the model, as a layer of its own")
    try:
        if source.stat().st_size > MAX_SETTINGS_BYTES:
            raise ValueError(f"more than {MAX_SETTINGS_BYTES} bytes")
        settings = json.loads(source.read_bytes())
        if not isinstance(settings, dict):
            raise ValueError("not a JSON object")
    except ValueError as error:
        raise ServingConfigMissing(f"{SETTINGS} of the variant cannot be read: {error}") from error
    return json.dumps({**settings, "name": name}).encode()


def _explain(answer: Any) -> str:
    text = answer.get("error") if isinstance(answer, dict) else answer
    return " ".join(str(text).split())[:300]
