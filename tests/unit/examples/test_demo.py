"""The parts of the demo that decide: what it tells of changes, which times it shortens, what it counts."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgefleet.api.assignment import SiteAssignment
from edgefleet.api.model import EdgeModel
from edgefleet.api.rollout import ModelRollout
from edgefleet.api.site import EdgeSite
from examples.digits.demo.__main__ import ACTS
from examples.digits.demo.counts import Counts, Latency, SiteCount, Traffic
from examples.digits.demo.ending import describe_first_site, print_counts
from examples.digits.demo.observer import Snapshot, describe_changes
from examples.digits.demo.places import ELIGIBLE, FEWER, MANIFESTS, PLACES, PLAIN, REFUSED, VNNI
from examples.digits.demo.play import all_serve, variant_words
from examples.digits.demo.screen import draw_gates, draw_sites
from examples.digits.demo.setting import TEAM_FILES
from examples.digits.demo.story import Story
from examples.digits.demo.survival import lost_hub
from examples.digits.demo.times import SHORTENED, read_manifest, shorten

HASH = "a" * 64
FLEET = "vision/digits"


def _run(**status: Any) -> ModelRollout:
    spec = {
        "fleet": "digits",
        "number": 1,
        "revision": {
            "hash": HASH,
            "model": "digits",
            "repository": "registry.example/digits",
            "digest": f"sha256:{HASH}",
            "version": "v2",
            "seq": 2,
            "variants": [],
            "serving": [{"repository": {}}],
        },
        "policy": {"waves": [{"name": "canary", "sites": 1}]},
        "plan": {"hash": HASH, "sites": 8, "chunks": 1},
    }
    return ModelRollout.parse({"metadata": {"name": "digits-1", "namespace": "vision"}, "spec": spec, "status": status})


def _assignment(site: str, sequence: int = 1, said: int = 1, **status: Any) -> SiteAssignment:
    spec = {
        "site": site,
        "fleet": FLEET,
        "sequence": sequence,
        "action": "Run",
        "model": "digits",
        "revision": HASH,
        "version": "v2",
        "variant": "int8",
        "expiresAt": "2026-01-01T00:00:00Z",
        "envelope": "-",
    }
    return SiteAssignment.parse({"metadata": {"name": "vision.digits"}, "spec": spec, "status": {"sequence": said, **status}})


def _serving(site: str, sequence: int = 1, said: int = 1) -> SiteAssignment:
    active = {"revision": HASH, "version": "v2", "since": "2026-01-01T00:00:00Z"}
    return _assignment(site, sequence, said, state="Active", active=active)


def test_every_shortened_time_stands_in_its_manifest() -> None:
    for file in TEAM_FILES:
        text = read_manifest(MANIFESTS, file, {})
        assert all(f"{entry.key}: {entry.demo}\n" in text for entry in SHORTENED if entry.file == file)


def test_a_time_that_moved_is_noticed() -> None:
    with pytest.raises(ValueError, match="interval: 10m"):
        shorten("interval: 5m\n", "model.yaml")


def test_nine_places_of_which_one_is_refused() -> None:
    assert (len(PLACES), len(ELIGIBLE), REFUSED) == (9, 8, "austin")


def test_on_nodes_there_are_both_kinds_of_hardware_in_both_clusters_and_waves_that_grow() -> None:
    eligible = [place for place in FEWER if place.name != REFUSED]
    assert len(eligible) == len(FEWER) - 1
    assert {(place.cluster, place.features) for place in eligible} == {(one, kind) for one in ("east", "west") for kind in (PLAIN, VNNI)}
    assert 2 < len(eligible) // 2 < len(eligible)


def test_a_wave_is_told_when_it_opens_and_when_it_passes() -> None:
    planned, opened = _run(), _run(waves=[{"name": "canary", "sites": 2, "openedAt": "2026-01-01T00:00:00Z"}])
    passed = _run(waves=[{"name": "canary", "sites": 2, "openedAt": "2026-01-01T00:00:00Z", "passedAt": "2026-01-01T00:00:05Z"}])
    seen = [Snapshot(runs={"vision/digits-1": run}) for run in (planned, opened, passed)]
    assert describe_changes(Snapshot(), seen[0]) == ["run vision/digits-1: v2 planned for 8 sites"]
    assert describe_changes(seen[0], seen[1]) == ["run vision/digits-1: wave canary opens (2 sites)"]
    assert describe_changes(seen[1], seen[2]) == ["run vision/digits-1: wave canary passed"]
    assert describe_changes(seen[2], seen[2]) == []


def test_an_outcome_and_a_vanished_run_are_told_once() -> None:
    ended = Snapshot(runs={"vision/digits-1": _run(phase="Ended", outcome="Promoted", reason="Adopted")})
    assert "run vision/digits-1: Promoted (Adopted)" in describe_changes(Snapshot(), ended)
    assert describe_changes(ended, Snapshot()) == ["run vision/digits-1 is gone"]


def test_a_site_is_told_only_of_the_assignment_it_has() -> None:
    key = ("berlin", FLEET)
    old, new = (Snapshot(assignments={key: _assignment("berlin", 2, said, state="Active")}) for said in (1, 2))
    assert describe_changes(Snapshot(), old) == []
    assert describe_changes(old, new) == ["site berlin: v2 int8 Active"]


def test_a_refused_release_is_told_with_its_reason() -> None:
    spec = {"source": {"repository": "r/d", "tag": "v4"}, "verify": {"keys": {"secretRef": "k"}}, "serving": [{"repository": {}}]}
    said = {"type": "SourceVerified", "status": "False", "reason": "SignatureMissing", "message": "no signature"}
    model = EdgeModel.parse({"metadata": {"name": "digits"}, "spec": spec, "status": {"conditions": [said]}})
    assert describe_changes(Snapshot(), Snapshot(models={FLEET: model})) == ["model vision/digits: refused, SignatureMissing: no signature"]


def test_all_serve_believes_only_what_sites_said_of_their_present_assignment() -> None:
    def seen(*assignments: SiteAssignment) -> Snapshot:
        return Snapshot(assignments={(each.spec.site, FLEET): each for each in assignments})

    eight = [_serving(site) for site in ELIGIBLE]
    assert all_serve(seen(*eight), "v2", ELIGIBLE)
    assert not all_serve(seen(*eight[1:]), "v2", ELIGIBLE)
    assert not all_serve(seen(*eight, _serving(REFUSED)), "v2", ELIGIBLE)
    assert not all_serve(seen(*eight[1:], _serving(ELIGIBLE[0], sequence=2, said=1)), "v2", ELIGIBLE)
    assert not all_serve(seen(*eight), "v1", ELIGIBLE)


def test_int8_asks_for_vnni_and_wins_where_it_fits() -> None:
    words = variant_words(Path("/desk/releases/v2/int8"))
    assert "features=avx512_vnni" in words
    assert "priority=10" in words
    assert "file=releases/v2/int8/model.onnx" in words
    assert "features" not in variant_words(Path("/desk/releases/v2/fp32"))


def test_rates_are_taken_over_the_last_seconds_of_the_clients_own_clock(tmp_path: Path) -> None:
    path = tmp_path / "traffic.json"
    traffic = Traffic(path)
    assert traffic.read().sites == {}
    for at, answered in ((100.0, 0), (101.0, 5), (102.0, 10), (103.0, 15)):
        path.write_text(json.dumps({"at": at, "sites": {"berlin": {"answered": answered, "losses": []}}}))
        now = traffic.read()
    assert traffic.rates(now) == {"berlin": 5.0}


def test_every_act_says_its_number_and_a_hub_is_lost_only_when_all_sites_are_linked() -> None:
    numbers = {name: [int((act.__doc__ or "").strip().partition(".")[0]) for act in acts] for name, acts in ACTS.items()}
    assert numbers["standard"] == list(range(8))
    assert sorted(numbers["all"]) == list(range(11))
    # A site with another revision would be a conflict for the hub that adopts.
    assert numbers["all"].index(9) < ACTS["all"].index(lost_hub)


def test_the_customers_latency_is_read_in_whole_bins() -> None:
    fast, slow = [0] * 21, [0] * 21
    fast[2], slow[13], slow[20] = 95, 4, 1
    counts = Counts(1.0, {"berlin": SiteCount(latency={"a": fast, "b": slow}), "aktau": SiteCount(latency={"a": fast})})
    assert counts.latency_of("b").slower_than(100) == 1.0
    assert counts.latency_at(["berlin"]).slower_than(100) == 0.05
    assert counts.latency_at(["berlin", "aktau"]).answers == 195
    berlin = counts.latency_at(["berlin"])
    assert [berlin.edge_at(share) for share in (0.5, 0.95, 0.99, 1.0)] == [3, 3, 200, float("inf")]
    assert (berlin - counts.latency_at(["aktau"])).bins == tuple(slow)
    assert Latency().slower_than(100) == 0


def test_errors_of_releases_are_added_over_the_sites() -> None:
    counts = Counts(1.0, {"berlin": SiteCount(failed={"digits--8": 2}), "aktau": SiteCount(failed={"digits--8": 3, "digits--9": 1})})
    assert counts.failed == {"digits--8": 5, "digits--9": 1}


def test_the_end_says_what_was_lost_and_which_release_failed() -> None:
    counts = Counts(1.0, {"berlin": SiteCount(answered=200, right=190, failed={"digits--8": 6}), "austin": SiteCount()})
    console = Console(width=80, record=True, file=StringIO())
    print_counts(console, counts, 8)
    told = (
        "customers: 200 requests answered at 1 sites (95.0% with the right digit), 0 lost; 8 sites were to serve; digits--8 answered 6 with"
    )
    assert console.export_text().startswith(told)


def test_the_first_site_that_serves_is_told_with_its_own_commands_alone() -> None:
    story = Story()
    assert describe_first_site(story) == ""
    for line in ("edgefleet trust init trust", "# edits git/model.yaml", "edgefleet site join almaty", "edgefleet site join berlin"):
        story.tell("command", line)
    story.tell("command", "helm install edgefleet-agent chart -f sites/almaty.yaml")
    story.tell("fleet", "site almaty: v1 fp32 Failed NoRoom: x")
    assert describe_first_site(story) == ""
    story.tell("fleet", "site berlin: v1 fp32 Active")
    story.tell("command", "edgefleet status")
    told = describe_first_site(story)
    assert told.startswith("from empty clusters to berlin, the first site that serves: 2 commands, 0.0 minutes")
    assert told.endswith("the joining of 1 other sites by 2 more included")


def test_evidence_is_told_as_it_moves() -> None:
    gate = {"name": "latency", "kind": "Absolute", "verdict": "Quiet", "requests": 40, "seen": 2, "allowed": "0.4", "bound": "60.0"}
    quiet = Snapshot(runs={"vision/digits-1": _run(gates=[{**gate, "evidence": "0.93"}])})
    loud = Snapshot(runs={"vision/digits-1": _run(gates=[{**gate, "evidence": "3.312"}])})
    assert not any("evidence" in line for line in describe_changes(Snapshot(), quiet))
    assert describe_changes(quiet, loud) == ["run vision/digits-1: latency, 2 of 40 bad: evidence 3.31 of 60"]
    assert describe_changes(loud, loud) == []
    assert draw_gates(loud).plain == "evidence (60 is enough): latency 3.31"
    assert draw_gates(Snapshot()).plain == "no evidence from live traffic yet"


def test_why_a_run_turned_back_is_told_once() -> None:
    words = {"reason": "LatencyRegression", "message": "answers slower than 100ms"}
    rolling = Snapshot(runs={"vision/digits-1": _run(phase="Rolling")})
    returning = Snapshot(runs={"vision/digits-1": _run(phase="Returning", **words)})
    ended = Snapshot(runs={"vision/digits-1": _run(phase="Ended", outcome="RolledBack", **words)})
    assert describe_changes(rolling, returning) == ["run vision/digits-1: going back, LatencyRegression: answers slower than 100ms"]
    assert describe_changes(returning, ended) == ["run vision/digits-1: RolledBack (LatencyRegression)"]
    assert describe_changes(rolling, ended) == ["run vision/digits-1: RolledBack (LatencyRegression) answers slower than 100ms"]


def test_the_live_view_fits_80_columns(tmp_path: Path) -> None:
    hardware = {"arch": "amd64", "memory": 1, "features": ["avx512_vnni"], "declared": ["features"]}
    site = EdgeSite.parse({"metadata": {"name": "shymkent"}, "spec": {"region": "kz"}, "status": {"hardware": hardware}})
    assignment = _assignment(
        "shymkent", state="Failed", reason="GoldenSetFailed", active={"revision": HASH, "version": "v2", "variant": "fp32", "since": ""}
    )
    (tmp_path / "traffic.json").write_text(
        json.dumps({"at": 1, "sites": {"shymkent": {"answered": 99_999, "lost": 99, "failed": {"a": 999}, "losses": []}}})
    )
    seen = Snapshot(sites={"shymkent": site}, assignments={("shymkent", FLEET): assignment})
    console = Console(width=80, record=True, file=StringIO())
    console.print(draw_sites(seen, Traffic(tmp_path / "traffic.json")))
    text = console.export_text()
    assert "…" not in text
    assert all(word in text for word in ("shymkent", "vnni", "v2 GoldenSetFailed", "99999", "999", "lost"))
