"""`python -m tests.bench.canary [--runs N] [--write]`: rules that stop bad releases, on the same simulated fleets.

Prints three tables as Markdown: healthy releases that were stopped, bad ones that were found, and how far a release gets through waves of
1, 3, 10 and 30 sites. `--write` puts them and their pictures into docs/judge.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.bench.canary.nature import HEALTHY, MINUTES, WORSE, Condition, draw_fleets
from tests.bench.canary.pictures import draw_table
from tests.bench.canary.rules import NEVER, Stop, judge_ours, judge_peers, judge_waves

OURS = ("edgefleet, relative gate", "edgefleet, absolute gate")
WAVE_PEERS = ("fixed limit, 5-min (Flagger)", "z-test every minute")
WAVES = (1, 3, 10, 30)
TIMES = (1.0, 2.0, 4.0, 20.0)
BATCH = 20
SOAK = 30
FOLDER = Path("docs/judge")
MARK = "<!-- What follows is written by `python -m tests.bench.canary --write`. -->"
Rows = dict[str, list[tuple[float, str]]]
"""By rule: for each column a share, and what is written in its cell."""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.canary", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=150, help="simulated releases for each column (default 150)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=f"write the tables and their pictures into {FOLDER}")
    told = parser.parse_args()
    healthy = [_try(condition, told.runs, told.seed + index) for index, condition in enumerate(HEALTHY)]
    worse = [_try(condition, told.runs, told.seed + 100 + index) for index, condition in enumerate(WORSE)]
    waves = _try_waves(told.runs, told.seed + 200)
    tables = {
        "false-rollbacks": ("Healthy releases that were stopped, %", [one.name for one in HEALTHY], _list_false(healthy)),
        "found": ("Bad releases: found % / median minutes / mean bad answers served", [one.name for one in WORSE], _list_found(worse)),
        "waves": (
            f"Waves of {', '.join(map(str, WAVES))} sites, an hour each: stopped in wave 1/2/3/4/never, %",
            ["healthy", *(f"x{times:g}" for times in TIMES[1:])],
            waves,
        ),
    }
    parts = [f"{told.runs} releases for each column, seed {told.seed}: {time.process_time() / 60:.0f} minutes of one core."]
    parts += [f"**{title}**\n\n{_markdown(columns, rows)}" for title, columns, rows in tables.values()]
    text = "\n\n".join([*parts, _describe_healthy(healthy)]) + "\n"
    print(text)
    if told.write:
        for name, (title, columns, rows) in tables.items():
            FOLDER.joinpath(f"{name}.svg").write_text(
                draw_table(title, columns, list(rows.items()), bad={"healthy", *(one.name for one in HEALTHY)})
            )
        readme = FOLDER / "README.md"
        readme.write_text(f"{readme.read_text().split(MARK)[0]}{MARK}\n\n{text}")


@dataclass(frozen=True)
class Trial:
    """One condition, tried. `stops`: by rule, the minute at which each run was stopped; `ours`: the relative gate's; `served[run, minute]`:
    bad answers of the canaries until then."""

    condition: Condition
    stops: dict[str, NDArray[np.int64]]
    ours: list[Stop]
    served: NDArray[np.int64]


def _try(condition: Condition, runs: int, seed: int) -> Trial:
    peers: dict[str, list[NDArray[np.int64]]] = {}
    ours: list[tuple[Stop, ...]] = []
    served = []
    for batch in range(0, runs, BATCH):
        fleet = draw_fleets(condition, min(BATCH, runs - batch), seed * 1000 + batch)
        for name, minutes in judge_peers(fleet).items():
            peers.setdefault(name, []).append(minutes)
        ours += [judge_ours(fleet, run) for run in range(len(fleet.bad))]
        served.append(fleet.bad[:, : condition.sites].sum(axis=1).cumsum(axis=1))
    stops = {name: np.concatenate(minutes) for name, minutes in peers.items()}
    stops |= {name: np.array([one[index].minute for one in ours]) for index, name in enumerate(OURS)}
    print(f"{condition.name}: {time.process_time():.0f} s", file=sys.stderr)
    return Trial(condition, stops, [one[0] for one in ours], np.concatenate(served))


def _list_false(trials: Sequence[Trial]) -> Rows:
    return {
        name: [
            (float((one.stops[name] < NEVER).mean()), f"{100 * (one.stops[name] < NEVER).mean():.1f}".removesuffix(".0")) for one in trials
        ]
        for name in trials[0].stops
    }


def _list_found(trials: Sequence[Trial]) -> Rows:
    return {name: [_describe_found(one, one.stops[name]) for one in trials] for name in trials[0].stops}


def _describe_found(trial: Trial, minutes: NDArray[np.int64]) -> tuple[float, str]:
    since = trial.condition.since
    if trial.condition.worse is not None:
        # A rule that takes back the one bad site has found it.
        ours = np.array([one.minute for one in trial.ours])
        if (minutes == ours).all():
            minutes = np.minimum(minutes, [one.alone for one in trial.ours])
    hit = (minutes < NEVER) & (minutes > since)
    answers = trial.served[np.arange(len(minutes)), np.minimum(minutes, MINUTES) - 1].mean()
    median = f"{np.median(minutes[hit]) - since:.0f}" if hit.any() else "-"
    return float(hit.mean()), f"{100 * hit.mean():.0f} / {median} / {answers:.0f}"


def _describe_healthy(trials: Sequence[Trial]) -> str:
    lines = [
        "**Healthy releases under the relative gate, %**",
        "",
        "| | passed within twice the soak, with no person | one site taken back alone |",
    ]
    lines.append("| --- | --- | --- |")
    for trial in trials:
        passed, alone = (
            100 * np.mean(test) for test in zip(*((one.promoted <= 2 * SOAK, one.alone < NEVER) for one in trial.ours), strict=True)
        )
        lines.append(f"| {trial.condition.name} | {passed:.1f} | {alone:.1f} |")
    return "\n".join(lines)


def _try_waves(runs: int, seed: int) -> Rows:
    """How far a release gets."""
    began = np.repeat(np.arange(len(WAVES)) * 60, WAVES)
    reached: dict[str, list[list[int]]] = {}
    for index, times in enumerate(TIMES):
        columns: dict[str, list[int]] = {}
        for batch in range(0, runs, BATCH):
            fleet = draw_fleets(Condition("waves", sites=sum(WAVES), times=times), min(BATCH, runs - batch), (seed + index) * 1000 + batch)
            peers = judge_peers(fleet, began)
            for name in WAVE_PEERS:
                columns.setdefault(name, []).extend(peers[name].tolist())
            columns.setdefault(OURS[0], []).extend(judge_waves(fleet, run, WAVES, 60).minute for run in range(len(fleet.bad)))
        for name, minutes in columns.items():
            reached.setdefault(name, []).append([min((minute - 1) // 60, len(WAVES)) for minute in minutes])
        print(f"waves x{times:g}: {time.process_time():.0f} s", file=sys.stderr)
    return {name: [_describe_waves(column) for column in columns] for name, columns in reached.items()}


def _describe_waves(waves: Sequence[int]) -> tuple[float, str]:
    shares = [sum(wave == one for wave in waves) / len(waves) for one in range(len(WAVES) + 1)]
    return 1 - shares[-1], "/".join(f"{100 * share:.0f}" for share in shares)


def _markdown(columns: Sequence[str], rows: Rows) -> str:
    lines = [f"| | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    for name, cells in rows.items():
        label = f"**{name}**" if name in OURS else name
        lines.append(f"| {label} | {' | '.join(text for _, text in cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
