"""Train the small GPT-2 that ships with the package (embedded/documentation-gpt2) on docstrings.

Expected outcome: see the card of the shipped model. The texts are those of the installed packages, so other versions
give a slightly other model. An interrupted run goes on from its last checkpoint, a finished one with a larger
--max_steps.

    python recipes/train_documentation_gpt2.py --output_dir runs/documentation-gpt2

`--help` lists sizes, rates and steps. The float16 model, tokenizer, training.json and card are in <output_dir>/final.
"""

import sys

from scope_rlhf.runtime import run_main


def main(argv: list[str]) -> int:
    from scope_rlhf.experiments.small_gpt2 import main as experiment

    return experiment(argv, "documentation")


if __name__ == "__main__":
    sys.exit(run_main(main))
