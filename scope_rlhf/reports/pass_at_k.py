"""What a Pass@k folder shows: tables for Markdown and a terminal, and the curve over k. Reads its files only."""

import json
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from scope_rlhf.reports.figures import COLOURS, figure_style, new_figure, save_figure
from scope_rlhf.reports.labels import MISSING_VALUE
from scope_rlhf.reports.markdown import escape_cell, markdown_table
from scope_rlhf.runtime.files import write_text

SUMMARY_FILE = "passk.json"


def write_pass_at_k_report(folder: str | Path) -> list[Path]:
    """passk.md and passk.png from passk.json of the folder. ValueError where it is missing or damaged."""
    file = Path(folder) / SUMMARY_FILE
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{folder} holds no Pass@k: it has no {file.name}") from error
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    report = Path(folder) / "passk.md"
    picture = plot_pass_at_k(summary, Path(folder) / "passk.png")
    write_text(report, pass_at_k_markdown(summary))
    return [report, picture]


def pass_at_k_markdown(summary: dict[str, Any]) -> str:
    """Avg@k and Pass@k of every system, and the paired differences to the first."""
    header, *rows = ([escape_cell(cell) for cell in row] for row in pass_at_k_rows(summary))
    systems, percent = summary["systems"], f"{100 * summary['confidence']:g} %"
    align = "l" + "r" * (len(header) - 1)
    parts = [
        "# Pass@k",
        f"{summary['prompts']} prompts of {escape_cell(summary['dataset'])}, the same for all systems. "
        f"Verifier: {escape_cell(summary['verifier'])}.",
        markdown_table(header, rows, align),
        f"In per cent, with the {percent} bootstrap interval over prompts. Avg@k: mean accuracy of all samples; "
        "Pass@k: at least one of k samples is right, the unbiased estimate from all of them; Pass@1 is Avg@k.",
    ]
    if len(systems) > 1:
        shown = [[escape_cell(s["name"]), *(_difference(s["differences"][key]) for key in _keys(summary))]
                 for s in systems[1:]]  # fmt: skip
        parts += [
            f"## Paired difference to {escape_cell(systems[0]['name'])}",
            markdown_table(header[: 1 + len(_keys(summary))], shown, align[: 1 + len(_keys(summary))]),
            f"Points on the same prompts, with the {percent} bootstrap interval.",
        ]
    parts += [
        "![Pass@k](passk.png)",
        "\n".join(f"- {escape_cell(s['name'])}: {escape_cell(s['decoding'])}" for s in systems),
    ]
    return "\n\n".join(parts) + "\n"


def pass_at_k_table(summary: dict[str, Any]) -> Table:
    """The first table of the report for a terminal."""
    header, *rows = pass_at_k_rows(summary)
    table = Table(title=escape(f"{summary['prompts']} prompts of {summary['dataset']}, per cent"))
    for number, name in enumerate(header):
        table.add_column(escape(name), justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def pass_at_k_rows(summary: dict[str, Any]) -> list[list[str]]:
    """The header, then one row for each system: Avg@k, Pass@k, samples of a prompt, share that ended by itself."""
    ks = summary["k"]
    rows = [["", f"Avg@{max(ks)}", *(f"Pass@{k}" for k in ks), "samples", "ended"]]
    for s in summary["systems"]:
        ended = MISSING_VALUE if s["share_ended"] is None else f"{100 * s['share_ended']:.1f}"
        values = [_percent(s["avg"]), *(_percent(s["pass_at_k"][str(k)]) for k in ks)]
        rows.append([s["name"], *values, str(s["num_samples"]), ended])
    return rows


def plot_pass_at_k(summary: dict[str, Any], path: str | Path) -> Path:
    """Pass@k over k on a logarithmic axis, one line and band of its interval for each system."""
    figure = new_figure(7.5, 4.2)
    with figure_style():
        axes = figure.add_subplot()
        lines = []
        for number, s in enumerate(summary["systems"]):
            ks = [int(k) for k in s["pass_at_k"]]
            points = list(s["pass_at_k"].values())
            heights = [100 * p["value"] for p in points]
            low, high = ([100 * (p["value"] if p[b] is None else p[b]) for p in points] for b in ("low", "high"))
            colour = COLOURS[number % len(COLOURS)]
            axes.fill_between(ks, low, high, color=colour, alpha=0.14, linewidth=0)
            style = ("-", "--", ":")[number // len(COLOURS) % 3]
            lines += axes.plot(ks, heights, color=colour, linestyle=style, marker="o", markersize=4, linewidth=1.6)
        marks = [int(k) for k in summary["systems"][0]["pass_at_k"]]
        axes.set_xscale("log", base=2)
        axes.set_xticks(marks, labels=[str(k) for k in marks])
        axes.minorticks_off()
        axes.set_xlabel("k: samples of a prompt")
        axes.set_ylabel(f"Pass@k, per cent, {100 * summary['confidence']:g} % interval over prompts")
        axes.set_ylim(bottom=0)
        axes.set_title(f"{summary['prompts']} prompts of {summary['dataset']}", parse_math=False)
        legend = axes.legend(
            lines, [s["name"] for s in summary["systems"]], loc="upper left", bbox_to_anchor=(1.0, 1.0)
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        return save_figure(figure, Path(path))


def _keys(summary: dict[str, Any]) -> list[str]:
    return ["avg", *(str(k) for k in summary["k"])]


def _percent(interval: dict[str, Any]) -> str:
    bounds = interval["low"], interval["high"]
    shown = "" if None in bounds else f" [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"
    return f"{100 * interval['value']:.1f}{shown}"


def _difference(difference: dict[str, Any]) -> str:
    bounds = difference["low"], difference["high"]
    shown = "" if None in bounds else f" [{100 * bounds[0]:+.1f}, {100 * bounds[1]:+.1f}]"
    return f"{100 * difference['difference']:+.1f}{shown}"
