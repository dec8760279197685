"""What `edgefleet check` asks at a site itself: its own cluster, the agent's state folder, and the gateway. Only reads."""

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from edgefleet import __version__
from edgefleet.api.assignment import SiteAssignment
from edgefleet.api.meta import SITE_NAMESPACE_PREFIX, site_namespace
from edgefleet.cli.check import Probe, in_thread
from edgefleet.cli.check_hub import look_at_kind
from edgefleet.cli.check_site import judge_orders
from edgefleet.core.preflight import Level, Line, judge_clock, judge_server, judge_store, judge_trust
from edgefleet.kube.client import Api
from edgefleet.kube.resources import SITE_ASSIGNMENTS
from edgefleet.site.gateway import read_status
from edgefleet.site.gateway_config import gateway_folder
from edgefleet.site.state import SiteState
from edgefleet.trust.bundle import read_expiry
from edgefleet.trust.errors import Rejected

ANSWER_SECONDS = 3.0


class ClusterProbes:
    """One look at a site's own cluster; `site` where one is meant of several that share it."""

    def __init__(self, api: Api, site: str | None) -> None:
        self._api = api
        self._site = site

    def probes(self) -> Mapping[str, Probe]:
        """By name, in the order of the lines."""
        return {"site clock": self._clock, "site kinds": self._kinds, "site orders": self._orders}

    async def server(self) -> Sequence[Line]:
        """Whether the API server answers, and which it is."""
        return [judge_server("site cluster", str((await self._api.get_raw("/version")).get("gitVersion", "")))]

    async def _clock(self) -> Sequence[Line]:
        await self._api.get_raw("/version")
        return [judge_clock("site clock", self._api.clock_skew, "this cluster's API server")]

    async def _kinds(self) -> Sequence[Line]:
        wrong = await look_at_kind(self._api, "siteassignments")
        return [wrong or Line("site kinds", Level.OK, f"siteassignments is served as version {__version__} has it")]

    async def _orders(self) -> Sequence[Line]:
        bodies = await self._api.list(SITE_ASSIGNMENTS, site_namespace(self._site) if self._site else None)
        ours = [body for body in bodies if body["metadata"]["namespace"].startswith(SITE_NAMESPACE_PREFIX)]
        return judge_orders("site orders", [SiteAssignment.parse(body) for body in ours])


def find_site(state: Path) -> str | None:
    """Whose state folder it is, if that can be read."""
    try:
        return SiteState.model_validate_json((state / "state.json").read_bytes()).site
    except (OSError, ValidationError):
        return None


class StateProbes:
    """One look at an agent's state folder."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def probes(self) -> Mapping[str, Probe]:
        """By name, in the order of the lines."""
        return {"state": self._memory, "trust": self._trust, "store": self._store, "gateway": self._gateway}

    async def _memory(self) -> Sequence[Line]:
        file = self._state / "state.json"
        try:
            found = SiteState.model_validate_json(await in_thread(file.read_bytes))
        except ValidationError as error:
            remedy = "restore it from a backup; removing it makes this site accept old orders again"
            return [Line("state", Level.FAIL, f"{file} cannot be read: {error.errors()[0]['msg']}", remedy)]
        ahead = (found.latest_time - datetime.now(UTC)).total_seconds()
        if ahead > 5:
            remedy = "set this machine's clock by NTP: the latest time seen counts until it is past; was that one wrong: docs/security.md"
            return [Line("state", Level.WARN, f"site {found.site}: the latest time seen is {ahead:.0f} s ahead of the clock", remedy)]
        serving = sum(one.active is not None for one in found.fleets.values())
        return [Line("state", Level.OK, f"site {found.site}: {len(found.fleets)} fleet(s) known, {serving} served")]

    async def _trust(self) -> Sequence[Line]:
        file = self._state / "bundle.json"
        missing = "none came from the hub yet: does the agent reach it? Its log says what it meets"
        try:
            ends = read_expiry(await in_thread(file.read_bytes))
        except FileNotFoundError:
            ends = None
        except Rejected as error:
            return [Line("trust", Level.FAIL, f"{file}: {error.message}", "remove this file: the agent fetches it again from the hub")]
        return [judge_trust("trust", ends, datetime.now(UTC), missing=missing)]

    async def _store(self) -> Sequence[Line]:
        blobs = self._state / "store" / "blobs"

        def measure() -> tuple[int, int]:
            used = sum(path.stat().st_size for path in blobs.iterdir()) if blobs.is_dir() else 0
            return used, shutil.disk_usage(self._state).free

        return [judge_store(*await in_thread(measure))]

    async def _gateway(self) -> Sequence[Line]:
        found = await in_thread(lambda: read_status(gateway_folder(self._state)))
        if found["lives"]:
            return [Line("gateway", Level.OK, f"runs in {found['lives']} pod(s) of its own, routes to {len(found['models'])} model(s)")]
        if not found["pid"]:
            where = found["address"] or "it was never started with this state folder"
            return [
                Line("gateway", Level.FAIL, f"it does not run: {where}", "start the agent: it starts the gateway, and again if it ends")
            ]
        lines = [Line("gateway", Level.OK, f"runs at {found['address']}, routes to {len(found['models'])} model(s)")]
        for model, revision in sorted(found["models"].items()):
            url = f"{found['address'].replace('//0.0.0.0:', '//127.0.0.1:')}/v2/models/{model}/ready"
            trouble = await in_thread(lambda url=url: _ask_ready(url))  # type: ignore[misc]
            name = f"model {model}, revision {revision[:8]}"
            if trouble:
                remedy = "look at the model server: its log, and whether it still holds the model"
                lines.append(Line("gateway", Level.FAIL, f"{name} does not answer at {url}: {trouble}", remedy))
            else:
                lines.append(Line("gateway", Level.OK, f"{name} is ready"))
        return lines


def _ask_ready(url: str) -> str:
    """Why the model is not ready; empty if it is."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=ANSWER_SECONDS) as answer:
            body = answer.read(4096)
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except OSError as error:
        return str(getattr(error, "reason", error))
    try:
        said = json.loads(body) if body.strip() else {}
    except ValueError:
        said = {}
    return "it says that it is not ready" if isinstance(said, dict) and said.get("ready") is False else ""
