"""Runtimes: how a site starts a revision, asks it, and stops it. One port; `repository` and `deployment` obey it.

A revision is known to its runtime as `<model>--<rev8>`, so that two of a model live side by side. What to start when is decided in the
reconciler; which of them clients reach is the gateway's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from edgefleet.api.policy import HardChecks
from edgefleet.core.pods import Trouble
from edgefleet.site.gateway_config import Upstream


class ServerUnreachable(Exception):
    """The model server does not answer: the site's fault."""

    reason = "ServerUnreachable"


class LoadFailed(Exception):
    """The server answered that it cannot load these files: the revision's fault."""

    reason = "LoadFailed"


class ServingConfigMissing(Exception):
    """The artifact lacks the file that tells the server how to serve it, or it cannot be read: the revision's fault."""

    reason = "ServingConfigMissing"


class Runtime(Protocol):
    """What the reconciler needs. All methods may be cancelled at any await, and called again."""

    async def place(self, name: str, files: Mapping[str, Path]) -> None:
        """Give the files (name in the artifact to verified bytes on disk) to the server. Raises ServingConfigMissing, OSError."""

    async def load(self, name: str) -> None:
        """Begin to serve; a served name is left alone. Returns when the server has taken it. Raises LoadFailed, ServerUnreachable."""

    async def is_ready(self, name: str) -> bool:
        """Whether it would answer now. Raises ServerUnreachable."""

    async def infer(self, name: str, request: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The Open Inference answer, or None when it answers with an error. Raises ServerUnreachable."""

    async def unload(self, name: str) -> None:
        """Stop serving and take the files back; an unknown name is fine. Raises ServerUnreachable, OSError."""

    def find_upstream(self, name: str) -> Upstream | None:
        """Where the gateway finds a ready revision, if not at the site's one model server."""

    def judge(self, name: str, checks: HardChecks, *, beside: bool, patient: bool = True) -> Trouble | None:
        """What is known against a revision that was loaded: by the hard checks, or why it cannot start here.

        `beside`: another revision of the model runs. `patient`: what may pass by itself does not count yet.
        """

    def placed(self) -> set[str]:
        """The names of all revisions whose files the server has, also those placed before a restart of this process."""
