"""The over-optimisation curve: training reward and held-out judge against the KL to the reference, while a run trains.

A reward model is a stand-in: pushed far from the reference a policy still gains by it where a held-out judge no longer
does (Gao et al. 2022, arXiv 2210.10760). The two lines of a run part there.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scope_rlhf.reports.curves import is_held_out, moving_average
from scope_rlhf.reports.figures import COLOURS, figure_style, new_figure, save_figure
from scope_rlhf.reports.labels import objective_label
from scope_rlhf.runtime import RunFolder

# What a run may log as KL, best first, with its unit.
KL_KEYS = {"rollout/kl": "nats per sequence", "kl": "nats per token"}
# Logged points that one smoothed value is the mean of, of a run with as many points or more.
WIDTH = 7


@dataclass(frozen=True)
class OptimisationCurve:
    """Of one run, in the order of steps: KL, and both rewards as gain over the first log in its standard deviations
    over completions (in plain units where the run did not log them: `standardised` False).
    """

    label: str
    kl: np.ndarray
    reward: np.ndarray
    judge: np.ndarray
    standardised: bool


def read_over_optimisation(run_dir: str | os.PathLike[str], kl_key: str) -> OptimisationCurve:
    """The curve of a run folder. ValueError for a run that logged no held-out judge, or never with the KL `kl_key`."""
    run = RunFolder(run_dir)
    config, rows = run.read_config(), run.read_metrics()
    logged = {key for row in rows for key, value in row.items() if isinstance(value, int | float)}
    rewards = sorted(key for key in logged if key.startswith("rewards/") and key.endswith("/mean"))
    judges = [key for key in rewards if is_held_out(key)]
    trained = [key for key in rewards if not is_held_out(key)]
    if not judges or not trained:
        raise ValueError(
            f"{run.metrics_file} holds no held-out judge beside the training reward (keys rewards/<name>/mean, of "
            f"which one named judge); it has {', '.join(rewards) or 'no rewards'}. Train with "
            "--judge_model_name_or_path."
        )
    # Of several rewards it is their weighted sum that is optimised.
    reward = trained[0] if len(trained) == 1 else "reward"
    keys = (kl_key, reward, judges[0])
    points = [row for row in rows if all(isinstance(row.get(key), int | float) for key in keys)]
    if not points:
        raise ValueError(f"{run.metrics_file} has no line with {', '.join(keys)} together, so there is no curve.")
    columns = [np.array([row[key] for row in points], dtype=np.float64) for key in keys]
    spreads = [points[0].get(key.removesuffix("/mean") + "/std" if "/" in key else f"{key}_std") for key in keys[1:]]
    standardised = all(isinstance(x, int | float) and x > 0 for x in spreads)
    scales = spreads if standardised else [1.0, 1.0]
    gains = [(c - c[0]) / float(scale or 1.0) for c, scale in zip(columns[1:], scales, strict=True)]
    label = f"{objective_label(config.get('objective') or {}, brief=True)}, seed {config.get('seed', '?')}"
    return OptimisationCurve(label, columns[0], gains[0], gains[1], standardised)


def plot_over_optimisation(run_dirs: Sequence[str | os.PathLike[str]], path: str | os.PathLike[str]) -> Path:
    """Draw training reward (solid) and held-out judge (dashed) against KL, one colour for each run.

    The KL is that of whole sequences where every run logged it, otherwise that of tokens.
    ValueError for no runs and as in read_over_optimisation, ImportError without matplotlib.
    """
    if not run_dirs:
        raise ValueError("an over-optimisation curve needs at least one run folder")
    kl_key = _common_kl(run_dirs)
    curves = [read_over_optimisation(run, kl_key) for run in run_dirs]
    standardised = all(curve.standardised for curve in curves)
    figure = new_figure(7.6, 4.4)
    with figure_style():
        axes = figure.add_subplot()
        axes.axhline(0, color="0.6", linewidth=1, linestyle=":")
        for number, curve in enumerate(curves):
            colour = COLOURS[number % len(COLOURS)]
            for values, style in ((curve.reward, "-"), (curve.judge, "--")):
                # With many runs the raw points hide the lines.
                if len(curves) <= 2:
                    axes.plot(curve.kl, values, color=colour, marker=".", markersize=3, linestyle="none", alpha=0.3)
                axes.plot(smooth(curve.kl), smooth(values), color=colour, linestyle=style, linewidth=1.6)
        _legend(axes, [curve.label for curve in curves])
        axes.set_xlabel(f"KL to the reference ({KL_KEYS[kl_key]})")
        unit = "in its standard deviations there" if standardised else "in its own units"
        axes.set_ylabel(f"gain over the first log,\n{unit}")
        axes.set_title(f"Over-optimisation; lines: mean of {WIDTH} logs (fewer in runs of fewer than {3 * WIDTH})")
        return save_figure(figure, Path(path))


def smooth(values: np.ndarray) -> np.ndarray:
    """Moving average over WIDTH logs, over a third of them in a shorter run."""
    return moving_average(values, max(1, min(WIDTH, len(values) // 3)) // 2 * 2 + 1 if len(values) >= 3 else 1)


def _legend(axes: Any, labels: list[str]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color="0.3", linestyle=style) for style in ("-", "--")]
    lines += [Line2D([], [], color=COLOURS[i % len(COLOURS)]) for i in range(len(labels))]
    axes.legend(
        lines, ["training reward", "held-out judge", *labels], loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7.5
    )


def _common_kl(run_dirs: Sequence[str | os.PathLike[str]]) -> str:
    logged = [{key for row in RunFolder(run).read_metrics() for key in row} for run in run_dirs]
    for key in KL_KEYS:
        if all(key in keys for keys in logged):
            return key
    lacking = next(str(run) for run, keys in zip(run_dirs, logged, strict=True) if not keys & KL_KEYS.keys())
    raise ValueError(f"{lacking} logged no KL ({' or '.join(KL_KEYS)}): train with a KL coefficient above 0.")
