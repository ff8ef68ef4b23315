"""Tables and pictures of benchmarks/control_tables.py, from run folders alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scope_rlhf.metrics import difference_of_means, interquartile_mean, learning_curve_area, student_interval
from scope_rlhf.reports.control import learning_curve, plot_learning_curves
from scope_rlhf.reports.labels import format_interval, format_number
from scope_rlhf.reports.markdown import markdown_table
from scope_rlhf.runtime.files import write_text

# What a table says of itself.
NOTES = {
    "learning": "Targets: CartPole 475; LunarLander 200 by PPO, and an interquartile mean of 150 by A2C.",
    "noise": (
        "Rewards lose their sign with probability .1 in training only. symmetric has alpha .5 and beta 1: masked, as "
        "its authors' code is, it is ppo with policy_coef 1.5, the control beside it. Differences are to ppo."
    ),
    "critics": "The support of hl_gauss spans the discounted returns. Differences are to mse in its panel.",
    "continuous": "PPO with normalised observations and rewards, 500,000 steps.",
    "atari": "Protocol NoFrameskip-v4. Evaluations play whole games with sampled actions.",
}


def evaluation(folder: Path) -> dict[str, Any] | None:
    """evaluation.json of a finished run, else None."""
    if not (folder / "finished.json").exists():
        return None
    return json.loads((folder / "evaluation.json").read_text())


def write_table(table: str, cells: Sequence[Any], runs: Path, results: Path) -> Path:
    """control_<table>.md and .png of the cells whose runs are finished. ValueError where none is."""
    panels: dict[str, dict[str, list[Path]]] = {}
    for cell in cells:
        folders = [runs / cell.folder(seed) for seed in range(1, cell.seeds + 1)]
        folders = [folder for folder in folders if evaluation(folder) is not None]
        if folders:
            panels.setdefault(cell.panel, {})[cell.label] = folders
    if not panels:
        raise ValueError(f"{runs} has no finished run of table {table}")
    rows = []
    for panel, groups in panels.items():
        first = None
        for label, folders in groups.items():
            found = [evaluation(folder) or {} for folder in folders]
            means = [float(item["eval/episodic_return"]) for item in found]
            episodes = [float(value) for item in found for value in item["returns"]]
            areas = [learning_curve_area(*learning_curve(folder)) for folder in folders]
            first = first or (means, areas)
            rows.append(
                (
                    panel,
                    label,
                    str(len(folders)),
                    _mean(means),
                    format_number(min(means)),
                    format_number(interquartile_mean(episodes)),
                    _mean(areas),
                    "-" if first[0] is means else _difference(means, first[0]),
                    "-" if first[0] is means else _difference(areas, first[1]),
                )
            )
    picture = plot_learning_curves(
        panels, results / f"control_{table}.png", note="mean, least and greatest of the seeds"
    )
    header = (
        "environment", "objective or critic", "seeds", "evaluation [95 %]", "worst seed", "IQM of episodes",
        "mean return of the curve [95 %]", "evaluation minus first row", "curve minus first row",
    )  # fmt: skip
    text = f"""# Control: {table}

`python benchmarks/control_tables.py {table}`; each row the seeds 1 to n, {_versions(panels)}. Evaluation: mean over
seeds of the mean of their episodes, Student's interval over seeds; the curve's mean is the area under the training
returns. Differences are to the first row of the same environment, with Welch's 95 % interval. {NOTES[table]}

{markdown_table(header, rows, "llrrrrrrr")}

![learning curves]({picture.name})
"""
    path = results / f"control_{table}.md"
    write_text(path, text)
    return path


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


def _versions(panels: dict[str, dict[str, list[Path]]]) -> str:
    commits, torch = set(), set()
    for groups in panels.values():
        for folders in groups.values():
            for folder in folders:
                config = json.loads((folder / "config.json").read_text())
                commits.add(str((config.get("source") or {}).get("commit", "?"))[:7])
                torch.add(str(config["versions"].get("torch")))
    return f"commit {', '.join(sorted(commits))}, torch {', '.join(sorted(torch))}, one thread a run"
