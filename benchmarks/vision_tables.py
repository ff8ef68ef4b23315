"""Every objective and remedy on long-tailed and on balanced digits, 10 seeds: the tables and pictures of the README.

    python benchmarks/vision_tables.py                     # 8 minutes a table on 2 cores
    python benchmarks/vision_tables.py ratio50 --report    # from the records alone

Runs are folders of --output_dir; those that are finished are not made again. Records, tables and pictures are
benchmarks/results/vision_<table>.jsonl, .md and .png.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from scope_rlhf.experiments.vision_table import cell_argv, expand_rows, run_cells  # noqa: E402
from scope_rlhf.metrics import (  # noqa: E402
    SeedResult,
    compare,
    student_interval,
)
from scope_rlhf.reports.markdown import inline_code, markdown_table  # noqa: E402
from scope_rlhf.reports.seed_table import read_results  # noqa: E402
from scope_rlhf.reports.vision_table import write_vision_table  # noqa: E402
from scope_rlhf.runtime import read_json_lines, write_text  # noqa: E402

RESULTS = ROOT / "benchmarks/results"
SEEDS = 10
TABLES = {
    "ratio50": ("Digits, long tail 50", ["all"], ["--imbalance_ratio", "50"]),
    "ratio100": ("Digits, long tail 100", ["all"], ["--imbalance_ratio", "100"]),
    "balanced": ("Digits, balanced", ["catalogue", "alphas"], ["--imbalance_ratio", "1"]),
}
# Validation accuracies whose first epoch is told.
LEVELS = (0.95, 0.98)


def epochs_to(folder: Path, level: float) -> float | None:
    """The first epoch whose balanced accuracy on the validation part reaches the level."""
    rows = read_json_lines(folder / "metrics.jsonl")
    reached = [row["epoch"] for row in rows if row.get("validation/balanced_accuracy", 0) >= level]
    return float(reached[0]) if reached else None


def collect(name: str, output: Path, jobs: int) -> list[SeedResult]:
    """Run what is missing; results with the epochs to each level."""
    _, rows, flags = TABLES[name]
    cells = [(row, seed, cell_argv(row, flags, output, seed), None) for seed in range(1, SEEDS + 1)
             for row in expand_rows(rows)]  # fmt: skip
    results = run_cells(cells, jobs, False, {})
    found = []
    for result, (_, _, argv, _) in zip(results, cells, strict=True):
        folder = Path(argv[argv.index("--output_dir") + 1])
        more = {f"epochs_to_{level:g}": epochs_to(folder, level) for level in LEVELS}
        metrics = {key: float(f"{value:.6g}") for key, value in {**result.metrics, **more}.items() if value is not None}
        found.append(replace(result, metrics=metrics))
    return found


def made_by(folder: Path) -> dict[str, str]:
    """Commits and versions that the runs of a table were made with."""
    configs = [json.loads(file.read_text()) for file in folder.glob("*/seed-*/config.json")]
    commits = sorted({str((config.get("source") or {}).get("commit", "?"))[:7] for config in configs})
    return {
        "commit": ", ".join(commits),
        "torch": ", ".join(sorted({config["versions"]["torch"] for config in configs})),
    }


def speed_section(results: list[SeedResult]) -> str:
    """Epochs to each level, and the paired difference to the first row."""
    cells = []
    for row in dict.fromkeys(result.row for result in results):
        line = [inline_code(row)]
        for level in LEVELS:
            key = f"epochs_to_{level:g}"
            reached = [result.metrics[key] for result in results if result.row == row and key in result.metrics]
            gap = compare(results, key)[row][1] if reached else None
            mean = f"{student_interval(reached).value:.1f} ({len(reached)} seeds)" if reached else "-"
            line += [mean, "-" if gap is None else f"{gap.value:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]"]
        cells.append(line)
    header = ["row"] + [text for level in LEVELS for text in (f"epochs to {level:.0%}", "minus first row [95 %]")]
    return f"## Epochs until the validation accuracy is reached\n\n{markdown_table(header, cells, 'lrrrr')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=list(TABLES), metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/vision_tables"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="from the records, without training")
    args = parser.parse_args()
    for name in args.tables:
        if name not in TABLES:
            parser.error(f"unknown table {name}; valid: {', '.join(TABLES)}")
        title, _, _ = TABLES[name]
        records = RESULTS / f"vision_{name}.jsonl"
        results = read_results(records) if args.report else collect(name, args.output_dir / name, args.jobs)
        stamp = RESULTS / f"vision_{name}.json"
        if not args.report:
            write_text(stamp, json.dumps(made_by(args.output_dir / name)) + "\n")
        made = json.loads(stamp.read_text())
        note = (
            f"`python benchmarks/vision_tables.py {name}`, commit {made['commit']}, torch {made['torch']}, one thread "
            "a run. A small CNN, 40 epochs of Adam; the epoch of the best balanced accuracy on the validation part is "
            "measured on 359 test images. ppo is cross-entropy; policy_entropy with its published alpha of 8e-6 "
            "differs from it by rounding, so that its row shows what chance does."
        )
        written = write_vision_table(results, RESULTS, title=title, note=note, name=f"vision_{name}")
        if name == "balanced":
            write_text(written, written.read_text() + "\n" + speed_section(results) + "\n")
        print(written)


if __name__ == "__main__":
    main()
