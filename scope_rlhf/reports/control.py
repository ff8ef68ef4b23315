"""Reports of control runs: one run's curves, table and page; learning curves of several runs, with seeds and spread."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_rlhf.metrics import align_curves, average_repeated_steps, student_interval
from scope_rlhf.reports.curves import Panel, draw_curves, logged_panels, moving_average, read_series
from scope_rlhf.reports.figures import COLOURS, figure_style, new_figure, save_figure
from scope_rlhf.reports.labels import format_number, format_parameter, objective_label
from scope_rlhf.reports.markdown import escape_cell, inline_code, markdown_table
from scope_rlhf.reports.run_report import environment_section, objective_section, reproduce_section
from scope_rlhf.runtime import RunFolder, write_text

if TYPE_CHECKING:
    from rich.table import Table

Run = str | os.PathLike[str]
Curve = tuple[np.ndarray, np.ndarray]
PANELS = (
    Panel("Return of training episodes", "true score", {"charts/episodic_return": ""}),
    Panel("Return of evaluations", "true score", {"eval/episodic_return": ""}),
    Panel("Episode length", "steps", {"charts/episodic_length": ""}),
    Panel("Explained variance", "of the returns, by the critic", {"losses/explained_variance": ""}),
    Panel("Entropy", "nats per decision", {"losses/entropy": ""}),
    Panel("Approximate KL", "nats per decision", {"losses/approx_kl": ""}),
    Panel("Clip fraction", "share of decisions", {"losses/clipfrac": ""}),
    Panel("Sign flips by z-scoring", "share of advantages", {"losses/normalization_sign_flip": ""}),
    Panel("Critic's loss", "per transition", {"losses/value_loss": "", "losses/td_loss": ""}),
    Panel("Action values", "mean of the batch", {"losses/q_values": ""}),
    Panel("Returns beyond the support", "share", {"losses/value_out_of_range": ""}),
    Panel("Speed", "steps per second", {"charts/SPS": ""}),
)


def is_control_run(run_dir: Run) -> bool:
    """Whether the run folder is one of control: its config names an environment."""
    return "environment" in RunFolder(run_dir).read_config()


def plot_control_curves(run_dir: Run) -> Path:
    """Draw metrics.jsonl of a control run into curves.png. ValueError where nothing was logged."""
    run = RunFolder(run_dir)
    rows = run.read_metrics()
    logged = {key for row in rows for key, value in row.items() if isinstance(value, int | float)}
    return draw_curves(run, logged_panels(PANELS, logged), rows, _title(run.read_config()))


def result_table(run_dir: Run) -> "Table":
    """The table printed at the end of a run."""
    from rich.table import Table

    run = RunFolder(run_dir)
    table = Table(title=_title(run.read_config()))
    table.add_column("", no_wrap=True)
    table.add_column("mean [95 % interval over episodes]", justify="right")
    for name, value in _results(run):
        table.add_row(name, value)
    return table


def write_control_report(run_dir: Run) -> Path:
    """Write report.md of a control run and return its path."""
    run = RunFolder(run_dir)
    config = run.read_config()
    parts = [
        f"# {escape_cell(_title(config))}",
        markdown_table(("result", "value"), [(escape_cell(name), value) for name, value in _results(run)], "lr"),
    ]
    if (run.path / "curves.png").exists():
        parts += ["## Curves", "![returns and the rest by step](curves.png)"]
    films = sorted(run.path.glob("episode.*"))
    if films:
        parts += ["## An episode", f"[{films[0].name}]({films[0].name})"]
    if (config.get("objective") or {}).get("class"):
        parts += ["## Objective", objective_section(config["objective"])]
    parts += ["## Settings", _settings(config)]
    versions = (config.get("versions") or {}) | (config.get("environment_versions") or {})
    parts += ["## Run it again", reproduce_section(config)]
    parts += ["## Versions", environment_section({**config, "versions": versions})]
    path = run.path / "report.md"
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


def _results(run: RunFolder) -> list[tuple[str, str]]:
    rows, evaluation = run.read_metrics(), run.read_evaluation()
    found = []
    if evaluation:
        returns = [float(value) for value in evaluation["returns"]]
        interval = student_interval(returns) if len(returns) > 1 else None
        spread = f" [{format_number(interval.low)}, {format_number(interval.high)}]" if interval else ""
        step = evaluation.get("step")
        at = f" at step {step:,}" if rows and step not in (None, rows[-1]["step"]) else ""
        found.append((f"evaluation{at}, {len(returns)} episodes", f"{format_number(np.mean(returns))}{spread}"))
    _, training = read_series(rows, "charts/episodic_return")
    if len(training):
        tail = max(1, len(training) // 10)
        found += [
            ("training return, first tenth", format_number(float(training[:tail].mean()))),
            ("training return, last tenth", format_number(float(training[-tail:].mean()))),
        ]
    if rows:
        found.append(("steps", f"{rows[-1]['step']:,}"))
        speed = [row["charts/SPS"] for row in rows if "charts/SPS" in row]
        if speed:
            found.append(("steps per second", format_number(float(speed[-1]))))
        parts = {
            name: sum(row.get(f"time/{name}", 0.0) for row in rows) for name in ("environment", "rollout", "update")
        }
        total = sum(parts.values())
        if total:
            shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in parts.items())
            found.append(("time", shares))
    return found


def _settings(config: Mapping[str, Any]) -> str:
    environment = config.get("environment") or {}
    rows = [("environment", f"{environment.get('suite')}/{environment.get('name')}, {environment.get('backend')}")]
    if environment.get("protocol"):
        rows.append(("protocol", str(environment["protocol"])))
    rows += [
        (name, format_parameter(value))
        for name, value in (config.get("arguments") or {}).items()
        if value not in (None, [], {}) and name not in ("suite", "env", "backend", "protocol", "output_dir")
    ]
    return markdown_table(("setting", "value"), [(escape_cell(name), inline_code(value)) for name, value in rows])


def _title(config: Mapping[str, Any]) -> str:
    environment = config.get("environment") or {}
    parts = [str(environment.get("name")), str(config.get("algorithm"))]
    if (config.get("objective") or {}).get("class"):
        parts.append(objective_label(config["objective"], brief=True))
    critic = (config.get("critic") or {}).get("name")
    if critic and critic != "mse":
        parts.append(f"{critic} critic")
    return ", ".join(parts) + f", seed {config.get('seed', '?')}"


def learning_curve(run_dir: Run, key: str = "charts/episodic_return") -> tuple[np.ndarray, np.ndarray]:
    """Steps and values that a run logged under `key`; of several values at one step the mean."""
    steps, values = read_series(RunFolder(run_dir).read_metrics(), key)
    return average_repeated_steps(steps, values) if len(steps) else (steps, values)


def plot_learning_curves(
    panels: Mapping[str, Mapping[str, Sequence[Curve]]],
    path: Path,
    *,
    unit: str = "return of training episodes",
    points: int = 200,
    smooth: float = 0.05,
    note: str = "",
) -> Path:
    """One panel for each environment, in it one line for each label: the mean over its runs, each a curve (steps,
    values), and the band from the least to the greatest of them.

    smooth: width of a moving average, as a share of the curve. Curves are aligned on `points` steps between the first
    and the last one that all runs of a label have.
    """
    from matplotlib.ticker import EngFormatter

    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    crowded = max(map(len, panels.values())) > 3
    width, height = (5.0, 3.7) if crowded else (4.2, 3.1)
    figure = new_figure(width * columns, height * rows + 0.5)
    with figure_style():
        for index, (title, groups) in enumerate(panels.items()):
            axes = figure.add_subplot(rows, columns, index + 1)
            for number, (label, runs) in enumerate(groups.items()):
                colour = COLOURS[number % len(COLOURS)]
                curves = [(s, moving_average(v, max(1, int(len(v) * smooth)))) for s, v in runs]
                low, high = max(float(s[0]) for s, _ in curves), min(float(s[-1]) for s, _ in curves)
                grid = np.linspace(low, high, points)
                aligned = align_curves(curves, grid)
                seeds = f"{label} ({len(runs)} {'seed' if len(runs) == 1 else 'seeds'})"
                axes.plot(grid, aligned.mean(axis=0), color=colour, linewidth=1.8, label=seeds)
                if len(runs) > 1:
                    axes.fill_between(grid, aligned.min(axis=0), aligned.max(axis=0), color=colour, alpha=0.13, lw=0)
            axes.set_title(title)
            axes.set_xlabel("steps")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k, 1M
            axes.set_ylabel(unit)
            if len(groups) > 3:  # below the panel: over the curves they would hide what is compared
                axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7, handlelength=1.2)
            else:
                axes.legend(loc="best")
        if note:
            figure.supxlabel(note, fontsize=8)
        return save_figure(figure, path)
