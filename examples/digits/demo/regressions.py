"""Acts 7, 8 and 10: releases that pass the exam and are worse on live traffic, and a hub that is killed while it finds out."""

import json
from collections.abc import Sequence

from edgefleet.api.policy import Analysis, Metric
from edgefleet.api.rollout import GateRecord, ModelRollout
from examples.digits.demo.counts import Counts
from examples.digits.demo.observer import Snapshot
from examples.digits.demo.places import FLEET
from examples.digits.demo.play import ROLL_LIMIT, Play, all_serve, ended, last_run, served_name, serving

EDGE_MS = 100
"""As in spec.slo.latency.le of manifests/model.yaml."""
BUSY = 20.0  # requests a second that each canary gets in act 8


def slow_release(play: Play) -> None:
    """7. v7 passes the golden set and lets every 20th customer wait: stopped at its canaries by the latency gate; they go back."""
    before = play.counts
    play.push("v7", 7, "v7")
    play.names("v7")
    canaries = _await_canaries(play, "v7")
    _await_evidence(play, "latency")
    _keep_yaml(play, "act-7-rising")
    run = _await_rollback(play, "v7", "LatencyRegression", "act-7")
    _check_climb(play, run, "latency")
    _check_exposed(play, run, canaries)
    _check_latency(play, before, run, canaries)
    _check_record(play, run)


def erring_release(play: Play) -> None:
    """8. v8 passes the golden set and answers 3 % of the requests with an error: the error gate stops it; every exposed site goes back."""
    play.push("v8", 8, "v8")
    play.names("v8")
    run = play.checks.awaits("v8 is planned", lambda seen: _runs(seen, "v8"), 30, play.found).runs_of(FLEET)[-1]
    play.failing.add(served_name(run))
    canaries = _await_canaries(play, "v8")
    play.person.notes(f"at the canaries, {' and '.join(sorted(canaries))}, customers now send {BUSY:.0f} requests a second each")
    play.stage.set_rates(dict.fromkeys(canaries, BUSY))
    run = _await_rollback(play, "v8", "ErrorRegression", "act-8")
    play.stage.set_rates({})
    _check_climb(play, run, "errors")
    last = run.status.waves[-1]
    play.checks.holds("the last wave never opened", last.opened_at is None, f"{run.status.waves}")
    failed, answered = play.counts.failed[served_name(run)], play.counts.latency_of(served_name(run)).answers
    share = failed / max(1, failed + answered)
    play.checks.holds(
        f"customers got {failed} errors from v8 ({share:.1%} of its answers)", 0.015 < share < 0.06, f"{failed} failed, {answered} answered"
    )


def killed_hub(play: Play) -> None:
    """10. v7 once more, its run forgotten; the hub is killed (SIGKILL) while the evidence grows: the same end."""
    checks, hub = play.checks, play.stage.hub
    assert hub is not None
    first = next(run for run in play.seen.runs_of(FLEET) if run.spec.revision.version == "v7")
    play.person.types(f"edgefleet rollout forget {first.metadata.name} -n vision")
    play.names("v7")
    canaries = _await_canaries(play, "v7")
    seen, restarts = _await_evidence(play, "latency", above=2), hub.restarts
    hub.kill()
    known = _gates(play, "latency")[-1]
    play.stage.story.tell("stage", f"the hub is killed (SIGKILL) at evidence {float(known.evidence):.3g} of {float(known.bound):g}")
    checks.holds("in the middle of it: nothing is decided yet", _runs(seen, "v7") and not _turned(seen), play.found(seen))
    run = _await_rollback(play, "v7", first.status.reason, "act-10")
    checks.holds(
        "it was another process that found out", hub.restarts == restarts + 1, f"{hub.restarts - restarts} restarts; see {hub.log}"
    )
    counted = [gate.requests for gate in _gates(play, "latency")]
    checks.holds("it forgot nothing that its predecessor had counted", counted == sorted(counted), f"requests counted: {counted}")
    _check_exposed(play, run, canaries)


def _runs(seen: Snapshot, version: str) -> bool:
    run = last_run(seen)
    return run is not None and run.spec.revision.version == version and run.status.outcome is None


def _turned(seen: Snapshot) -> bool:
    run = last_run(seen)
    return run is not None and run.status.phase != "Rolling"


def _await_canaries(play: Play, version: str) -> frozenset[str]:
    """The sites of the first wave, once all of them serve the release."""

    def active(seen: Snapshot) -> bool:
        run = last_run(seen)
        first = run.status.waves[0].sites if run and run.status.waves else 0
        return _runs(seen, version) and len(serving(seen, version)) == first > 0

    seen = play.checks.awaits(f"{version} passes the golden set and serves at its canaries", active, 90, play.found)
    return frozenset(serving(seen, version))


