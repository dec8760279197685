"""A switch that did not get through is not taken for done; the real Envoy is in tests/integration."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from edgefleet.site.gateway import Gateway, GatewayDown
from edgefleet.site.gateway_config import Endpoint, Target


class Troubled(Gateway):
    """A gateway with an Envoy that takes routes, or not, and a disk that does, or not."""

    envoy_takes = True
    disk_takes = True

    async def _wait(self, holds: Callable[[], Awaitable[bool]], seconds: float, otherwise: str) -> None:
        if not self.envoy_takes and "routes" in otherwise:
            raise GatewayDown(otherwise)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        if not self.disk_takes and name == "routes.json":
            raise OSError(28, "No space left on device")


@pytest.fixture
def gateway(tmp_path: Path) -> Troubled:
    return Troubled(tmp_path, address=Endpoint("127.0.0.1", 1), server=Endpoint("127.0.0.1", 2))


async def test_routes_that_envoy_did_not_take_are_not_taken_for_done(gateway: Troubled) -> None:
    gateway.envoy_takes = False
    for _ in range(2):
        with pytest.raises(GatewayDown, match="does not take the routes"):
            await gateway.switch("weld", "a" * 64)
    gateway.envoy_takes = True
    await gateway.switch("weld", "a" * 64)
    gateway.envoy_takes = False
    await gateway.switch("weld", "a" * 64)


async def test_what_a_full_disk_did_not_take_is_not_routed(gateway: Troubled) -> None:
    await gateway.switch("weld", "a" * 64)
    gateway.disk_takes = False
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            await gateway.switch("weld", "b" * 64)
        assert gateway.table == {"weld": Target("weld", "a" * 64)}
