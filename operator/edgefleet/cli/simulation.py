"""What a policy's gates would do to a release: seeded fleets of made-up sites, judged by the functions that judge real ones.

What is assumed, and not known of anybody's fleet: sites differ lastingly (log-sd 0.7), from day to day (0.2) and within the day (0.3,
forgotten in half an hour); all have a week of history; the release reaches all sites of a wave at once, and is looked at every 5 minutes,
after two hours of a wave every hour. Approvals, silent sites and hard checks are left out.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from statistics import median
from typing import Any

from edgefleet.api.policy import Metric, RolloutPolicySpec
from edgefleet.api.quantities import parse_duration, parse_share
from edgefleet.api.report import MARK_SECONDS, HealthBaseline, HealthCounts
from edgefleet.core.facts import FleetKey
from edgefleet.core.gates import LiveGate
from edgefleet.core.health import MARKS_PER_HOUR, Stream
from edgefleet.core.surroundings import COUNTED
from edgefleet.core.traffic import Control, GateVerdict, Watched, judge_gates
from edgefleet.core.waves import list_waves, plan_waves

FIRST_MARK = 6_000_000
MINUTES_PER_MARK = MARK_SECONDS // 60
WEEK_MARKS = 7 * 24 * 60 // MINUTES_PER_MARK
LASTING, DAILY, WANDER = 0.7, 0.2, 0.3
FORGOTTEN_IN_MARKS = 6.0
CLOSE_MARKS = 2 * MARKS_PER_HOUR
OLD, NEW = "a" * 64, "b" * 64
GROUP = ("all",)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is simulated: `rate` requests a second at each site, of which `base` (a share) are bad with the old revision."""

    policy: RolloutPolicySpec
    gates: tuple[LiveGate, ...]
    metric: Metric
    sites: int
    rate: float
    base: float


@dataclass(frozen=True, slots=True)
class Course:
    """How one simulated run went. `end`: Promoted, RolledBack, or as onInconclusive says; `by`: the gate, or MaxFailed; `wave`: the index
    of the last one opened. `exposed`: sites that ran the new revision; `alone`: those sent back alone."""

    end: str
    by: str
    wave: int
    minutes: int
    exposed: int
    alone: int
    requests: int
    bad: int


def simulate(setting: Setting, share: float, runs: int, seed: int, tick: Callable[[], None]) -> list[Course]:
    """So many runs of a release whose share of bad answers is `share`, on sites as the old revision's is `base`."""
    courses = []
    for run in range(runs):
        courses.append(_Run(setting, share / setting.base, Random(f"{seed} {run}"), f"simulated-{run}").go())  # noqa: S311
        tick()
    return courses


def summarise(courses: Sequence[Course], waves: Sequence[str]) -> dict[str, Any]:
    """Shares and medians over the runs, as JSON. Minutes, requests and bad answers are those until the run ended."""
    stopped = [one for one in courses if one.end == "RolledBack"]
    promoted = [one for one in courses if one.end == "Promoted"]
    return {
        "runs": len(courses),
        "stopped": len(stopped) / len(courses),
        "promoted": len(promoted) / len(courses),
        "inconclusive": 1 - (len(stopped) + len(promoted)) / len(courses),
        "stoppedInWave": {name: sum(one.wave == index for one in stopped) / len(courses) for index, name in enumerate(waves)},
        "stoppedBy": {name: count / len(courses) for name, count in sorted(Counter(one.by for one in stopped).items())},
        "minutesToStop": median(one.minutes for one in stopped) if stopped else None,
        "minutesToPromotion": median(one.minutes for one in promoted) if promoted else None,
        "sitesExposed": sum(one.exposed for one in courses) / len(courses),
        "sitesSentBackAlone": sum(one.alone for one in courses) / len(courses),
        "requests": median(one.requests for one in courses),
        "bad": median(one.bad for one in courses),
    }


class _Site:
    """One made-up site: what it counted, mark by mark, since it was switched or, for a control, since the run began."""

    def __init__(self, setting: Setting, chance: Random) -> None:
        self._chance = chance
        self._metric = setting.metric
        self._per_mark = max(1, round(setting.rate * MARK_SECONDS))
        lasting = setting.base * _lognormal(chance, LASTING)
        past = lasting * sum(_lognormal(chance, DAILY) for _ in range(7)) / 7
        self._rate = lasting * _lognormal(chance, DAILY)
        self._wander = chance.gauss(0, WANDER)
        requests = self._per_mark * WEEK_MARKS
        burst = 1 + self._per_mark * past * (math.exp(WANDER * WANDER) - 1)
        self._past = _baseline(setting.metric, requests, _poisson(chance, requests * past), burst)
        self._began, self._times, self._revision = FIRST_MARK, 1.0, OLD
        self.bad: list[int] = []
        self.old: Stream | None = None

    def switch(self, mark: int, times: float) -> None:
        """It serves the new revision from now on."""
        self.old = self.stream
        self._began, self._times, self._revision, self.bad = mark, times, NEW, []

    def live(self) -> None:
        """One mark passes."""
        keep = math.exp(-1 / FORGOTTEN_IN_MARKS)
        self._wander = keep * self._wander + math.sqrt(1 - keep * keep) * self._chance.gauss(0, WANDER)
        share = min(0.9, self._rate * self._times * math.exp(self._wander - WANDER * WANDER / 2))
        self.bad.append(min(self._per_mark, _poisson(self._chance, self._per_mark * share)))

    @property
    def requests(self) -> int:
        return self._per_mark * len(self.bad)

    @property
    def stream(self) -> Stream:
        of, bad, _ = COUNTED[self._metric]
        records = {
            self._began + index: HealthCounts(**{of: self._per_mark * (index + 1), bad: total})
            for index, total in enumerate(accumulate(self.bad))
        }
        past: Mapping[str, Any] = {"usual": self._past} if self._revision == OLD else {"before": self._past}
        return Stream(self._revision, self._began * MARK_SECONDS, 1, {self._began * MARK_SECONDS: records}, le_ms=1, ge="0.5", **past)


