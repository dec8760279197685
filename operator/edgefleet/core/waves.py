"""How a frozen set of sites is cut into waves. Sites are drawn by a hash of names, so the same names give the same plan.

Arithmetic: `sites` is the size of that wave; `percent` is cumulative over all eligible sites, rounded down, at least 1. With
`perVariant`, a wave holds at least `sites` (with `percent`: at least one) of each variant that its selector leaves. What no wave
takes forms an implicit last wave. A wave that gets no site is passed over. When a wave opens is not decided here.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import sha256

from edgefleet.api.policy import RolloutPolicySpec, Wave
from edgefleet.core.facts import FleetKey, PlannedSite

Candidate = tuple[str, str, Mapping[str, str]]
"""A site's name, the variant that fits it, its labels."""


def list_waves(policy: RolloutPolicySpec) -> tuple[Wave, ...]:
    """The policy's waves and the implicit last one; a PlannedSite's `wave` is an index into this."""
    taken = {wave.name for wave in policy.waves}
    name = next(name for name in ("rest", *(f"rest-{n}" for n in range(2, 20))) if name not in taken)
    return (*policy.waves, Wave(name=name, percent=100))


def plan_waves(
    fleet_key: FleetKey,
    run_name: str,
    policy: RolloutPolicySpec,
    eligible: Sequence[Candidate],
    first: Collection[str] = (),
    last: Collection[str] = (),
) -> tuple[PlannedSite, ...]:
    """The plan of a run, ordered by wave and, within a wave, as drawn. `first` are sites that are drawn before all others, `last` after
    all others."""
    pool = sorted(eligible, key=lambda one: (one[0] in last, one[0] not in first, _draw(fleet_key, run_name, one[0])))
    waves = list_waves(policy)
    plan: list[PlannedSite] = []
    for index, wave in enumerate(waves):
        taken = set(_take(wave, pool, total=len(eligible), placed=len(plan), everything=index == len(policy.waves)))
        plan += [PlannedSite(site, variant, index) for site, variant, _ in pool if site in taken]
        pool = [candidate for candidate in pool if candidate[0] not in taken]
    return tuple(plan)


def _take(wave: Wave, pool: Sequence[Candidate], *, total: int, placed: int, everything: bool) -> list[str]:
    """The names that this wave takes out of the pool, which is in draw order."""
    if everything:
        return [site for site, _, _ in pool]
    matching = [(site, variant) for site, variant, labels in pool if wave.selector is None or wave.selector.matches(dict(labels))]
    room = wave.sites if wave.sites is not None else max(1, total * (wave.percent or 0) // 100) - placed
    if not wave.per_variant:
        return [site for site, _ in matching[: max(0, room)]]
    chosen = _take_per_variant(matching, wave.sites or 1)
    left = [site for site, _ in matching if site not in set(chosen)]
    return chosen + left[: max(0, room - len(chosen))]


def _take_per_variant(matching: Iterable[tuple[str, str]], each: int) -> list[str]:
    counts: dict[str, int] = {}
    chosen = []
    for site, variant in matching:
        if counts.get(variant, 0) < each:
            counts[variant] = counts.get(variant, 0) + 1
            chosen.append(site)
    return chosen


def _draw(fleet_key: FleetKey, run_name: str, site: str) -> bytes:
    return sha256(f"{fleet_key} {run_name} {site}".encode()).digest()
