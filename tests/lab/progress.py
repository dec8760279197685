"""Long commands, shown while they run: what, since when, how long it usually takes, and the end of its log on failure.

Decides nothing about what is run. Progress goes to stderr, so that stdout stays usable for `eval`.
"""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab import LabError

TAIL_LINES = 25
PLAIN_INTERVAL = 15.0  # seconds between lines where the output is no terminal (CI logs)


def say(line: str) -> None:
    """Prints one line of progress to stderr at once."""
    print(f"lab: {line}", file=sys.stderr, flush=True)


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last `lines` lines of a log, indented for an error message; says so if there is no log."""
    try:
        found = log.read_text(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return f"    (no log at {log})"
    return "\n".join(f"    {line[:400]}" for line in found) or f"    ({log} is empty)"


def run_shown(
    command: Sequence[str],
    label: str,
    expected: float,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    limit: float = 3600,
) -> None:
    """Runs `command`, output into `log`, with a progress line: elapsed of about `expected` seconds.

    Raises LabError with the end of the log when it fails or takes longer than `limit` seconds.
    """
    live = sys.stderr.isatty()
    started = time.monotonic()
    say(f"{label}: about {_clock(expected)} when nothing is cached")
    try:
        with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=env, cwd=cwd) as process:
            try:
                while True:
                    try:
                        process.wait(1 if live else PLAIN_INTERVAL)
                        break
                    except subprocess.TimeoutExpired:
                        elapsed = time.monotonic() - started
                        line = f"lab: {label}: {_clock(elapsed)} of about {_clock(expected)}"
                        print(f"\r{line} " if live else line, end="" if live else "\n", file=sys.stderr, flush=True)
                        if elapsed > limit:
                            raise LabError(f"{label}: not done after {_clock(limit)}; its log:\n{tail(log)}") from None
            except BaseException:
                process.kill()
                raise
            finally:
                if live:
                    print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    except FileNotFoundError as error:
        raise LabError(f"{label}: {command[0]} is not on this machine: install it, or put it on PATH") from error
    if process.returncode:
        raise LabError(f"{label}: {' '.join(command[:3])} ... ended with {process.returncode}; its log:\n{tail(log)}")
    say(f"{label}: done in {_clock(time.monotonic() - started)}")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