class _Run:
    """One rollout of the policy over made-up sites."""

    def __init__(self, setting: Setting, times: float, chance: Random, name: str) -> None:
        self._setting, self._times = setting, times
        plan = plan_waves(
            FleetKey("simulated", "fleet"), name, setting.policy, [(f"site-{index}", "any", {}) for index in range(setting.sites)]
        )
        self._waves = [[one.site for one in plan if one.wave == index] for index in range(len(list_waves(setting.policy)))]
        # Sites of the last waves are controls first, as they stay unchanged the longest.
        kept = [one.site for one in reversed(plan)][: setting.policy.analysis.controls.max]
        self._sites = {one.site: _Site(setting, chance) for one in plan}
        self._controls = set(kept)
        self._exposed: list[str] = []
        self._back: set[str] = set()
        self._mark = FIRST_MARK

    def go(self) -> Course:
        opened: list[int] = []
        ending = ("Promoted", "")
        wave = 0
        for index, names in enumerate(self._waves):
            if not names:
                continue
            wave = index
            opened.append(self._mark)
            for name in names:
                self._sites[name].switch(self._mark, self._times)
            self._exposed += names
            stopped = self._soak(index, names, opened)
            if stopped is not None:
                ending = stopped
                break
        on_new = [self._sites[name] for name in self._exposed]
        minutes = (self._mark - FIRST_MARK) * MINUTES_PER_MARK
        requests, bad = sum(one.requests for one in on_new), sum(sum(one.bad) for one in on_new)
        return Course(*ending, wave, minutes, len(on_new), len(self._back), requests, bad)

    def _soak(self, index: int, names: Sequence[str], opened: Sequence[int]) -> tuple[str, str] | None:
        """None if the wave passes, else how the run ends and by what."""
        policy = self._setting.policy
        wave = list_waves(policy)[index]
        soak = wave.soak or policy.soak
        least, most = (parse_duration(text).total_seconds() / MARK_SECONDS for text in (soak.min, soak.max))
        passed = 0
        while True:
            for name, site in self._sites.items():
                if name not in self._back and (name in self._controls or name in self._exposed):
                    site.live()
            self._mark += 1
            passed += 1
            if passed > CLOSE_MARKS and passed % MARKS_PER_HOUR and passed < most:
                continue
            verdicts = self._judge(opened)
            acting = [one for one in verdicts if not one.gate.dry_run and one.outcome != "NotApplicable"]
            for one in acting:
                if one.outcome == "Fail":
                    return "RolledBack", f"{one.gate.metric}-{one.gate.kind.lower()}"
            self._back |= {site.site for one in acting for site in one.worse}
            if len(self._back) > self._allowed(index):
                return "RolledBack", "maxFailed"
            answered = sum(self._sites[name].requests for name in names)
            held = any(one.outcome == "Hold" for one in acting)
            if passed >= least and answered >= soak.min_requests and not held:
                return None
            if passed >= most:
                wanted = wave.on_inconclusive or policy.on_inconclusive
                return (
                    None
                    if wanted == "Promote"
                    else ("RolledBack", "onInconclusive")
                    if wanted == "Rollback"
                    else ("Held", "onInconclusive")
                )

    def _allowed(self, index: int) -> int:
        limits = self._setting.policy.max_failed
        first = next(number for number, names in enumerate(self._waves) if names)
        later = len(self._exposed) * parse_share(limits.later) // 100 if index > first else 0
        return max(limits.first_wave, later)

    def _judge(self, opened: Sequence[int]) -> tuple[GateVerdict, ...]:
        return judge_gates(
            self._setting.gates,
            self._setting.policy.analysis,
            watched=[Watched(name, GROUP, self._sites[name].stream) for name in self._exposed if name not in self._back],
            controls=[Control(name, GROUP, tuple(self._old(name))) for name in sorted(self._controls)],
            opened=opened,
            now=self._mark - 1,
            first_release=False,
        )

    def _old(self, name: str) -> Iterator[Stream]:
        site = self._sites[name]
        if name not in self._exposed:
            yield site.stream
        elif site.old is not None:
            yield site.old


def _baseline(metric: Metric, requests: int, bad: int, burst: float) -> HealthBaseline:
    of, count, bursts = COUNTED[metric]
    nothing = HealthBaseline(0, 0, 0, 0, 0)
    return nothing._replace(**{of: requests, count: bad, bursts: burst})  # type: ignore[arg-type]


def _lognormal(chance: Random, sd: float) -> float:
    """With mean 1."""
    return math.exp(chance.gauss(-sd * sd / 2, sd))


def _poisson(chance: Random, mean: float) -> int:
    if mean > 50:
        return max(0, round(chance.gauss(mean, math.sqrt(mean))))
    count, product, limit = 0, chance.random(), math.exp(-mean)
    while product > limit:
        count += 1
        product *= chance.random()
    return count
