"""Control from the command line: PPO, A2C or DQN on an environment, then a table, curves and a report."""

from collections.abc import Sequence
from pathlib import Path

from scope_rlhf.experiments.control_arguments import parse_control
from scope_rlhf.runtime.launch import is_main_process
from scope_rlhf.runtime.threads import set_threads


def main(argv: Sequence[str], prog: str | None = None, suite: str | None = None, algorithm: str | None = None) -> int:
    """One run; 0 where it came to its end. ValueError and ImportError for a user's mistake, OSError for a file."""
    from scope_rlhf.control.a2c import train_a2c
    from scope_rlhf.control.dqn import train_dqn
    from scope_rlhf.control.ppo import train_ppo

    chosen, config = parse_control(argv, prog, suite, algorithm)
    set_threads(config.num_threads)
    train = {"ppo": train_ppo, "a2c": train_a2c, "dqn": train_dqn}[chosen]
    folder = train(config)  # type: ignore[operator]
    if is_main_process():
        report(folder)
    return 0


def report(folder: Path) -> None:
    """Write curves.png and report.md of a finished run, and print the table."""
    from rich.console import Console

    from scope_rlhf.reports.control import plot_control_curves, result_table, write_control_report

    console = Console()
    console.print(result_table(folder))
    try:
        plot_control_curves(folder)
    except ImportError as error:
        console.print(str(error), markup=False, highlight=False)
    console.print(f"report: {write_control_report(folder)}", markup=False, highlight=False, soft_wrap=True)
