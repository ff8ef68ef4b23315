"""The embedded TL;DR chain: objectives by seeds, win rates over SFT and over the references by the held-out judge.

    python benchmarks/tldr_table.py --output_dir runs/tldr_table --jobs 2     # 15 runs on two cores, about an hour

Every run is `recipes/tldr_scope.py` with its defaults but for --objective and --seed; SFT model, reward model and judge
are made once and are the same for all. The win rate's interval resamples seeds and, within them, prompts; the 256
prompts of the other figures and the 512 of the win rate are of part `eval`, on which nothing was chosen. No run is left
out; finished stages are kept, so that the command can be repeated after an interruption.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from scope_rlhf.metrics import interval_over_runs
from scope_rlhf.reports.markdown import markdown_table
from scope_rlhf.reports.win_rate import plot_win_rates
from scope_rlhf.runtime import write_text
from scope_rlhf.runtime.files import read_json_lines

ROOT = Path(__file__).resolve().parents[1]
OBJECTIVES = {
    "scope": ["--objective", "scope"],
    "symmetric": ["--objective", "symmetric", "--objective_kwargs", '{"alpha": 0.5, "beta": 0.2}'],
    "ppo": ["--objective", "ppo"],
    "focal": ["--objective", "focal"],
    "policy_entropy": ["--objective", "policy_entropy"],
}
HEADER = (
    "objective", "win rate over SFT", "length-controlled", "win rate over references", "words RL / SFT",
    "without end RL / SFT", "judge", "reward", "KL (nats)", "perplexity",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/tldr_table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[43, 44, 45])
    parser.add_argument("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--algorithm", choices=["ppo", "grpo"], default="ppo")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one thread each")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="flags for every run, last on the line")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    runs = [(objective, seed) for seed in args.seeds for objective in args.objectives]

    def train(run: tuple[str, int]) -> None:
        objective, seed = run
        words = [
            "--algorithm", args.algorithm, *OBJECTIVES[objective], "--seed", str(seed), "--output_dir",
            str(args.output_dir), "--disable_tqdm", "true", *args.flags,
        ]  # fmt: skip
        command = [sys.executable, str(ROOT / "recipes" / "tldr_scope.py"), *words]
        threads = {"OMP_NUM_THREADS": "1"} if args.jobs > 1 else {}
        with (args.output_dir / f"{args.algorithm}-{objective}-{seed}.log").open("w") as log:
            subprocess.run(command, check=True, env={**os.environ, **threads}, stdout=log, stderr=log)

    progress = tqdm(total=len(runs), desc="runs")
    train(runs[0])  # makes the stages that all share
    progress.update()
    with ThreadPoolExecutor(args.jobs) as pool:
        for _ in pool.map(train, runs[1:]):
            progress.update()
    rows = [summarise(args.output_dir, args.algorithm, objective, args.seeds) for objective in args.objectives]
    table = Table(*HEADER, title=f"{args.algorithm}, seeds {args.seeds}")
    for row in rows:
        table.add_row(*row)
    every = [
        (objective, str(seed), *per_seed(args.output_dir, args.algorithm, objective, seed))
        for objective in args.objectives
        for seed in args.seeds
    ]
    text = markdown_table(HEADER, rows) + "\n\n" + markdown_table(("objective", "seed", *HEADER[1:]), every)
    write_text(args.output_dir / f"tldr_{args.algorithm}.md", text + "\n")
    draw(args.output_dir, args.algorithm, args.objectives, args.seeds)
    Console().print(table, args.output_dir / f"tldr_{args.algorithm}.md")


def draw(root: Path, algorithm: str, objectives: list[str], seeds: list[int]) -> None:
    """Every run's win rate over SFT, with and without length control, as a picture."""
    summaries = []
    for objective in objectives:
        for seed in seeds:
            found = results(root, f"winrate-{algorithm}-{objective}-{seed}")[1]["comparisons"][0]
            summaries.append({**found, "system_a": {**found["system_a"], "name": f"{objective}, seed {seed}"}})
    plot_win_rates(summaries, root / f"tldr_{algorithm}.png")


def results(root: Path, stage: str) -> tuple[Path, dict[str, Any]]:
    """Folder and results of the one stage of that name."""
    found = [path for path in root.glob(f"{stage}-*") if (path / "stage.json").exists()]
    if len(found) != 1:
        raise SystemExit(f"{root} holds {len(found)} finished stages {stage}; give another --output_dir")
    return found[0], json.loads((found[0] / "stage.json").read_text())["results"]


def per_seed(root: Path, algorithm: str, objective: str, seed: int) -> list[str]:
    """The cells of one run."""
    metrics = results(root, f"{algorithm}-{objective}-{seed}")[1]["metrics"]
    over_sft, over_references, _ = results(root, f"winrate-{algorithm}-{objective}-{seed}")[1]["comparisons"]

    def rate(found: dict[str, Any]) -> str:
        return f"{100 * found['value']:.1f} % [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"

    sides = (over_sft["system_a"], over_sft["system_b"])
    return [
        rate(over_sft["win_rate"]["rate"]),
        rate(over_sft["length_controlled"]),
        rate(over_references["win_rate"]["rate"]),
        " / ".join(f"{side['mean_length_words']:.1f}" for side in sides),
        " / ".join(f"{100 * side['share_without_eos']:.1f} %" for side in sides),
        *(f"{metrics[name]['before']:.2f} -> {metrics[name]['after']:.2f}" for name in ("judge", "reward")),
        f"{metrics['kl']['after']:.1f}",
        f"{metrics['perplexity']['before']:.1f} -> {metrics['perplexity']['after']:.1f}",
    ]


def summarise(root: Path, algorithm: str, objective: str, seeds: list[int]) -> list[str]:
    """Means over the seeds; the win rates with their interval over seeds and prompts."""
    comparisons = [results(root, f"winrate-{algorithm}-{objective}-{seed}") for seed in seeds]
    metrics = [results(root, f"{algorithm}-{objective}-{seed}")[1]["metrics"] for seed in seeds]

    def rate(name: str) -> str:
        scores = [[row["score"] for row in read_json_lines(folder / name / "pairs.jsonl")] for folder, _ in comparisons]
        found = interval_over_runs(scores)
        return f"{100 * found.value:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"

    firsts = [found["comparisons"][0] for _, found in comparisons]

    def mean(values: list[float]) -> float:
        return statistics.fmean(values)

    def sides(key: str, scale: float, unit: str = "") -> str:
        return " / ".join(f"{scale * mean([s[x][key] for s in firsts]):.1f}{unit}" for x in ("system_a", "system_b"))

    def change(name: str, form: str) -> str:
        return " -> ".join(f"{mean([m[name][side] for m in metrics]):{form}}" for side in ("before", "after"))

    controlled = [s["length_controlled"]["value"] for s in firsts]
    spread = statistics.stdev(controlled) if len(controlled) > 1 else 0.0
    return [
        objective,
        rate("rl-sft"),
        f"{100 * mean(controlled):.1f} +- {100 * spread:.1f} %",
        rate("rl-references"),
        sides("mean_length_words", 1),
        sides("share_without_eos", 100, " %"),
        change("judge", ".2f"),
        change("reward", ".2f"),
        f"{mean([m['kl']['after'] for m in metrics]):.1f}",
        change("perplexity", ".1f"),
    ]


if __name__ == "__main__":
    main()
