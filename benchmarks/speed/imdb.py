"""The embedded IMDB run (recipes/imdb_scope.py), by the clock: with the speed settings off, and as it comes.

Both sides draw tokens by models.sampling, which has no setting: the run before it was slower still.

Equal: seed, policy, reward models, rollouts; a process for each side in each repetition, in turn, on one thread. A
rollout is 2 updates; --updates says how many are counted, and one rollout more comes first. Time: seconds of an update,
with sampling, scoring and reference, mean over those that count; run: the whole process's, with loading and a small
evaluation. Compared between the sides: reward before training; reward, gradient norm and loss (as a share of it) of the
first update. Later ones differ by what rounding does to sampling.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks.speed.measure import Options, Row, Section, run_python

OFF = "--head_impl trl --merge_for_rollout False --reuse_sampling_log_probs False --sort_by_length False"
SIDES = {"settings off": OFF.split(), "as it comes": []}
PER_ROLLOUT = 2
BOUNDS = {"reward before": 1e-6, "first reward": 1e-6, "first loss": 1e-4, "first gradient norm": 1e-3}


def train(flags: list[str], options: Options) -> dict[str, Any]:
    """What one process measured: seconds of updates that count, of the run, and the numbers that are compared."""
    with tempfile.TemporaryDirectory() as folder:
        steps = PER_ROLLOUT + -(-options.updates // PER_ROLLOUT) * PER_ROLLOUT
        start = time.perf_counter()
        run_python([
            "recipes/imdb_scope.py", "--output_dir", folder, "--max_steps", str(steps), "--logging_steps", "1",
            "--seed", "42", "--num_threads", "1", "--num_eval_prompts", "16", *flags,
        ])  # fmt: skip
        seconds = time.perf_counter() - start
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        before = json.loads((Path(folder) / "evaluation.json").read_text())["metrics"]["reward"]["before"]
    updates = [line for line in lines if "step_time" in line]
    counted = [line["step_time"] for line in updates[PER_ROLLOUT:]]
    return {
        "seconds": sum(counted) / len(counted),
        "run": seconds,
        "reward before": before,
        "first reward": updates[0]["reward"],
        "first loss": updates[0]["loss"],
        "first gradient norm": updates[0]["grad_norm"],
    }


def run(options: Options) -> list[Section]:
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in track(range(options.repetitions), "imdb", console=Console(stderr=True)):
        for side, flags in SIDES.items():
            found[side].append(train(flags, options))
    rows = []
    for side, runs in found.items():
        errors = {name: (worst_gap(name, runs, found["settings off"]), bound) for name, bound in BOUNDS.items()}
        row = Row("imdb", side, {} if side == "settings off" else errors)
        if not row.faults:
            row.seconds = [each["seconds"] for each in runs]
            row.more = {"run s": min(each["run"] for each in runs)}
        rows.append(row)
    return [Section("an update of the embedded IMDB run, by the clock", rows, baseline="settings off")]


def worst_gap(name: str, runs: list[dict[str, Any]], others: list[dict[str, Any]]) -> float:
    """Greatest |a - b|; of loss and gradient norm as a share of the others' gradient norm."""
    pairs = list(zip(runs, others, strict=True))
    return max(abs(a[name] - b[name]) / (1.0 if "reward" in name else b["first gradient norm"]) for a, b in pairs)
