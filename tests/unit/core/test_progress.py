"""The rules of evidence: what a status, a report and silence say about one planned site."""

from dataclasses import replace
from typing import Any

import pytest

from edgefleet.core.facts import ReportFacts, SiteFacts
from edgefleet.core.progress import SiteProgress, Stand, clean_reason, is_reported, survey
from tests.unit.core.facts_of import NOW, A, B, fleet, minutes, opened, policy, run, site, told

OPEN = opened(("canary", 30, None))
HELD = {"hold": {"until": NOW + minutes(5), "reason": "audit"}}


def locate(facts: SiteFacts | None, *, waves: Any = OPEN, **more: Any) -> SiteProgress:
    """Where site s1 stands in run weld-2, whose first wave opened 30 minutes ago; soak 10, skipAfter 60 minutes."""
    this = run(2, B, plan=[("s1", 0)], phase="Rolling", waves=waves)
    known = {} if facts is None else {"s1": facts}
    return survey(this, known, fleet(B, runs=[run(1, A, outcome="Promoted"), this], **more), NOW)[0]


def ago(count: float) -> Any:
    return NOW - minutes(count)


def silent(facts: SiteFacts, count: float) -> SiteFacts:
    return replace(facts, last_heard=ago(count))


PLAIN = site("s1")
OLD_STATUS = {"status_sequence": 1, "sequence": 2}

STANDS = [
    pytest.param(PLAIN, Stand.WAITING, "", id="not-assigned"),
    pytest.param(told(PLAIN, A, "weld-1"), Stand.WAITING, "", id="has-stable"),
    pytest.param(told(PLAIN, None, None), Stand.WAITING, "", id="withdrawn-before"),
    pytest.param(told(PLAIN, B, "weld-2", None), Stand.UNDERWAY, "", id="just-assigned"),
    pytest.param(told(PLAIN, B, "weld-2", "Progressing"), Stand.UNDERWAY, "", id="fetching"),
    pytest.param(told(PLAIN, B, "weld-2", since=ago(30), **OLD_STATUS), Stand.UNDERWAY, "", id="I6-active-under-old-sequence"),
    pytest.param(told(PLAIN, B, "weld-2", "Failed", **OLD_STATUS), Stand.UNDERWAY, "", id="I6-failed-under-old-sequence"),
    pytest.param(told(PLAIN, B, "weld-2", "Withdrawn"), Stand.UNDERWAY, "", id="a-state-that-does-not-fit"),
    pytest.param(told(PLAIN, B, "weld-2", since=ago(5)), Stand.SOAKING, "", id="soaking"),
    pytest.param(told(PLAIN, B, "weld-2", since=ago(15)), Stand.PROVEN, "", id="soaked-and-heard"),
    pytest.param(told(PLAIN, B, "weld-2", since=ago(10)), Stand.PROVEN, "", id="heard-at-the-end-of-the-soak"),
    pytest.param(told(PLAIN, B, "weld-1", since=ago(15)), Stand.PROVEN, "", id="assigned-by-another-run"),
    pytest.param(told(PLAIN, B, "weld-2", since=ago(15), reported=False), Stand.SOAKING, "", id="never-reported"),
    pytest.param(silent(told(PLAIN, B, "weld-2", since=ago(15)), 6), Stand.SOAKING, "Unreachable", id="silent-in-mid-soak"),
    pytest.param(silent(told(PLAIN, B, "weld-2", since=ago(29)), 15), Stand.PROVEN, "", id="silent-after-its-soak"),
    pytest.param(silent(told(PLAIN, B, "weld-2", since=ago(29)), 61), Stand.SKIPPED, "Unreachable", id="silent-too-long"),
    pytest.param(silent(told(PLAIN, B, "weld-2", None), 10), Stand.UNDERWAY, "Unreachable", id="silent-on-its-way"),
    pytest.param(silent(told(PLAIN, B, "weld-2", None), 60), Stand.SKIPPED, "Unreachable", id="given-up"),
    pytest.param(told(site("s1", last_heard=None), B, "weld-2", None), Stand.SKIPPED, "Unreachable", id="never-heard"),
    pytest.param(told(PLAIN, B, "weld-2", "Failed", reason="GoldenBelowMinimum"), Stand.FAILED, "GoldenBelowMinimum", id="failed"),
    pytest.param(told(PLAIN, B, "weld-2", "Failed", reason="no good!"), Stand.FAILED, "CheckFailed", id="a-bad-word"),
    pytest.param(told(PLAIN, B, "weld-2", "Blocked", fault="Revision"), Stand.FAILED, "CheckFailed", id="fault-is-explicit"),
    pytest.param(told(PLAIN, B, "weld-2", "Blocked", reason="StoreFull"), Stand.UNDERWAY, "StoreFull", id="site-fault"),
    pytest.param(told(PLAIN, B, "weld-2", "Refused"), Stand.UNDERWAY, "SiteFault", id="refused"),
    pytest.param(told(PLAIN, B, "weld-2", "Blocked", since=ago(60)), Stand.SKIPPED, "SiteFault", id="faulty-too-long"),
    pytest.param(told(PLAIN, A, "weld-2", None), Stand.RETURNING, "", id="sent-back"),
    pytest.param(told(PLAIN, None, "weld-2", None), Stand.RETURNING, "", id="being-withdrawn"),
    pytest.param(told(PLAIN, A, "weld-2"), Stand.RETURNED, "", id="is-back"),
    pytest.param(told(PLAIN, None, "weld-2", "Withdrawn"), Stand.RETURNED, "", id="is-withdrawn"),
    pytest.param(None, Stand.OUT, "SiteGone", id="site-deleted"),
    pytest.param(site("s1", spec=HELD), Stand.OUT, "OnHold", id="held-before"),
    pytest.param(told(site("s1", spec=HELD), B, "weld-2", since=ago(15)), Stand.OUT, "OnHold", id="held-in-mid-run"),
    pytest.param(told(site("s1", spec=HELD), B, "weld-2", "Failed"), Stand.FAILED, "CheckFailed", id="held-but-failed"),
    pytest.param(told(site("s1", spec={"taints": [{"key": "x"}]}), B, "weld-2"), Stand.OUT, "Tainted", id="tainted"),
]


