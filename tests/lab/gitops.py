"""What GitOps tools say of an object: the kstatus library, by which Flux waits, and Lua as Argo CD runs it. Both are small Go programs in
folders beside this file, built once into the cache.
"""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.lab import LabError
from tests.lab.binaries import fetch_go, go_environment
from tests.lab.cache import key_of, provide
from tests.lab.progress import run_shown

HERE = Path(__file__).parent


def compute_kstatus(objects: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """For each object its status (Current, InProgress, Failed, Terminating) and the library's message. Raises LabError."""
    return [(one["status"], one["message"]) for one in _ask(_fetch("kstatus", 60), objects)]


def run_lua(jobs: Sequence[tuple[str, dict[str, Any]]]) -> list[Any]:
    """What each script returns for its object. Raises LabError with Lua's error."""
    answers = _ask(_fetch("argolua", 10), [{"script": script, "object": body} for script, body in jobs])
    for answer in answers:
        if "error" in answer:
            raise LabError(answer["error"])
    return [answer["returned"] for answer in answers]


def _ask(program: Path, questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    told = "\n".join(json.dumps(one) for one in questions)
    done = subprocess.run([program], input=told, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise LabError(f"{program.name} ended with {done.returncode}: {done.stderr.strip()}")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if len(answers) != len(questions):
        raise LabError(f"{program.name} answered {len(answers)} of {len(questions)} questions")
    return answers


def _fetch(name: str, seconds: int) -> Path:
    go, module = fetch_go(), HERE / name
    version = subprocess.run([go, "env", "GOVERSION"], check=True, capture_output=True, text=True, env=go_environment()).stdout
    key = key_of(*(one.read_bytes() for one in sorted(module.iterdir())), version)

    def build(draft: Path) -> None:
        command = [go, "build", "-mod=readonly", "-trimpath", "-ldflags", "-s -w", "-o", str(draft / name), "."]
        run_shown(command, f"building {name}", seconds, draft / "build.log", env=go_environment(), cwd=module)

    return provide(name, key, build) / name
