"""Tables and pictures of benchmarks/control_tables.py, from the records of its runs alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.control_records import POINTS, Key, RunRecord
from scope_rlhf.metrics import difference_of_means, interquartile_mean, student_interval
from scope_rlhf.reports.control import plot_learning_curves
from scope_rlhf.reports.labels import format_interval, format_number
from scope_rlhf.reports.markdown import markdown_table
from scope_rlhf.runtime.files import write_text

# What a table says of itself.
NOTES = {
    "learning": "Targets: CartPole 475; LunarLander 200 by PPO, and an interquartile mean of 150 by A2C.",
    "noise": (
        "Rewards lose their sign with probability .1 in training only. symmetric has alpha .5 and beta 1: masked, as "
        "its authors' code is, it is ppo with policy_coef 1.5, the control beside it: the same update, whose runs part "
        "by rounding after some thousand steps, so that the difference between the two rows is chance. A2C has 200,000 "
        "steps. Differences are to ppo."
    ),
    "critics": "The support of hl_gauss spans the discounted returns. Differences are to mse in its panel.",
    "continuous": "PPO with normalised observations and rewards, 500,000 steps.",
    "atari": (
        "Protocol NoFrameskip-v4; a step is 4 frames. Evaluations play 10 whole games with sampled actions. Target: "
        "Pong at 15 within 500,000 steps, or the best of 90 minutes, which is what is here, on one thread."
    ),
}


def write_table(table: str, cells: Sequence[Any], records: Mapping[Key, RunRecord], results: Path) -> Path:
    """control_<table>.md and .png of the cells that have records. ValueError where none has."""
    panels: dict[str, dict[str, list[RunRecord]]] = {}
    for cell in cells:
        keys = [(cell.panel, cell.label, seed) for seed in range(1, cell.seeds + 1)]
        if found := [records[key] for key in keys if key in records]:
            panels.setdefault(cell.panel, {})[cell.label] = found
    if not panels:
        raise ValueError(f"no finished run of table {table}")
    rows = []
    for panel, groups in panels.items():
        first = None
        for label, runs in groups.items():
            means, areas = [run.mean for run in runs], [run.area() for run in runs]
            first = first or (means, areas)
            rows.append(
                (
                    panel,
                    label,
                    str(len(runs)),
                    _mean(means),
                    format_number(min(means)),
                    format_number(interquartile_mean([value for run in runs for value in run.evaluation])),
                    _mean(areas),
                    "-" if first[0] is means else _difference(means, first[0]),
                    "-" if first[0] is means else _difference(areas, first[1]),
                )
            )
    curves = {
        panel: {label: [(run.steps, run.returns) for run in runs] for label, runs in groups.items()}
        for panel, groups in panels.items()
    }
    name = results / f"control_{table}.png"
    picture = plot_learning_curves(curves, name, note="mean, least and greatest of the seeds")
    header = (
        "environment", "objective or critic", "seeds", "evaluation [95 %]", "worst seed", "IQM of episodes",
        "mean return of the curve [95 %]", "evaluation minus first row", "curve minus first row",
    )  # fmt: skip
    peaks = _peaks(panels) if table == "atari" else ""
    text = f"""# Control: {table}

`python benchmarks/control_tables.py {table}`; each row the seeds 1 to n, {_versions(panels)}. Evaluation: mean over
seeds of the mean of their episodes, Student's interval over seeds; the curve's mean is the area under the training
returns. Differences are to the first row of the same environment, with Welch's 95 % interval. {NOTES[table]}{peaks}

{markdown_table(header, rows, "llrrrrrrr")}

![learning curves]({picture.name})
"""
    path = results / f"control_{table}.md"
    write_text(path, text)
    return path


def _peaks(panels: dict[str, dict[str, list[RunRecord]]]) -> str:
    """The highest of the POINTS parts of each curve."""
    found = [
        f"{panel}, {label} {format_number(sum(max(run.returns) for run in runs) / len(runs))}"
        for panel, groups in panels.items()
        for label, runs in groups.items()
    ]
    return f" Highest of the {POINTS} parts of a curve, mean over seeds: {'; '.join(found)}."


def _mean(values: Sequence[float]) -> str:
    if len(values) < 2:
        return format_number(values[0])
    interval = student_interval(values)
    return f"{format_number(interval.value)} [{format_number(interval.low)}, {format_number(interval.high)}]"


def _difference(values: Sequence[float], reference: Sequence[float]) -> str:
    if min(len(values), len(reference)) < 2:
        return "-"
    found = difference_of_means(values, reference)
    return f"{format_number(found.difference, sign=True)} {format_interval(found.low, found.high)}"


def _versions(panels: dict[str, dict[str, list[RunRecord]]]) -> str:
    runs = [run for groups in panels.values() for found in groups.values() for run in found]
    commits, torch = sorted({run.commit for run in runs}), sorted({run.torch for run in runs})
    return f"commit {', '.join(commits)}, torch {', '.join(torch)}, one thread a run"
