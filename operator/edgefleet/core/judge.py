"""What the evidence says: Fail, Pass or Inconclusive. What follows from it (wait, go on, go back) is decided in rollout.

A wave passes with enough of its sites active, soaked and heard, and, where a gate on live traffic is in force, with enough requests
answered and no gate that holds. What the gates say of that traffic is decided in live.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from edgefleet.api.policy import MaxFailed, Soak
from edgefleet.api.quantities import parse_duration, parse_share
from edgefleet.core.memory import count_names
from edgefleet.core.progress import SiteProgress, Stand
from edgefleet.core.reach import earliest

GATES_NOT_CONFIGURED = "GatesNotConfigured"
SILENT_WAVE = "SilentWave"
UNSETTLED = frozenset({Stand.WAITING, Stand.UNDERWAY, Stand.SOAKING})


@dataclass(frozen=True, slots=True)
class Fail:
    """The revision is worse, or does not run: it must not go further."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Pass:
    """The wave may be followed by the next."""

    reason: str = GATES_NOT_CONFIGURED
    message: str = "every site of the wave is active, has soaked and was heard; no gate on live traffic is configured"


@dataclass(frozen=True, slots=True)
class Traffic:
    """What live traffic adds to the verdict on a wave. `requests`: answered by its sites with the new revision; `hold`: why a gate
    holds the run, empty if none does."""

    requests: int = 0
    hold: str = ""


@dataclass(frozen=True, slots=True)
class Inconclusive:
    """Neither. `final`: `soak.max` has passed, so that onInconclusive decides; never so for a silent wave.

    `ends_at` is when it becomes final by time alone.
    """

    reason: str
    message: str
    final: bool = False
    ends_at: datetime | None = None


Verdict = Fail | Pass | Inconclusive
GATES_PASSED = Pass("GatesPassed", "every site of the wave is active, has soaked and was heard; no gate on live traffic found it worse")


def judge_hard_checks(progress: Sequence[SiteProgress], limits: MaxFailed, *, first_wave: int) -> Fail | None:
    """Whether more sites failed on the revision's account than allowed: in the first wave a count, later a share, rounded down, of
    all sites exposed so far (never less than the first wave's count, which was accepted already)."""
    exposed = [one for one in progress if one.exposed or one.stand in (Stand.RETURNING, Stand.RETURNED)]
    failed = [one for one in exposed if one.failed]
    later = any(one.wave > first_wave for one in exposed)
    allowed = limits.first_wave
    if later:
        allowed = max(allowed, len(exposed) * parse_share(limits.later) // 100)
    if len(failed) <= allowed:
        return None
    worst = Counter(one.reason for one in failed).most_common(1)[0][0]
    limit = f"maxFailed.later {limits.later} of {len(exposed)} exposed sites" if later else f"maxFailed.firstWave {limits.first_wave}"
    example = next(one for one in failed if one.reason == worst)
    said = f" ({example.site}: {example.message})" if example.message else ""
    return Fail(worst, f"{len(failed)} site(s) failed, more than {limit} allows: {count_names(one.site for one in failed)}{said}")


def judge_wave(
    sites: Sequence[SiteProgress],
    soak: Soak,
    *,
    opened_at: datetime,
    proven_variants: Collection[str],
    traffic: Traffic | None = None,
    now: datetime,
) -> Pass | Inconclusive:
    """Whether this wave has passed. `sites` are those of the wave; `proven_variants` were proven by earlier waves; `traffic` is None
    if no gate on live traffic is in force.

    Sites that a person took out of the fleet do not count. Of the others none may be unsettled; `minReported` of them must be
    proven (failed sites left aside: maxFailed counts them; so are sites that were silent since before the wave opened: they never
    heard of the revision), and at least one of each variant that no earlier wave proved.
    """
    counted = [one for one in sites if one.stand is not Stand.OUT]
    proven = [one for one in counted if one.stand is Stand.PROVEN]
    unsettled = [one for one in counted if one.stand in UNSETTLED]
    if not proven and not unsettled:
        return Inconclusive(SILENT_WAVE, _describe_silence(sites))
    missing = {one.variant for one in counted} - set(proven_variants) - {one.variant for one in proven}
    asked = [one for one in counted if not one.failed and not (one.stand is Stand.SKIPPED and one.silent)]
    enough = len(proven) * 100 >= len(asked) * parse_share(soak.min_reported)
    if not unsettled and not missing and enough:
        lack = _lacks_traffic(traffic, soak)
        if lack is None:
            return Pass() if traffic is None else GATES_PASSED
        reason, message = lack
    else:
        quorum = f"{len(proven)} of {len(asked)}, minReported {soak.min_reported}"
        reason, message = _describe_lack(unsettled, missing, quorum, counted, now)
    if any(one.stand is Stand.WAITING for one in counted):
        return Inconclusive(reason, message)
    watched_from = max([opened_at, *(one.activated_at for one in counted if one.active and one.activated_at)])
    ends_at = watched_from + parse_duration(soak.max)
    return Inconclusive(reason, message, final=bool(proven) and ends_at <= now, ends_at=earliest(ends_at, after=now))


def _lacks_traffic(traffic: Traffic | None, soak: Soak) -> tuple[str, str] | None:
    if traffic is None:
        return None
    if traffic.hold:
        return "RegressionUnconfirmed", traffic.hold
    if traffic.requests < soak.min_requests:
        return "TooFewRequests", (
            f"its sites have answered {traffic.requests} requests with the new revision, soak.minRequests is {soak.min_requests}."
            " Wait for traffic, or give the wave a soak with fewer"
        )
    return None


def _describe_silence(sites: Sequence[SiteProgress]) -> str:
    reasons = Counter(one.reason for one in sites)
    listed = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    return (
        f"no site of the wave can prove the revision ({listed}): {count_names(one.site for one in sites)}."
        " A silent wave never passes: bring one of these sites back, or abort the run"
    )


def _describe_lack(
    unsettled: Sequence[SiteProgress], missing: Collection[str], quorum: str, counted: Sequence[SiteProgress], now: datetime
) -> tuple[str, str]:
    going = [one for one in unsettled if one.stand is not Stand.SOAKING]
    if going:
        why = Counter(one.reason for one in going if one.reason)
        listed = "".join(f", {reason} {count}" for reason, count in sorted(why.items()))
        return "WaitingForSites", f"{len(going)} site(s) are not there yet{listed}: {count_names(one.site for one in going)}"
    soaking = [one for one in unsettled if one.soaks_until and one.soaks_until > now]
    if soaking:
        return "Soaking", f"{len(soaking)} site(s) soak: {count_names(one.site for one in soaking)}"
    if unsettled:
        names = count_names(one.site for one in unsettled)
        return "WaitingForReports", f"{len(unsettled)} site(s) have not reported the assigned sequence since their soak: {names}"
    skipped = count_names(one.site for one in counted if one.stand is Stand.SKIPPED)
    if missing:
        return (
            "VariantUnproven",
            f"no site proved variant {count_names(missing)}; skipped: {skipped or 'none'}."
            " Bring a site with that variant back, or put a hold on it in EdgeSite spec.hold",
        )
    return (
        "TooFewReported",
        f"proven {quorum}; skipped: {skipped}. Bring sites back, put a hold on them in EdgeSite spec.hold, or abort the run",
    )
