"""Speed and memory beside TRL: one table for each suite, and no time for a result that is wrong.

    python -m benchmarks.run --suite head train growth
    python -m benchmarks.run --suite ppo --trl-python trl112/bin/python      # environment: benchmarks/ppo_update.py
    python -m benchmarks.run --suite head train generate step --device cuda --dtype bfloat16 --shape 12x768 gptj28x4096

Run it from the root of the repository, on a machine that does nothing else. Each suite says in benchmarks/speed/ what
is compared and what is not equal. Every variant's result is first compared with plain logits; one that is off by more
than its bound gets no time, and the command fails and names it.

A first repetition gives the results that are compared and is not timed; then the variants run in turn within each. On a
CPU a time is processor time of one thread, and a peak is what one call adds to the resident memory of a process of its
own; on a GPU they come from events and from the allocator. A ratio is the median over repetitions of ratios within one.

Written to --output-dir: speed_<suite>.json (everything measured) and speed_<suite>.md, with _cuda on a GPU.
"""

import argparse
import importlib
import json
import math
import os
import platform
import re
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.control_throughput import machine
from benchmarks.speed.measure import ROOT, Options, Section
from scope_rlhf.reports.markdown import escape_cell, markdown_table
from scope_rlhf.runtime.environment import package_versions, source_commit
from scope_rlhf.runtime.threads import threads

SUITES = ("head", "train", "generate", "padding", "step", "ppo", "growth", "objectives", "imdb")
CPU_ONLY = ("ppo", "imdb")


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, Options]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Options()

    def add(name: str, text: str, kind: Any = int, **more: Any) -> None:
        value = getattr(default, name.replace("-", "_"))
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        parser.add_argument(f"--{name}", type=kind, default=value, help=f"{text}; default {shown}", **more)

    parser.add_argument("--suite", nargs="+", choices=SUITES, required=True, help="which, in this order")
    add("output-dir", "where JSON and tables go", str)
    add("device", "where to measure", str, choices=("cpu", "cuda"))
    add("dtype", "of weights and hidden states, in the suites head and growth", str, choices=("float32", "bfloat16"))
    add("repetitions", "that count; one more comes first")
    parser.add_argument(
        "--shape", "--shapes", dest="shapes", nargs="+", default=default.shapes,
        help=f"layers x width of the GPT-2 models, or such as gptj28x4096; default {' '.join(default.shapes)}",
    )  # fmt: skip
    add("rows", "rows of the suite head")
    add("vocabulary", "tokens of the vocabulary")
    add("width", "of the hidden states of the suite head")
    add("batch", "completions of a micro-batch, or of an update")
    add("prompt", "tokens of a prompt")
    add("completion", "tokens of a completion")
    add("lengths", "of the suite growth", nargs="+")
    add("vocabularies", "of the suite growth", nargs="+")
    add("batches", "of the suite growth", nargs="+")
    add("updates", "of a process, in the suites that train; one more is discarded")
    add("beta", "weight of the KL to the reference in the suite step", float)
    parser.add_argument("--skip-peaks", action="store_true", help="measure times only")
    parser.add_argument("--trl-python", help="interpreter of an environment with TRL 1.12 (benchmarks/ppo_update.py)")
    args = parser.parse_args(argv)
    given = {name: tuple(x) if isinstance(x, list) else x for name, x in vars(args).items() if name != "suite"}
    options = Options(**given)
    for name, value in asdict(options).items():
        smallest = min(value) if isinstance(value, tuple) and value and isinstance(value[0], int) else value
        if isinstance(smallest, int) and not isinstance(smallest, bool) and smallest < 1:
            parser.error(f"--{name} must be at least 1, got {smallest}")
    if not options.beta >= 0:
        parser.error(f"--beta must be at least 0, got {options.beta}")
    for shape in options.shapes:
        if not re.fullmatch(r"(gptj)?[1-9]\d*x[1-9]\d*", shape):
            parser.error(f"--shape {shape} is not layers x width, such as 4x256, or gptj28x4096")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    if options.device == "cuda" and (only := [name for name in args.suite if name in CPU_ONLY]):
        parser.error(f"--suite {' '.join(only)} measures on a CPU only; leave --device out")
    if "ppo" in args.suite and (gptj := [shape for shape in options.shapes if shape.startswith("gptj")]):
        parser.error(f"--shape {' '.join(gptj)}: the suite ppo has GPT-2 models only")
    if "ppo" in args.suite:  # asked now, not after the suites that come before it
        try:
            importlib.import_module("benchmarks.speed.ppo").find_python(options.trl_python)
        except ValueError as error:
            parser.error(str(error))
    return args, options


def main(argv: list[str] | None = None) -> int:
    args, options = parse(argv)
    words = sys.argv[1:] if argv is None else argv
    console, faults = Console(), []
    if not console.is_terminal:
        console = Console(width=160)
    with threads(1):  # processor time of more threads is no time that anybody waits
        for name in args.suite:
            load = os.getloadavg()[0]
            sections = importlib.import_module(f"benchmarks.speed.{name}").run(options)
            about = {"suite": name, "command": shlex.join(["python", "-m", "benchmarks.run", *words])}
            about |= describe_machine(options, load)
            for section in sections:
                console.print(rich_table(section))
            write(name, about, options, sections)
            console.print(about["machine"], f"(load before: {load:.2f})", highlight=False)
            faults += [fault for section in sections for row in section.rows for fault in row.faults]
    for fault in faults:
        console.print(f"WRONG {fault}", style="bold red", highlight=False, markup=False)
    return 1 if faults else 0


def describe_machine(options: Options, load: float) -> dict[str, Any]:
    gpu = f", {torch.cuda.get_device_name()}" if options.device == "cuda" else ""
    commit = source_commit(ROOT) or {"commit": "?", "dirty": False}
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{machine()}{gpu}, one thread",
        "load before": round(load, 2),
        "commit": f"{str(commit['commit'])[:7]}{' with changes' if commit['dirty'] else ''}",
        "versions": {"python": platform.python_version()} | package_versions(),
    }


def rich_table(section: Section) -> Table:
    lines = section.lines()
    table = Table(title=section.title)
    for name in lines[0]:
        table.add_column(name, justify="left" if name in ("case", "variant", "result") else "right")
    for line in lines:
        table.add_row(*line.values())
    return table


def write(suite: str, about: dict[str, Any], options: Options, sections: list[Section]) -> None:
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"speed_{suite}" + ("_cuda" if options.device == "cuda" else "")
    settings = {name: value for name, value in asdict(options).items() if name != "output_dir"}
    tables = [asdict(section) for section in sections]
    text = json.dumps(about | {"options": settings, "sections": _without_nan(tables)}, indent=1, default=str)
    (folder / f"{stem}.json").write_text(text + "\n")
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    parts = [
        f"# Speed: {suite}",
        f"`{about['command']}`\\\nat commit {about['commit']}, {about['date']}: {about['machine']}, load before "
        f"{about['load before']}; {versions}. What is compared is said in benchmarks/speed/{suite}.py.",
    ]
    for section in sections:
        lines = section.lines()
        align = "".join("l" if name in ("case", "variant", "result") else "r" for name in lines[0])
        rows = [[escape_cell(cell) for cell in line.values()] for line in lines]
        parts += [f"## {section.title}", markdown_table([escape_cell(name) for name in lines[0]], rows, align)]
        parts += [f"![{section.title}]({file})" for file in section.files]
    (folder / f"{stem}.md").write_text("\n\n".join(parts) + "\n")


def _without_nan(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _without_nan(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
