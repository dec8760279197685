"""Evidence survives the hub: what is in Leases and what was stored are one set, whenever it is read."""

import base64
import copy
import zlib
from datetime import UTC, datetime
from typing import Any

from edgefleet.api.meta import site_namespace
from edgefleet.api.model import Slo
from edgefleet.api.policy import Analysis
from edgefleet.api.report import LEASE_NAME, health_annotation
from edgefleet.core.case import Case, Member
from edgefleet.core.facts import FleetKey
from edgefleet.core.live import judge_case, record_gate
from edgefleet.core.replay import read_record, replay
from edgefleet.hub.evidence import ACTIVATIONS_PER_SITE, LATER, SOON, Evidence, read_lines
from edgefleet.hub.inventory import Inventory

FLEET = FleetKey("vision", "plants")
NEW, OLD = "b" * 64, "a" * 64
MARK = int(datetime.now(UTC).timestamp()) // 300
START = (MARK - 3) * 300
CASE = Case(
    run="plants-2",
    revision=NEW,
    slo=Slo(error_rate="1%"),
    analysis=Analysis(),
    first_release=False,
    opened=(MARK - 3,),
    now=MARK,
    watched={"berlin": Member(group=("de",), sequence=2)},
)


class Cluster:
    """Holds ConfigMaps as an API server would."""

    def __init__(self) -> None:
        self.held: dict[str, dict[str, Any]] = {}
        self.writes = 0

    async def list(self, kind: object, namespace: str, *, labels: str) -> list[dict[str, Any]]:
        key, _, value = labels.partition("=")
        return [copy.deepcopy(body) for body in self.held.values() if body["metadata"]["labels"].get(key) == value]

    async def apply(self, kind: object, body: dict[str, Any], *, manager: str) -> dict[str, Any]:
        self.writes += 1
        self.held[body["metadata"]["name"]] = copy.deepcopy(body)
        return body


class Hub:
    """One life of a hub's evidence; `reports` are what Leases say now."""

    def __init__(self, cluster: Cluster, reports: dict[str, str]) -> None:
        def nothing(*_: object) -> None:
            return None

        api: Any = cluster
        self.inventory = Inventory(api, on_fleet=nothing, on_site=nothing, on_renewal=nothing, on_health=nothing, on_heartbeat=nothing)
        self.evidence = Evidence(api, self.inventory)
        self.version = 0
        for site, report in reports.items():
            self.hear(site, report)

    def hear(self, site: str, report: str) -> Any:
        self.version += 1
        meta = {
            "name": LEASE_NAME,
            "namespace": site_namespace(site),
            "resourceVersion": str(self.version),
            "annotations": {health_annotation(str(FLEET)): report},
        }
        self.inventory.leases.observe({"metadata": meta, "spec": {}})
        return self.evidence.observe(site, FLEET)

    async def gather(self, *sites: str) -> dict[str, Any]:
        return await self.evidence.gather(FLEET, "plants-2", "uid", NEW, sites)


def report(revision: str, *records: tuple[int, int, int], activation: int = START) -> str:
    """Records are (mark, requests, failed)."""
    rows = ",".join(f"[{mark},{requests},{failed},0,0,0]" for mark, requests, failed in records)
    return (
        f'{{"formatVersion":1,"revision":"{revision}","sequence":2,"activation":{activation},'
        f'"epochs":[{{"start":{START},"records":[{rows}]}}]}}'
    )


async def test_a_hub_that_dies_judges_the_same_set_again() -> None:
    """The Lease has forgotten the first record when the second hub starts; what was stored has it."""
    cluster = Cluster()
    first = Hub(cluster, {"berlin": report(NEW, (MARK - 2, 100, 1))})
    await first.gather("berlin", "munich")
    await first.evidence.store(FLEET, CASE, (), {}, now=True)
    late = report(NEW, (MARK - 1, 200, 9), (MARK, 300, 9))
    first.hear("berlin", late)
    first.hear("munich", report(OLD, (MARK, 50, 0)))
    second = Hub(cluster, {"berlin": late, "munich": report(OLD, (MARK, 50, 0))})
    assert await second.gather("berlin", "munich") == await first.gather("berlin", "munich")
    (stream,) = (await second.gather("berlin"))["berlin"]
    assert sorted(stream.epochs[START]) == [MARK - 2, MARK - 1, MARK]


