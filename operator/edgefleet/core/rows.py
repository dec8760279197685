"""One site under one gate: the bad events that were seen, span by span, and how many it may have.

How sure the sum over sites is, is weighed in evidence; what the controls showed in the same minutes comes from surroundings.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, compress
from operator import mul

from edgefleet.api.policy import Metric
from edgefleet.core.evidence import Tally
from edgefleet.core.gates import AbsoluteGate, RelativeGate
from edgefleet.core.health import Stream
from edgefleet.core.surroundings import COUNTED, Surroundings

TOLERANCE = 1.25
"""An absolute gate never blames a revision for what its predecessor did as well, and a quarter more."""


@dataclass(frozen=True, slots=True)
class Row:
    """One site under one gate. `begins` says when each span began; the sums have one entry more: entry i is the sum of the first i spans.

    `moved` sums the answers of each span times the shift that the controls showed in it. What is allowed of a sum is the larger of
    `share` of the moved answers, and `usual` of these plus `least` of the answers: of an absolute gate 1.25 times the usual rate, and
    the limit; of a relative one the usual rate and `max_increase`, and the usual rate plus `min_increase`. `unsure`: the same site with
    everything in it, if not all of its spans had enough controls.
    """

    site: str
    burst: float
    begins: Sequence[int]
    of: Sequence[int]
    bad: Sequence[int]
    moved: Sequence[float]
    share: float
    usual: float = 0.0
    least: float = 0.0
    controls: int = 0
    unsure: "Row | None" = None

    @property
    def requests(self) -> int:
        """How many answers, or predictions."""
        return self.of[-1]

    @property
    def seen(self) -> int:
        """How many of them were bad."""
        return self.bad[-1]

    def allow(self, index: int) -> float:
        """How many bad events are allowed from a span on."""
        moved = self.moved[-1] - self.moved[index]
        return max(self.share * moved, self.usual * moved + self.least * (self.of[-1] - self.of[index]))

    def tallies(self, stakes: Sequence[int]) -> list[Tally]:
        """What happened since each stake. The first counts everything, also what a wrong clock dates before the wave opened."""
        begins, of, bad, moved = self.begins, self.of, self.bad, self.moved
        share, usual, least, burst = self.share, self.usual, self.least, self.burst
        latest = begins[-1] if begins else 0
        known, tallies = -1, []
        for stake in stakes:
            index = 0 if known < 0 else len(begins) if stake > latest else bisect_left(begins, stake, known)
            if index != known:
                # The same as allow(), without a call for each of a thousand sites.
                rest = moved[-1] - moved[index]
                plain, steps = share * rest, usual * rest + least * (of[-1] - of[index])
                allowed = plain if plain > steps else steps
                known, tally = index, ((bad[-1] - bad[index]) / burst, allowed / burst)
            tallies.append(tally)
        return tallies


def read_absolute(site: str, stream: Stream, gate: AbsoluteGate, usual: float, around: Surroundings, minimum: int) -> Row:
    """The limit stands without controls. With enough of them, what the whole fleet suffers is not blamed on the revision; that the fleet
    has a good hour takes nothing from it."""
    of_name, bad_name, _ = COUNTED[gate.metric]
    columns, burst = stream.columns, _burst(stream, gate.metric)
    of: Sequence[float] = columns.sums[of_name]
    moved, heard = of, 0
    if usual and not stream.skewed:
        _, raised, heard_in = around.move_all(columns)
        heard = max(heard_in, default=0)
        if heard >= minimum:
            moved = tuple(accumulate(map(mul, columns.counts[of_name], raised), initial=0.0))
    return Row(site, burst, columns.first, columns.sums[of_name], columns.sums[bad_name], moved, TOLERANCE * usual, 0.0, gate.limit, heard)


def read_relative(site: str, stream: Stream, gate: RelativeGate, usual: float, around: Surroundings, minimum: int) -> Row:
    """What is allowed moves with what the controls showed; spans in which fewer than `minimum` of them were heard are in `unsure` alone."""
    of_name, bad_name, _ = COUNTED[gate.metric]
    columns = stream.columns
    burst = _burst(stream, gate.metric)
    shares = (usual * (1 + gate.max_increase), usual, gate.min_increase)
    # Nobody knows what the controls showed in the same minutes if the site's minutes are wrong.
    nobody: tuple[list[float], list[float], list[int]] = (len(columns.first) * [1.0], [], len(columns.first) * [0])
    shifts, _, heard_in = nobody if stream.skewed else around.move_all(columns)
    of, bad, heard = columns.counts[of_name], columns.counts[bad_name], max(heard_in, default=0)
    if min(heard_in, default=minimum) >= minimum:
        moved = tuple(accumulate(map(mul, of, shifts), initial=0.0))
        return Row(site, burst, columns.first, columns.sums[of_name], columns.sums[bad_name], moved, *shares, heard)
    sure = [count >= minimum for count in heard_in]
    shifts = [shift if known else 1.0 for shift, known in zip(shifts, sure, strict=True)]
    everything = tuple(accumulate(map(mul, of, shifts), initial=0.0))
    unsure = Row(site, burst, columns.first, columns.sums[of_name], columns.sums[bad_name], everything, *shares, heard)
    return Row(
        site,
        burst,
        tuple(compress(columns.first, sure)),
        tuple(accumulate(compress(of, sure), initial=0)),
        tuple(accumulate(compress(bad, sure), initial=0)),
        tuple(accumulate(map(mul, compress(of, sure), compress(shifts, sure)), initial=0.0)),
        *shares,
        heard,
        unsure,
    )


def _burst(stream: Stream, metric: Metric) -> float:
    return max(1.0, getattr(stream.before, COUNTED[metric][2])) if stream.before else 1.0
