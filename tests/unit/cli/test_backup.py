"""What a backup keeps of each object, and how it comes back."""

from typing import Any

from edgefleet.cli.backup import _prepare, _secrets_in, _strip
from edgefleet.kube.resources import EDGE_FLEETS, EDGE_MODELS, MODEL_ROLLOUTS, NAMESPACES


def body(kind: Any, name: str, **more: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": "team", "uid": "u", "resourceVersion": "7", "managedFields": [], "ownerReferences": [{"uid": "x"}]}
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {**meta, **more.pop("meta", {})}, "spec": {}, **more}


def test_what_belongs_to_the_lost_cluster_is_left_out() -> None:
    kept = _strip(EDGE_FLEETS, body(EDGE_FLEETS, "plants", status={"stable": "a"}, meta={"labels": {"a": "b"}}))
    assert kept["metadata"] == {"name": "plants", "namespace": "team", "labels": {"a": "b"}}
    assert "status" not in kept


def test_a_run_keeps_its_outcome_although_its_status_is_lost() -> None:
    kept = _strip(MODEL_ROLLOUTS, body(MODEL_ROLLOUTS, "plants-2", status={"outcome": "RolledBack"}))
    assert kept["metadata"]["labels"] == {"edgefleet.io/outcome": "RolledBack"}
    assert _prepare(MODEL_ROLLOUTS, kept, "dora")["spec"] == {}


def test_a_run_that_had_not_ended_comes_back_paused_in_the_name_of_who_restores() -> None:
    kept = _strip(MODEL_ROLLOUTS, body(MODEL_ROLLOUTS, "plants-3", status={"phase": "Rolling"}, spec={"control": {"approvals": [1]}}))
    ready = _prepare(MODEL_ROLLOUTS, kept, "dora")
    assert ready["spec"]["control"] == {"approvals": [1], "paused": True, "by": "dora"}
    assert ready["metadata"]["annotations"] == {"edgefleet.io/restored-by": "dora"}


def test_a_model_keeps_its_author_and_says_who_restored_it() -> None:
    kept = _strip(EDGE_MODELS, body(EDGE_MODELS, "weld", meta={"annotations": {"edgefleet.io/author": "ada"}}))
    assert _prepare(EDGE_MODELS, kept, "dora")["metadata"]["annotations"] == {
        "edgefleet.io/author": "ada",
        "edgefleet.io/restored-by": "dora",
    }


def test_a_site_that_was_sent_away_stays_away_and_what_the_hub_set_up_is_set_up_anew() -> None:
    notes = {"edgefleet.io/left": "2026-01-01T00:00:00Z", "edgefleet.io/set-up": "hash"}
    kept = _strip(NAMESPACES, body(NAMESPACES, "edgesite-a", meta={"annotations": notes}))
    assert kept["metadata"]["annotations"] == {"edgefleet.io/left": "2026-01-01T00:00:00Z"}
    assert "spec" not in kept


def test_the_secrets_that_a_model_names_are_found_wherever_they_stand() -> None:
    spec = {
        "source": {"secretRef": "pull", "caRef": "ca"},
        "verify": {"keys": {"secretRef": "publishers"}},
        "serving": [{"secretRef": "x"}],
    }
    assert sorted(_secrets_in(spec)) == ["ca", "publishers", "pull", "x"]
