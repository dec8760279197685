"""Wave arithmetic: counts, cumulative percentages rounded down, variants, selectors, and a draw that depends on names alone."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefleet.core.facts import FleetKey, PlannedSite
from edgefleet.core.waves import list_waves, plan_waves
from tests.unit.core.facts_of import KEY, policy

Labels = dict[str, str]


def candidates(count: int, *, arm: int = 0, labels: Labels | None = None) -> list[tuple[str, str, Labels]]:
    """`count` sites, the last `arm` of them with the other variant."""
    return [(f"s{number:02}", "int8" if number >= count - arm else "fp32", labels or {}) for number in range(count)]


def sizes(plan: tuple[PlannedSite, ...], waves: int) -> list[int]:
    counted = Counter(one.wave for one in plan)
    return [counted[index] for index in range(waves)]


@pytest.mark.parametrize(
    ("waves", "count", "arm", "expected"),
    [
        pytest.param([{"sites": 1}, {"percent": 100}], 10, 0, [1, 9, 0], id="count-then-all"),
        pytest.param([{"percent": 10}, {"percent": 50}, {"percent": 100}], 20, 0, [2, 8, 10, 0], id="percent-is-cumulative"),
        pytest.param([{"percent": 10}, {"percent": 100}], 19, 0, [1, 18, 0], id="rounded-down"),
        pytest.param([{"percent": 10}, {"percent": 100}], 5, 0, [1, 4, 0], id="at-least-one"),
        pytest.param([{"sites": 3}, {"percent": 10}, {"percent": 100}], 10, 0, [3, 0, 7, 0], id="already-covered-is-empty"),
        pytest.param([{"sites": 5}], 3, 0, [3, 0], id="more-than-there-are"),
        pytest.param([{"sites": 1}], 4, 0, [1, 3], id="rest-is-implicit"),
        pytest.param([{"percent": 50}], 4, 0, [2, 2], id="rest-after-percent"),
        pytest.param([{"sites": 1, "perVariant": True}, {"percent": 100}], 8, 2, [2, 6, 0], id="one-per-variant"),
        pytest.param([{"sites": 2, "perVariant": True}], 8, 1, [3, 5], id="a-variant-with-fewer"),
        pytest.param([{"percent": 50, "perVariant": True}], 8, 1, [4, 4], id="percent-per-variant-fills-up"),
        pytest.param([{"percent": 10, "perVariant": True}], 8, 1, [2, 6], id="percent-per-variant-at-least-one-each"),
        pytest.param([{"sites": 1}], 0, 0, [0, 0], id="nobody"),
    ],
)
def test_sizes(waves: list[dict[str, Any]], count: int, arm: int, expected: list[int]) -> None:
    named = [{"name": f"w{index}", **wave} for index, wave in enumerate(waves)]
    plan = plan_waves(KEY, "weld-1", policy(*named), candidates(count, arm=arm))
    assert sizes(plan, len(expected)) == expected


def test_demo_waves_of_eight_sites() -> None:
    """One canary per variant, then half, then all."""
    waves = ({"name": "canary", "sites": 1, "perVariant": True}, {"name": "half", "percent": 50}, {"name": "all", "percent": 100})
    plan = plan_waves(KEY, "weld-1", policy(*waves), candidates(8, arm=3))
    assert sizes(plan, 4) == [2, 2, 4, 0]
    assert {one.variant for one in plan if one.wave == 0} == {"fp32", "int8"}


def test_a_selector_keeps_others_for_later() -> None:
    mixed = [*candidates(4, labels={"tier": "test"}), *[(f"p{number}", "fp32", {"tier": "prod"}) for number in range(4)]]
    waves = ({"name": "test", "percent": 100, "selector": {"matchLabels": {"tier": "test"}}},)
    plan = plan_waves(KEY, "weld-1", policy(*waves), mixed)
    assert {one.site for one in plan if one.wave == 0} == {"s00", "s01", "s02", "s03"}
    assert {one.site for one in plan if one.wave == 1} == {"p0", "p1", "p2", "p3"}


def test_superseded_sites_go_first() -> None:
    waves = ({"name": "canary", "sites": 2}, {"name": "all", "percent": 100})
    for first in (["s07", "s03"], ["s00", "s09"]):
        plan = plan_waves(KEY, "weld-2", policy(*waves), candidates(10), first)
        assert {one.site for one in plan if one.wave == 0} == set(first)


def test_the_draw_depends_on_fleet_run_and_site_alone() -> None:
    def draw(key: FleetKey = KEY, run: str = "weld-1", order: int = 1) -> list[str]:
        return [one.site for one in plan_waves(key, run, policy({"name": "w", "sites": 3}), candidates(30)[::order])]

    assert draw() == draw(order=-1)
    assert draw() != draw(run="weld-2")
    assert draw() != draw(key=FleetKey("plants", "paint"))
    assert draw()[:3] == ["s04", "s03", "s29"], "the draw changed: runs under way would be planned anew"


def test_the_implicit_wave_gets_a_name_of_its_own() -> None:
    assert [wave.name for wave in list_waves(policy({"name": "a", "sites": 1}))] == ["a", "rest"]
    assert [wave.name for wave in list_waves(policy({"name": "rest", "sites": 1}))] == ["rest", "rest-2"]
    both = policy({"name": "rest", "sites": 1}, {"name": "rest-2", "sites": 1})
    assert list_waves(both)[-1].name == "rest-3"


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(0, 40),
    arm=st.integers(0, 5),
    shapes=st.lists(st.tuples(st.integers(1, 5) | st.none(), st.booleans()), min_size=1, max_size=4),
    percents=st.lists(st.integers(1, 100), min_size=4, max_size=4).map(sorted),
)
def test_a_plan_holds_every_site_once_and_keeps_to_its_sizes(
    count: int, arm: int, shapes: list[tuple[int | None, bool]], percents: list[int]
) -> None:
    named = [
        {"name": f"w{index}", "perVariant": per, **({"sites": size} if size else {"percent": percents[index]})}
        for index, (size, per) in enumerate(shapes)
    ]
    plan = plan_waves(KEY, "weld-1", policy(*named), candidates(count, arm=min(arm, count)))
    assert sorted(one.site for one in plan) == [site for site, _, _ in candidates(count)]
    assert [one.wave for one in plan] == sorted(one.wave for one in plan)
    placed = 0
    for index, (size, per) in enumerate(shapes):
        here = sum(one.wave == index for one in plan)
        limit = size if size else max(0, max(1, count * percents[index] // 100) - placed)
        assert here <= limit * (2 if per and size else 1) + (2 if per and not size else 0)
        placed += here
