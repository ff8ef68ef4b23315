"""Distillation beside its controls and its ablations, five seeds: the table and the pictures of the README.

    python benchmarks/distillation_tables.py            # about 40 minutes on 2 cores

Takes the flags of recipes/distill_dual_path.py; runs that are done in --output_dir are not made again. Records, table
and pictures are benchmarks/results/distillation_<task>.jsonl, .md, .png and _curves.png.
"""

import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from scope_rlhf.experiments.distillation import compare_methods  # noqa: E402
from scope_rlhf.reports.distillation import write_distillation_table  # noqa: E402
from scope_rlhf.runtime.environment import device_name  # noqa: E402

RESULTS = ROOT / "benchmarks/results"


def main(argv: list[str]) -> None:
    task = argv[argv.index("--dataset_name") + 1] if "--dataset_name" in argv else "letters"
    made = compare_methods(["--full_table", *argv])
    rounded = [replace(r, metrics={k: float(f"{v:.6g}") for k, v in r.metrics.items()}) for r in made.results]
    written = write_distillation_table(
        rounded, RESULTS, made.folders, title=made.title, note=f"`python benchmarks/distillation_tables.py`, "
        f"{device_name()}, float32", ks=made.ks, name=f"distillation_{task}",
    )  # fmt: skip
    print(written)


if __name__ == "__main__":
    main(sys.argv[1:])
