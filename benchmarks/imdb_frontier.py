"""Reward against KL on the embedded IMDB run: objectives by KL coefficients by seeds, one picture and one table.

    python benchmarks/imdb_frontier.py --output_dir runs/frontier                     # 16 runs, 40 minutes
    python benchmarks/imdb_frontier.py --output_dir runs/frontier --seeds 42 43 44    # with seeds

Every run is `recipes/imdb_scope.py` with its defaults but for the objective, --beta and --seed. Beside `symmetric`
stands its control, `ppo` with policy_coef = alpha + beta: as published, symmetric PPO is PPO with the policy term
rescaled.
Finished runs are kept, so that the command can be repeated after an interruption.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from scope_rlhf.reports import plot_frontier, read_frontier
from scope_rlhf.reports.markdown import markdown_table
from scope_rlhf.runtime import RunFolder, write_text

ROOT = Path(__file__).resolve().parents[1]
OBJECTIVES = {
    "ppo": ["--objective", "ppo"],
    "scope": ["--objective", "scope"],
    "symmetric": ["--objective", "symmetric", "--objective_kwargs", '{"alpha": 0.5, "beta": 0.4}'],
    "ppo_control": ["--objective", "ppo", "--objective_kwargs", '{"policy_coef": 0.9}'],
}

LANGUAGE = {"perplexity": ".1f", "distinct_2": ".3f"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--betas", type=float, nargs="+", default=[0.04, 0.08, 0.16, 0.32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="flags for every run, last on the line")
    args = parser.parse_args()
    runs = [(name, beta, seed) for seed in args.seeds for beta in args.betas for name in args.objectives]
    folders = []
    for name, beta, seed in tqdm(runs, desc="runs"):
        folder = args.output_dir / f"{name}-beta{beta:g}-seed{seed}"
        folders.append(folder)
        if (folder / "evaluation.json").exists():
            continue
        words = [*OBJECTIVES[name], "--beta", str(beta), "--seed", str(seed), "--output_dir", str(folder), *args.flags]
        subprocess.run([sys.executable, str(ROOT / "recipes" / "imdb_scope.py"), *words], check=True)
    points = read_frontier(folders)
    plot_frontier(points, args.output_dir / "frontier.png")
    header = ("run", "KL (nats per sequence)", "judge", "95 % of the change", "perplexity", "distinct-2")
    rows = []
    for folder, point in zip(folders, points, strict=True):
        evaluation = RunFolder(folder).read_evaluation()
        assert evaluation is not None
        language = [f"{evaluation['metrics'][name]['after']:{form}}" for name, form in LANGUAGE.items()]
        interval = f"[{point.low:.3f}, {point.high:.3f}]"
        rows.append((folder.name, f"{point.kl:.2f}", f"{point.score:.3f}", interval, *language))
    table = Table(*header, title="held-out judge against KL")
    for row in rows:
        table.add_row(*row)
    write_text(args.output_dir / "frontier.md", markdown_table(header, rows) + "\n")
    Console().print(table, args.output_dir / "frontier.png")


if __name__ == "__main__":
    main()
