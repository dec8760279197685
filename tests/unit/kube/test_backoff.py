"""Waits grow to a bound, are drawn anew each time, and start over after a success."""

from edgefleet.kube.backoff import Backoff


def test_waits_stay_under_a_bound_that_doubles_up_to_the_longest() -> None:
    for _ in range(200):
        backoff = Backoff(multiplier=0.5, longest=3)
        drawn = [backoff.draw() for _ in range(6)]
        assert all(0 <= wait <= bound for wait, bound in zip(drawn, (0.5, 1, 2, 3, 3, 3), strict=True))


def test_a_success_makes_the_next_failure_a_first_one() -> None:
    for _ in range(200):
        backoff = Backoff(multiplier=0.5, longest=60)
        for _ in range(8):
            backoff.draw()
        backoff.reset()
        assert backoff.draw() <= 0.5
