"""The trust in force at this site: the newest bundle that follows from the pinned root, kept on disk for times without a hub.

A bundle is written before its version is remembered: a crash in between leaves a bundle that is good under the old floor, never a floor
without its bundle. What a bundle must look like is decided in trust/.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from edgefleet.api.meta import format_time
from edgefleet.api.report import TrustReport
from edgefleet.site.durable import Checkpoint, no_checkpoint, write_durably
from edgefleet.site.state import StateFile
from edgefleet.trust.errors import Rejected

if TYPE_CHECKING:
    # Imported late at run time: the TUF library would cost time and memory in every command that only imports the agent.
    from edgefleet.trust.bundle import TrustBundle
    from edgefleet.trust.publishers import Revoked

log = logging.getLogger(__name__)


MAX_REFUSAL = 300
LONG_AGO = datetime.fromtimestamp(0, UTC)


class TrustKeeper:
    """`on_change` is called when another bundle comes into force; `on_report`, to be set, when something is refused or is
    so no more: what else the report says can wait for the next one."""

    def __init__(
        self, file: Path, *, root: bytes, state: StateFile, on_change: Callable[[], None], checkpoint: Checkpoint = no_checkpoint
    ) -> None:
        self._file = file
        self._root = root
        self._state = state
        self._on_change = on_change
        self._checkpoint = checkpoint
        self._bundle: TrustBundle | None = None
        self._last_root = b""
        self._refused = ""
        self.on_report: Callable[[], None] = lambda: None

    def require(self) -> "TrustBundle":
        """The bundle in force. Raises Rejected: TrustMissing, or TrustStale when it is past its end."""
        if self._bundle is None:
            refused = f"the trust bundle is refused ({self._refused})" if self._refused else ""
            raise Rejected("TrustMissing", refused or "no trust bundle has come from the hub yet")
        if self._state.now() >= self._bundle.expires_at:
            ended = format_time(self._bundle.expires_at)
            raise Rejected("TrustStale", f"the trust bundle ended at {ended}: the root keys must sign a new one")
        return self._bundle

    @property
    def revoked(self) -> "Revoked":
        """What the bundle in force revokes; one that is past its end revokes no less."""
        from edgefleet.trust.publishers import Revoked

        return self._bundle.revoked if self._bundle else Revoked()

    @property
    def ends(self) -> datetime | None:
        """When the bundle in force ends, or has ended; None without one."""
        return self._bundle.expires_at if self._bundle else None

    def report(self) -> TrustReport:
        """What the hub is told: what is in force, and what is not."""
        version = self._bundle.version if self._bundle else 0
        return TrustReport(version=version, ends=self.ends, refused=self._refused, clock=self._state.describe_clock())

    async def restore(self) -> None:
        """Bring the stored bundle into force, after a restart; also one that is past its end, so that this is what is said of it."""
        if self._file.exists():
            await self._take(self._file.read_bytes(), now=LONG_AGO)

    async def offer(self, data: bytes) -> None:
        """Take a bundle from the hub if it may be believed and is not older than the last; otherwise the old one stays."""
        await self._take(data, now=self._state.now())

    async def _take(self, data: bytes, *, now: datetime) -> None:
        from edgefleet.trust.bundle import open_bundle, read_roots, require_root_kept

        try:
            bundle = await asyncio.to_thread(
                open_bundle,
                data,
                pinned_root=self._root,
                floor_version=self._state.bundle_version,
                floor_root=self._state.root_version,
                now=now,
            )
            if self._last_root:
                require_root_kept(data, self._last_root)
        except Rejected as error:
            log.warning("the trust bundle is refused: %s: %s", error.reason, error.message)
            self._refuse(f"{error.reason}: {error.message}"[:MAX_REFUSAL])
            return
        if self._bundle is not None and bundle == self._bundle:
            self._refuse("")
            return
        if not self._file.exists() or self._file.read_bytes() != data:
            write_durably(self._file, data, checkpoint=self._checkpoint)
        self._state.raise_bundle_version(bundle.version, bundle.root_version)
        self._bundle, self._last_root = bundle, read_roots(data)[-1]
        log.info("trust bundle %d is in force until %s", bundle.version, format_time(bundle.expires_at))
        self._on_change()
        self._refuse("")

    def _refuse(self, why: str) -> None:
        if why != self._refused:
            self._refused = why
            self.on_report()
