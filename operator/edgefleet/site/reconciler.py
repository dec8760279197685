"""The assignments in the site's own cluster, each with its worker. That an assignment is gone is no instruction (I12)."""

import asyncio

from edgefleet.kube.watch import Key
from edgefleet.site.state import Failure
from edgefleet.site.status import AssignmentRecord
from edgefleet.site.worker import Site, Worker


class Reconciler:
    """Starts a worker for each assignment that it is shown; workers run until `run` is cancelled."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._workers: dict[str, Worker] = {}
        self._new: asyncio.Queue[Worker] = asyncio.Queue()

    def observe(self, key: Key, old: AssignmentRecord | None, new: AssignmentRecord | None) -> None:
        """A change in the site's cluster; changes of the status alone are our own writes."""
        if new is None or (old is not None and old.spec == new.spec):
            return
        name = key[1]
        worker = self._workers.get(name)
        if worker is None:
            worker = self._workers[name] = Worker(name, self._site)
            self._new.put_nowait(worker)
        worker.offer(new)

    def nudge(self) -> None:
        """What orders are judged by has changed."""
        for worker in self._workers.values():
            worker.nudge()

    def look_again(self, fleet: str) -> None:
        """Whether a fleet's revision can be served has changed: its worker makes sure, and says so."""
        worker = self._workers.get(fleet.replace("/", ".", 1))
        if worker is not None:
            worker.nudge()

    def take_back(self, fleet: str, failure: Failure) -> None:
        """What serves for a fleet failed on live traffic: remembered first, so that a crash changes nothing. Raises OSError."""
        self._site.state.change_fleet(fleet, failure=failure)
        self.look_again(fleet)

    async def run(self) -> None:
        """Run all workers until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                worker = await self._new.get()
                group.create_task(worker.run())
