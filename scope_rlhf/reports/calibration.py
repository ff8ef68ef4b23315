"""How far the margin of a reward model can be believed: agreement with preferences against its size."""

from pathlib import Path

import numpy as np

from scope_rlhf.metrics.calibration import calibration_bins, calibration_error, preference_accuracy
from scope_rlhf.metrics.intervals import Values, value_column
from scope_rlhf.reports.figures import COLOURS, figure_style, new_figure, save_figure


def plot_calibration(margins: Values, path: str | Path, title: str, bins: int = 8) -> Path:
    """Draw the share of agreement in bins of equal count against their mean |margin|, with 95 % Wilson intervals.

    margins [n]: score of chosen - score of rejected. The line is sigmoid(|margin|), where a calibrated Bradley-Terry
    model lies. ValueError as in calibration_bins, ImportError without matplotlib.
    """
    found = calibration_bins(margins, bins)
    accuracy, size = preference_accuracy(margins), np.abs(value_column("margins", margins))
    figure = new_figure(5.6, 4.0)
    with figure_style():
        axes = figure.add_subplot()
        end = 1.05 * max(b.margin for b in found) or 1.0
        line = np.linspace(0, end, 200)
        axes.plot(line, 1 / (1 + np.exp(-line)), color="0.45", linestyle="--", linewidth=1.2, label="sigmoid(margin)")
        x, y = [b.margin for b in found], [b.agreement.value for b in found]
        below = [max(0.0, b.agreement.value - b.agreement.low) for b in found]
        above = [max(0.0, b.agreement.high - b.agreement.value) for b in found]
        axes.errorbar(
            x, y, yerr=[below, above], color=COLOURS[0], marker="o", markersize=5, capsize=3, elinewidth=1.4,
            linewidth=1.2, label="agreement, 95 % Wilson",
        )  # fmt: skip
        axes.set_xlim(0, end)
        axes.set_ylim(min(0.45, *(b.agreement.low - 0.03 for b in found)), 1.02)
        axes.set_xlabel(f"|score of chosen - score of rejected|, {len(found)} bins of about {len(size) // len(found)}")
        axes.set_ylabel("share of pairs that the scorer agrees with")
        axes.set_title(
            f"{title}\naccuracy {100 * accuracy.value:.1f} % [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}], "
            f"n = {accuracy.n}, calibration error {100 * calibration_error(margins, bins):.1f} points",
            parse_math=False,
        )
        axes.legend(loc="lower right")
        return save_figure(figure, Path(path))
