"""Rules of the tree that no tool keeps: what must not exist, and what must not stand in a lock."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted(path for path in ROOT.glob("**/*.lock") if not {".venv", ".lab", ".git"} & set(path.relative_to(ROOT).parts))


def test_operator_is_no_package() -> None:
    assert (ROOT / "operator" / "edgefleet" / "__init__.py").exists()
    assert not (ROOT / "operator" / "__init__.py").exists(), "it would shadow the standard library's `operator`"


def test_there_are_locks() -> None:
    assert ROOT / "tests" / "lab" / "server.lock" in LOCKS


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_lock_has_hashes_and_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text, "make it with --no-emit-index-url: whose mirror was used is nobody's matter"
    assert "--hash=sha256:" in text


@pytest.mark.parametrize("module", sorted((ROOT / "operator/edgefleet/core").glob("*.py")), ids=lambda path: path.name)
def test_core_asks_no_clock(module: Path) -> None:
    called = re.findall(r"\b(?:now|utcnow|today|monotonic|perf_counter)\(\)|\bnow\((?:tz=)?UTC\)", module.read_text())
    assert called == [], "decisions take `now` as an argument, so that they can be replayed"
