"""Dual-path on-policy distillation (SCOPE, arXiv 2604.10688; not the Scope loss) beside its controls.

    python recipes/distill_dual_path.py                   # sorting letters: no GPU, no Hub; about 5 minutes on 2 cores
    python recipes/distill_dual_path.py --full_table      # with the paper's ablations, five seeds: about 40 minutes

Without arguments a small teacher and a smaller student are trained on the task (once, then kept), and from that start
plain on-policy distillation with 8 completions of a prompt (the control) and with 1, GRPO, and dual-path distillation.
Rows of your own: --methods opd "scope tau=0.5" "scope weights=student"; --dataset_name arithmetic is the other task.

The pairs of the paper, with the Hub and GPUs (not run by us):

    accelerate launch recipes/distill_dual_path.py --config recipes/configs/distill_qwen3_1.7b.yaml
    accelerate launch recipes/distill_dual_path.py --config recipes/configs/distill_r1_1.5b.yaml

The folder holds table.md with intervals and paired differences, pictures, and a run folder with the model of each row.
"""

import sys

from scope_rlhf.runtime import run_main


def main(argv: list[str]) -> int:
    from scope_rlhf.experiments.distillation import main as experiment

    return experiment(argv)


if __name__ == "__main__":
    sys.exit(run_main(main))
