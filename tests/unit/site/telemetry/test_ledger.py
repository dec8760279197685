"""How far each counter was read, and the file that remembers it."""

import json
import random
import zlib

import pytest

from edgefleet.site.telemetry.events import Edges, Events
from edgefleet.site.telemetry.history import FINE_MARKS, KEPT_MARKS, History
from edgefleet.site.telemetry.ledger import MAX_BYTES_PER_FLEET, Ledger, Served, decode, encode
from edgefleet.site.telemetry.stats import Counters

PLANTS, SHOPS = "vision/plants", "vision/shops"
A, B = "a" * 64, "b" * 64
NOW = 1_790_000_000
AT_50 = Edges(50)


def serves(revision: str, at: int = NOW, edges: Edges = AT_50) -> Served:
    return Served(revision, f"weld--{revision[:8]}", at, edges)


def asked(count: int, **more: int) -> Counters:
    return Counters(completed=count, times={5: count}, **more)


def total(ledger: Ledger, revision: str, fleet: str = PLANTS) -> Events:
    return next(one.total for one in reversed(ledger.fleets[fleet].activations) if one.revision == revision)


def look(ledger: Ledger, served: Served, clusters: dict[str, Counters], *, life: str = "1", second: int = NOW + 1) -> bool:
    return ledger.observe({PLANTS: served}, {life: clusters}, {}, second=second)


def test_each_request_is_counted_once_under_the_revision_that_answered() -> None:
    ledger = Ledger()
    a, b = serves(A), serves(B, NOW + 10)
    assert look(ledger, a, {a.served_name: asked(3)})
    assert not look(ledger, a, {a.served_name: asked(5)})
    assert look(ledger, b, {a.served_name: asked(8), b.served_name: asked(1)}, second=NOW + 11)
    assert not look(ledger, b, {a.served_name: asked(9), b.served_name: asked(4)}, second=NOW + 12)
    assert not look(ledger, b, {b.served_name: asked(6)}, second=NOW + 13)
    assert (total(ledger, A).requests, total(ledger, B).requests) == (9, 6)
    before = ledger.fleets[PLANTS].activations[1].before
    assert before is not None
    assert before.requests == 8


def test_an_agent_that_starts_again_goes_on_where_the_file_ends() -> None:
    ledger, a = Ledger(), serves(A)
    look(ledger, a, {a.served_name: asked(3)})
    saved = encode(ledger)
    look(ledger, a, {a.served_name: asked(50)})
    again = decode(saved)
    look(again, a, {a.served_name: asked(60)})
    assert total(again, A).requests == 60
    assert len(again.fleets[PLANTS].activations[0].epochs) == 1


def test_a_gateway_that_starts_again_is_an_epoch_and_loses_nothing() -> None:
    ledger, a = Ledger(), serves(A)
    look(ledger, a, {a.served_name: asked(30)})
    assert look(ledger, a, {a.served_name: asked(40)}, life="2", second=NOW + 400)
    assert [epoch.start for epoch in ledger.fleets[PLANTS].activations[0].epochs] == [NOW, NOW + 400]
    assert total(ledger, A).requests == 70


def test_two_lives_that_count_at_once_are_two_epochs() -> None:
    ledger, a = Ledger(), serves(A)
    name = a.served_name
    for second, lives in enumerate(
        (
            {"1": {name: asked(30)}},
            {"1": {name: asked(35)}, "2": {name: asked(2)}},
            {"1": {name: asked(36)}, "2": {name: asked(9)}},
            {"1": None, "2": {name: asked(10)}},  # it is asked while it starts or ends
            {"1": {name: asked(40)}, "2": {name: asked(11)}},
        )
    ):
        ledger.observe({PLANTS: a}, lives, {}, second=NOW + 10 * second)
    epochs = ledger.fleets[PLANTS].activations[0].epochs
    assert [(epoch.start, epoch.life) for epoch in epochs] == [(NOW, "1"), (NOW + 10, "2")]
    assert total(ledger, A).requests == 51
    assert ledger.lives.keys() == {"1", "2"}


def test_last_words_add_what_was_not_seen_and_take_nothing_back() -> None:
    ledger, a = Ledger(), serves(A)
    name, end = a.served_name, {"ended": {"1"}}
    look(ledger, a, {name: asked(30)})
    ledger.observe({PLANTS: a}, {"1": {name: asked(42)}}, {}, second=NOW + 2, **end)
    assert total(ledger, A).requests == 42
    # They are there until they are forgotten; and they may be older than what was seen last.
    ledger.observe({PLANTS: a}, {"1": {name: asked(42)}}, {}, second=NOW + 3, **end)
    ledger.observe({PLANTS: a}, {"1": {name: asked(41)}}, {}, second=NOW + 4, **end)
    assert total(ledger, A).requests == 42
    look(ledger, a, {name: asked(5)}, life="2")
    assert ledger.lives.keys() == {"2"}
    assert total(ledger, A).requests == 47


def test_a_file_of_one_life_is_read_and_gone_on_from() -> None:
    ledger, a = Ledger(), serves(A)
    look(ledger, a, {a.served_name: asked(30)})
    body = json.loads(zlib.decompress(encode(ledger)))
    (life,) = body.pop("lives").items()
    again = decode(zlib.compress(json.dumps({**body, "formatVersion": 1, "life": life[0], "clusters": life[1]}).encode()))
    assert again == ledger


