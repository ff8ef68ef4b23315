"""Objectives and remedies over seeds: the table of Scope Loss (arXiv 2308.04024) with intervals, paired differences to
the first row, and what of them can be told.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scope_rlhf.metrics import Interval, student_interval
from scope_rlhf.reports.figures import COLOURS, figure_style, new_figure, save_figure
from scope_rlhf.reports.markdown import escape_cell, inline_code, markdown_table
from scope_rlhf.runtime.files import json_line, write_text

if TYPE_CHECKING:
    from rich.table import Table

# Precision over the classes of Caltech-256, mean and standard deviation, ResNet-101, one run each (arXiv 2308.04024).
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "table1": {
        "ppo": (0.2383, 0.2471),
        "policy_entropy": (0.2303, 0.2116),
        "focal": (0.2320, 0.2360),
        "scope": (0.2814, 0.2436),
    },
    "table2": {
        "ppo": (0.5929, 0.2196),
        "policy_entropy": (0.5823, 0.2055),
        "focal": (0.5723, 0.2227),
        "scope": (0.5956, 0.2195),
    },
}
COLUMNS = {
    "macro_precision": "precision, mean over classes",
    "precision_std": "its standard deviation over classes",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "F1",
    "accuracy_few": "accuracy, few shots",
    "calibration_error": "calibration error",
}


@dataclass(frozen=True)
class SeedResult:
    """Test metrics of one run: a row of the table, as it is typed, and its seed."""

    row: str
    seed: int
    metrics: Mapping[str, float]


def compare(
    results: Sequence[SeedResult], metric: str, confidence: float = 0.95
) -> dict[str, tuple[Interval, Interval | None]]:
    """{row: (its interval over seeds, the interval of its paired difference to the first row)}, in order.

    Student's intervals; the difference is of runs of one seed, which have the same data, split and first weights.
    None for the first row, and where fewer than two seeds are common. A seed whose metric is not a finite number is
    left out of it.
    """
    by_row: dict[str, dict[int, float]] = {}
    for result in results:
        value = result.metrics.get(metric)
        if isinstance(value, int | float) and math.isfinite(value):
            by_row.setdefault(result.row, {})[result.seed] = float(result.metrics[metric])
    found: dict[str, tuple[Interval, Interval | None]] = {}
    first = by_row.get(results[0].row, {}) if results else {}
    for row, values in by_row.items():
        gap = None
        common = [values[seed] - first[seed] for seed in values if seed in first]
        if values is not first and len(common) > 1:
            gap = student_interval(common, confidence)
        found[row] = student_interval(list(values.values())), gap
    return found


def significance(results: Sequence[SeedResult], metric: str) -> str:
    """In words, which rows differ from the first one: at 95 % over all comparisons together (Bonferroni)."""
    rows = list(dict.fromkeys(result.row for result in results))
    number = len(rows) - 1
    if number < 1:
        return ""
    gaps = {row: gap for row, (_, gap) in compare(results, metric, 1 - 0.05 / number).items() if gap is not None}
    if not gaps:
        return f"{COLUMNS[metric]}: one seed tells no difference."
    better = [row for row, gap in gaps.items() if gap.low > 0]
    worse = [row for row, gap in gaps.items() if gap.high < 0]
    told = [f"{', '.join(names)} {word}" for names, word in ((better, "higher"), (worse, "lower")) if names]
    rest = f"the other {number - len(better) - len(worse)} cannot be told from it" if len(told) else "none differs"
    return (
        f"{COLUMNS[metric]}, against {rows[0]}, 95 % over {number} comparisons (Bonferroni): "
        f"{'; '.join([*told, rest] if number > len(better) + len(worse) else told)}."
    )


def conclusions(results: Sequence[SeedResult]) -> list[str]:
    """significance of precision, its spread over classes, and balanced accuracy."""
    found = [significance(results, metric) for metric in ("macro_precision", "precision_std", "balanced_accuracy")]
    return [line for line in found if line]


def table_cells(results: Sequence[SeedResult], published: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: mean [95 % interval] of every column over seeds, the paired difference, the published pair."""
    header = ["row", "seeds", *COLUMNS.values(), "precision minus first row", "balanced accuracy minus first row"]
    header.append(f"published {published}: mean / standard deviation")
    columns = {metric: compare(results, metric) for metric in COLUMNS}
    cells = []
    for row in dict.fromkeys(result.row for result in results):
        line = [row, str(sum(result.row == row for result in results))]
        line += [_mean(columns[metric][row][0]) if row in columns[metric] else "-" for metric in COLUMNS]
        for metric in ("macro_precision", "balanced_accuracy"):
            gap = columns[metric][row][1]
            line.append("-" if gap is None else f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]")
        known = PUBLISHED[published].get(row)
        cells.append([*line, "-" if known is None else f"{known[0]:.4f} / {known[1]:.4f}"])
    return header, cells


