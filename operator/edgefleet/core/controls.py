"""Which unchanged sites a run is compared with: drawn by a hash, from the last waves first, as they stay unchanged the longest.

A site is a control until it is switched itself; what it reported before that goes on counting for the others.
"""

from collections import Counter
from collections.abc import Mapping
from hashlib import sha256

from edgefleet.api.policy import Controls
from edgefleet.core.facts import RunFacts, SiteFacts

Group = tuple[str, ...]


def group_of(site: SiteFacts, controls: Controls) -> Group:
    """What a site must have in common with its controls: one value for each of `sameLabels`, empty where it has none."""
    hardware = f"{site.hardware.arch}/{site.hardware.accelerator or ''}" if site.hardware else ""
    facts = {**site.labels, "region": site.spec.region or "", "hardware": hardware}
    return tuple(facts.get(key, "") for key in controls.same_labels)


def draw_controls(run: RunFacts, sites: Mapping[str, SiteFacts]) -> frozenset[str]:
    """The names of at most `controls.max` planned sites for each group."""
    controls = run.policy.analysis.controls
    drawn: Counter[Group] = Counter()
    names = set()
    for planned in sorted(run.plan, key=lambda one: (-one.wave, sha256(f"{run.name} control {one.site}".encode()).digest())):
        site = sites.get(planned.site)
        if site is None:
            continue
        group = group_of(site, controls)
        if drawn[group] < controls.max:
            drawn[group] += 1
            names.add(site.name)
    return frozenset(names)
