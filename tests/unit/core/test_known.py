"""Whether an ordered revision would be taken for another one of the site."""

from typing import Any

import pytest

from edgefleet.api.assignment import FrozenRevision
from edgefleet.api.model import Golden, Serving, Variant
from edgefleet.api.site import Hardware
from edgefleet.core.known import Known, find_mix_up

PLAIN, GPU = Hardware(arch="amd64", memory=8 << 30), Hardware(arch="amd64", memory=8 << 30, accelerator="nvidia")
CPU = Variant(name="cpu", digest="sha256:" + "2" * 64, size=10, arch="amd64")
FAST = Variant(name="fast", digest="sha256:" + "3" * 64, size=10, arch="amd64", accelerator="nvidia")
GOLDEN = Golden(repository="registry.example/vision/exam", digest="sha256:" + "e" * 64, min="90%")
A, ALIKE = "a" * 64, "a" * 8 + "b" * 56


def revision(**changes: Any) -> FrozenRevision:
    base = FrozenRevision(
        hash=A,
        model="weld",
        repository="registry.example/vision/weld",
        digest="sha256:" + "1" * 64,
        version="1.0",
        seq=1,
        variant=CPU,
        serving=Serving(repository={}),
        golden=GOLDEN,
    )
    return base.model_copy(update=changes)


def pods(match: dict[str, str], image: str = "1", **more: Any) -> Serving:
    server = {"name": "server", "image": f"registry.example/serving/mlserver@sha256:{image * 64}"}
    template = {"spec": {"containers": [server], **more}}
    return Serving.model_validate({"match": match, "deployment": {"template": template, "port": 8080, "mountPath": "/models"}})


@pytest.mark.parametrize(
    "known", [Known(frozenset({ALIKE})), Known(stored={ALIKE: revision(hash=ALIKE)})], ids=["in the state", "in the store"]
)
def test_two_hashes_that_begin_alike_would_be_served_as_one(known: Known) -> None:
    assert ALIKE in find_mix_up(revision(), known, PLAIN)
    assert find_mix_up(revision(hash="a" * 7 + "b" * 57), known, PLAIN) == ""
    assert find_mix_up(revision(hash=ALIKE), known, PLAIN) == "", "itself"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ""),
        ({"repository": "mirror.example/weld", "version": "1.0-again"}, ""),
        ({"digest": "sha256:" + "9" * 64}, "digest"),
        ({"model": "paint"}, "model"),
        ({"golden": None}, "golden"),
        ({"golden": GOLDEN.model_copy(update={"min": "10%"})}, "golden"),
        ({"variant": CPU.model_copy(update={"digest": "sha256:" + "9" * 64})}, "variant"),
        ({"variant": FAST}, "variant"),
        ({"variant": CPU.model_copy(update={"name": "worse", "priority": -1})}, "variant"),
        ({"serving": Serving(repository={}, switch="Replace")}, "serving"),
        ({"serving": pods({})}, "serving"),
        ({"serving": pods({"accelerator": "nvidia"})}, "serving"),
    ],
)
def test_what_is_stored_under_a_hash_has_it_to_itself(changes: dict[str, Any], told: str) -> None:
    found = find_mix_up(revision(**changes), Known(stored={A: revision()}), PLAIN)
    assert found.endswith(f"another {told}") if told else found == ""


def test_other_hardware_may_choose_otherwise_within_one_revision() -> None:
    stored = Known(stored={A: revision()})
    assert find_mix_up(revision(variant=FAST, serving=pods({"accelerator": "nvidia"})), stored, GPU) == ""
    gone = Known(stored={A: revision(variant=FAST, serving=pods({"accelerator": "nvidia"}))})
    assert find_mix_up(revision(), gone, PLAIN) == ""
    assert "variant" in find_mix_up(revision(), gone, GPU), "it still fits, so that no hub would choose another one"
    assert "serving" in find_mix_up(revision(serving=pods({}, "2")), Known(stored={A: revision(serving=pods({}))}), GPU)


def test_a_template_is_the_same_whatever_a_record_leaves_out() -> None:
    """The store's record is JSON without what is null."""
    ordered = revision(serving=pods({}, hostname=None))
    stored = FrozenRevision.model_validate_json(ordered.model_dump_json(by_alias=True, exclude_none=True))
    assert find_mix_up(ordered, Known(stored={A: stored}), PLAIN) == ""
