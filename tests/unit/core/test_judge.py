"""Fail, Pass, Inconclusive: how many may fail, how many must be heard, and that silence never passes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from edgefleet.api.policy import MaxFailed, Soak
from edgefleet.core.judge import GATES_NOT_CONFIGURED, Inconclusive, Pass, judge_hard_checks, judge_wave
from edgefleet.core.progress import SiteProgress, Stand
from tests.unit.core.facts_of import NOW, minutes

SOAK = Soak(min="10m", max="60m", min_reported="80%")


def stands(text: str, *, wave: int = 0, variant: str = "fp32") -> list[SiteProgress]:
    """One site per letter: w(aiting) u(nder way) s(oaking) p(roven) f(ailed) k (skipped) K (skipped, silent before) o(ut) r(eturned)."""
    letters = {
        "w": Stand.WAITING,
        "u": Stand.UNDERWAY,
        "s": Stand.SOAKING,
        "p": Stand.PROVEN,
        "f": Stand.FAILED,
        "k": Stand.SKIPPED,
        "K": Stand.SKIPPED,
        "o": Stand.OUT,
        "r": Stand.RETURNED,
    }
    found = []
    for number, letter in enumerate(text):
        exposed = letter not in "wor"
        reason = {"f": "GoldenBelowMinimum", "k": "Unreachable", "K": "Unreachable", "o": "OnHold"}.get(letter, "")
        one = SiteProgress(f"{variant}-{wave}-{number}", wave, variant, letters[letter], reason, exposed=exposed, silent=letter == "K")
        if letter in "sp":
            one = replace(one, activated_at=NOW - minutes(5), soaks_until=NOW + minutes(5))
        found.append(one)
    return found


def judge(sites: Sequence[SiteProgress], **more: Any) -> Pass | Inconclusive:
    rules: dict[str, Any] = {"opened_at": NOW - minutes(30), "proven_variants": (), "now": NOW}
    return judge_wave(sites, more.pop("soak", SOAK), **{**rules, **more})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("p", GATES_NOT_CONFIGURED, id="one-proven"),
        pytest.param("pppp", GATES_NOT_CONFIGURED, id="all-proven"),
        pytest.param("ppppk", GATES_NOT_CONFIGURED, id="enough-reported"),
        pytest.param("pppk", "TooFewReported", id="too-few-reported"),
        pytest.param("pppK", GATES_NOT_CONFIGURED, id="silent-since-before-it-opened"),
        pytest.param("pppf", GATES_NOT_CONFIGURED, id="failed-are-counted-elsewhere"),
        pytest.param("pooo", GATES_NOT_CONFIGURED, id="out-does-not-count"),
        pytest.param("ppw", "WaitingForSites", id="not-assigned"),
        pytest.param("ppu", "WaitingForSites", id="under-way"),
        pytest.param("pps", "Soaking", id="soaking"),
        pytest.param("", "SilentWave", id="I5-empty"),
        pytest.param("kkk", "SilentWave", id="I5-all-skipped"),
        pytest.param("KKK", "SilentWave", id="I5-all-silent-before"),
        pytest.param("ooo", "SilentWave", id="I5-all-out"),
        pytest.param("f", "SilentWave", id="nobody-is-active"),
        pytest.param("okK", "SilentWave", id="I5-mixed"),
    ],
)
def test_wave(text: str, expected: str) -> None:
    assert judge(stands(text)).reason == expected


def test_reports_missing_after_the_soak() -> None:
    sites = [replace(one, soaks_until=NOW) for one in stands("s")]
    assert judge(sites).reason == "WaitingForReports"


def test_each_variant_must_be_proven_once() -> None:
    canaries = stands("p") + stands("k", variant="int8")
    few = Soak(min="10m", max="60m", min_reported="50%")
    assert judge(canaries, soak=few).reason == "VariantUnproven"
    assert "int8" in judge(canaries, soak=few).message
    assert judge(canaries, soak=few, proven_variants={"int8"}).reason == GATES_NOT_CONFIGURED
    assert judge(stands("p") + stands("o", variant="int8")).reason == GATES_NOT_CONFIGURED


@pytest.mark.parametrize(
    ("text", "opened", "activated", "final", "ends"),
    [
        pytest.param("ppk", 30, 5, False, 55, id="counts-from-the-last-activation"),
        pytest.param("ppk", 90, 60, True, None, id="over"),
        pytest.param("ppu", 90, 60, True, None, id="over-though-one-is-under-way"),
        pytest.param("ppw", 90, 60, False, None, id="not-while-one-is-not-assigned"),
        pytest.param("kkk", 90, 60, False, None, id="I5-never-for-silence"),
        pytest.param("fkk", 90, 60, False, None, id="I5-never-without-an-active-site"),
        pytest.param("uuu", 90, 60, False, None, id="nobody-proven"),
    ],
)
def test_when_inconclusive_is_final(text: str, opened: int, activated: int, final: bool, ends: int | None) -> None:
    sites = [replace(one, activated_at=NOW - minutes(activated)) if one.active else one for one in stands(text)]
    verdict = judge(sites, opened_at=NOW - minutes(opened))
    assert isinstance(verdict, Inconclusive)
    assert verdict.final is final
    assert verdict.ends_at == (NOW + minutes(ends) if ends else None)


@pytest.mark.parametrize(
    ("first", "second", "limits", "fails"),
    [
        pytest.param("f", "", MaxFailed(), True, id="first-wave-none-allowed"),
        pytest.param("p", "", MaxFailed(), False, id="nothing-failed"),
        pytest.param("fpp", "", MaxFailed(first_wave=1), False, id="first-wave-one-allowed"),
        pytest.param("ffp", "", MaxFailed(first_wave=1), True, id="first-wave-one-too-many"),
        pytest.param("fpp", "w", MaxFailed(first_wave=1, later="0%"), False, id="second-wave-not-begun"),
        pytest.param("fpp", "u", MaxFailed(first_wave=1, later="0%"), False, id="what-the-first-wave-accepted-stays-accepted"),
        pytest.param("p", "f" + "u" * 7, MaxFailed(later="10%"), True, id="share-of-nine-rounded-down"),
        pytest.param("p", "f" + "u" * 9, MaxFailed(later="10%"), False, id="share-of-eleven-sites"),
        pytest.param("p", "f" + "w" * 50, MaxFailed(later="10%"), True, id="only-exposed-sites-count"),
        pytest.param("p", "f" + "r" * 9, MaxFailed(later="10%"), False, id="those-taken-back-were-exposed"),
        pytest.param("p", "kkkkK", MaxFailed(), False, id="whose-fault-silence-is-no-failure"),
    ],
)
def test_hard_checks(first: str, second: str, limits: MaxFailed, fails: bool) -> None:
    verdict = judge_hard_checks(stands(first) + stands(second, wave=1), limits, first_wave=0)
    assert (verdict is not None) is fails


def test_a_failure_names_reason_limit_and_at_most_ten_sites() -> None:
    sites = [replace(one, message="score 12% < 90%") for one in stands("f" * 12)]
    verdict = judge_hard_checks(sites, MaxFailed(), first_wave=0)
    assert verdict is not None
    assert verdict.reason == "GoldenBelowMinimum"
    assert "12 site(s) failed, more than maxFailed.firstWave 0" in verdict.message
    assert "and 2 more" in verdict.message
    assert "score 12% < 90%" in verdict.message
    assert "maxFailed.later 5% of 3" in getattr(
        judge_hard_checks(stands("p") + stands("fu", wave=1), MaxFailed(), first_wave=0), "message", ""
    )


def test_messages_name_sites_and_remedies() -> None:
    assert "spec.hold" in judge(stands("pppk")).message
    assert "abort" in judge(stands("kkk")).message
    assert "Unreachable 3" in judge(stands("kkk")).message
    assert "fp32-0-2" in judge(stands("ppu")).message
