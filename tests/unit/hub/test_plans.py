"""A plan survives its way through ConfigMaps, and a changed one is noticed."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet.core.facts import PlannedSite
from edgefleet.hub.plans import SITES_PER_CHUNK, PlanError, decode_plan, encode_plan

names = st.from_regex(r"\A[a-z][a-z0-9-]{0,10}\Z")


@given(st.lists(st.builds(PlannedSite, names, names, st.integers(0, 16)), max_size=30))
def test_what_is_encoded_is_decoded(plan: list[PlannedSite]) -> None:
    ref, chunks = encode_plan(plan)
    assert decode_plan(ref, chunks) == tuple(plan)
    assert ref.sites == len(plan)


def test_a_large_fleet_is_cut_into_chunks_far_below_the_size_limit() -> None:
    plan = [PlannedSite(f"site-{n:05}", "int8", n % 5) for n in range(10_000)]
    ref, chunks = encode_plan(plan)
    assert ref.chunks == len(chunks) == 10_000 // SITES_PER_CHUNK
    assert max(len(chunk) for chunk in chunks) < 100_000
    assert decode_plan(ref, chunks) == tuple(plan)


def test_a_changed_plan_is_refused() -> None:
    ref, _ = encode_plan([PlannedSite("a", "fp32", 0)])
    with pytest.raises(PlanError, match="was changed"):
        decode_plan(ref, [zlib.compress(b'[["b","fp32",0]]')])
    with pytest.raises(PlanError, match="cannot be read"):
        decode_plan(ref, [b"nonsense"])
