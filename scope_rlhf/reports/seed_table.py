"""What tables over seeds share: cells with intervals, the picture of differences, their file of results."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from scope_rlhf.metrics import Interval, SeedResult, compare
from scope_rlhf.reports.figures import COLOURS, figure_style, new_figure, save_figure
from scope_rlhf.runtime.files import json_line, write_text


def read_results(file: Path) -> list[SeedResult]:
    """What write_results wrote."""
    return [SeedResult(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def write_results(results: Sequence[SeedResult], file: Path) -> None:
    """One line for each run: row, seed, metrics."""
    write_text(file, "".join(json_line({"row": r.row, "seed": r.seed, "metrics": dict(r.metrics)}) for r in results))


def plot_differences(
    results: Sequence[SeedResult], path: Path, title: str, metrics: Mapping[str, str], control: str | None = None
) -> Path:
    """Paired differences to the control with their intervals (see compare): one panel for each metric (its name: its
    label), one line for each row.
    """
    found = {metric: compare(results, metric, control=control) for metric in metrics}
    rows = [row for row, (_, gap) in found[next(iter(metrics))].items() if gap is not None]
    base = control or results[0].row
    figure = new_figure(12, 1.6 + 0.26 * max(4, len(rows)))
    with figure_style():
        figure.suptitle(f"{title}: minus {base}, paired by seed", x=0.01, ha="left", fontsize=11)
        for index, metric in enumerate(metrics):
            axes = figure.add_subplot(1, len(metrics), index + 1)
            axes.axvline(0, color="black", linewidth=0.8)
            for place, row in enumerate(rows):
                gap = found[metric][row][1]
                assert gap is not None
                told = gap.low > 0 or gap.high < 0
                axes.plot([gap.low, gap.high], [place, place], color=COLOURS[0 if told else 5], linewidth=1.6)
                axes.plot([gap.value], [place], "o", color=COLOURS[0 if told else 5], markersize=4)
            axes.set_yticks(range(len(rows)), rows if index == 0 else [""] * len(rows))
            axes.invert_yaxis()
            axes.locator_params(axis="x", nbins=6)
            axes.set_title(metrics[metric])
        figure.supxlabel("mean and 95 % interval; dark where a single interval leaves 0 out", fontsize=8)
        return save_figure(figure, path)


def mean_cell(interval: Interval) -> str:
    """The mean, and its interval where more than one seed gives one."""
    if math.isinf(interval.low):
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def difference_cell(gap: Interval | None) -> str:
    """A paired difference with its interval, or a dash."""
    return "-" if gap is None else f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
