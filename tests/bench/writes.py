"""`python -m tests.bench.writes [SITES]`: API writes of one rollout over fake sites, and what the hub costs meanwhile.

Counts come from the API server's own /metrics, read before and after the second release; the clock runs from the new tag to the run's
end, with a soak of one second per wave. Leases are left out: they are renewed with or without a rollout.
"""

import asyncio
import logging
import re
import sys
import tempfile
import time
from pathlib import Path

from edgefleet.kube.client import Api
from edgefleet.kube.resources import ROLLOUT_POLICIES
from tests.integration.fakesites import FakeSites
from tests.integration.world import POLICY, World, settled
from tests.lab.cluster import Lab
from tests.lab.installed import install_hub
from tests.lab.registry import Registry

KINDS = ("siteassignments", "modelrollouts", "edgefleets", "edgesites", "configmaps")


async def measure(lab: Lab, folder: Path, count: int) -> None:
    """Set up `count` sites on release 1, then roll out release 2 and print what that took."""
    install_hub(lab.hub)
    with Registry() as registry:
        async with Api.connect(lab.hub.kubeconfig, user_agent="bench") as api:
            world = World(lab, api, registry, folder)
            await world.set_up()
            await world.apply(ROLLOUT_POLICIES, "careful", {**POLICY, "unreachable": {"skipAfter": "5m"}})
            hub = world.start_hub()
            async with FakeSites(lab, world.hub_key.public) as sites:
                for number in range(count):
                    name = await world.add_site(f"s{number}")
                    await sites.add(name)
                world.push("1")
                await world.name_release("1")
                await world.add_fleet()
                await world.until("all sites run release 1", lambda: _all_run(world, count), limit=300)
                world.push("2")
                before, cpu, started = await _writes(api), _cpu(hub.pid), time.monotonic()
                await world.name_release("2")
                await world.until_ended(2, "Promoted", limit=300)
                took, after = time.monotonic() - started, await _writes(api)
                used, memory = _cpu(hub.pid) - cpu, _rss(hub.pid)
            world.kill_hub()
            world.close()
    print(f"{count} sites, release 2, three waves of 1 s soak: {took:.1f} s")
    for kind in sorted(after):
        wrote = after[kind] - before.get(kind, 0)
        if wrote:
            print(f"  {kind:<28}{wrote:6.0f} writes  {wrote / count:6.2f} per site")
    print(f"  hub: {1000 * used / count:.1f} CPU-ms per site, {memory:.0f} MiB")


async def _all_run(world: World, count: int) -> bool:
    fleet = await settled(world, "1")
    return fleet is not None and fleet["status"]["sites"]["updated"] == count


async def _writes(api: Api) -> dict[str, float]:
    text = (await api.get_bytes("/metrics")).decode()
    found: dict[str, float] = {}
    for labels, value in re.findall(r"^apiserver_request_total\{(.*?)\} (\S+)$", text, flags=re.MULTILINE):
        fields = dict(re.findall(r'(\w+)="(.*?)"', labels))
        if fields["verb"] in ("POST", "PUT", "PATCH", "APPLY", "DELETE") and fields["resource"] in KINDS:
            kind = "/".join(part for part in (fields["resource"], fields["subresource"]) if part)
            found[kind] = found.get(kind, 0) + float(value)
    return found


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _rss(pid: int) -> float:
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1024


def main() -> None:
    """Start a lab, measure, end the lab."""
    logging.disable(logging.WARNING)  # fake sites knock before the hub has let them in
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab.start(Path(folder) / "lab")
        try:
            asyncio.run(measure(lab, Path(folder), count))
        finally:
            lab.stop()


if __name__ == "__main__":
    main()
