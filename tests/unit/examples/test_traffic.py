"""The traffic client counts what it saw: it must notice each way to lose a request, or its zero means nothing."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from examples.digits.traffic import EDGES_MS, REVISION_HEADER, Example, SiteClient, set_rates, start_clients

EXAMPLE = Example(b'{"inputs": []}', "label", 7)
Reply = Callable[[http.server.BaseHTTPRequestHandler], None]


def _answer(
    model: str = "digits--0a1b2c3d", label: int = 7, status: int = 200, body: bytes | None = None, revision: str = "", wait: float = 0
) -> Reply:
    def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
        threading.Event().wait(wait)
        data = body or json.dumps({"model_name": model, "outputs": [{"name": "label", "data": [label]}]}).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        if revision:
            handler.send_header(REVISION_HEADER, revision)
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def _hang_up(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


@contextmanager
def _gateway(replies: list[Reply]) -> Iterator[tuple[str, threading.Event]]:
    """A server that gives each reply once, in order, then repeats the last; the event is set once all were given."""
    left, seen = iter(replies), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            reply = next(left, None)
            if reply is None:
                seen.set()
            (reply or replies[-1])(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _count(replies: list[Reply]) -> SiteClient:
    stop = threading.Event()
    with _gateway(replies) as (url, seen):
        client = start_clients({"berlin": url}, "digits", [EXAMPLE], 500, stop)["berlin"]
        assert seen.wait(10)
        stop.set()
        client.join(10)
    return client


@pytest.mark.parametrize(
    ("bad", "trouble"),
    [
        (_hang_up, "RemoteDisconnected"),
        (_answer(status=503), "status 503"),
        (_answer(status=404), "status 404"),
        (_answer(status=500), "status 500"),
        (_answer(status=503, revision="0a1b2c3d" * 8), "status 503"),
        (_answer(model="weld-qc--0a1b2c3d"), "model 'weld-qc--0a1b2c3d' answered"),
        (_answer(body=b"{}"), "not an answer of the protocol"),
        (_answer(body=b"<html>"), "not an answer of the protocol"),
    ],
)
def test_each_bad_answer_after_the_first_good_one_is_lost_and_not_retried(bad: Reply, trouble: str) -> None:
    count = _count([_answer(), bad, _answer(), _answer()]).count
    assert count.lost == 1
    assert trouble in count.losses[0]["trouble"]
    assert count.answered >= 3


def test_bad_answers_before_the_first_good_one_are_counted_apart() -> None:
    count = _count([_answer(status=404), _hang_up, _answer()]).count
    assert (count.before, count.lost) == (2, 0)


def test_right_and_wrong_labels_and_who_gave_them_are_counted() -> None:
    count = _count([_answer(), _answer(label=3), _answer("digits--ffffffff")]).count
    assert count.answered - count.right == 1
    assert count.by_model["digits--0a1b2c3d"] == 2
    assert count.last_model == "digits--ffffffff"


def test_an_error_of_the_model_itself_is_counted_under_its_name_and_is_no_loss() -> None:
    count = _count([_answer(), _answer(status=500, revision="0a1b2c3d" * 8), _answer()]).count
    assert (count.lost, dict(count.failed)) == (0, {"digits--0a1b2c3d": 1})


def test_how_long_each_answer_took_is_counted_for_each_model() -> None:
    count = _count([_answer(), _answer("digits--ffffffff", wait=0.12), _answer()]).count
    slow = count.latency["digits--ffffffff"]
    assert (sum(slow), sum(slow[EDGES_MS.index(100) + 1 :])) == (1, 1)
    assert sum(count.latency["digits--0a1b2c3d"]) == count.by_model["digits--0a1b2c3d"]


def test_single_sites_may_be_busier_for_a_while(tmp_path: Path) -> None:
    stop = threading.Event()
    clients = {name: SiteClient("http://127.0.0.1:1", "digits", [EXAMPLE], 10, stop) for name in ("berlin", "aktau")}
    file = tmp_path / "rates.json"
    set_rates(clients, 10, file)
    assert [client.rate for client in clients.values()] == [10, 10]
    file.write_text('{"aktau": 20}')
    set_rates(clients, 10, file)
    assert [client.rate for client in clients.values()] == [10, 20]
    file.write_text("{}")
    set_rates(clients, 10, file)
    assert [client.rate for client in clients.values()] == [10, 10]


def test_nobody_listening_is_lost_once_the_site_had_served() -> None:
    def answer_and_close(handler: http.server.BaseHTTPRequestHandler) -> None:
        _answer()(handler)
        handler.close_connection = True

    stop = threading.Event()
    with _gateway([answer_and_close]) as (url, seen):
        client = start_clients({"berlin": url}, "digits", [EXAMPLE], 200, stop)["berlin"]
        assert seen.wait(10)
    while not any("ConnectionRefused" in loss["trouble"] for loss in client.count.losses):
        assert client.is_alive()
        stop.wait(0.01)
    stop.set()
    client.join(10)
    assert client.count.lost >= 1
