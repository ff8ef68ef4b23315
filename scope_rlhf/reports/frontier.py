"""The reward-KL frontier: what each objective gains for how far it moves from the reference."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from scope_rlhf.reports.figures import COLOURS, figure_style, new_figure, save_figure
from scope_rlhf.reports.labels import format_parameter, objective_label
from scope_rlhf.runtime import RunFolder

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class FrontierPoint:
    """One run: x is KL after training (nats per sequence), y a score after training with its interval."""

    label: str
    beta: float | None
    seed: int | None
    kl: float
    score: float
    low: float
    high: float
    before: float


def read_frontier(run_dirs: Sequence[str | os.PathLike[str]], metric: str = "judge") -> list[FrontierPoint]:
    """One point for each run folder. ValueError for a run without an evaluation, or without KL or the metric.

    The interval of the score is `before` + the paired interval of the difference: `before` is the same samples of the
    same model in every run, so what differs between runs is the difference.
    """
    points = []
    for folder in run_dirs:
        run = RunFolder(folder)
        config, evaluation = run.read_config(), run.read_evaluation()
        metrics = (evaluation or {}).get("metrics") or {}
        missing = [name for name in ("kl", metric) if not isinstance(metrics.get(name, {}).get("after"), int | float)]
        if missing:
            raise ValueError(
                f"{run.evaluation_file} has no {' and no '.join(missing)} after training; evaluate the run first"
            )
        score, beta = metrics[metric], (config.get("arguments") or {}).get("beta")
        before, after = float(score.get("before") or 0.0), float(score["after"])
        low, high = score.get("low"), score.get("high")
        points.append(
            FrontierPoint(
                label=objective_label(config.get("objective") or {}, brief=True),
                beta=float(beta) if isinstance(beta, int | float) else None,
                seed=config.get("seed"),
                kl=float(metrics["kl"]["after"]),
                score=after,
                low=before + low if isinstance(low, int | float) else after,
                high=before + high if isinstance(high, int | float) else after,
                before=before,
            )
        )
    return points


def plot_frontier(
    points: Sequence[FrontierPoint], path: str | os.PathLike[str], score_name: str = "held-out judge, mean score"
) -> Path:
    """Draw one line for each objective through its KL coefficients, and return the path.

    A run is a small marker with the 95 % interval of its score. Where an objective has several runs at one KL
    coefficient (seeds), the line goes through their mean. The colour of an objective follows its order of appearance.
    """
    if not points:
        raise ValueError("a frontier needs at least one run folder")
    figure = new_figure(8.5, 5.5)
    with figure_style():
        axes = figure.add_subplot()
        groups: dict[str, list[FrontierPoint]] = {}
        for point in points:
            groups.setdefault(point.label, []).append(point)
        for index, (label, members) in enumerate(groups.items()):
            colour, marker = COLOURS[index % len(COLOURS)], _MARKERS[index % len(_MARKERS)]
            means = _means(members)
            repeated = len(means) < len(members)
            for point in members:
                errors = [[max(0.0, point.score - point.low)], [max(0.0, point.high - point.score)]]
                axes.errorbar(
                    point.kl, point.score, yerr=errors, color=colour, marker=marker, markersize=3.5 if repeated else 6,
                    alpha=0.45 if repeated else 0.9, elinewidth=1, capsize=2, linestyle="none",
                )  # fmt: skip
            axes.plot(
                [kl for kl, _ in means], [score for _, score in means], color=colour, linewidth=1.6,
                marker=marker, markersize=7 if repeated else 6, label=label,
            )  # fmt: skip
        starts = {round(point.before, 9) for point in points}
        if len(starts) == 1:
            axes.axhline(points[0].before, color="0.5", linewidth=1, linestyle=":", zorder=0, label="before training")
        axes.set_xlabel("KL to the reference after training (nats per sequence)")
        axes.set_ylabel(score_name)
        axes.set_xlim(left=min(0.0, *(point.kl for point in points)))
        axes.set_title(_title(points), fontsize=11)
        axes.legend(loc="best")
        return save_figure(figure, Path(path))


def _means(members: list[FrontierPoint]) -> list[tuple[float, float]]:
    """Mean (kl, score) of the runs at each KL coefficient, from left to right."""
    by_beta: dict[Any, list[FrontierPoint]] = {}
    for number, point in enumerate(members):
        # A run without a recorded coefficient is a group of its own.
        by_beta.setdefault(point.beta if point.beta is not None else f"run {number}", []).append(point)
    return sorted((fmean(p.kl for p in runs), fmean(p.score for p in runs)) for runs in by_beta.values())


def _title(points: Sequence[FrontierPoint]) -> str:
    betas = sorted({point.beta for point in points if point.beta is not None})
    seeds = {point.seed for point in points if point.seed is not None}
    parts = ["Reward-KL frontier"]
    if betas:
        parts.append("KL coefficients " + ", ".join(format_parameter(beta) for beta in betas))
    if seeds:
        parts.append(f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}")
    return ";  ".join(parts)
