"""PPO on the embedded IMDB run: objectives by critics by seeds, one table with mean and spread over seeds.

    python benchmarks/imdb_ppo_table.py --output_dir runs/ppo_table --jobs 2      # 27 runs on two cores, about an hour

Every run is `recipes/imdb_scope.py --algorithm ppo` with its defaults but for --objective, --critic and --seed. The
coefficient and the support of each critic are those of the recipe (chosen on seeds 7, 8 and 42, which are not in the
table; that of mse after a look at two runs of seed 43, see results/imdb_ppo.md). No run is left out; finished runs are
kept, so that the command can be repeated after an interruption.
"""

import argparse
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from scope_rlhf.reports.markdown import markdown_table
from scope_rlhf.runtime import RunFolder, write_text

ROOT = Path(__file__).resolve().parents[1]
OBJECTIVES = {
    "ppo": ["--objective", "ppo"],
    "scope": ["--objective", "scope"],
    "symmetric": ["--objective", "symmetric", "--objective_kwargs", '{"alpha": 0.5, "beta": 0.4}'],
}
CRITICS = ("mse", "hl_gauss", "two_hot")
COLUMNS = {
    "judge": ".3f", "reward": ".3f", "kl": ".1f", "perplexity": ".1f", "distinct_2": ".3f",
    "explained_variance": ".2f", "minutes": ".1f",
}  # fmt: skip
# The explained variance of one rollout is noisy: the mean over the last rollouts.
LAST = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/ppo_table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[43, 44, 45])
    parser.add_argument("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--critics", nargs="+", choices=CRITICS, default=list(CRITICS))
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one thread each")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="flags for every run, last on the line")
    args = parser.parse_args()
    cells = [(objective, critic) for objective in args.objectives for critic in args.critics]
    runs = [(cell, seed) for seed in args.seeds for cell in cells]

    def folder(cell: tuple[str, str], seed: int) -> Path:
        return args.output_dir / f"{cell[0]}-{cell[1]}-seed{seed}"

    def train(run: tuple[tuple[str, str], int]) -> None:
        (objective, critic), seed = run
        path = folder(*run)
        if (path / "evaluation.json").exists():
            return
        words = [
            "--algorithm", "ppo", *OBJECTIVES[objective], "--critic", critic, "--seed", str(seed), "--output_dir",
            str(path), "--disable_tqdm", "true", *args.flags,
        ]  # fmt: skip
        command = [sys.executable, str(ROOT / "recipes" / "imdb_scope.py"), *words]
        threads = {"OMP_NUM_THREADS": "1"} if args.jobs > 1 else {}
        with (args.output_dir / f"{path.name}.log").open("w") as log:
            subprocess.run(command, check=True, env={**os.environ, **threads}, stdout=log, stderr=log)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(tqdm(pool.map(train, runs), total=len(runs), desc="runs"))
    header = ("objective", "critic", *COLUMNS)
    summary, every = [], []
    for cell in cells:
        results = [measure(folder(cell, seed)) for seed in args.seeds]
        for seed, result in zip(args.seeds, results, strict=True):
            every.append((*cell, str(seed), *(f"{result[name]:{form}}" for name, form in COLUMNS.items())))
        summary.append((*cell, *(spread([r[name] for r in results], form) for name, form in COLUMNS.items())))
    table = Table(*header, title=f"mean and standard deviation over the seeds {args.seeds}")
    for row in summary:
        table.add_row(*row)
    text = markdown_table(header, summary) + "\n\n" + markdown_table(("objective", "critic", "seed", *COLUMNS), every)
    write_text(args.output_dir / "imdb_ppo.md", text + "\n")
    Console().print(table, args.output_dir / "imdb_ppo.md")


def measure(path: Path) -> dict[str, float]:
    """The measurements of one finished run; `minutes` is the whole of it, start and evaluation included."""
    run = RunFolder(path)
    evaluation = run.read_evaluation()
    assert evaluation is not None
    explained = [row["value/explained_variance"] for row in run.read_metrics() if "value/explained_variance" in row]
    result = {name: row["after"] for name, row in evaluation["metrics"].items()}
    return {**result, "explained_variance": statistics.mean(explained[-LAST:]), "minutes": evaluation["seconds"] / 60}


def spread(values: list[float], form: str) -> str:
    """mean +- standard deviation (unbiased)."""
    return f"{statistics.mean(values):{form}} +- {statistics.stdev(values) if len(values) > 1 else 0.0:{form}}"


if __name__ == "__main__":
    main()
