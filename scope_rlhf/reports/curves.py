"""curves.png: what the run logged, step by step."""

import os
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scope_rlhf.reports.figures import COLOURS, figure_style, new_figure, save_figure
from scope_rlhf.reports.labels import format_parameter, objective_label
from scope_rlhf.runtime import RunFolder

COLUMNS = 4
# Shorter runs are drawn as logged; longer ones get a moving average over the faint raw line.
SMOOTHED_FROM = 30


@dataclass(frozen=True)
class Panel:
    """One set of axes: its title, the unit of the y axis, and the logged keys with their labels."""

    title: str
    unit: str
    series: dict[str, str]


def plot_curves(run_dir: str | os.PathLike[str]) -> Path:
    """Draw metrics.jsonl into curves.png and return its path. A key that was not logged has no panel.

    Raises ValueError where nothing was logged, ImportError without matplotlib.
    """
    run = RunFolder(run_dir)
    config, rows = run.read_config(), run.read_metrics()
    return draw_curves(run, find_panels(rows), rows, _title(config, run.path))


def logged_panels(panels: Iterable[Panel], logged: Container[str]) -> list[Panel]:
    """The panels that have something to show, each with its keys that were logged."""
    found = [Panel(p.title, p.unit, {k: v for k, v in p.series.items() if k in logged}) for p in panels]
    return [panel for panel in found if panel.series]


def draw_curves(run: RunFolder, panels: Sequence[Panel], rows: list[dict[str, Any]], title: str) -> Path:
    """Draw the panels into the run's curves.png, the first two columns wide. ValueError where there is none."""
    if not panels:
        raise ValueError(f"{run.metrics_file} holds no logged numbers, so there are no curves to draw")
    grid_rows = -(-(len(panels) + 1) // COLUMNS)
    figure = new_figure(12, 0.9 + 2.1 * max(grid_rows, 2))
    with figure_style():
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
        grid = figure.add_gridspec(grid_rows, COLUMNS)
        for index, panel in enumerate(panels):
            place = grid[0, :2] if index == 0 else grid[(index + 1) // COLUMNS, (index + 1) % COLUMNS]
            below = index + 1 + COLUMNS > len(panels)
            draw_panel(figure.add_subplot(place), panel, rows, show_steps=below)
        return save_figure(figure, run.path / "curves.png")


def find_panels(rows: list[dict[str, Any]]) -> list[Panel]:
    """The panels that these lines can fill, in reading order."""
    logged = {key for row in rows for key, value in row.items() if isinstance(value, int | float)}
    rewards = sorted(key for key in logged if key.startswith("rewards/") and key.endswith("/mean"))
    # The rewards that are optimised come first: a held-out judge is named so and has weight 0.
    rewards.sort(key=is_held_out)
    clip = next((k for k in ("clip_ratio/region_mean", "objective/clip_fraction") if k in logged), "")
    panels = [
        Panel("Reward", "mean per completion", {key: reward_label(key) for key in rewards} or {"reward": "reward"}),
        Panel("Held-out reward", "mean per completion", {"eval_reward": ""}),
        Panel(
            "Win rate",
            "share of pairs",
            {"win_rate": "over the baseline", "win_rate/length_controlled": "at equal length"},
        ),
        Panel("KL to the reference", "nats per token", {"kl": ""}),
        Panel("KL of a rollout", "nats per sequence", {"rollout/kl": ""}),
        Panel("Explained variance", "of the returns, by the critic", {"value/explained_variance": ""}),
        Panel("Critic's loss", "per token", {"value/loss": ""}),
        Panel("Right completions", "share", {"distillation/correct": ""}),
        Panel(
            "Log-ratio to the teacher",
            "nats per token",
            {"distillation/log_ratio_wrong": "wrong completions", "distillation/log_ratio_correct": "right ones"},
        ),
        Panel("Entropy", "nats per token", {"entropy": ""}),
        Panel("Clip fraction", "share of tokens", {clip: ""}),
        Panel("Completion length", "tokens", {"completions/mean_length": ""}),
        Panel("Gradient norm", "before clipping", {"grad_norm": ""}),
        Panel("Loss", "", {"loss": ""}),
    ]
    shown = {"objective/clip_fraction", "objective/entropy"} if {"entropy", clip} <= logged else set()
    for key in sorted(logged):
        if key.startswith("objective/") and key not in shown and _varies(rows, key):
            panels.append(Panel(key, "mean per token", {key: ""}))
    present = [Panel(p.title, p.unit, {k: v for k, v in p.series.items() if k in logged}) for p in panels]
    return [panel for panel in present if panel.series]


def is_held_out(reward_key: str) -> bool:
    """Whether a logged reward is a judge that the training does not see."""
    return "judge" in reward_key


def reward_label(reward_key: str) -> str:
    """rewards/sentiment_reward/mean -> "sentiment reward (optimised)"."""
    name = reward_key.removeprefix("rewards/").removesuffix("/mean").replace("_", " ")
    return f"{name} ({'held out' if is_held_out(reward_key) else 'optimised'})"


def read_series(rows: list[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the lines that hold a number under `key`."""
    points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.asarray(steps), np.asarray(values, dtype=np.float64)


def moving_average(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over `width` values, over fewer at the ends."""
    kernel = np.ones(width)
    return np.convolve(values, kernel, mode="same") / np.convolve(np.ones_like(values), kernel, mode="same")


def _varies(rows: list[dict[str, Any]], key: str) -> bool:
    values = read_series(rows, key)[1]
    return len(values) > 1 and bool(np.ptp(values) > 1e-9 * max(1.0, float(np.abs(values).max())))


def draw_panel(axes: Any, panel: Panel, rows: list[dict[str, Any]], show_steps: bool) -> None:
    """Draw the logged numbers of a panel, raw and, where there are many, their moving average."""
    for index, (key, label) in enumerate(panel.series.items()):
        steps, values = read_series(rows, key)
        colour = COLOURS[index % len(COLOURS)]
        if len(values) >= SMOOTHED_FROM:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            values = moving_average(values, max(5, len(values) // 20) | 1)
        marker = "o" if len(values) == 1 else None
        axes.plot(steps, values, color=colour, linewidth=1.8, label=label or None, marker=marker)
    axes.set_title(panel.title)
    axes.set_ylabel(panel.unit)
    axes.margins(x=0.02)
    # A common power of ten above the axis would push the title up.
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.7g}")
    axes.locator_params(axis="x", integer=True, nbins=5 if len(panel.series) == 1 else 9)
    axes.locator_params(axis="y", nbins=5)
    if panel.unit.startswith("share"):
        axes.set_ylim(bottom=0)
    if show_steps:
        axes.set_xlabel("step")
    if any(panel.series.values()):
        axes.legend(loc="best")


def _title(config: dict[str, Any], path: Path) -> str:
    arguments = config.get("arguments") or {}
    settings = [f"seed {config.get('seed', '?')}"]
    if isinstance(arguments.get("beta"), int | float):
        settings.append(f"KL coefficient {format_parameter(float(arguments['beta']))}")
    if isinstance(arguments.get("learning_rate"), int | float):
        settings.append(f"learning rate {format_parameter(float(arguments['learning_rate']))}")
    label = objective_label(config.get("objective") or {})
    # About 100 characters fit on one line of a 12-inch picture.
    separator = "\n" if len(label) > 60 else "   "
    return f"{label}{separator}{', '.join(settings)}   ({path.resolve().name})"