async def test_what_matters_is_looked_at_soon_and_the_rest_can_wait() -> None:
    hub = Hub(Cluster(), {"berlin": report(NEW, (MARK, 100, 1)), "munich": report(OLD, (MARK, 9, 0))})
    assert hub.evidence.observe("berlin", FLEET) is None, "no run judges live traffic"
    await hub.gather("berlin", "munich")
    assert hub.hear("berlin", report(NEW, (MARK, 150, 1))) == LATER, "more good answers"
    assert hub.hear("berlin", report(NEW, (MARK, 160, 2))) == SOON, "a bad one"
    assert hub.hear("munich", report(OLD, (MARK, 99, 9))) is None, "a control counts at the next look"
    assert hub.hear("paris", report(NEW, (MARK, 99, 9))) is None, "not of this run"
    hub.evidence.forget(FLEET)
    assert hub.hear("berlin", report(NEW, (MARK, 170, 5))) is None


async def test_what_did_not_change_is_not_written_and_what_is_not_due_waits() -> None:
    cluster = Cluster()
    hub = Hub(cluster, {"berlin": report(NEW, (MARK, 100, 1))})
    await hub.gather("berlin")
    await hub.evidence.store(FLEET, CASE, (), {}, now=False)
    assert cluster.writes == 0, "the Lease still carries all of it"
    for _ in range(3):
        await hub.evidence.store(FLEET, CASE, (), {}, now=True)
    assert cluster.writes == 1
    (body,) = cluster.held.values()
    assert body["metadata"]["ownerReferences"][0]["name"] == "plants-2"


async def test_what_is_stored_is_what_was_judged_whatever_was_heard_since() -> None:
    cluster = Cluster()
    hub = Hub(cluster, {"berlin": report(NEW, (MARK - 1, 100, 1))})
    seen = await hub.gather("berlin")
    found = tuple(map(record_gate, judge_case(CASE, seen)))
    hub.hear("berlin", report(NEW, (MARK - 1, 100, 1), (MARK, 900, 500)))
    await hub.evidence.store(FLEET, CASE, found, seen, now=True)
    record = read_record(read_lines(cluster.held.values()))
    assert record.whole
    assert record.streams == seen
    assert len(found) == 1
    assert replay(record).differences == ()
    later = await hub.gather("berlin")
    assert later != seen, "nothing that was heard is lost"


async def test_many_sites_are_spread_over_several_objects() -> None:
    cluster = Cluster()
    names = [f"s{n}" for n in range(600)]
    hub = Hub(cluster, {name: report(NEW, (MARK, 100, 1)) for name in names})
    await hub.gather(*names)
    await hub.evidence.store(FLEET, CASE, (), {}, now=True)
    assert sorted(cluster.held) == [f"evidence-plants-2-{n}" for n in range(3)]
    assert len(await Hub(cluster, {}).gather(*names)) == 600


async def test_an_object_that_cannot_be_read_costs_only_itself() -> None:
    cluster = Cluster()
    hub = Hub(cluster, {"berlin": report(NEW, (MARK, 100, 1))})
    await hub.gather("berlin")
    await hub.evidence.store(FLEET, CASE, (), {}, now=True)
    labels = {"edgefleet.io/evidence": "plants-2"}
    for number, data in enumerate((b"not zlib", zlib.compress(b'{"no": "case"}'), zlib.compress(b"[]"), zlib.compress(b"{"))):
        name = f"evidence-plants-2-{number + 7}"
        entry = {"record.jsonl.z": base64.b64encode(data).decode()}
        cluster.held[name] = {"metadata": {"name": name, "labels": labels}, "binaryData": entry}
    again = Hub(cluster, {})
    assert len((await again.gather("berlin"))["berlin"]) == 1


async def test_a_site_that_invents_activations_does_not_fill_the_memory() -> None:
    hub = Hub(Cluster(), {"berlin": report(NEW, (MARK, 1, 0))})
    await hub.gather("berlin")
    for activation in range(START, START + 50):
        hub.hear("berlin", report(NEW, (MARK, 1, 0), activation=activation))
    streams = (await hub.gather("berlin"))["berlin"]
    assert sorted(one.activation for one in streams) == list(range(START + 50 - ACTIVATIONS_PER_SITE, START + 50))
