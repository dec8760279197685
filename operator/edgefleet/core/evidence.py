# NOTE (remove when read): written and integrated by the lead, as rollouts and the hub need it now; it replaced an uncommitted draft of
# the same name. Adapt and improve this version (names stay: Stream, spans, plan_gates, judge_gates, GateVerdict);
"""How sure it is that a revision is worse: three bettors say that it is 1.5, 3 or 10 times worse than allowed, at each site.

If it is not worse, their money is not expected to grow, however often anybody looks; so the chance that a healthy release ever makes
them b times as rich is at most 1 / b (Ville 1939; for counts see Lindon and others, "Rapid regression detection in software
deployments through sequential testing", KDD 2022). That sites differ from day to day is part of the bet: one site's count is negative
binomial with shape k = 1 / spread^2, which caps what one site can prove and becomes Poisson as the spread goes to 0. Only sums enter,
so records may come late, twice, and in any order. What is bad and what is allowed is decided in traffic.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

RATIOS = (1.5, 3.0, 10.0)
FIRST_STAKE = 0.5
LARGEST_EXPONENT = 700.0


@dataclass(frozen=True, slots=True)
class Tally:
    """Bad events seen at one site, and how many it may have: both since one stake was set, both divided by the site's burst factor."""

    seen: float
    allowed: float


def shape_of(spread: float) -> float:
    """The negative binomial's k, from the coefficient of variation of healthy sites from day to day."""
    return 1 / (spread * spread)


def bet(tally: Tally, ratio: float, shape: float) -> float:
    """The natural logarithm of what became of 1 that was put on "`ratio` times worse than allowed" at one site: the log ratio of two
    negative binomial masses at `seen`, with means `ratio * allowed` and `allowed`."""
    x, a = tally.seen, tally.allowed
    return x * math.log(ratio) + (shape + x) * math.log((shape + a) / (shape + ratio * a))


def weigh_stakes(count: int) -> tuple[float, ...]:
    """How the money is split over `count` stakes in order of time: half at the first, and of the other half 1/2, 1/6, 1/12, ...

    The later parts sum to at most one half however many follow, and none changes when another is added; what is not staked yet
    stays what it is.
    """
    return tuple(FIRST_STAKE if number == 0 else (1 - FIRST_STAKE) / (number * (number + 1)) for number in range(count))


def weigh_evidence(stakes: Sequence[Sequence[Tally]], shape: float) -> tuple[float, tuple[float, ...]]:
    """What 1 has become: for all sites together, and for each site alone. `stakes` holds, for each stake, one tally for each site.

    Together: half on "all sites are worse" (the product over sites), half on "one site is" (the mean over sites).
    """
    sites = len(stakes[0]) if stakes else 0
    weights = weigh_stakes(len(stakes))
    idle = 1 - math.fsum(weights)
    if not sites:
        return 1.0, ()
    pooled, alone = [], [[] for _ in range(sites)]  # type: tuple[list[float], list[list[float]]]
    for weight, tallies in zip(weights, stakes, strict=True):
        bets = [[bet(tally, ratio, shape) for ratio in RATIOS] for tally in tallies]
        all_worse = math.fsum(_exp(math.fsum(one[index] for one in bets)) for index in range(len(RATIOS))) / len(RATIOS)
        each = [math.fsum(map(_exp, one)) / len(RATIOS) for one in bets]
        pooled.append(weight * (all_worse + math.fsum(each) / sites) / 2)
        for own, value in zip(alone, each, strict=True):
            own.append(weight * value)
    return idle + math.fsum(pooled), tuple(idle + math.fsum(own) for own in alone)


def _exp(value: float) -> float:
    return math.exp(min(value, LARGEST_EXPONENT))
