"""Live traffic for the digits: an independent client that knows only each gateway's address, never retries, and counts every answer.

    python -m examples.digits.traffic --examples live.jsonl --out counts.json almaty=http://127.0.0.1:8080 ...

Plain http.client, one thread and one kept-alive connection per site. A request counts as *lost* if, after the site once served the
model, anything but a label from that model comes back: no answer within 5 s, a broken connection, any status but 200, another
model's name. What comes before the first answer is counted apart (`before`): the site had not promised anything yet. So is a model's own
error (`failed`): a 500 that the site's gateway passed on from a revision, which it names; it is that release which is bad, and nothing
was lost on the way.
"""

import argparse
import http.client
import itertools
import json
import signal
import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TIMEOUT = 5.0  # seconds without an answer after which a request is lost
WRITE_EVERY = 0.5  # seconds between two snapshots of the counts
REVISION_HEADER = "x-edgefleet-revision"
EDGES_MS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 2000, 5000)


@dataclass(frozen=True)
class Example:
    """One request body, ready to send, and the digit that it shows."""

    body: bytes
    output: str
    label: int


@dataclass
class Count:
    """One site since the start. `by_model` counts answers per name in the answer, which names the revision; `failed` a revision's own
    errors. `latency` has for each name the answers in bins: as many as took up to EDGES_MS[i] and longer than the edge before, and the
    rest at the end."""

    before: int = 0
    answered: int = 0
    right: int = 0
    lost: int = 0
    by_model: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    latency: dict[str, list[int]] = field(default_factory=dict)
    last_model: str = ""
    losses: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=20))


@dataclass(frozen=True)
class Reply:
    """What came back: a label from the model `name`; or a `trouble`, which is the model's own where `name` is given."""

    name: str = ""
    label: int = -1
    trouble: str = ""


class SiteClient(threading.Thread):
    """Sends `rate` requests a second to one gateway until `stop` is set; `count` may be read and `rate` set at any time."""

    def __init__(self, url: str, model: str, examples: Sequence[Example], rate: float, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT)
        self._model, self._examples, self._stopping = model, examples, stop
        self.rate = rate
        self.count = Count()

    def run(self) -> None:
        """One request at a time, on a fixed beat: a slow answer delays the next request instead of piling up."""
        due = time.monotonic()
        for example in itertools.cycle(self._examples):
            if self._stopping.wait(max(0.0, due - time.monotonic())):
                break
            self._send(example)
            due = max(due + 1 / self.rate, time.monotonic())
        self._connection.close()

    def _send(self, example: Example) -> None:
        began = time.monotonic()
        reply, count = self._ask(example), self.count
        if not reply.trouble:
            count.answered += 1
            count.right += reply.label == example.label
            count.by_model[reply.name] += 1
            count.last_model = reply.name
            bins = count.latency.setdefault(reply.name, [0] * (len(EDGES_MS) + 1))
            bins[bisect_left(EDGES_MS, 1000 * (time.monotonic() - began))] += 1
        elif not count.answered:
            count.before += 1
        elif reply.name:
            count.failed[reply.name] += 1
        else:
            count.lost += 1
            count.losses.append({"at": time.time(), "trouble": reply.trouble})

    def _ask(self, example: Example) -> Reply:
        try:
            self._connection.request("POST", f"/v2/models/{self._model}/infer", example.body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return Reply(trouble=f"{type(error).__name__}: {error}")
        if response.status != 200:
            # The gateway's own answers are 502 to 504, and name the revision that it did not reach.
            revision = response.getheader(REVISION_HEADER, "") if response.status == 500 else ""
            name = f"{self._model}--{revision[:8]}" if revision else ""
            return Reply(name, trouble=f"status {response.status}: {data[:200]!r}")
        try:
            answer = json.loads(data)
            name = answer["model_name"]
            label = next(int(tensor["data"][0]) for tensor in answer["outputs"] if tensor["name"] == example.output)
        except (ValueError, KeyError, IndexError, TypeError, StopIteration) as error:
            return Reply(trouble=f"not an answer of the protocol ({error!r}): {data[:200]!r}")
        if name != self._model and not name.startswith(f"{self._model}--"):
            return Reply(trouble=f"model {name!r} answered")
        return Reply(name, label)


def read_examples(path: Path) -> list[Example]:
    """The lines that train.py writes."""
    return [_example(json.loads(line)) for line in path.read_text().splitlines()]


def _example(line: dict[str, Any]) -> Example:
    body = json.dumps({"inputs": line["inputs"]}).encode()
    return Example(body, line["expect"]["output"], line["expect"]["label"])


def snapshot(clients: dict[str, SiteClient]) -> dict[str, Any]:
    """The counts of all sites as JSON."""
    return {name: {**vars(client.count), "losses": list(client.count.losses)} for name, client in clients.items()}


def start_clients(
    sites: dict[str, str], model: str, examples: Sequence[Example], rate: float, stop: threading.Event
) -> dict[str, SiteClient]:
    """One running client per site, their beats spread evenly over one period."""
    clients: dict[str, SiteClient] = {}
    for position, (name, url) in enumerate(sites.items()):
        turn = len(examples) * position // len(sites)
        client = SiteClient(url, model, [*examples[turn:], *examples[:turn]], rate, stop)
        clients[name] = client
        client.start()
        stop.wait(1 / rate / len(sites))
    return clients


def set_rates(clients: dict[str, SiteClient], usual: float, file: Path | None) -> None:
    """Give each site the rate that the file (JSON, site to requests a second) has for it now, else the usual one."""
    rates = json.loads(file.read_text()) if file and file.exists() else {}
    for name, client in clients.items():
        client.rate = float(rates.get(name, usual))


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        name, separator, url = word.partition("=")
        if not separator or urlsplit(url).scheme != "http":
            raise SystemExit(f"{word}: write NAME=http://HOST:PORT")
        yield name, url


def main() -> None:
    """Run until TERM or Ctrl-C; exits 1 if a request was lost or failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sites", nargs="+", metavar="NAME=URL")
    parser.add_argument("--examples", type=Path, required=True, help="labelled digits, one JSON object a line")
    parser.add_argument("--out", type=Path, required=True, help="file of counts, replaced twice a second")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--rate", type=float, default=5.0, help="requests a second and site")
    parser.add_argument("--rates", type=Path, help="file with other rates for single sites, as JSON; read twice a second")
    options = parser.parse_args()
    stop = threading.Event()
    for which in (signal.SIGTERM, signal.SIGINT):
        signal.signal(which, lambda *_: stop.set())
    clients = start_clients(dict(_pairs(options.sites)), options.model, read_examples(options.examples), options.rate, stop)
    while not stop.wait(WRITE_EVERY):
        set_rates(clients, options.rate, options.rates)
        _write(options.out, clients)
    for client in clients.values():
        client.join(TIMEOUT)
    _write(options.out, clients)
    raise SystemExit(1 if any(client.count.lost or client.count.failed for client in clients.values()) else 0)


def _write(path: Path, clients: dict[str, SiteClient]) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"at": time.time(), "sites": snapshot(clients)}))
    fresh.replace(path)


if __name__ == "__main__":
    main()
