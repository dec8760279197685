"""What a site wrote into its status or report never stops the hub: a time that is none, or lies far ahead, counts as unknown."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from edgefleet.api.assignment import Order
from edgefleet.api.meta import format_time
from edgefleet.hub.gathering import assignment_facts
from edgefleet.hub.records import AssignmentRecord
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.orders import sign_order

ACTIVE = {"revision": "a" * 64, "since": "2026-11-24T12:00:00Z"}


def record(status: dict[str, Any], envelope: str = "e30=") -> AssignmentRecord:
    spec = {
        "site": "berlin",
        "fleet": "vision/plants",
        "sequence": 1,
        "action": "Run",
        "model": "weld",
        "expiresAt": "2030-01-01T00:00:00Z",
        "envelope": envelope,
    }
    return AssignmentRecord.model_validate(
        {"metadata": {"name": "vision.plants", "namespace": "edgesite-berlin"}, "spec": spec, "status": status}
    )


def test_of_an_envelope_only_its_signer_is_kept() -> None:
    ends = datetime(2030, 1, 1, tzinfo=UTC)
    key = PrivateKey.generate()
    order = Order(
        site="berlin", fleet="vision/plants", sequence=1, action="Withdraw", model="weld", revision=None, issued_at=ends, expires_at=ends
    )
    found = record({}, sign_order(order, key))
    assert assignment_facts(found).signer == found.spec.envelope == key.public.id
    assert assignment_facts(record({})).signer == ""


def test_times_of_a_site_are_read() -> None:
    facts = assignment_facts(record({"since": "2026-11-24T12:00:00Z", "active": ACTIVE}))
    assert facts.since == facts.active_since == datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "said",
    # All of them pass the schema's `format: date-time`, or would in some version of it.
    ["2026-11-24t12:00:00z", "2026-11-24T12:00:60Z", "2026-11-24T12:00:00", "9999-12-31T23:59:59Z", "yesterday", ""],
)
def test_a_time_that_is_none_counts_as_unknown(said: str) -> None:
    facts = assignment_facts(record({"since": said, "active": {**ACTIVE, "since": said}}))
    assert (facts.since, facts.active_since) == (None, None)


def test_a_clock_that_is_a_little_ahead_is_believed() -> None:
    soon = (datetime.now(UTC) + timedelta(minutes=5)).replace(microsecond=0)
    assert assignment_facts(record({"since": format_time(soon)})).since == soon