def rich_table(results: Sequence[SeedResult], published: str, title: str) -> "Table":
    """For the terminal: the paper's two columns, what they have beside them, and the published numbers."""
    from rich.table import Table

    precision, spread = (compare(results, metric) for metric in ("macro_precision", "precision_std"))
    seeds = len({result.seed for result in results})
    table = Table(
        title=f"{title}, {seeds} {'seed' if seeds == 1 else 'seeds'}",
        caption="precision: mean / standard deviation over classes; published: Caltech-256, one run",
    )
    table.add_column("row")
    for name in ("precision", "minus first row [95 %]", published):
        table.add_column(name, justify="right", no_wrap=True)
    for row, (mean, gap) in precision.items():
        known = PUBLISHED[published].get(row)
        table.add_row(
            row,
            f"{mean.value:.3f} / {spread[row][0].value:.3f}",
            "-" if gap is None else f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]",
            "-" if known is None else f"{known[0]:.3f} / {known[1]:.3f}",
        )
    return table


def write_vision_table(
    results: Sequence[SeedResult],
    folder: Path,
    *,
    title: str,
    note: str,
    published: str = "table1",
    name: str = "table",
) -> Path:
    """Write <name>.md, <name>.png (differences to the first row) and <name>.jsonl; the path of the first."""
    header, cells = table_cells(results, published)
    said = conclusions(results)
    parts = [f"# {escape_cell(title)}", note]
    parts.append(markdown_table(header, [[inline_code(line[0]), *line[1:]] for line in cells], "lr"))
    parts.append("\n".join(f"- {line}" for line in said))
    parts.append(
        "Mean over seeds with Student's 95 % interval; differences are paired by seed. Precision of a class that is "
        "never predicted counts as 0. Published: one run on Caltech-256 (arXiv 2308.04024), other data and network "
        "unless the title says Caltech-256."
    )
    try:
        plot_differences(results, folder / f"{name}.png", title)
        parts.append(f"![differences]({name}.png)")
    except ImportError:
        pass
    lines = [json_line({"row": r.row, "seed": r.seed, "metrics": dict(r.metrics)}) for r in results]
    write_text(folder / f"{name}.jsonl", "".join(lines))
    write_text(folder / f"{name}.md", "\n\n".join(part for part in parts if part) + "\n")
    return folder / f"{name}.md"


def read_results(file: Path) -> list[SeedResult]:
    """What write_vision_table kept as <name>.jsonl."""
    return [SeedResult(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def plot_differences(results: Sequence[SeedResult], path: Path, title: str) -> Path:
    """Paired differences to the first row with their intervals: one panel each for precision, its spread over classes
    and balanced accuracy, one line for each row.
    """
    metrics = ("macro_precision", "precision_std", "balanced_accuracy")
    found = {metric: compare(results, metric) for metric in metrics}
    rows = [row for row, (_, gap) in found["macro_precision"].items() if gap is not None]
    base = results[0].row
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
            axes.set_title(COLUMNS[metric])
        figure.supxlabel("mean and 95 % interval; dark where a single interval leaves 0 out", fontsize=8)
        return save_figure(figure, path)


def _mean(interval: Interval) -> str:
    if math.isinf(interval.low):
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
