"""Methods of distillation over seeds: table with differences to the control, learning curves, what can be told."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scope_rlhf.metrics import SeedResult, compare, significance
from scope_rlhf.reports.curves import Panel, moving_average, read_series
from scope_rlhf.reports.figures import COLOURS, figure_style, new_figure, save_figure
from scope_rlhf.reports.markdown import escape_cell, inline_code, markdown_table
from scope_rlhf.reports.seed_table import difference_cell, mean_cell, plot_differences, write_results
from scope_rlhf.runtime import RunFolder
from scope_rlhf.runtime.files import write_text

if TYPE_CHECKING:
    from rich.table import Table

# Rows that no method has made: what was there before.
GIVEN = ("teacher", "start")
# Points from which on a curve is a moving average of three.
SMOOTHED_FROM = 10
CURVES = (
    Panel("Correct completions of the rollouts", "share", {"reward": ""}),
    Panel("Log-ratio to the teacher, wrong completions", "nats per token", {"distillation/log_ratio_wrong": ""}),
)


def columns_of(ks: Sequence[int]) -> dict[str, str]:
    """Metrics of a table and what they are called."""
    passes = {f"pass@{k}": f"Pass@{k}" for k in ks}
    return {
        "accuracy": "accuracy, greedy",
        "avg": f"Avg@{max(ks)}",
        **passes,
        "kl_wrong": "KL to the teacher, wrong states",
    }


def control_of(results: Sequence[SeedResult]) -> str:
    """The first row that a method has made."""
    return next(result.row for result in results if result.row not in GIVEN)


def distillation_table(results: Sequence[SeedResult], ks: Sequence[int]) -> "Table":
    """For the terminal: means, and the difference of Avg@k to the control."""
    from rich.table import Table

    columns, control = columns_of(ks), control_of(results)
    seeds = len({result.seed for result in results})
    table = Table(title=f"{seeds} {'seed' if seeds == 1 else 'seeds'}", caption="95 % intervals over seeds, paired")
    table.add_column("row", overflow="fold")
    for name in (*columns.values(), f"{columns['avg']} minus {control}"):
        table.add_column(name, justify="right")
    found = {metric: compare(results, metric, control=control) for metric in columns}
    for row in dict.fromkeys(result.row for result in results):
        cells = [f"{found[m][row][0].value:.3f}" if row in found[m] else "-" for m in columns]
        gap = None if row in GIVEN else found["avg"][row][1]
        table.add_row(row, *cells, difference_cell(gap))
    return table


def write_distillation_table(
    results: Sequence[SeedResult],
    folder: Path,
    runs: Mapping[tuple[str, int], Path],
    *,
    title: str,
    note: str,
    ks: Sequence[int],
    name: str = "table",
) -> Path:
    """Write <name>.md, <name>.jsonl, <name>_curves.png and, with several seeds, <name>.png; the path of the first.

    runs: the run folders by row and seed.
    """
    columns, control = columns_of(ks), control_of(results)
    made = [result for result in results if result.row not in GIVEN]
    found = {metric: compare(results, metric, control=control) for metric in columns}
    header = ["row", "seeds", *columns.values(), *(f"{columns[m]} minus {control}" for m in ("avg", f"pass@{max(ks)}"))]
    header += ["seconds per update"]
    seconds = compare(results, "seconds_per_step")
    cells = []
    for row in dict.fromkeys(result.row for result in results):
        line = [inline_code(row), str(sum(result.row == row for result in results))]
        line += [mean_cell(found[m][row][0]) if row in found[m] else "-" for m in columns]
        line += [difference_cell(None if row in GIVEN else found[m][row][1]) for m in ("avg", f"pass@{max(ks)}")]
        cells.append([*line, f"{seconds[row][0].value:.2f}" if row in seconds else "-"])
    said = [significance(made, metric, label, control) for metric, label in columns.items()]
    parts = [f"# {escape_cell(title)}", note, markdown_table(header, cells, "lr")]
    parts.append("\n".join(f"- {line}" for line in said if line))
    parts.append(
        "Mean over seeds with Student's 95 % interval; a seed has its own start, prompts and samples, and differences "
        "are paired by seed. KL: exact, of the next token, on the wrong completions of the start."
    )
    try:
        plot_methods(runs, folder / f"{name}_curves.png", title)
        parts.append(f"![learning curves]({name}_curves.png)")
        if len({result.seed for result in made}) > 1 and len({result.row for result in made}) > 1:
            plot_differences(made, folder / f"{name}.png", title, columns, control)
            parts.append(f"![differences]({name}.png)")
    except ImportError:
        pass
    write_results(results, folder / f"{name}.jsonl")
    write_text(folder / f"{name}.md", "\n\n".join(part for part in parts if part) + "\n")
    return folder / f"{name}.md"


def plot_methods(runs: Mapping[tuple[str, int], Path], path: Path, title: str) -> Path:
    """One line for each row, the mean over its seeds of what the runs logged; CURVES say what."""
    rows = [row for row in dict.fromkeys(row for row, _ in runs) if row not in GIVEN]
    logs = {key: RunFolder(folder).read_metrics() for key, folder in runs.items() if key[0] in rows}
    figure = new_figure(12, 4.2)
    with figure_style():
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        for place, panel in enumerate(CURVES):
            axes = figure.add_subplot(1, len(CURVES), place + 1)
            (key,) = panel.series
            for number, row in enumerate(rows):
                series = [read_series(log, key) for (name, _), log in logs.items() if name == row]
                series = [pair for pair in series if len(pair[0])]
                if series:
                    length = min(len(values) for _, values in series)
                    mean = np.mean([values[:length] for _, values in series], axis=0)
                    mean = moving_average(mean, 3) if length >= SMOOTHED_FROM else mean
                    style = "-" if number < len(COLOURS) else "--"
                    axes.plot(
                        series[0][0][:length], mean, style, label=row,
                        color=COLOURS[number % len(COLOURS)], linewidth=1.6,
                    )  # fmt: skip
            axes.set_title(panel.title)
            axes.set_ylabel(panel.unit)
            axes.set_xlabel("update")
        lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
        figure.legend(list(lines.values()), list(lines), loc="outside right upper", fontsize=8)
        return save_figure(figure, path)
