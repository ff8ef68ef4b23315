"""Train the small GPT-2 that ships with the package (embedded/reviews-gpt2) on real film reviews.

Expected outcome: held-out perplexity about 50 after some 28 million tokens: the shipped model has 49.3, in three stages
that its card names, 3.7 hours on 2 CPU cores that had other work too. Needs `pip install -e ".[demo]"`. An interrupted
run goes on from its last checkpoint, a finished one with a larger --max_steps.

    python recipes/train_reviews_gpt2.py --output_dir runs/reviews-gpt2

`--help` lists sizes, rates and steps. The float16 model, tokenizer, training.json and card are in <output_dir>/final.
"""

import sys

from scope_rlhf.runtime import run_main


def main(argv: list[str]) -> int:
    from scope_rlhf.experiments.small_gpt2 import main as experiment

    return experiment(argv, "reviews")


if __name__ == "__main__":
    sys.exit(run_main(main))
