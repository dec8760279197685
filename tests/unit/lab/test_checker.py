"""Small histories made by hand: a good one has nothing against it, and for each rule there is a bad one that it catches, alone."""

import base64
import json
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.report import fleet_annotation
from tests.lab.checker import Final, Truth, check
from tests.lab.history import Entry, History, accepted_writes, parse_path

GOOD, BAD = "1" * 64, "2" * 64
PLAN = "f" * 64
NAMESPACE, FLEET = "team", "team/plants"
TRUTH = Truth(good=frozenset({"1"}), bad=frozenset({"2"}), golden=2, denied=frozenset({"far"}))
START = 1_800_000_000.0


class Story:
    """A history as it is told, one write a second."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def add(self, kind: str, actor: str, **more: Any) -> None:
        n = len(self.entries) + 1
        self.entries.append(Entry(n, START + n, kind, actor, **{**more, "body": more.get("body", {})}))

    def write(self, actor: str, method: str, resource: str, namespace: str, name: str, body: Any, **more: Any) -> None:
        version = 100 + len(self.entries)
        where = {"server": "hub", "resource": resource, "namespace": namespace, "name": name, "method": method, "body": body}
        self.add("request", actor, **{**where, "code": 200, "version": version, **more})

    def make_run(self, number: int, revision: str = GOOD, *, canary: str = "a", plan: str = PLAN) -> None:
        """Sites a and b: one in wave canary, the other in wave all."""
        sites = [[site, "cpu", 0 if site == canary else 1] for site in ("a", "b")]
        data = base64.b64encode(zlib.compress(json.dumps(sites).encode())).decode()
        chunk = f"plan-{plan[:16]}-0"
        self.write("hub", "POST", "configmaps", NAMESPACE, "", {"metadata": {"name": chunk}, "binaryData": {"plan.json.z": data}})
        policy = {
            "waves": [{"name": "canary", "sites": 1}, {"name": "all", "percent": 100}],
            "soak": {"min": "2s", "minReported": "80%"},
        }
        spec = {
            "fleet": "plants",
            "number": number,
            "revision": {"hash": revision, "version": revision[0]},
            "policy": policy,
            "plan": {"hash": plan, "sites": 2, "chunks": 1},
        }
        self.write("hub", "POST", "modelrollouts", NAMESPACE, "", {"metadata": {"name": f"plants-{number}"}, "spec": spec})

    def record(self, number: int, *, opened: str = "", passed: str = "", phase: str = "Rolling", **status: Any) -> None:
        """The run's status: letters c and a for the waves canary and all."""
        names = {"c": "canary", "a": "all"}
        waves = [
            {"name": name, **({"openedAt": "t"} if letter in opened else {}), **({"passedAt": "t"} if letter in passed else {})}
            for letter, name in names.items()
        ]
        body = {"status": {"phase": phase, "waves": waves, **status}}
        self.write("hub", "PATCH", "modelrollouts", NAMESPACE, f"plants-{number}", body, subresource="status")

    def order(self, site: str, sequence: int, revision: str | None = GOOD, *, run: str | None = "plants-1", copied: bool = True) -> None:
        """What the hub tells a site, and the copy in the site's own cluster."""
        spec = {"fleet": FLEET, "sequence": sequence, "action": "Run" if revision else "Withdraw", "revision": revision}
        body = {"metadata": {"labels": {"edgefleet.io/run": run}}, "spec": spec}
        self.write("hub", "PATCH", "siteassignments", f"edgesite-{site}", "team.plants", body)
        if copied:
            self.write(f"agent-{site}", "PATCH", "siteassignments", f"edgesite-{site}", "team.plants", body, server="site")

    def say(self, site: str, sequence: int, revision: str | None = GOOD, state: str = "Active") -> None:
        """The site's status of its assignment."""
        body = {"status": {"sequence": sequence, "revision": revision, "state": state}}
        self.write(f"agent-{site}", "PATCH", "siteassignments", f"edgesite-{site}", "team.plants", body, subresource="status")

    def report(self, site: str, sequence: int, revision: str | None = GOOD, *, active_for: float = 5) -> None:
        """The site's Lease."""
        since = datetime.fromtimestamp(START + len(self.entries) + 1 - active_for, UTC).isoformat()
        said = {"revision": revision, "sequence": sequence, "activeSince": since}
        body = {"metadata": {"annotations": {fleet_annotation(FLEET): json.dumps(said)}}}
        self.write(f"agent-{site}", "PATCH", "leases", f"edgesite-{site}", "agent", body)

    def serve(self, site: str, name: str = "weld--11111111", *, asked: int = 2) -> None:
        """The model server is asked the golden set; then a client gets an answer."""
        self.add("model", f"runtime-{site}", method="load", name=name, code=200)
        for _ in range(asked):
            self.add("model", f"runtime-{site}", method="infer", name=name, code=200)
        self.add("probe", f"client-{site}", name=name, code=200)

    def activate(self, site: str, sequence: int) -> None:
        """All that a healthy site does with an order."""
        self.serve(site)
        self.say(site, sequence)
        self.report(site, sequence)

    def promote(self) -> None:
        """Run 1 from its plan to its end."""
        self.make_run(1)
        self.record(1, opened="c")
        self.order("a", 1)
        self.activate("a", 1)
        self.record(1, opened="ca", passed="c")
        self.order("b", 1)
        self.activate("b", 1)
        self.record(1, opened="ca", passed="ca", phase="Ended", outcome="Promoted")

    def take_back(self) -> None:
        """Run 2, of the bad revision, which its canary refuses."""
        self.make_run(2, BAD)
        self.record(2, opened="c")
        self.order("a", 2, BAD, run="plants-2")
        self.say("a", 2, BAD, "Failed")
        self.record(2, opened="c", phase="Returning", reason="GoldenSetFailed")
        self.order("a", 3, run="plants-2")
        self.say("a", 3)
        self.record(2, opened="c", phase="Ended", outcome="RolledBack", reason="GoldenSetFailed")


