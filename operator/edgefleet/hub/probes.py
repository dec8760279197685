"""What a kubelet and Prometheus ask of a hub process, from its start to its end: /healthz, /readyz and /metrics.

It is served from the hub's own loop: a hub that hangs does not answer. A hub that stands by is ready, so that an upgrade goes on; its
metrics say only that it does not lead, since nobody else's state is its to tell.
"""

import asyncio

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from edgefleet.hub.leadership import Leadership


class Probes:
    """`waits_for` is why the hub is not ready, empty when it is; `work` are the metrics of a hub that leads."""

    def __init__(self, leadership: Leadership) -> None:
        self._leadership = leadership
        self.waits_for = "its API server"
        self.work: CollectorRegistry | None = None
        self._own = CollectorRegistry()
        leads = Gauge("edgefleet_leader", "1 for the hub that works, 0 for one that stands by.", registry=self._own)
        leads.set_function(lambda: float(leadership.leads))

    async def serve(self, host: str, port: int) -> None:
        """Answer until cancelled. Raises OSError when the address cannot be had."""
        app = web.Application()
        app.router.add_get("/healthz", self._answer_health)
        app.router.add_get("/readyz", self._answer_readiness)
        app.router.add_get("/metrics", self._answer_metrics)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    async def _answer_health(self, _: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _answer_readiness(self, _: web.Request) -> web.Response:
        if self.waits_for:
            return web.Response(status=503, text=f"waiting for {self.waits_for}\n")
        led = self._leadership
        return web.Response(text="leads\n" if led.leads else f"stands by, {led.holder or 'nobody'} leads\n")

    async def _answer_metrics(self, _: web.Request) -> web.Response:
        page = generate_latest(self._own) + (generate_latest(self.work) if self.work is not None else b"")
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_LATEST})
