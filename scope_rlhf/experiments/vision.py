"""Classification from the command line: train, measure the best model on the test part, then table, curves, report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scope_rlhf.experiments.vision_arguments import parse_vision
from scope_rlhf.runtime.launch import is_main_process
from scope_rlhf.runtime.threads import set_threads
from scope_rlhf.vision.config import VisionConfig


def main(argv: Sequence[str], prog: str | None = None) -> int:
    """One run, or with `table` in front many; 0 where it came to its end. ValueError, ImportError and OSError for a
    user's mistake.
    """
    if argv and argv[0] == "table":
        from scope_rlhf.experiments.vision_table import main as table

        return table(argv[1:], prog and f"{prog} table")
    config = parse_vision(argv, prog)
    set_threads(config.num_threads)
    run_vision(config)
    if is_main_process():
        report(Path(str(config.output_dir)))
    return 0


def run_vision(config: VisionConfig) -> dict[str, Any]:
    """Train and measure; what evaluation.json says. Empty on every process but the first."""
    from scope_rlhf.evaluation.classification import evaluate_run
    from scope_rlhf.vision.data import load_data
    from scope_rlhf.vision.train import train_vision

    folder = train_vision(config)
    if not is_main_process():
        return {}
    return evaluate_run(folder, config, load_data(config, show=False))


def report(folder: Path) -> None:
    """Write curves.png, confusion.png and report.md of a finished run, and print the table."""
    from rich.console import Console

    from scope_rlhf.reports.vision import plot_confusion, plot_vision_curves, vision_table, write_vision_report

    console = Console()
    console.print(vision_table(folder))
    try:
        plot_vision_curves(folder)
        plot_confusion(folder)
    except ImportError as error:
        console.print(str(error), markup=False, highlight=False)
    console.print(f"report: {write_vision_report(folder)}", markup=False, highlight=False, soft_wrap=True)
