"""Whole optimizer steps of GRPO by `trainer.train()`, sampling included: TRL's trainer and ours, a process for each.

- trl: GRPOTrainer. scope: ScopeGRPOTrainer as it comes. scope, bfloat16 rollout: with --rollout_dtype bfloat16; it is
  left out where the device has no instructions for it. scope, oneDNN off: as scope, with torch's own float32 products,
  where ours are oneDNN's (models/products.py).

Each step samples --batch completions of --completion tokens in groups of 4 and takes one optimizer step on them; what
is equal is said in sides.py. --beta 0 is the default of both, without a reference; else both score it. The sides run in
turn in each of --repetitions rounds; a time is the median over --updates steps of a process, one step more comes first.
Peak: of the whole process, with libraries and weights. Compared: sampled tokens and optimizer steps with TRL's, and the
sampler's log-probs with those of the training pass, by their mean distance, 1e-4, and .05 after a bfloat16 rollout.
What is wrong in both alike is seen by the suites train and generate.
"""

import json
import resource
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from benchmarks.speed.measure import (
    ONEDNN_OFF,
    Options,
    Row,
    Section,
    find_options,
    offered,
    products_of,
    run_python,
)

SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "trl": ("trl", {}),
    "scope": ("scope", {}),
    "scope" + ONEDNN_OFF: ("scope", {}),
    "scope, bfloat16 rollout": ("scope", {"rollout_dtype": "bfloat16"}),
}


def work() -> None:
    """One process: train as the command line says and print what was measured."""
    from benchmarks.ppo_update import Meter
    from benchmarks.speed.sides import make_policy, make_trainer

    torch.set_num_threads(1)
    shape, variant, given = json.loads(sys.argv[1])
    options = find_options(given)
    side, settings = SIDES[variant]
    meter = Meter(1)
    with tempfile.TemporaryDirectory() as folder, products_of(variant):
        trainer = make_trainer(
            side, make_policy(shape, options), options, Path(folder), [meter], max_steps=options.updates + 1,
            beta=options.beta, **settings,
        )  # fmt: skip
        trainer.train()
    measured = meter.updates[1:]  # the first warms up
    key = "cpu_seconds" if options.device == "cpu" else "seconds"
    gaps = [line[name] for line in trainer.state.log_history if (name := "rollout/log_prob_gap") in line]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 2**10)
    report = {
        "seconds": statistics.median(update[key] for update in measured),
        "sampling": statistics.median(update["sampling_cpu_seconds"] for update in measured),
        "tokens": [update["tokens"] for update in measured],
        "steps": [update["steps"] for update in measured],
        "gap": max(gaps, default=None),
        "peak_mib": peak if options.device == "cpu" else torch.cuda.max_memory_allocated() / 2**20,
    }
    print(f"\n{json.dumps(report)}")


def launch(shape: str, variant: str, options: Options) -> dict[str, Any]:
    given = json.dumps([shape, variant, asdict(options)])
    done = run_python(["-c", "from benchmarks.speed.step import work; work()", given])
    return json.loads(done.stdout.splitlines()[-1])


def run(options: Options) -> list[Section]:
    sides, rows = offered(SIDES, options), []
    for shape in options.shapes:
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for _ in track(range(options.repetitions), f"step {shape}", console=Console(stderr=True)):
            for side in sides:
                runs[side].append(launch(shape, side, options))
        rows += [row_of(shape, side, runs[side], runs["trl"], options) for side in sides]
    size = f"{options.batch} x ({options.prompt} + {options.completion}), V {options.vocabulary}, {options.dtype}"
    title = f"a GRPO step with sampling, {size}, beta {options.beta:g}"
    return [Section(title, rows)]


def row_of(shape: str, side: str, runs: list[dict[str, Any]], others: list[dict[str, Any]], options: Options) -> Row:
    pairs = list(zip(runs, others, strict=True))
    differ = {
        f"{name} unlike TRL's": float(sum(a != b for x, y in pairs for a, b in zip(x[name], y[name], strict=True)))
        for name in ("tokens", "steps")
    }
    row = Row(shape, side, {name: (count, 0.0) for name, count in differ.items()})
    gaps = [each["gap"] for each in runs if each["gap"] is not None]
    if gaps:
        row.errors["mean log p"] = (max(gaps), 0.05 if "bfloat16" in side else 1e-4)
    if not row.faults:
        row.seconds = [each["seconds"] for each in runs]
        row.peak_mib = None if options.skip_peaks else statistics.median(each["peak_mib"] for each in runs)
        row.tokens = options.batch * (options.prompt + options.completion)
        row.more = {"of it sampling ms": 1e3 * statistics.median(each["sampling"] for each in runs)}
    return row
