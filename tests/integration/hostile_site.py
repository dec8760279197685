"""The way of a site from registries to its store, alone in a process, so that its memory can be measured: one order a line on stdin.

    -> {"order": Order, "folder": where the store is, "now": time}
    <- {"reason": why it was refused, empty for a complete revision, "named": whether that is an error that the agent foresees,
        "detail": message, "peak": bytes at most since the second order, "start": bytes after the first}

Arguments: the pinned root, the trust bundle, and as JSON the login of each registry.
"""

import json
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from edgefleet.api.assignment import Order
from edgefleet.oci.body import Watchdog
from edgefleet.oci.errors import RegistryError
from edgefleet.oci.reference import Repository
from edgefleet.oci.transport import Credentials, Patience
from edgefleet.site.faults import StepFailed
from edgefleet.site.inbox import Inbox
from edgefleet.site.prefetch import Prefetcher
from edgefleet.site.registries import Access, Source, Way
from edgefleet.site.store import Store, StoreFull
from edgefleet.trust.bundle import TrustBundle, open_bundle
from edgefleet.trust.errors import Rejected

HURRY = 0.1
"""Seconds of silence that a site bears where silence is what is tried."""


@dataclass(frozen=True)
class Hurried(Access):
    """Access of a site that bears `silence` seconds, and asks again at once."""

    silence: float = HURRY

    def open(self, repository: Repository, patience: Patience) -> Source:
        watchdog = Watchdog(min_bytes=16 << 10, window=2 * self.silence)
        return super().open(repository, replace(patience, read=self.silence, watchdog=watchdog, sleep=lambda _: None))


def access_to(logins: Mapping[str, tuple[str, str]], silence: float = HURRY) -> Access:
    """Ways to registries by `host:port`, each with a user and password."""
    return Hurried({host: Way(credentials={host: Credentials(*login)}) for host, login in logins.items()}, silence=silence)


def bring(order: Order, trust: TrustBundle, access: Access, folder: Path, now: datetime) -> dict[str, Any]:
    """One order carried as far as the store; see the module for the answer."""
    prefetcher = Prefetcher(Store(folder), Inbox(folder / "inbox"))
    try:
        prefetcher.run(order, trust, access=access, protected=tuple, now=now, stop=threading.Event())
    except (StepFailed, Rejected, RegistryError) as error:
        return {"reason": error.reason, "named": True, "detail": error.message}
    except StoreFull as error:
        return {"reason": error.reason, "named": True, "detail": str(error)}
    except Exception as error:
        return {"reason": type(error).__name__, "named": False, "detail": repr(error)}
    return {"reason": "", "named": True, "detail": ""}


def _memory(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Answer orders until stdin ends."""
    root, bundle, logins = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]).read_bytes(), json.loads(sys.argv[3])
    trust, start = None, 0
    for line in sys.stdin:
        asked = json.loads(line)
        now = datetime.fromisoformat(asked["now"])
        trust = trust or open_bundle(bundle, pinned_root=root, floor_version=1, now=now)
        answer = bring(Order.model_validate(asked["order"]), trust, access_to(logins), Path(asked["folder"]), now)
        if not start:
            start = _memory("VmRSS")
            # From here on the kernel counts the peak anew.
            Path("/proc/self/clear_refs").write_text("5")
        print(json.dumps({**answer, "start": start, "peak": _memory("VmHWM")}), flush=True)


if __name__ == "__main__":
    main()
