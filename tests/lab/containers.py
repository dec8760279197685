"""A pod's container as a process: what its spec says about command, environment, files, ports and readiness is done as a kubelet would.

What its image would bring comes as an `Image`, unpacked (server_images.py); how it is kept apart from the machine is sandbox.py's matter.
Limits of memory and CPU are not kept, devices not given.
"""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.lab import sandbox

MODEL_VOLUME = "edgefleet-model"
_FAILURES = 3  # as Kubernetes' failureThreshold
_GRACE = 10.0


@dataclass(frozen=True)
class Image:
    """The machine's files by their place in the container, and how it starts where a pod says nothing else. `own`: the places in which
    the program changes files; nothing else of the image can be changed, as with `readOnlyRootFilesystem`."""

    files: Mapping[str, Path]
    entrypoint: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    own: Sequence[str] = ()


class Container:
    """One start of a container. `model` is the folder behind the model's volume; logs and work folders go below `run`."""

    def __init__(self, spec: Mapping[str, Any], image: Image, model: Path, run: Path, address: str) -> None:
        self._spec = spec
        self._image = image
        self._model = model
        self._run = run
        self.address = address
        probe = spec["readinessProbe"]
        self.period = float(probe.get("periodSeconds", 10))
        self._url = f"http://{address}:{probe['httpGet']['port']}{probe['httpGet']['path']}"
        self._limit = aiohttp.ClientTimeout(total=probe.get("timeoutSeconds", 1))

    async def start(self) -> None:
        """Its process runs; whether it is ready is for the probe to say."""
        self._failures = _FAILURES
        work = self._run / self.address
        work.mkdir(parents=True, exist_ok=True)
        mounts = {mount["name"]: mount["mountPath"] for mount in self._spec["volumeMounts"]}
        model = mounts.pop(MODEL_VOLUME)
        plan = sandbox.Plan(
            command=[*(self._spec.get("command") or self._image.entrypoint), *self._spec.get("args", ())],
            env={**self._image.env, **{one["name"]: one["value"] for one in self._spec.get("env", ())}},
            files={place: str(path) for place, path in {**self._image.files, model: self._model}.items()},
            empty=list(mounts.values()),
            own=list(self._image.own),
            work=str(work),
            address=self.address,
            port=self._spec["ports"][0]["containerPort"],
        )
        with (self._run / f"{self._model.name}.log").open("ab") as log:
            command = [sys.executable, sandbox.__file__, json.dumps(asdict(plan))]
            self._process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log)
        self._session = aiohttp.ClientSession(timeout=self._limit)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.returncode

    async def is_ready(self) -> bool:
        """Asks its readiness probe once; some failures in a row are what takes it back."""
        try:
            async with self._session.get(self._url) as answer:
                good = 200 <= answer.status < 400
        except (aiohttp.ClientError, TimeoutError):
            good = False
        self._failures = 0 if good else self._failures + 1
        return self._failures < _FAILURES

    async def stop(self) -> None:
        """TERM, some seconds, KILL."""
        await self._session.close()
        if self._process.returncode is None:
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), _GRACE)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
