"""The rules of DESIGN section 5 under random fleets, policies, faults, people and crashes. The simulator checks each pass; the tests
here add what must hold at the end."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from edgefleet.api.policy import RolloutPolicySpec
from edgefleet.api.rollout import Control, WaveApproval
from edgefleet.core.actions import Action, EndRun, StartRun
from edgefleet.core.memory import recall
from tests.unit.core.facts_of import ARM64, A, B, C, minutes, policy, site
from tests.unit.core.simulator import SimulatedSite, Simulator, hold

RELEASES = (A, B, C)


pytestmark = pytest.mark.timeout(300)  # seconds, but minutes were seen on a busy machine


def examples(count: int) -> settings:
    """`count` worlds: hours of simulated time each."""
    return settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


waves = st.lists(
    st.fixed_dictionaries(
        {},
        optional={"maxConcurrent": st.integers(1, 3), "perVariant": st.booleans(), "approval": st.just({"required": 1})},
    ),
    min_size=1,
    max_size=3,
)


@st.composite
def policies(draw: st.DrawFn) -> RolloutPolicySpec:
    """Any policy with short times; percentages rise."""
    percents = iter(sorted(draw(st.lists(st.integers(1, 100), min_size=3, max_size=3))))
    listed = []
    for index, extra in enumerate(draw(waves)):
        size = {"sites": draw(st.integers(1, 3))} if draw(st.booleans()) else {"percent": next(percents)}
        listed.append({"name": f"w{index}", **size, **extra})
    return policy(
        *listed,
        soak={"min": draw(st.sampled_from(["0s", "5m"])), "max": "30m", "minReported": draw(st.sampled_from(["50%", "80%", "100%"]))},
        onInconclusive=draw(st.sampled_from(["Hold", "Promote", "Rollback"])),
        onFailure=draw(st.sampled_from(["RollbackAll", "RollbackWave", "RollbackFailed", "Pause"])),
        maxFailed={"firstWave": draw(st.integers(0, 1)), "later": draw(st.sampled_from(["0%", "30%"]))},
        unreachable={"skipAfter": "20m"},
        progressDeadline="3h",
    )


@st.composite
def fleets(draw: st.DrawFn) -> Simulator:
    """One to six sites with faults of their own, and no release yet."""
    sites = {}
    for number in range(draw(st.integers(1, 6))):
        facts = site(f"s{number}", **({"hardware": ARM64} if draw(st.integers(0, 3)) == 0 else {}))
        start = draw(st.integers(0, 120))
        sites[f"s{number}"] = SimulatedSite(
            facts,
            bad=frozenset(one.hash for one in RELEASES if draw(st.integers(0, 5)) == 0),
            down=((start, start + draw(st.integers(1, 90))),) if draw(st.booleans()) else (),
            faulty=(start, start + 40) if draw(st.integers(0, 4)) == 0 else (0, 0),
            slow=draw(st.integers(0, 4)),
        )
    return Simulator(sites, None, draw(policies()))


Event = Callable[[Simulator], None]


def name_release(release: int) -> Event:
    def act(simulator: Simulator) -> None:
        simulator.target = RELEASES[release]

    return act


def say(**control: bool) -> Event:
    def act(simulator: Simulator) -> None:
        simulator.runs = [one if one.outcome else replace(one, control=one.control.model_copy(update=control)) for one in simulator.runs]

    return act


def approve_all(simulator: Simulator) -> None:
    approvals = tuple(WaveApproval(wave=f"w{index}", by="ada") for index in range(3))
    simulator.runs = [one if one.outcome else replace(one, control=Control(approvals=approvals)) for one in simulator.runs]


def promote(wave: int) -> Event:
    def act(simulator: Simulator) -> None:
        simulator.runs = [
            one if one.outcome else replace(one, control=one.control.model_copy(update={"promote": f"w{wave}"})) for one in simulator.runs
        ]

    return act


def retry(simulator: Simulator) -> None:
    """Everything that was taken back may be tried again."""
    retried = [replace(one, control=one.control.model_copy(update={"retry": True})) if one.outcome else one for one in simulator.runs]
    simulator.runs = retried


def suspend(value: bool) -> Event:
    def act(simulator: Simulator) -> None:
        simulator.spec = {**simulator.spec, "suspend": value}

    return act


def revoke(release: int) -> Event:
    def act(simulator: Simulator) -> None:
        simulator.revoked |= {RELEASES[release].digest}

    return act


def forget_labels(number: int) -> Event:
    """The site leaves the selector, or comes back."""

    def act(simulator: Simulator) -> None:
        chosen = list(simulator.sites.values())[number % len(simulator.sites)]
        labels = {} if chosen.facts.labels else {"line": "weld"}
        chosen.facts = replace(chosen.facts, labels=labels)

    return act


def hold_site(number: int, held: bool) -> Event:
    def act(simulator: Simulator) -> None:
        hold(simulator, list(simulator.sites)[number % len(simulator.sites)], minutes(30) if held else None)

    return act


events = st.one_of(
    *[st.builds(name_release, st.integers(0, 2)) for _ in range(6)],
    st.builds(lambda value: say(paused=value), st.booleans()),
    st.just(say(aborted=True)),
    st.just(approve_all),
    st.builds(promote, st.integers(0, 2)),
    st.just(retry),
    st.builds(suspend, st.booleans()),
    st.builds(revoke, st.integers(0, 2)),
    st.builds(forget_labels, st.integers(0, 5)),
    st.builds(hold_site, st.integers(0, 5), st.booleans()),
)
histories = st.lists(st.tuples(st.integers(0, 40), events), min_size=3, max_size=9)

STANDING = {"MaxFailedExceeded", "NoSafeTarget"}
"""What a healed and approved run may wait for without end: a person who aborts it or names another release."""


def chaos(seed: int) -> Callable[[Sequence[Action]], Sequence[Action]]:
    """Applies a random part of a pass, in random order, three times out of four."""
    source = random.Random(seed)

    def choose(actions: Sequence[Action]) -> Sequence[Action]:
        if source.random() < 0.25:
            return actions
        return source.sample(list(actions), source.randint(0, len(actions)))

    return choose


def heal(simulator: Simulator) -> None:
    """Everybody is reachable, nothing is paused or suspended, every wave is approved, the hub does not crash."""
    simulator.choose = None
    for one in simulator.sites.values():
        one.down, one.faulty = (), (0, 0)
        one.facts = replace(one.facts, labels={"line": "weld"})
    for name in simulator.sites:
        hold(simulator, name, None)
    simulator.spec = {**simulator.spec, "suspend": False}
    say(paused=False)(simulator)


def settle(simulator: Simulator, limit: int = 400) -> None:
    """Let time go by until no run is under way, or it stands for a person."""
    for _ in range(limit):
        approve = [one for one in simulator.runs if not one.outcome and one.status.waiting_for == "AwaitingApproval"]
        if approve:
            approve_all(simulator)
        simulator.pass_time(1)
        active = recall(simulator.facts()).active
        if active is None or active.status.waiting_for in STANDING:
            simulator.pass_time(30)
            active = recall(simulator.facts()).active
            if active is None or active.status.waiting_for in STANDING:
                return


@examples(40)
@given(simulator=fleets(), history=histories, seed=st.none() | st.integers(0, 1000), record_first=st.booleans())
def test_every_run_ends_or_says_what_it_waits_for(
    simulator: Simulator, history: list[tuple[int, Event]], seed: int | None, record_first: bool
) -> None:
    """I3 to I7 and I10 to I12 in each pass (see Simulator), and at the end: no run is left hanging, and sites serve what is stable."""
    simulator.choose = None if seed is None else chaos(seed)
    simulator.record_first = record_first
    simulator.spec = {"siteSelector": {"matchLabels": {"line": "weld"}}}
    simulator.target = A
    for pause, act in history:
        simulator.pass_time(pause)
        act(simulator)
        simulator.look()
    heal(simulator)
    settle(simulator)
    note(simulator.describe())
    memory = recall(simulator.facts())
    if memory.active is not None:
        status = memory.active.status
        assert status.since
        standing = STANDING | {"SilentWave", "VariantUnproven", "InconclusiveAnalysis", "TooFewReported"}
        assert status.waiting_for in standing
        if status.waiting_for not in STANDING:
            failing = [name for name, one in simulator.sites.items() if memory.active.revision.hash in one.bad]
            assert failing, "all are healed and none fails: nothing keeps this run from ending"
        return
    for name, one in simulator.sites.items():
        held = one.facts.assignment
        if memory.stable is not None:
            assert held is not None, f"{name} got nothing although {memory.stable.version} is stable"
            assert held.revision == memory.stable.hash
            assert one.active == memory.stable.hash or memory.stable.hash in one.bad


@examples(15)
@given(simulator=fleets(), seed=st.integers(0, 1000), record_first=st.booleans())
def test_a_crash_in_any_pass_leads_to_the_same_end(simulator: Simulator, seed: int, record_first: bool) -> None:
    """Partial application converges: what is stable, what is barred and what sites serve is as if nothing had happened."""
    for one in simulator.sites.values():
        one.down, one.faulty = (), (0, 0)
    simulator.policy = simulator.policy.model_copy(update={"on_failure": "RollbackAll", "on_inconclusive": "Hold"})
    ends = []
    for choose in (None, chaos(seed)):
        copies = {name: replace(one) for name, one in simulator.sites.items()}
        world = replace(simulator, sites=copies, runs=[], log=[], choose=choose, record_first=record_first)
        for release in (A, B):
            world.target = release
            world.choose = choose
            world.pass_time(60)
            world.choose = None
            settle(world)
        memory = recall(world.facts())
        waiting = memory.active.status.waiting_for if memory.active else None
        ends.append((memory.stable, sorted(memory.barred), waiting, world.serving() if waiting is None else None))
        note(world.describe())
    assert ends[0] == ends[1]


@examples(40)
@given(simulator=fleets(), pause=st.integers(0, 60))
def test_a_newer_release_always_gets_through(simulator: Simulator, pause: int) -> None:
    """I11: whatever state a run is in, naming another release leads to a run of that release."""
    simulator.target = A
    simulator.pass_time(pause)
    simulator.target = B
    simulator.look()
    memory = recall(simulator.facts())
    assert memory.active is not None or B.hash in memory.barred
    if memory.active is not None:
        assert memory.active.revision.hash == B.hash


@examples(8)
@given(simulator=fleets(), pause=st.integers(1, 90))
def test_what_was_taken_back_is_not_tried_again(simulator: Simulator, pause: int) -> None:
    """I10: a release that every site fails is tried by one run; nothing but a person's word starts another."""
    for one in simulator.sites.values():
        one.bad = frozenset({B.hash})
        one.down, one.faulty = (), (0, 0)
    simulator.policy = policy()
    simulator.target = A
    settle(simulator)
    simulator.target = B
    simulator.pass_time(pause + 90)
    started = [action for action in simulator.log if isinstance(action, StartRun) and action.revision.hash == B.hash]
    ended = [action for action in simulator.log if isinstance(action, EndRun)]
    assert len(started) == 1
    assert ended[-1].outcome == "RolledBack"
    assert set(simulator.serving().values()) == {A.hash}
