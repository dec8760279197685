"""How sure it is that a revision is worse: four bettors say that it is 1.5, 2, 3 or 10 times worse than allowed, at each site.

If it is not worse, their money is not expected to grow, however often anybody looks; so the chance that a healthy release ever makes
them b times as rich is at most 1 / b (Ville 1939; for counts see Lindon and others, "Rapid regression detection in software
deployments through sequential testing", KDD 2022). That sites differ from day to day is part of the bet: a site's own rate is gamma
distributed around the one it may have, so that its count is negative binomial with shape k = 1 / spread^2. That caps what one site can
prove, and becomes Poisson as the spread goes to 0. Only sums enter, so records may come late, twice, and in any order.

What is bad and what is allowed is decided in traffic. Only `math` is needed; its logarithms are the C library's, so two machines agree to
the last bit only where their libraries do.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

RATIOS = (1.5, 2.0, 3.0, 10.0)
"""1.5 finds twice as bad over many sites, 10 a broken release in its first report, the two between what lies between (docs/judge)."""
ON_ALL = 0.75
"""What is put on "all sites are worse"; the rest on "one site is"."""
FIRST_STAKE = 0.5
LARGEST_EXPONENT = 600.0
"""e^600 is 10^260: proof enough, and any number of them can be summed."""
_LOGS = tuple(map(math.log, RATIOS))


Tally = tuple[float, float]
"""Bad events seen at one site, and how many it may have: both since one stake was set, both divided by the site's burst factor."""


Bets = tuple[float, float, float, float]


class Evidence(NamedTuple):
    """What 1 has become: for all sites together, and for each site alone."""

    together: float
    alone: tuple[float, ...]


def shape_of(spread: float) -> float:
    """The negative binomial's k, from the coefficient of variation of healthy sites from day to day."""
    return 1 / (spread * spread)


def bet(tally: Tally, shape: float) -> Bets:
    """The natural logarithms of what became of 1 that was put on each of RATIOS at one site: the log ratio of two negative binomial masses
    at `seen`, with means `ratio * allowed` and `allowed`."""
    (seen, allowed), (one, two, three, four), log = tally, _LOGS, math.log
    more, base = shape + seen, shape + allowed
    # Written out, as a look at a thousand sites calls it ten thousand times.
    return (
        seen * one + more * log(base / (shape + 1.5 * allowed)),
        seen * two + more * log(base / (shape + 2.0 * allowed)),
        seen * three + more * log(base / (shape + 3.0 * allowed)),
        seen * four + more * log(base / (shape + 10.0 * allowed)),
    )


def weigh_stakes(count: int) -> tuple[float, ...]:
    """How the money is split over `count` stakes in order of time: half at the first, and of the other half 1/2, 1/6, 1/12, ...

    The later parts sum to at most one half however many follow, and none changes when another is added; what is not staked yet
    stays what it is. So waves may open, and hours pass, without anybody knowing how many there will be.
    """
    return tuple(FIRST_STAKE if number == 0 else (1 - FIRST_STAKE) / (number * (number + 1)) for number in range(count))


def weigh_evidence(sites: Sequence[Sequence[Tally]], shape: float, bound: float = math.inf) -> Evidence:
    """What 1 has become. `sites` holds one row for each site, with one tally for each stake; all rows are equally long.

    Together: ON_ALL on "all sites are worse" (the product over sites), the rest on "one site is" (the mean over sites). Each bettor has
    the same share of every stake. Of one site no more than `bound_alone` counts in the mean: that is enough to take that site back, and
    a single site does not take back all.
    """
    stakes = len(sites[0]) if sites else 0
    weights = weigh_stakes(stakes)
    idle = 1 - math.fsum(weights)
    if not sites:
        return Evidence(1.0, ())
    bets = [_weigh_site(tallies, shape) for tallies in sites]
    all_worse = [idle]
    for weight, column in zip(weights, zip(*bets, strict=True), strict=True):
        bettors = zip(*(logs for logs, _ in column), strict=True)
        all_worse.append(weight * math.fsum(_exp(math.fsum(bettor)) for bettor in bettors) / len(RATIOS))
    alone = tuple(idle + math.fsum(weight * value for weight, (_, value) in zip(weights, own, strict=True)) for own in bets)
    most = bound_alone(bound, len(sites))
    one_worse = math.fsum(min(own, most) for own in alone) / len(sites)
    return Evidence(ON_ALL * math.fsum(all_worse) + (1 - ON_ALL) * one_worse, alone)


def bound_alone(bound: float, sites: int) -> float:
    """Where one site's own evidence is enough, if so many are watched: with a thousand sites, one is soon rich by chance."""
    return bound * max(1, sites)


def _weigh_site(tallies: Sequence[Tally], shape: float) -> list[tuple[Bets, float]]:
    """For each stake: the bettors' logarithms, and what the stake has become at this site."""
    found, exp = [], math.exp
    known: Tally | None = None
    for tally in tallies:
        if tally is not known:  # a site that joined after several stakes has the same tally in each
            known, logs = tally, bet(tally, shape)
            low, lower, higher, high = logs
            small = max(logs) < LARGEST_EXPONENT
            value = exp(low) + exp(lower) + exp(higher) + exp(high) if small else sum(map(_exp, logs))
            one = (logs, value / 4)
        found.append(one)
    return found


def _exp(value: float) -> float:
    return math.exp(min(value, LARGEST_EXPONENT))