def test_a_cluster_that_was_made_anew_counts_from_zero() -> None:
    ledger, a = Ledger(), serves(A)
    look(ledger, a, {a.served_name: asked(30)})
    look(ledger, a, {a.served_name: asked(20)})
    look(ledger, a, {})
    look(ledger, a, {a.served_name: asked(30)})
    assert total(ledger, A).requests == 80


def test_a_site_whose_past_was_lost_begins_now_and_says_so() -> None:
    ledger, a = Ledger(), serves(A, NOW - 3600)
    look(ledger, a, {a.served_name: asked(1000)})
    look(ledger, a, {a.served_name: asked(1003)})
    assert total(ledger, A).requests == 3
    assert ledger.fleets[PLANTS].lost == 1


def test_going_back_to_a_revision_whose_counters_are_still_there() -> None:
    ledger, a, b, again = Ledger(), serves(A), serves(B, NOW + 10), serves(A, NOW + 20)
    look(ledger, a, {a.served_name: asked(3)})
    look(ledger, b, {a.served_name: asked(3), b.served_name: asked(7)}, second=NOW + 10)
    look(ledger, again, {a.served_name: asked(3), b.served_name: asked(9)}, second=NOW + 20)
    look(ledger, again, {a.served_name: asked(8), b.served_name: asked(9)}, second=NOW + 21)
    assert [(one.revision[0], one.total.requests) for one in ledger.fleets[PLANTS].activations] == [("a", 3), ("b", 9), ("a", 5)]
    assert [one.taken_back for one in ledger.fleets[PLANTS].activations] == [False, True, False]


def test_a_model_that_another_fleet_takes_over_is_counted_for_it_from_then_on() -> None:
    ledger, a = Ledger(), serves(A)
    look(ledger, a, {a.served_name: asked(3)})
    later = serves(A, NOW + 10)
    ledger.observe({SHOPS: later}, {"1": {a.served_name: asked(4)}}, {}, second=NOW + 10)
    ledger.observe({SHOPS: later}, {"1": {a.served_name: asked(9)}}, {}, second=NOW + 11)
    assert (total(ledger, A).requests, total(ledger, A, SHOPS).requests) == (4, 5)


def test_confidence_is_of_clients_alone_and_survives_a_silent_server() -> None:
    ledger, a = Ledger(), serves(A, edges=Edges(ge="0.5"))
    golden, served, later = ((count,) * 11 for count in (20, 23, 27))

    def observe(confidence: dict[str, tuple[int, ...]], count: int) -> None:
        ledger.observe({PLANTS: a}, {"1": {a.served_name: asked(count)}}, confidence, second=NOW + 1)

    observe({}, 0)
    latest = ledger.fleets[PLANTS].latest
    assert latest is not None
    assert latest.delivered == Edges()
    observe({a.served_name: golden, "other--cccccccc": golden}, 0)
    assert latest.delivered == a.edges
    observe({a.served_name: served}, 3)
    observe({}, 4)
    observe({a.served_name: later}, 7)
    assert (latest.total.predictions, latest.total.measure(a.edges).unsure) == (7, 7)
    assert ledger.confidence == {a.served_name: later}


def test_the_file_holds_all() -> None:
    ledger, a, b = Ledger(), serves(A), serves(B, NOW + 10, Edges(100, "0.5"))
    confidence = {b.served_name: tuple(range(11))}
    look(ledger, a, {a.served_name: asked(3, errors=1)})
    ledger.observe({PLANTS: b}, {"2": {b.served_name: asked(3)}, "3": {}}, confidence, second=NOW + 700)
    ledger.fleets[PLANTS].lost, ledger.fleets[PLANTS].told = 4, 5
    assert decode(encode(ledger)) == ledger


@pytest.mark.parametrize("data", [b"", b"{}", encode(Ledger())[:-4], zlib.compress(b'{"formatVersion":3}')])
def test_another_file_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"formatVersion|not a ledger"):
        decode(data)


def test_a_week_of_busy_traffic_fits_and_the_worst_is_folded() -> None:
    draw = random.Random(7)
    bins = [*range(1, 100), *range(100, 1000, 10), *range(1000, 10_000, 100), *range(10_000, 61_000, 1000)]

    def fill(bins: list[int], largest: int) -> tuple[int, Ledger]:
        ledger, history = Ledger(), History()
        activation = history.begin(A, "weld--aaaaaaaa", Edges(50), at=NOW, now=NOW // 300)
        ledger.fleets[PLANTS] = history
        for mark in range(NOW // 300, NOW // 300 + KEPT_MARKS):
            times = {bound: draw.randrange(1, largest) for bound in bins}
            history.record(activation, Events(600_000, 60, times), life="1", second=mark * 300)
        history.thin(NOW // 300 + KEPT_MARKS)
        assert len(activation.epochs[0].marks) <= FINE_MARKS + 6 * 24 + 12
        before = activation.total
        size = len(encode(ledger))
        assert activation.total == before
        return size, ledger

    size, ledger = fill(bins[:40], 1000)
    assert size < 60_000
    assert ledger.fleets[PLANTS].lost == 0
    size, ledger = fill(bins, 1 << 20)
    assert ledger.fleets[PLANTS].lost > 0
    assert size <= MAX_BYTES_PER_FLEET + 1000