def rules(story: Story, truth: Truth = TRUTH, **final: Any) -> set[str]:
    return {one.rule for one in check(story.entries, truth, Final(**final))}


def whole() -> Story:
    story = Story()
    story.promote()
    story.take_back()
    return story


def test_a_good_history_has_nothing_against_it() -> None:
    assert rules(whole(), logs={"hub": "all is well"}, state={"runs": {"plants-1": {"outcome": "Promoted"}}}) == set()


def test_a_first_release_that_is_taken_back_is_withdrawn() -> None:
    story = Story()
    story.make_run(1, BAD)
    story.record(1, opened="c")
    story.order("a", 1, BAD)
    story.say("a", 1, BAD, "Failed")
    story.record(1, opened="c", phase="Returning", reason="GoldenSetFailed")
    story.order("a", 2, None)
    story.say("a", 2, None, "Withdrawn")
    story.record(1, opened="c", phase="Ended", outcome="RolledBack", reason="GoldenSetFailed")
    assert rules(story) == set()


def serves_what_no_golden_set_was_asked_of(story: Story) -> None:
    story.serve("a", "weld--33333333", asked=1)


def activates_what_is_bad(story: Story) -> None:
    story.make_run(3, BAD)
    story.order("b", 2, BAD, run=None)
    story.say("b", 2, BAD, "Active")
    story.order("b", 3, run=None)
    story.say("b", 3)


def loses_a_client(story: Story) -> None:
    story.add("probe", "client-a", code=503, text="no healthy upstream")


def opens_no_wave(story: Story) -> None:
    story.make_run(3)
    story.record(3, opened="c")
    story.order("b", 2, run="plants-3")
    story.say("b", 2)


def tells_a_site_that_is_not_planned(story: Story) -> None:
    story.make_run(3)
    story.record(3, opened="ca")
    story.order("c", 1, run="plants-3")
    story.say("c", 1)


def plans_two_canaries(story: Story) -> None:
    story.make_run(3, canary="a", plan="e" * 64)
    chunk, run = story.entries[-2], story.entries[-1]
    data = base64.b64encode(zlib.compress(json.dumps([["a", "cpu", 0], ["b", "cpu", 0]]).encode())).decode()
    chunk.body["binaryData"]["plan.json.z"] = data
    assert run.body["spec"]["plan"]["hash"] == "e" * 64


