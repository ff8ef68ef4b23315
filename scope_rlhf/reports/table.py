"""The result of a run as a table: for the terminal, and as cells for Markdown."""

from typing import TYPE_CHECKING, Any

from scope_rlhf.reports.labels import format_interval, format_number

if TYPE_CHECKING:
    from rich.table import Table

HEADER = ("", "before", "after", "difference", "95 % paired interval")


def evaluation_rows(evaluation: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row of cells for each metric, in the order of evaluation.json; a dash for what is missing."""
    rows = []
    for name, metric in (evaluation.get("metrics") or {}).items():
        rows.append(
            (
                str(metric.get("label") or name),
                format_number(metric.get("before")),
                format_number(metric.get("after")),
                format_number(metric.get("difference"), sign=True),
                format_interval(metric.get("low"), metric.get("high")),
            )
        )
    return rows


def evaluation_caption(evaluation: dict[str, Any]) -> str:
    """How the numbers were measured, in one line."""
    parts = []
    if "prompts" in evaluation:
        parts.append(f"{evaluation['prompts']} held-out prompts")
    if "temperature" in evaluation:
        parts.append(f"temperature {evaluation['temperature']:g}")
    if "max_new_tokens" in evaluation:
        parts.append(f"up to {evaluation['max_new_tokens']} new tokens")
    if "seed" in evaluation:
        parts.append(f"sampling seed {evaluation['seed']}")
    return ", ".join(parts)


def evaluation_table(evaluation: dict[str, Any]) -> "Table":
    """The table printed at the end of a run, from the content of evaluation.json."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Before and after training", caption=evaluation_caption(evaluation) or None)
    for index, name in enumerate(HEADER):
        table.add_column(name, justify="right" if index else "left", no_wrap=index > 0)
    for row in evaluation_rows(evaluation):
        table.add_row(*map(Text, row))
    return table
