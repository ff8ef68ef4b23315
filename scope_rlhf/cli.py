"""The console script `scope-rlhf`. Heavy imports live inside the commands, so that --help is instant."""

import argparse
import sys
from collections.abc import Sequence

from scope_rlhf import __version__
from scope_rlhf.cli_help import (
    CONTROL_HELP,
    EVALUATE_HELP,
    GRPO_HELP,
    PASSK_HELP,
    PPO_HELP,
    VISION_HELP,
    WINRATE_HELP,
)
from scope_rlhf.runtime.launch import run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 for a failed check, 2 for a user's mistake."""
    return run_main(_dispatch, argv)


def build_parser() -> argparse.ArgumentParser:
    """All commands, without the flags of those that the experiments parse."""
    parser = argparse.ArgumentParser(
        prog="scope-rlhf",
        description="RLHF with exchangeable policy objectives.",
        epilog="`--traceback`, or SCOPE_RLHF_TRACEBACK=1, shows the traceback of an error.",
    )
    parser.add_argument("--version", action="version", version=f"scope-rlhf {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)

    commands.add_parser("grpo", help="train with GRPO and any objective", add_help=False)
    commands.add_parser("ppo", help="train with PPO, any objective and any critic", add_help=False)
    commands.add_parser("control", help="PPO, A2C or DQN on Atari, Procgen, MuJoCo, Box2D", add_help=False)
    commands.add_parser("vision", help="image classification with any objective, long tails", add_help=False)
    commands.add_parser("winrate", help="compare two systems by a judge", add_help=False)
    commands.add_parser("evaluate", help="rewards, KL and ROUGE of systems; over-optimisation of runs", add_help=False)
    commands.add_parser("passk", help="Avg@k and Pass@k of systems on verifiable problems", add_help=False)

    objectives = commands.add_parser(
        "objectives",
        help="list the objectives, or check your own",
        description="Without a subcommand: names, parameters with their defaults, and formulas.",
    )
    actions = objectives.add_subparsers(dest="action", metavar="action")
    check = actions.add_parser(
        "check",
        help="run the contract on an objective",
        description="Run the contract of objectives: gradients, masks, extremes, dtypes, pickling. Exit status 1 if a "
        "check fails.",
    )
    check.add_argument("objective", metavar="NAME", help="catalogue name, path/to/file.py:Class, or module:Class")
    check.add_argument("--objective_kwargs", metavar="JSON", help="parameters, such as '{\"alpha\": 0.3}'")

    commands.add_parser("env", help="versions for a bug report", description="Versions and the machine. No network.")

    report = commands.add_parser(
        "report", help="rewrite the report of run folders", description="Rewrite report.md and curves.png."
    )
    report.add_argument("runs", nargs="+", metavar="RUN_DIR")

    frontier = commands.add_parser(
        "frontier",
        help="draw score against KL over several runs",
        description="One line for each objective through its KL coefficients, from finished run folders.",
    )
    frontier.add_argument("runs", nargs="+", metavar="RUN_DIR")
    frontier.add_argument("--output", default="frontier.png", metavar="FILE.png", help="default: frontier.png")
    frontier.add_argument("--metric", default="judge", help="metric of evaluation.json on the y axis; default: judge")
    return parser


def _dispatch(argv: list[str]) -> int | None:
    if argv and argv[0] in ("grpo", "ppo"):
        return _train(argv[0], argv[1:])
    if argv and argv[0] == "control":
        return _control(argv[1:])
    if argv and argv[0] == "vision":
        return _vision(argv[1:])
    if argv and argv[0] in ("winrate", "evaluate", "passk"):
        return _measure(argv[0], argv[1:])
    arguments = build_parser().parse_args(argv)
    if arguments.command == "objectives":
        return _check(arguments) if arguments.action == "check" else _list_objectives()
    return {"env": _environment, "report": _report, "frontier": _frontier}[arguments.command](arguments)


def _train(algorithm: str, argv: list[str]) -> int | None:
    if {"-h", "--help"} & set(argv):
        print(GRPO_HELP if algorithm == "grpo" else PPO_HELP, end="")
        return 0
    from scope_rlhf.experiments import imdb

    return imdb.main(["--help"] if "--help-all" in argv else argv, f"scope-rlhf {algorithm}", algorithm)


def _control(argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print(CONTROL_HELP, end="")
        return 0
    from scope_rlhf.experiments.control import main

    return main(argv, "scope-rlhf control")


def _vision(argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print(VISION_HELP, end="")
        return 0
    from scope_rlhf.experiments.vision import main

    return main(argv, "scope-rlhf vision")


def _measure(command: str, argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print({"winrate": WINRATE_HELP, "evaluate": EVALUATE_HELP, "passk": PASSK_HELP}[command], end="")
        return 0
    if command == "winrate":
        from scope_rlhf.experiments.win_rate import main
    elif command == "passk":
        from scope_rlhf.experiments.passk import main
    else:
        from scope_rlhf.experiments.evaluate import main

    return main(argv, f"scope-rlhf {command}")


def _list_objectives() -> None:
    from dataclasses import fields, is_dataclass

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from scope_rlhf.objectives import OBJECTIVES

    table = Table("name", "parameters", "loss per decision, minimised", show_lines=True)
    for name, objective in OBJECTIVES.items():
        parameters = [f"{field.name}={field.default}" for field in fields(objective)] if is_dataclass(objective) else []
        table.add_row(name, Text("\n".join(parameters)), Text(objective.formula))
    console = Console()
    console.print(table)
    console.print(
        "Your own: --objective path/to/file.py:Class or module:Class; "
        "`scope-rlhf objectives check` runs the contract on it.",
        markup=False,
        highlight=False,
    )


def _check(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from scope_rlhf.objectives import check_objective, make_objective
    from scope_rlhf.runtime.settings import json_object

    objective = make_objective(
        arguments.objective, **(json_object("objective_kwargs", arguments.objective_kwargs) or {})
    )
    results = check_objective(objective)
    table = Table("", "check", "")
    for result in results:
        verdict = Text("passed", "green") if result.passed else Text("FAILED", "bold red")
        table.add_row(verdict, result.name, Text(result.detail))
    failed = sum(not result.passed for result in results)
    console = Console()
    console.print(table)
    summary = f"{failed} of {len(results)} checks failed" if failed else f"all {len(results)} checks passed"
    console.print(f"{arguments.objective}: {summary}", markup=False, highlight=False)
    return 1 if failed else 0


def _environment(_: argparse.Namespace) -> None:
    from scope_rlhf.runtime.environment import device_name, environment_report

    report = environment_report()
    report["device"] = device_name() if report["torch"] != "not installed" else "unknown without torch"
    for name, value in report.items():
        print(f"- {name}: {value}")


def _report(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from scope_rlhf.reports.control import is_control_run, plot_control_curves, write_control_report
    from scope_rlhf.reports.curves import plot_curves
    from scope_rlhf.reports.run_report import write_report
    from scope_rlhf.reports.vision import is_vision_run, plot_confusion, plot_vision_curves, write_vision_report

    for run in arguments.runs:
        if is_vision_run(run):
            measured = (Path(run) / "evaluation.json").exists()
            print(plot_vision_curves(run), *([plot_confusion(run)] if measured else []), sep="\n")
            print(write_vision_report(run))
            continue
        control = is_control_run(run)
        # The report links the picture, so the picture comes first.
        print(plot_control_curves(run) if control else plot_curves(run))
        print(write_control_report(run) if control else write_report(run))


def _frontier(arguments: argparse.Namespace) -> None:
    from scope_rlhf.reports.frontier import plot_frontier, read_frontier

    names = {"judge": "held-out judge, mean score", "reward": "training reward, mean score"}
    points = read_frontier(arguments.runs, arguments.metric)
    print(plot_frontier(points, arguments.output, names.get(arguments.metric, arguments.metric)))


if __name__ == "__main__":
    sys.exit(main())
