"""Objectives and remedies over seeds: the table of Scope Loss (arXiv 2308.04024) with intervals, paired differences to
the first row, and what of them can be told.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scope_rlhf.metrics import SeedResult, compare, significance
from scope_rlhf.reports.markdown import escape_cell, inline_code, markdown_table
from scope_rlhf.reports.seed_table import difference_cell, mean_cell, plot_differences, write_results
from scope_rlhf.runtime.files import write_text

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
# What is compared with the first row.
COMPARED = ("macro_precision", "precision_std", "balanced_accuracy")


def conclusions(results: Sequence[SeedResult]) -> list[str]:
    """significance of precision, its spread over classes, and balanced accuracy."""
    found = [significance(results, metric, COLUMNS[metric]) for metric in COMPARED]
    return [line for line in found if line]


def table_cells(results: Sequence[SeedResult], published: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: mean [95 % interval] of every column over seeds, the paired difference, the published pair."""
    header = ["row", "seeds", *COLUMNS.values(), "precision minus first row", "balanced accuracy minus first row"]
    header.append(f"published {published}: mean / standard deviation")
    columns = {metric: compare(results, metric) for metric in COLUMNS}
    cells = []
    for row in dict.fromkeys(result.row for result in results):
        line = [row, str(sum(result.row == row for result in results))]
        line += [mean_cell(columns[metric][row][0]) if row in columns[metric] else "-" for metric in COLUMNS]
        for metric in ("macro_precision", "balanced_accuracy"):
            gap = columns[metric][row][1]
            line.append(difference_cell(gap))
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
            difference_cell(gap),
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
        plot_differences(results, folder / f"{name}.png", title, {metric: COLUMNS[metric] for metric in COMPARED})
        parts.append(f"![differences]({name}.png)")
    except ImportError:
        pass
    write_results(results, folder / f"{name}.jsonl")
    write_text(folder / f"{name}.md", "\n\n".join(part for part in parts if part) + "\n")
    return folder / f"{name}.md"
