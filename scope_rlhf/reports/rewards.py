"""What a reward evaluation shows: tables in Markdown and a picture. Reads its files only."""

import json
from pathlib import Path
from typing import Any

from scope_rlhf.reports.figures import COLOURS, figure_style, new_figure, save_figure
from scope_rlhf.reports.labels import MISSING_VALUE, format_interval, format_number
from scope_rlhf.reports.markdown import escape_cell, markdown_table
from scope_rlhf.runtime.files import write_text

SUMMARY_FILE = "rewards.json"
# Rows of the tables in this order; scorers, of any name, come first.
_LAST = ("kl", "perplexity", "rouge1", "rouge2", "rougeL", "distinct_2", "length", "eos_rate")


def write_rewards_report(folder: str | Path) -> list[Path]:
    """report.md and rewards.png from rewards.json of the folder. ValueError where it is missing or damaged."""
    file = Path(folder) / SUMMARY_FILE
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{folder} holds no reward evaluation: it has no {file.name}") from error
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    report = Path(folder) / "report.md"
    picture = plot_rewards(summary, Path(folder) / "rewards.png")
    write_text(report, rewards_markdown(summary))
    return [report, picture]


def rewards_markdown(summary: dict[str, Any]) -> str:
    """Means, differences to the baseline, and quantiles; one column for each system."""
    systems, names = summary["systems"], _metric_names(summary)
    header, *means = ([escape_cell(cell) for cell in row] for row in mean_rows(summary))
    percent = f"{100 * summary['confidence']:g} %"
    differences, quantiles = [], []
    for name, (label, *_) in zip(names, means, strict=True):
        found = [s["metrics"].get(name) for s in systems]
        if any(m and m["difference"] for m in found[1:]):
            differences.append([label, *(_difference(m) for m in found[1:])])
        if name != "eos_rate" and any(m and m["quantiles"] for m in found):  # a share has no spread of its own
            quantiles.append([label, *(_quantiles(m) for m in found)])
    base = escape_cell(systems[0]["name"])
    parts = [
        "# Reward evaluation",
        f"{summary['prompts']} prompts, the same for all systems. Scorers: {_scorers(summary)}.",
        markdown_table(header, means, "l" + "r" * len(systems)),
        f"Mean with its {percent} bootstrap interval over prompts.",
    ]
    if differences:
        parts += [
            f"## Paired difference to {base}",
            markdown_table([header[0], *header[2:]], differences, "l" + "r" * (len(systems) - 1)),
            f"Difference on the same prompts with its {percent} interval: bootstrap, for distinct-2 the jackknife.",
        ]
    parts += [
        "## Spread over prompts",
        markdown_table(header, quantiles, "l" + "r" * len(systems)),
        "Standard deviation; quantiles 5, 25, 50, 75 and 95 %.",
        "![rewards](rewards.png)",
        "\n".join(f"- {escape_cell(s['name'])}: {escape_cell(s['decoding'])}" for s in systems),
        *(escape_cell(note) for note in summary.get("notes", [])),
    ]
    return "\n\n".join(parts) + "\n"


def mean_rows(summary: dict[str, Any]) -> list[list[str]]:
    """The names of the systems, then for each metric its label and every system's mean with its interval."""
    rows = [["", *(s["name"] for s in summary["systems"])]]
    for name in _metric_names(summary):
        found = [s["metrics"].get(name) for s in summary["systems"]]
        rows.append([next(m["label"] for m in found if m), *(_mean(m) for m in found)])
    return rows


def plot_rewards(summary: dict[str, Any], path: str | Path) -> Path:
    """For each scorer (without one, the length): mean with its interval on the quantiles of every system, and beside it
    the paired difference to the baseline.
    """
    systems = summary["systems"]
    names = [n for n in _metric_names(summary) if n not in _LAST] or ["length"]
    columns = 2 if len(systems) > 1 else 1
    figure = new_figure(4.6 * columns + 1.4, len(names) * (1.3 + 0.42 * len(systems)))
    with figure_style():
        for row, name in enumerate(names):
            found = [s["metrics"][name] for s in systems]
            axes = figure.add_subplot(len(names), columns, row * columns + 1)
            for place, (m, colour) in enumerate(zip(found, _colours(len(found)), strict=True)):
                q = m["quantiles"]
                axes.plot([q["5"], q["95"]], [place, place], color=colour, linewidth=1.2, alpha=0.6)
                axes.plot([q["25"], q["75"]], [place, place], color=colour, linewidth=7, alpha=0.3)
                _bar(axes, m["mean"], m["low"], m["high"], place, colour)
            _finish(axes, found[0]["label"], "quantiles 5-95 and 25-75 %, mean with its interval", systems)
            if columns == 2:
                axes = figure.add_subplot(len(names), columns, row * columns + 2)
                axes.axvline(0, color="0.6", linewidth=1, linestyle=":")
                for place, (m, colour) in enumerate(zip(found, _colours(len(found)), strict=True)):
                    d = m["difference"]
                    if d is not None:
                        _bar(axes, d["value"], d["low"], d["high"], place, colour)
                _finish(axes, "", "paired difference to the first, with its interval", systems, names=False)
        return save_figure(figure, Path(path))


def _bar(axes: Any, value: float, low: float | None, high: float | None, place: int, colour: str) -> None:
    below, above = (0.0 if bound is None else abs(bound - value) for bound in (low, high))
    axes.errorbar(
        value, place, xerr=[[below], [above]], color=colour, marker="o", markersize=5, capsize=3, elinewidth=1.4,
        linestyle="none",
    )  # fmt: skip


def _finish(axes: Any, title: str, unit: str, systems: list[dict[str, Any]], names: bool = True) -> None:
    axes.set_title(title, parse_math=False)
    axes.set_xlabel(unit)
    axes.set_yticks(range(len(systems)))
    axes.set_yticklabels([s["name"] if names else "" for s in systems], parse_math=False)
    axes.set_ylim(len(systems) - 0.5, -0.5)


def _colours(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _metric_names(summary: dict[str, Any]) -> list[str]:
    present = dict.fromkeys(name for s in summary["systems"] for name in s["metrics"])
    return [n for n in present if n not in _LAST] + [n for n in _LAST if n in present]


def _scorers(summary: dict[str, Any]) -> str:
    scorers = summary.get("scorers") or {}
    return ", ".join(f"{escape_cell(label)} {escape_cell(name)}" for label, name in scorers.items()) or "none"


def _mean(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return MISSING_VALUE
    bounds = (metric["low"], metric["high"])
    interval = "" if None in bounds else f" [{format_number(bounds[0])}, {format_number(bounds[1])}]"
    return f"{format_number(metric['mean'])}{interval}"


def _difference(metric: dict[str, Any] | None) -> str:
    if metric is None or metric["difference"] is None:
        return MISSING_VALUE
    d = metric["difference"]
    return f"{format_number(d['value'], sign=True)} {format_interval(d['low'], d['high'])}"


def _quantiles(metric: dict[str, Any] | None) -> str:
    if metric is None or metric["quantiles"] is None:
        return MISSING_VALUE
    values = " / ".join(format_number(x) for x in metric["quantiles"].values())
    return f"{format_number(metric['std'])}; {values}"