def _gates(play: Play, metric: Metric) -> Sequence[GateRecord]:
    """What the newest run's status has said of this absolute gate so far, each change once."""
    run = last_run(play.seen)
    assert run is not None
    assert play.stage.observer is not None
    found = [
        gate
        for gates in play.stage.observer.gates[run.metadata.uid or ""]
        for gate in gates
        if (gate.name, gate.kind) == (metric, "Absolute")
    ]
    return [gate for index, gate in enumerate(found) if index == 0 or gate != found[index - 1]]


def _await_evidence(play: Play, metric: Metric, above: float = 1) -> Snapshot:
    """Wait until the evidence has begun to grow; it begins at 1."""

    def grows(seen: Snapshot) -> bool:
        run = last_run(seen)
        return run is not None and any(gate.name == metric and float(gate.evidence) > above for gate in run.status.gates)

    return play.checks.awaits(f"evidence against it grows at the gate {metric}", grows, 60, play.found)


def _await_rollback(play: Play, version: str, reason: str, file: str) -> ModelRollout:
    def over(seen: Snapshot) -> bool:
        run = last_run(seen)
        return run is not None and ended(seen, version, "RolledBack") and run.status.reason == reason

    seen = play.checks.awaits(f"{version} is rolled back by itself: {reason}", over, ROLL_LIMIT, play.found)
    play.checks.holds(f"every site that ran {version} serves v2 again", all_serve(seen, "v2", play.sites), play.found(seen))
    _keep_yaml(play, file)
    run = last_run(seen)
    assert run is not None
    play.checks.holds("with the default thresholds", run.spec.policy.analysis == Analysis(), f"{run.spec.policy.analysis}")
    return run


def _keep_yaml(play: Play, file: str) -> None:
    run = last_run(play.seen)
    assert run is not None
    shown = play.person.types(f"kubectl -n vision get modelrollout {run.metadata.name} -o yaml").output
    (play.stage.folders.out / f"{file}.yaml").write_text(shown)


def _check_climb(play: Play, run: ModelRollout, metric: Metric) -> None:
    gates = _gates(play, metric)
    values, bound = [float(gate.evidence) for gate in gates], float(gates[-1].bound)
    climb = ", ".join(f"{value:.3g}" for value in values)
    play.checks.holds(
        f"status.gates showed the evidence at {metric} climb to its bound: {climb} (bound {bound:g})",
        values[-1] >= bound and any(1 < value < bound for value in values),
        f"{climb} (bound {bound:g}); {run.status.gates}",
    )


def _check_exposed(play: Play, run: ModelRollout, canaries: frozenset[str]) -> None:
    later = [wave.name for wave in run.status.waves[1:] if wave.opened_at]
    play.checks.holds(f"nobody but the canaries met it: {', '.join(sorted(canaries))}", not later, f"waves that opened too: {later}")


def _check_record(play: Play, run: ModelRollout) -> None:
    """What the hub kept of it explains the verdict to people, and gives it again without a cluster."""
    name, out = run.metadata.name, play.stage.folders.out
    (out / "act-7-explain.txt").write_text(play.person.types(f"edgefleet rollout explain {name} -n vision").output)
    play.person.types(f"edgefleet rollout export {name} -n vision -o ../out/act-7-record.jsonl")
    again = json.loads(play.person.types("edgefleet judge replay ../out/act-7-record.jsonl -o json").output)["gates"]
    recorded = [gate.to_json_dict() for gate in run.status.gates]
    play.checks.holds("its record gives the same verdict again, bit for bit", again == recorded, f"{again}, recorded {recorded}")


def _check_latency(play: Play, before: Counts, run: ModelRollout, canaries: frozenset[str]) -> None:
    """The customers' own measure: the release was slow, and nobody else was."""
    now, others = play.counts, play.stage.eligible - canaries
    slow = now.latency_of(served_name(run)).slower_than(EDGE_MS)
    play.checks.holds(f"its customers waited: {slow:.1%} of its answers took more than {EDGE_MS} ms", 0.02 < slow < 0.1, f"{slow:.2%}")
    usual = before.latency_at(others)
    during = now.latency_at(others) - usual
    share = during.slower_than(EDGE_MS)
    play.checks.holds(
        f"at the other {len(others)} sites {share:.2%} of {during.answers} answers did, as before ({usual.slower_than(EDGE_MS):.2%})",
        share <= usual.slower_than(EDGE_MS) + 0.01,  # v7 keeps 5% waiting; a machine that is shared, less than 1% more than before
        f"{share:.2%} of {during.answers}; before {usual.slower_than(EDGE_MS):.2%} of {usual.answers}",
    )
    then, here = ([latency.edge_at(part) for part in (0.5, 0.9)] for latency in (usual, during))
    play.checks.holds(
        f"half of their answers came within {here[0]:g} ms and 90 % within {here[1]:g} ms, before {then[0]:g} and {then[1]:g}",
        during.rank(0.5) <= usual.rank(0.5) + 2,  # two bins are about a factor of two: the machine is shared
        f"{during.bins} against {usual.bins}",
    )