def changes_its_plan(story: Story) -> None:
    body = {"spec": {"plan": {"hash": "d" * 64, "sites": 2, "chunks": 1}}}
    story.write("hub", "PATCH", "modelrollouts", NAMESPACE, "plants-1", body)


def hands_out_a_sequence_again(story: Story) -> None:
    story.order("b", 1, None, run=None)
    story.order("b", 2, run=None)
    story.say("b", 2)


def goes_back_in_sequence(story: Story) -> None:
    story.order("a", 2, run=None, copied=False)
    story.order("a", 4, run=None)
    story.say("a", 4)


def passes_a_silent_wave(story: Story) -> None:
    story.make_run(3)
    story.record(3, opened="c")
    story.order("a", 4, run="plants-3")
    story.record(3, opened="ca", passed="c")
    story.say("a", 4)


def takes_back_in_silence(story: Story) -> None:
    story.make_run(3, "3" * 64)
    story.record(3, opened="c")
    story.order("a", 4, "3" * 64, run="plants-3")
    story.record(3, opened="c", phase="Returning", reason="Unreachable")
    story.order("a", 5, run="plants-3")
    story.say("a", 5)
    story.record(3, opened="c", phase="Ended", outcome="RolledBack", reason="Unreachable")


def passes_on_an_old_sequence(story: Story) -> None:
    story.make_run(3)
    story.record(3, opened="c")
    story.order("a", 4, run="plants-3")
    story.say("a", 4)
    story.report("a", 3)
    story.record(3, opened="ca", passed="c")


def passes_before_the_soak(story: Story) -> None:
    story.make_run(3)
    story.record(3, opened="c")
    story.order("a", 4, run="plants-3")
    story.say("a", 4)
    story.report("a", 4, active_for=1)
    story.record(3, opened="ca", passed="c")


def tells_a_site_abroad(story: Story) -> None:
    story.order("far", 1, run=None)
    story.say("far", 1)


def ends_by_itself(story: Story) -> None:
    story.add("end", "hub", code=1)


def writes_a_key(story: Story) -> None:
    body = {"status": {"message": "-----BEGIN PRIVATE KEY-----"}}
    story.write("hub", "PATCH", "edgefleets", NAMESPACE, "plants", body, subresource="status")


def tries_again_what_was_taken_back(story: Story) -> None:
    story.order("b", 2, BAD, run=None)
    story.say("b", 2, BAD, "Failed")


def keeps_an_old_order(story: Story) -> None:
    story.order("b", 2, run=None, copied=False)
    story.say("b", 2)


def speaks_of_an_old_order(story: Story) -> None:
    story.order("b", 2, run=None)


def refuses_its_order(story: Story) -> None:
    story.order("b", 2, run=None)
    story.say("b", 2, state="Refused")


def replaces_a_newer_copy(story: Story) -> None:
    spec = {"fleet": FLEET, "sequence": 2, "action": "Run", "revision": GOOD}
    story.write("agent-a", "PATCH", "siteassignments", "edgesite-a", "team.plants", {"spec": spec}, server="site")
    story.order("a", 4, run=None)
    story.say("a", 4)


def deletes_an_assignment(story: Story) -> None:
    story.write("hub", "DELETE", "siteassignments", "edgesite-a", "team.plants", {}, version=0)


def withdraws_unasked(story: Story) -> None:
    story.order("b", 2, None, run=None)
    story.say("b", 2, None, "Withdrawn")


