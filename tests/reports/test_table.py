from io import StringIO

from rich.console import Console

from scope_rlhf.reports import evaluation_table
from scope_rlhf.runtime import RunFolder


def render(evaluation):
    console = Console(width=100, record=True, file=StringIO())
    console.print(evaluation_table(evaluation))
    return console.export_text()


def test_table_shows_every_metric_with_its_interval(make_run):
    text = render(RunFolder(make_run()).read_evaluation())
    row = next(line for line in text.splitlines() if "held-out judge" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "held-out judge, P(positive)", "0.504", "0.824", "+0.320", "[+0.286, +0.354]",
    ]  # fmt: skip
    assert "perplexity under the reference" in text
    assert "256 held-out prompts, temperature 1, up to 48 new tokens, sampling seed 0" in text


def test_table_takes_metrics_with_missing_values_and_labels():
    text = render({"metrics": {"kl": {"after": 3.5, "low": None}, "own": {"label": "[bold]x", "before": 1.0}}})
    assert next(line for line in text.splitlines() if "kl" in line).count("-") == 3
    assert "[bold]x" in text


def test_table_of_an_empty_evaluation_is_empty():
    assert "before" in render({})
