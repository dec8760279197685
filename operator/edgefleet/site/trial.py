"""Trying a revision beside the one that serves: load it, wait until it is ready, ask it the golden set. No client meets it here.

Ends in the golden score, or in StepFailed that says on whose account. Switching clients to it is left to serving.py.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgefleet.api.model import Golden
from edgefleet.api.policy import HardChecks
from edgefleet.api.quantities import parse_duration
from edgefleet.core.golden import GoldenLine, score
from edgefleet.core.pods import Trouble
from edgefleet.core.site import Cause
from edgefleet.site.faults import StepFailed
from edgefleet.site.runtimes import Runtime, ServerUnreachable

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2


async def verify_ready(runtime: Runtime, name: str, files: Mapping[str, Path], *, checks: HardChecks, beside: bool = False) -> None:
    """Load a revision and wait until it is ready, at most `checks.ready_within`. `beside`: another one of the model runs.

    Raises StepFailed (READINESS: NotReadyInTime; what Runtime.judge says), LoadFailed, ServingConfigMissing, and ServerUnreachable if the
    server was away before.
    """
    await runtime.is_ready(name)
    await runtime.place(name, files)
    last = "the server has not said that it is ready"
    try:
        async with asyncio.timeout(parse_duration(checks.ready_within).total_seconds()):
            while True:
                try:
                    await runtime.load(name)
                    require_no_trouble(runtime.judge(name, checks, beside=beside))
                    if await runtime.is_ready(name):
                        return
                except ServerUnreachable as error:
                    # It was there a moment ago: loading this may be what is too much for it.
                    last = str(error)
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        require_no_trouble(runtime.judge(name, checks, beside=beside, patient=False))
        message = f"not ready within checks.readyWithin {checks.ready_within}: {last}"
        raise StepFailed(Cause.READINESS, "NotReadyInTime", message) from None


def require_no_trouble(trouble: Trouble | None) -> None:
    """Raises StepFailed."""
    if trouble is not None:
        raise StepFailed(trouble.cause, trouble.reason, trouble.message)


async def verify_golden_set(runtime: Runtime, name: str, golden: Golden, lines: Sequence[GoldenLine]) -> str:
    """Ask all lines; returns the score, such as `97.5%`. Raises StepFailed(GOLDEN) below `golden.min`."""
    answers: list[Mapping[str, Any] | None] = []
    for line in lines:
        try:
            answers.append(await runtime.infer(name, {"inputs": [dict(tensor) for tensor in line.inputs]}))
        except ServerUnreachable as error:
            raise StepFailed(
                Cause.GOLDEN, "ServerLost", f"the model server went away at golden line {len(answers) + 1} of {len(lines)}: {error}"
            ) from error
    result = score(answers, lines)
    # Rounded down: what is shown must not look as if it had passed.
    shown = f"{result.right * 1000 // result.total / 10:.1f}%"
    if not result.meets(golden.min):
        silent = f" ({result.unanswered} got no answer)" if result.unanswered else ""
        raise StepFailed(
            Cause.GOLDEN,
            "GoldenSetFailed",
            f"score {shown}: {result} golden lines are right{silent}, golden.min is {golden.min}",
            shown,
        )
    return shown
