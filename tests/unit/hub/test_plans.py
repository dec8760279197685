"""A plan survives its way through ConfigMaps, and a changed one is noticed."""

import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet.core.facts import PlannedSite
from edgefleet.hub.plans import PLAN_LABEL, SITES_PER_CHUNK, PlanError, decode_plan, encode_plan, settle_leftovers
from edgefleet.kube.errors import Conflict, NotFound
from edgefleet.kube.resources import CONFIG_MAPS

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


async def test_a_leftover_that_changed_meanwhile_ends_no_hub() -> None:
    tried = []

    class Api:
        async def list(self, kind: object, **_: Any) -> list[dict[str, Any]]:
            if kind is not CONFIG_MAPS:
                return [{"metadata": {"name": "run", "namespace": "team", "uid": "2"}, "spec": {"plan": {"hash": "a" * 64}}}]
            plan = {"name": "plan", "namespace": "team", "uid": "1", "resourceVersion": "5", "labels": {PLAN_LABEL: "a" * 16}}
            return [{"metadata": plan}, {"metadata": {**plan, "labels": {PLAN_LABEL: "b"}}}]

        async def patch(self, *_: Any) -> None:
            tried.append("patch")
            raise NotFound(404, "it is gone")

        async def delete(self, *_: Any, uid: str) -> None:
            tried.append("delete")
            raise Conflict(409, "it has another uid")

    api: Any = Api()
    assert await settle_leftovers(api) == 0
    assert tried == ["patch", "delete"] * 3
