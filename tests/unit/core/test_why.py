"""Why a site runs what it runs: one line per site, the hub's own decisions, trouble first."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from edgefleet.core.facts import FleetFacts, RunFacts, SiteFacts
from edgefleet.core.fleet import decide_fleet
from edgefleet.core.why import MOVING, TROUBLE, Standing, explain_sites
from tests.unit.core.facts_of import NOW, A, B, fleet, minutes, opened, run, site, told

DONE = run(1, A, outcome="Promoted")


def explain(*sites: SiteFacts, target: Any = B, runs: Sequence[RunFacts] = (DONE,), **more: Any) -> dict[str, Standing]:
    facts: FleetFacts = fleet(target, runs=runs, sites=sites, **more)
    return {one.site: one for one in explain_sites(facts, decide_fleet(facts, NOW), NOW)}


def rolling(*plan: tuple[str, int]) -> RunFacts:
    waves = opened(("canary", 5, None), ("all", 0, None))[:1]
    return run(2, B, plan=plan, phase="Rolling", waves=waves, waiting_for="Soaking")


def test_a_settled_site_is_up_to_date_since_it_was_switched() -> None:
    one = explain(told(site("berlin"), A, "weld-1", since=NOW - minutes(90)), target=A)["berlin"]
    assert (one.state, one.told, one.runs, one.then) == ("UpToDate", "1.0", "1.0", "")
    assert one.since == NOW - minutes(90)
    assert one.heard == NOW
    assert one.trouble == 0
    assert one.next == ""


def test_a_site_of_a_wave_that_is_not_open_says_what_it_waits_for() -> None:
    sites = [told(site("berlin"), B, "weld-2", since=NOW - minutes(3)), told(site("oslo"), A, "weld-1")]
    found = explain(*sites, runs=[DONE, rolling(("berlin", 0), ("oslo", 1))])
    assert (found["oslo"].state, found["oslo"].told, found["oslo"].then) == ("Waiting", "1.0", "2.0")
    assert found["oslo"].message == "wave all of weld-2 is not open"
    assert found["berlin"].state == "Soaking"
    assert "wave canary of weld-2 is watched until" in found["berlin"].message


CASES: list[tuple[str, SiteFacts, str, str, str]] = [
    ("held", site("x", spec={"hold": {"until": NOW + timedelta(hours=1), "reason": "stocktaking"}}), "OnHold", "stocktaking", ""),
    ("tainted", site("x", spec={"taints": [{"key": "maintenance"}]}), "Tainted", "maintenance", ""),
    ("foreign", site("x", spec={"allowedNamespaces": None}), "NamespaceNotAllowed", "spec.allowedNamespaces is absent", ""),
    ("never heard", site("x", hardware=None, last_heard=None), "Unreachable", "never heard", "start `edgefleet agent`"),
    ("silent", told(site("x", last_heard=NOW - minutes(30)), A, "weld-1"), "Unreachable", "it serves what it has", "link"),
    ("failed", told(site("x"), A, "weld-1", "Failed", reason="GoldenSetFailed", message="31 %"), "Failed", "31 %", "rollout show weld-1"),
    (
        "blocked",
        told(site("x"), A, "weld-1", "Blocked", reason="DiskFull", message="3 MiB free"),
        "Blocked",
        "3 MiB free",
        "again by itself",
    ),
    ("refused", told(site("x"), A, "weld-1", "Refused", reason="BundleExpired"), "Refused", "", "trust bundle"),
    ("revoked there", told(site("x"), A, "weld-1", "Refused", reason="Revoked"), "Refused", "", "another release"),
    ("gone back", told(site("x"), A, "weld-1", "Failed", fault="Revision", reason="Revoked"), "Failed", "", "another release"),
    ("serves what is revoked", told(site("x"), A, "weld-1", reason="Revoked", message="until noon"), "Revoked", "until noon", "another"),
    ("limits", told(site("x"), A, "weld-1", "Refused", reason="GoldenTooLow"), "Refused", "", "trust set-limits"),
    ("sequence", told(site("x"), A, "weld-1", "Refused", reason="SequenceTooLow"), "Refused", "", "higher sequence"),
    ("on its way", told(site("x"), A, "weld-1", "Progressing"), "UnderWay", "not confirmed", ""),
    ("not yet told", site("x"), "Behind", "next look", ""),
]


@pytest.mark.parametrize(("one", "state", "said", "then"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_each_state_has_its_reason_and_what_to_do(one: SiteFacts, state: str, said: str, then: str) -> None:
    found = explain(one, target=A)["x"]
    assert found.state == state
    assert said in found.message
    assert then in found.next
    assert bool(found.next) == bool(then)
    assert not found.message.startswith("EdgeSite")
    assert (found.state in TROUBLE) == (found.trouble > 100)


def test_a_site_that_left_the_selector_keeps_what_it_has_and_says_so() -> None:
    there = told(site("oslo", labels={}), A, "weld-1")
    found = explain(there, target=A, spec={"siteSelector": {"matchLabels": {"line": "weld"}}})
    assert found["oslo"].state == "NotSelected"
    assert "it keeps what it has" in found["oslo"].message
    elsewhere = site("rome", labels={})
    assert explain(elsewhere, target=A, spec={"siteSelector": {"matchLabels": {"line": "weld"}}}) == {}, "none of this fleet's business"


def test_a_site_that_went_back_alone_is_quarantined_during_its_run_and_after() -> None:
    alone = told(site("oslo"), A, "weld-2", quarantine="LatencyRegression")
    during = explain(alone, site("rome"), runs=[DONE, rolling(("oslo", 0), ("rome", 1))])
    after = explain(alone, runs=[DONE, replace(run(2, B, outcome="Promoted"))])
    for found in (during, after):
        assert found["oslo"].state == "Quarantined"
        assert (found["oslo"].told, found["oslo"].runs) == ("1.0", "1.0")
    assert "rollout explain weld-2" in during["oslo"].next + during["oslo"].message


def test_a_site_that_joins_during_a_run_waits_for_its_end() -> None:
    found = explain(told(site("berlin"), B, "weld-2"), site("rome"), runs=[DONE, rolling(("berlin", 0))])
    assert (found["rome"].state, found["rome"].reason) == ("Waiting", "JoinedLater")


def test_trouble_comes_first() -> None:
    facts = fleet(
        A,
        runs=[DONE],
        sites=[
            told(site("a"), A, "weld-1"),
            site("b"),
            site("c", spec={"taints": [{"key": "maintenance"}]}),
            told(site("d", last_heard=NOW - minutes(30)), A, "weld-1"),
            told(site("e"), A, "weld-1", "Failed"),
        ],
    )
    order = [one.state for one in explain_sites(facts, decide_fleet(facts, NOW), NOW)]
    assert order == ["Failed", "Unreachable", "Tainted", "Behind", "UpToDate"]


def test_what_is_forgotten_is_named_by_its_hash() -> None:
    one = explain(told(site("berlin"), B, "weld-9", reported=True), target=A)["berlin"]
    assert one.runs == B.hash[:8]
    assert one.then == "1.0"
    assert one.state in MOVING
