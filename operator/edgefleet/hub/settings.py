"""Names and periods of the hub, in one place. What a user may change is a flag of `edgefleet hub`."""

from dataclasses import dataclass
from datetime import timedelta

from edgefleet.oci.transport import Proxy

FIELD_MANAGER = "edgefleet-hub"
HUB_KEY_SECRET = "hub-key"  # noqa: S105 - the name of a Secret, not a secret
HUB_KEY_ENTRY = "hub.key"
SITE_ROLE = "edgefleet-site"
HEARTBEAT = "edgefleet-heartbeat"


@dataclass(frozen=True, slots=True)
class Settings:
    """`namespace` holds the hub's own objects, `identity` names this process among its hubs; `resync` is how often everything is looked at
    although nothing changed."""

    identity: str = "hub"
    namespace: str = "edgefleet-system"
    heartbeat_every: timedelta = timedelta(seconds=10)
    heartbeat_lost_after: timedelta = timedelta(seconds=30)
    resync: timedelta = timedelta(minutes=5)
    writers: int = 16
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    registry_proxy: Proxy | None = None
