"""The bets against their definition in scipy, and what is promised of them."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import nbinom

from edgefleet.core.evidence import RATIOS, Tally, bet, bound_alone, shape_of, weigh_evidence, weigh_stakes

SHAPE = shape_of(0.3)


@pytest.mark.parametrize("spread", [0.05, 0.3, 0.5, 2.0])
@pytest.mark.parametrize("allowed", [0.01, 3.0, 250.0, 40_000.0])
@pytest.mark.parametrize("times", [0.0, 0.5, 1.0, 4.0])
def test_a_bet_is_the_log_ratio_of_two_negative_binomial_masses(spread: float, allowed: float, times: float) -> None:
    seen, shape = round(times * allowed), shape_of(spread)
    expected = [
        nbinom.logpmf(seen, shape, shape / (shape + ratio * allowed)) - nbinom.logpmf(seen, shape, shape / (shape + allowed))
        for ratio in RATIOS
    ]
    assert bet((float(seen), allowed), shape) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_without_spread_it_is_poisson() -> None:
    assert bet((9.0, 4.0), shape_of(1e-4))[2] == pytest.approx(9 * math.log(3) - 8, rel=1e-5)


@pytest.mark.parametrize("allowed", [0.2, 5.0, 60.0])
def test_a_bet_is_fair_where_the_site_is_as_allowed(allowed: float) -> None:
    """The expectation over all counts is 1: no bettor gains on average."""
    masses = nbinom.pmf(range(20_000), SHAPE, SHAPE / (SHAPE + allowed))
    for index in range(len(RATIOS)):
        grown = math.fsum(mass * math.exp(bet((float(seen), allowed), SHAPE)[index]) for seen, mass in enumerate(masses) if mass > 0)
        assert grown == pytest.approx(1, rel=1e-6)


@given(st.integers(1, 300))
def test_stakes_are_never_more_than_everything_and_do_not_change(count: int) -> None:
    weights = weigh_stakes(count)
    assert weights[0] == 0.5
    assert math.fsum(weights) <= 1
    assert weigh_stakes(count + 5)[:count] == weights


def test_evidence_starts_at_one() -> None:
    assert weigh_evidence([], SHAPE).together == 1
    together, alone = weigh_evidence([[(0.0, 0.0)] * 4] * 3, SHAPE)
    assert (together, alone) == (pytest.approx(1), pytest.approx((1, 1, 1)))


def test_it_falls_where_all_is_well_and_climbs_where_it_is_not() -> None:
    assert weigh_evidence([[(4.0, 8.0)]] * 5, SHAPE).together < 1
    assert weigh_evidence([[(24.0, 8.0)]] * 5, SHAPE).together > 1000


def test_one_site_among_many_is_found() -> None:
    together, alone = weigh_evidence([[(40.0, 5.0)]] + [[(4.0, 5.0)]] * 49, SHAPE)
    assert together > 100
    assert alone[0] > 1000
    assert max(alone[1:]) < 1


def test_a_later_stake_sees_what_began_late() -> None:
    whole, since = (65.0, 45.0), (35.0, 5.0)
    assert weigh_evidence([[whole, since]], SHAPE).together > 10 * weigh_evidence([[whole, whole]], SHAPE).together


def test_no_count_is_too_large() -> None:
    together, alone = weigh_evidence([[(float(1 << 53), 1e-9)]] * 2000, SHAPE)
    assert math.isfinite(together)
    assert all(map(math.isfinite, alone))


def test_the_order_of_sites_does_not_matter() -> None:
    chance = random.Random(5)
    rows: list[list[Tally]] = [[(float(chance.randrange(20)), chance.uniform(0.1, 20)) for _ in range(3)] for _ in range(200)]
    first = weigh_evidence(rows, SHAPE)
    order = chance.sample(range(200), 200)
    again = weigh_evidence([rows[index] for index in order], SHAPE)
    assert again.together == first.together
    assert again.alone == tuple(first.alone[index] for index in order)


def test_one_site_goes_back_alone_and_several_take_back_all() -> None:
    bad, good = [(300.0, 60.0)], [(60.0, 60.0)]
    one = weigh_evidence([bad, *[good] * 29], SHAPE, bound=100)
    assert one.alone[0] > bound_alone(100, 30)
    assert one.together < 100
    assert weigh_evidence([bad] * 4 + [good] * 26, SHAPE, bound=100).together >= 100


def test_where_only_one_site_is_watched_it_is_all() -> None:
    for seen in range(8, 40):
        together, (alone,) = weigh_evidence([[(float(seen), 5.0)]], SHAPE, bound=100)
        assert (together >= 100) == (alone >= bound_alone(100, 1))
