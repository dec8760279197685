"""What a support bundle takes at a site: files of the state folder that are named here, and a list of the others. Keys are never opened."""

import json
import os
import platform
import shutil
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgefleet import __version__
from edgefleet.cli.check import in_thread, run_probes, show
from edgefleet.cli.check_local import StateProbes
from edgefleet.cli.support import MAX_TEXT_BYTES, Part
from edgefleet.site.gateway import read_status
from edgefleet.site.gateway_config import gateway_folder

LINE_SECONDS = 10.0
JSON_FILES = ("state.json", "bundle.json", "gateway/bootstrap.json", "gateway/routes.json", "gateway/clusters.json")
TEXT_FILES = ("gateway/envoy.log",)
MAX_LISTED = 20_000


def site_parts(state: Path) -> Mapping[str, Part]:
    """By name."""

    async def versions() -> Mapping[str, Any]:
        return {"versions.json": {"edgefleet": __version__, "python": platform.python_version(), "machine": platform.machine()}}

    async def check() -> Mapping[str, Any]:
        return {"check.json": show(await run_probes({}, StateProbes(state).probes(), LINE_SECONDS))}

    async def files() -> Mapping[str, Any]:
        return await in_thread(lambda: _read_files(state))

    async def listing() -> Mapping[str, Any]:
        return await in_thread(lambda: {"files.txt": _list_files(state), "disk.json": shutil.disk_usage(state)._asdict()})

    async def gateway() -> Mapping[str, Any]:
        return {"gateway.json": await in_thread(lambda: read_status(gateway_folder(state)))}

    return {"versions": versions, "check": check, "files": files, "listing": listing, "gateway": gateway}


async def collect_logs(path: Path) -> Mapping[str, Any]:
    """The end of a log file."""
    return {f"logs/{path.name}": await in_thread(lambda: _read_end(path))}


async def collect_metrics(url: str) -> Mapping[str, Any]:
    """A metrics page."""

    def ask() -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=LINE_SECONDS) as answer:
            page: bytes = answer.read(MAX_TEXT_BYTES)
            return page

    return {"metrics.txt": await in_thread(ask)}


def _read_files(state: Path) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for name in JSON_FILES:
        path = state / name
        if path.is_file():
            try:
                found[name] = json.loads(path.read_bytes())
            except (OSError, ValueError) as error:
                found[name] = error
    for name in TEXT_FILES:
        if (state / name).is_file():
            found[name] = _read_end(state / name)
    return found


def _read_end(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_TEXT_BYTES))
        return file.read(MAX_TEXT_BYTES)


def _list_files(state: Path) -> str:
    """Mode, bytes and name of all files, unread."""
    lines: list[str] = []
    for path in sorted(state.rglob("*")):
        if len(lines) == MAX_LISTED:
            lines.append("and more")
            break
        status = path.lstat()
        if not path.is_dir():
            lines.append(f"{status.st_mode & 0o7777:04o} {status.st_size:>12} {path.relative_to(state)}")
    return "\n".join(lines) + "\n"
