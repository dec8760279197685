"""Writes are found in the source by what they look like, whoever adds one."""

from pathlib import Path

import pytest

from tests.lab.callers import find_caller, list_callers

SOURCE = """
class Runs:
    async def start(self):
        run = await self._api.create(MODEL_ROLLOUTS, body)
        self._cache.observe(
            await self._api.apply(
                EDGE_SITES, body, manager=NAME))

async def settle(api):
    async def each():
        await api.delete(CONFIG_MAPS, name)
    others.apply(fleet, model)
    files.delete("x")
"""


def make(folder: Path) -> Path:
    (folder / "hub").mkdir()
    (folder / "site" / "deep").mkdir(parents=True)
    (folder / "hub" / "runs.py").write_text(SOURCE)
    (folder / "site" / "deep" / "link.py").write_text("async def run(local):\n    await local.patch(LEASES, 'agent')\n")
    return folder


def test_each_write_is_found_with_its_place_and_function(tmp_path: Path) -> None:
    assert [(one.caller, str(one)) for one in list_callers(make(tmp_path))] == [
        ("hub/runs.py:4 create", "hub/runs.py Runs.start create MODEL_ROLLOUTS"),
        ("hub/runs.py:6 apply", "hub/runs.py Runs.start apply EDGE_SITES"),
        ("hub/runs.py:11 delete", "hub/runs.py settle.each delete CONFIG_MAPS"),
        ("site/deep/link.py:2 patch", "site/deep/link.py run patch LEASES"),
    ]


def test_a_place_is_found_by_its_function(tmp_path: Path) -> None:
    assert find_caller("hub/runs.py Runs.start", "apply", make(tmp_path)) == "hub/runs.py:6 apply"
    with pytest.raises(LookupError, match=r"Runs.stop apply: 0 of these; there are hub/runs.py Runs.start create"):
        find_caller("hub/runs.py Runs.stop", "apply", tmp_path)


def test_the_product_writes() -> None:
    assert {one.function.partition("/")[0] for one in list_callers()} == {"hub", "site"}
