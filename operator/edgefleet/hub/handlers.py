"""kopf at the hub's door: it watches the kinds that people write, which come in tens, and says which keys to look at again.

Only `on.event`: level-triggered, and nothing of kopf's is ever written on objects that Git owns. Retrying is the queue's, not kopf's.
"""

from collections.abc import Callable
from typing import Any, Protocol

import kopf

from edgefleet.api.meta import FLEET_LABEL, GROUP, VERSION
from edgefleet.core.facts import FleetKey
from edgefleet.hub.heartbeat import BEAT_ANNOTATION
from edgefleet.hub.settings import HEARTBEAT
from edgefleet.kube.connection import Connection


class Door(Protocol):
    """What the handlers call; the hub's process implements it."""

    def model_changed(self, namespace: str, name: str) -> None:
        """An EdgeModel was made, changed or deleted."""

    def fleet_changed(self, key: FleetKey) -> None:
        """An EdgeFleet, or one of its runs, was made, changed or deleted."""

    def policy_changed(self, namespace: str, name: str) -> None:
        """A RolloutPolicy was made, changed or deleted."""

    def beat(self, mark: str | None) -> None:
        """Our own heartbeat came back."""


def make_registry(door: Door, connection: Connection) -> kopf.OperatorRegistry:
    """The handlers, for `kopf.operator(registry=...)`."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return _connection_info(connection)

    def on_event(plural: str) -> Callable[[Any], Any]:
        return kopf.on.event(GROUP, VERSION, plural, registry=registry)

    @on_event("edgemodels")
    def on_model(namespace: str, name: str, **_: Any) -> None:
        door.model_changed(namespace, name)

    @on_event("edgefleets")
    def on_fleet(namespace: str, name: str, **_: Any) -> None:
        door.fleet_changed(FleetKey(namespace, name))

    @on_event("modelrollouts")
    def on_run(namespace: str, labels: Any, **_: Any) -> None:
        if FLEET_LABEL in labels:
            door.fleet_changed(FleetKey(namespace, labels[FLEET_LABEL]))

    @on_event("rolloutpolicies")
    def on_policy(namespace: str, name: str, annotations: Any, **_: Any) -> None:
        if name == HEARTBEAT:
            door.beat(annotations.get(BEAT_ANNOTATION))
        else:
            door.policy_changed(namespace, name)

    return registry


def make_settings() -> kopf.OperatorSettings:
    """kopf with everything off that it need not do: no event posting, no peering, no scanning for kinds that may appear."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.networking.error_backoffs = (1, 2, 4)
    return settings


def _connection_info(connection: Connection) -> kopf.ConnectionInfo:
    scheme, _, token = connection.headers().get("Authorization", "").partition(" ")
    configuration = connection.configuration
    return kopf.ConnectionInfo(
        server=connection.server,
        ca_path=configuration.ssl_ca_cert,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        scheme=scheme or None,
        token=token or None,
    )
