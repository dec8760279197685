"""Which Lease wakes whom: a plain renewal is cheap, one that changes or ends a silence is not."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from edgefleet.api.report import LEASE_NAME, MAX_BACKLOG_BYTES, MAX_REPORT_BYTES, SITE_ANNOTATION, fleet_annotation, health_annotation
from edgefleet.core.facts import FleetKey
from edgefleet.hub import inventory as module
from edgefleet.hub.inventory import Inventory

FLEET = FleetKey("vision", "plants")
REPORT = '{"formatVersion": 1, "revision": "%s", "sequence": 3, "floor": 3}' % ("a" * 64)
ABOUT = '{"formatVersion": 1, "agentVersion": "1", "hardware": {"arch": "amd64", "memory": 1}}'


class Woken:
    """An inventory without an API server (its list-watches do not run) and what it called."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        note: Callable[[str], Callable[[Any], None]] = lambda what: lambda about: self.calls.append((what, about))  # noqa: E731
        self.inventory = Inventory(
            None,  # type: ignore[arg-type]
            on_fleet=note("fleet"),
            on_site=note("site"),
            on_renewal=note("renewal"),
            on_health=lambda site, fleet: self.calls.append(("health", site, str(fleet))),
            on_heartbeat=lambda lease: self.calls.append(("heartbeat", lease.metadata.namespace)),
        )

    def renew(self, version: int, *, namespace: str = "edgesite-berlin", **annotations: str) -> list[Any]:
        """A Lease as a watch brings it; what was called because of it."""
        self.calls.clear()
        meta = {"name": LEASE_NAME, "namespace": namespace, "resourceVersion": str(version), "annotations": annotations}
        spec = {"renewTime": datetime.now(UTC).isoformat(), "leaseDurationSeconds": 3}
        self.inventory.leases.observe({"metadata": meta, "spec": spec})
        return list(self.calls)


def test_a_first_lease_wakes_the_site_and_every_fleet() -> None:
    assert Woken().renew(1, **{SITE_ANNOTATION: ABOUT}) == [("fleet", None), ("site", "berlin")]


def test_a_plain_renewal_is_only_that() -> None:
    woken = Woken()
    woken.renew(1, **{SITE_ANNOTATION: ABOUT})
    assert woken.renew(2, **{SITE_ANNOTATION: ABOUT}) == [("renewal", "berlin")]


def test_a_report_wakes_its_fleet() -> None:
    woken = Woken()
    woken.renew(1, **{SITE_ANNOTATION: ABOUT})
    notes = {SITE_ANNOTATION: ABOUT, fleet_annotation(str(FLEET)): REPORT}
    assert woken.renew(2, **notes) == [("fleet", FLEET), ("site", "berlin")]
    report = woken.inventory.fleet_report("berlin", FLEET)
    assert report is not None
    assert (report.sequence, woken.inventory.renew_seconds("berlin")) == (3, 1)


def test_the_end_of_a_silence_wakes_the_site_and_every_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    woken = Woken()
    woken.renew(1, **{SITE_ANNOTATION: ABOUT})

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(seconds=4)

    monkeypatch.setattr(module, "datetime", Later)
    assert woken.renew(2, **{SITE_ANNOTATION: ABOUT}) == [("site", "berlin"), ("fleet", None), ("renewal", "berlin")]


def test_a_report_that_cannot_be_read_counts_as_silence(caplog: pytest.LogCaptureFixture) -> None:
    woken = Woken()
    for text in ("nonsense", '{"formatVersion": 2, "sequence": 1, "floor": 1}', '{"formatVersion": 1}'):
        woken.renew(1, **{fleet_annotation(str(FLEET)): text})
        assert woken.inventory.fleet_report("berlin", FLEET) is None
    assert "cannot be read" in caplog.text


def test_the_hubs_own_lease_is_its_heartbeat() -> None:
    assert Woken().renew(1, namespace="edgefleet-system") == [("heartbeat", "edgefleet-system")]


@pytest.mark.parametrize(
    "text",
    [
        '{"formatVersion": 1, "sequence": 3, "floor": 9007199254740993}',
        '{"formatVersion": 1, "sequence": -1, "floor": 3}',
        '{"formatVersion": 1, "sequence": 3, "floor": 3, "activeSince": "2026-11-24T12:00:00"}',
        '{"formatVersion": 1, "sequence": 3, "floor": 3%s}' % (" " * MAX_REPORT_BYTES),
    ],
    ids=["no next sequence", "no sequence", "a time without zone", "too long"],
)
def test_a_report_that_no_order_could_follow_counts_as_silence(text: str) -> None:
    woken = Woken()
    woken.renew(1, **{fleet_annotation(str(FLEET)): text})
    assert woken.inventory.fleet_report("berlin", FLEET) is None


def test_no_site_was_heard_in_the_future() -> None:
    woken = Woken()
    meta = {"name": LEASE_NAME, "namespace": "edgesite-berlin", "resourceVersion": "1"}
    woken.inventory.leases.observe({"metadata": meta, "spec": {"renewTime": "9999-12-31T23:59:59Z"}})
    heard = woken.inventory.last_heard("berlin")
    assert heard is not None
    assert heard <= datetime.now(UTC)


HEALTH = (
    '{"formatVersion": 1, "revision": "%s", "sequence": 3, "activation": 1, "epochs": [{"start": 1, "records": [[1, %d, 0, 0, 0, 0]]}]}'
)


def test_traffic_wakes_nobody_but_the_judge() -> None:
    woken = Woken()
    woken.renew(1, **{SITE_ANNOTATION: ABOUT})
    for version, requests in ((2, 10), (3, 20)):
        notes = {SITE_ANNOTATION: ABOUT, health_annotation(str(FLEET)): HEALTH % ("a" * 64, requests)}
        assert woken.renew(version, **notes) == [("health", "berlin", "vision/plants"), ("renewal", "berlin")]
    report = woken.inventory.health_report("berlin", FLEET)
    assert report is not None
    assert report.epochs[0].records == ((1, 20, 0, 0, 0, 0),)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"formatVersion": 2}', "x" * (MAX_BACKLOG_BYTES + 1)], ids=["empty", "no-fields", "newer", "long"]
)
def test_health_that_cannot_be_read_counts_as_silence(text: str) -> None:
    woken = Woken()
    woken.renew(1, **{SITE_ANNOTATION: ABOUT, health_annotation(str(FLEET)): text})
    assert woken.inventory.health_report("berlin", FLEET) is None