@pytest.mark.parametrize(("facts", "stand", "reason"), STANDS)
def test_stand(facts: SiteFacts | None, stand: Stand, reason: str) -> None:
    found = locate(facts)
    assert (found.stand, found.reason) == (stand, reason)


def test_a_site_that_leaves_the_selector_is_out() -> None:
    found = locate(told(PLAIN, B, "weld-2"), spec={"siteSelector": {"matchLabels": {"line": "paint"}}})
    assert (found.stand, found.reason, found.exposed) == (Stand.OUT, "NotSelected", True)
    assert "siteSelector" in found.message


def test_soak_runs_from_the_sites_own_activation() -> None:
    assert locate(told(PLAIN, B, "weld-2", since=ago(4))).soaks_until == NOW + minutes(6)


def test_an_activation_from_before_the_wave_opened_counts_from_the_opening() -> None:
    """A site's clock may be wrong, or it ran the revision before: its soak under this wave starts with the wave."""
    found = locate(told(PLAIN, B, "weld-2", since=ago(300)), waves=opened(("canary", 5, None)))
    assert (found.stand, found.soaks_until) == (Stand.SOAKING, NOW + minutes(5))


def test_without_a_record_the_wave_opens_now() -> None:
    assert locate(told(PLAIN, B, "weld-2", since=ago(300)), waves=()).soaks_until == NOW + minutes(10)


def test_the_report_dates_the_activation_if_it_can() -> None:
    facts = replace(told(PLAIN, B, "weld-2", since=ago(15)), report=ReportFacts(B.hash, 1, 1, ago(7)))
    assert locate(facts).soaks_until == NOW + minutes(3)
    undated = replace(facts, report=ReportFacts(B.hash, 1, 1, None))
    assert locate(undated).stand is Stand.PROVEN


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        pytest.param(None, False, id="none"),
        pytest.param(ReportFacts(B.hash, 2, 2, NOW), False, id="other-sequence"),
        pytest.param(ReportFacts(A.hash, 1, 1, NOW), False, id="other-revision"),
        pytest.param(ReportFacts(B.hash, 1, 1, NOW), True, id="both"),
    ],
)
def test_only_a_report_of_revision_and_sequence_counts(report: ReportFacts | None, expected: bool) -> None:
    assert is_reported(replace(told(PLAIN, B, "weld-2", None), report=report)) is expected
    assert not is_reported(replace(PLAIN, report=report))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        pytest.param(told(PLAIN, B, "weld-2", None), NOW + minutes(3), id="under-way-until-unreachable"),
        pytest.param(silent(told(PLAIN, B, "weld-2", None), 10), NOW + minutes(50), id="unreachable-until-given-up"),
        pytest.param(silent(told(PLAIN, B, "weld-2", None), 60), None, id="given-up"),
        pytest.param(told(PLAIN, B, "weld-2", since=ago(8)), NOW + minutes(2), id="soaking-until-its-end"),
        pytest.param(told(PLAIN, B, "weld-2", "Blocked", since=ago(58)), NOW + minutes(2), id="faulty-until-skipped"),
        pytest.param(told(PLAIN, B, "weld-2", "Failed"), None, id="failed-for-good"),
        pytest.param(site("s1", spec=HELD), NOW + minutes(5), id="held-until-the-hold-ends"),
        pytest.param(told(PLAIN, A, "weld-2"), None, id="is-back"),
    ],
)
def test_when_time_alone_changes_it(facts: SiteFacts, expected: Any) -> None:
    assert locate(facts).changes_at == expected


@pytest.mark.parametrize(("heard", "expected"), [(31, True), (29, False)])
def test_silent_since_before_the_wave_opened(heard: float, expected: bool) -> None:
    assert locate(silent(told(PLAIN, B, "weld-2", None), heard)).silent is expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        pytest.param(silent(told(PLAIN, A, "weld-2", None), 10), False, id="just-silent"),
        pytest.param(silent(told(PLAIN, A, "weld-2", None), 60), True, id="silent-for-long"),
        pytest.param(told(PLAIN, A, "weld-2", "Failed", since=ago(60)), True, id="cannot-go-back"),
        pytest.param(told(PLAIN, A, "weld-2", "Failed", since=ago(6)), False, id="cannot-go-back-yet"),
    ],
)
def test_a_way_back_is_waited_for_until_skip_after(facts: SiteFacts, expected: bool) -> None:
    found = locate(facts)
    assert (found.stand, found.given_up) == (Stand.RETURNING, expected)


def test_a_short_skip_after_never_skips_a_reachable_site() -> None:
    this = run(2, B, plan=[("s1", 0)], under=policy(unreachable={"skipAfter": "1s"}), waves=OPEN)
    facts = silent(told(PLAIN, B, "weld-2", None), 2)
    assert survey(this, {"s1": facts}, fleet(B, runs=[this]), NOW)[0].stand is Stand.UNDERWAY


def test_the_variant_that_fits_now_counts() -> None:
    assert locate(replace(PLAIN, hardware=site("x").hardware)).variant == "fp32"
    assert clean_reason("Fine", "Default") == "Fine"
