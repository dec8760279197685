"""What is usual at a site: sums over some days, and how bursty bad events were. Pure.

Burst is the variance of the 5-minute counts over what independent events would have: Pearson's chi-square over its degrees of freedom, for
counts that are each expected in proportion to that mark's requests. With equal requests in each mark it is variance / mean; unlike that,
it does not take a busy noon for a burst. Of fewer than an hour of marks with traffic nothing can be said: 1.
"""

from collections.abc import Iterable, Sequence

from edgefleet.api.report import HealthBaseline, HealthCounts

LEAST_MARKS = 12
MAX_BURST = 1000.0


def plan_baseline(marks: Iterable[tuple[int, HealthCounts]], *, fine_since: int) -> HealthBaseline:
    """Sums over all marks. Bursts are measured on the 5-minute marks, those after `fine_since`."""
    listed = list(marks)
    columns = zip(*(counts for _, counts in listed), strict=True) if listed else [()] * len(HealthCounts._fields)
    sums = HealthCounts(*map(sum, columns))
    fine = [counts for mark, counts in listed if mark > fine_since]
    return HealthBaseline(
        *sums,
        burst_failed=measure_burst([(one.failed, one.requests) for one in fine]),
        burst_slow=measure_burst([(one.slow, one.requests) for one in fine]),
        burst_unsure=measure_burst([(one.unsure, one.predictions) for one in fine]),
    )


def measure_burst(marks: Sequence[tuple[int, int]]) -> float:
    """Of (bad events, out of how many) in each 5-minute mark: from 1 (independent) to 1000."""
    busy = [(bad, of) for bad, of in marks if of]
    bad, of = sum(one for one, _ in busy), sum(one for _, one in busy)
    if len(busy) < LEAST_MARKS or not bad:
        return 1.0
    spread = sum((one - count * bad / of) ** 2 / (count * bad / of) for one, count in busy) / (len(busy) - 1)
    return round(min(max(1.0, spread), MAX_BURST), 2)