@pytest.mark.parametrize(
    ("rule", "spoil"),
    [
        ("I1", serves_what_no_golden_set_was_asked_of),
        ("I1", activates_what_is_bad),
        ("I2", loses_a_client),
        ("I3", opens_no_wave),
        ("I3", tells_a_site_that_is_not_planned),
        ("I3", plans_two_canaries),
        ("I3", changes_its_plan),
        ("I4", hands_out_a_sequence_again),
        ("I4", goes_back_in_sequence),
        ("I5", passes_a_silent_wave),
        ("I5", takes_back_in_silence),
        ("I6", passes_on_an_old_sequence),
        ("I6", passes_before_the_soak),
        ("I8", tells_a_site_abroad),
        ("I9", ends_by_itself),
        ("I9", writes_a_key),
        ("I10", tries_again_what_was_taken_back),
        ("I11", keeps_an_old_order),
        ("I11", speaks_of_an_old_order),
        ("I11", refuses_its_order),
        ("I11", replaces_a_newer_copy),
        ("I12", deletes_an_assignment),
        ("I12", withdraws_unasked),
    ],
)
def test_each_rule_catches_what_breaks_it(rule: str, spoil: Callable[[Story], None]) -> None:
    story = whole()
    spoil(story)
    also = {"hands_out_a_sequence_again": {"I12"}, "activates_what_is_bad": {"I10"}}.get(spoil.__name__, set())
    assert rules(story) == {rule, *also}


@pytest.mark.parametrize(
    ("rule", "final"),
    [
        ("I2", {"state": {"stores": {"a": False}}}),
        ("I7", {"state": {"runs": {"plants-1": {"waitingFor": "WaitingForSites", "since": None}}}}),
        ("I9", {"logs": {"hub": "Traceback (most recent call last):\n  File"}}),
        ("I9", {"logs": {"agent-a": "-----BEGIN EC PRIVATE KEY-----"}}),
        ("END", {"state": {"runs": {}}, "undisturbed": {"runs": {"plants-1": {"outcome": "Promoted"}}}}),
    ],
)
def test_the_end_is_judged_too(rule: str, final: dict[str, Any]) -> None:
    assert rules(whole(), **final) == {rule}


def test_our_own_kills_are_no_restart_loop_and_a_deaf_hub_may_end_as_often_as_was_said() -> None:
    story = whole()
    story.add("end", "hub", code=-9, text="ours")
    story.add("end", "hub", code=1)
    truth = Truth(TRUTH.good, TRUTH.bad, TRUTH.golden, ends={"hub": 1})
    assert rules(story, truth) == set()
    story.add("end", "hub", code=1)
    assert rules(story, truth) == {"I9"}


def test_a_deleted_fleet_that_asked_for_it_is_withdrawn_and_its_clients_lose_the_model() -> None:
    story = whole()
    for site, sequence in (("a", 4), ("b", 2)):
        story.order(site, sequence, None, run=None)
        story.add("probe", f"client-{site}", code=404)
        story.say(site, sequence, None, "Withdrawn")
    assert rules(story, Truth(TRUTH.good, TRUTH.bad, TRUTH.golden, withdrawn=frozenset({FLEET}))) == set()


def test_what_counts_is_the_order_in_which_the_server_accepted() -> None:
    history = History()
    for version, code in ((30, 200), (10, 201), (20, 409), (0, 200)):
        history.add("request", "hub", method="PATCH", code=code, version=version)
    assert [entry.version for entry in accepted_writes(list(history))] == [10, 30, 0]


def test_a_history_is_read_back_and_keeps_no_envelope(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    body = {"spec": {"envelope": "x" * 5000, "list": ["y" * 5000], "sequence": 1}}
    history.add("request", "hub", method="POST", code=201, version=7, body=body)
    history.close()
    (entry,) = History.load(tmp_path / "history.jsonl")
    assert entry == history.entries[0]
    assert entry.body["spec"]["envelope"] == "..."
    assert len(entry.body["spec"]["list"][0]) < 100


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("/api/v1/namespaces/edgesite-a", ("namespaces", "", "", "edgesite-a")),
        ("/api/v1/namespaces/team/configmaps?labelSelector=a", ("configmaps", "", "team", "")),
        ("/api/v1/namespaces/team/status", ("namespaces", "status", "", "team")),
        ("/apis/edgefleet.io/v1alpha1/edgesites/a/status", ("edgesites", "status", "", "a")),
        ("/apis/edgefleet.io/v1alpha1/namespaces/t/siteassignments/t.f/status", ("siteassignments", "status", "t", "t.f")),
        ("/readyz", ("", "", "", "")),
    ],
)
def test_paths_name_what_they_reach(path: str, where: tuple[str, str, str, str]) -> None:
    found = parse_path(path)
    assert (found.resource, found.subresource, found.namespace, found.name) == where
