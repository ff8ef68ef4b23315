"""IMDB sentiment: a language model learns to go on positively, by GRPO or PPO under the Scope objective.

No arguments: the small GPT-2 and the sentiment models that ship with the package, real review beginnings as prompts, no
Hub and no GPU; under 3 minutes on 2 CPU cores.

    accelerate launch recipes/imdb_scope.py
    accelerate launch recipes/imdb_scope.py --algorithm ppo       # with a critic: mse, hl_gauss or two_hot by --critic

The setting of the paper, with the Hub (arXiv 2405.17618: GPT-2, 64 prompt and 48 new tokens):

    accelerate launch recipes/imdb_scope.py --model_name_or_path gpt2 --dataset_name stanfordnlp/imdb \\
        --reward_model_name_or_path lvwerra/distilbert-imdb
    accelerate launch recipes/imdb_scope.py --config recipes/configs/imdb_symmetric_paper.yaml       # by PPO, as there

Another objective: --objective ppo|scope|symmetric|focal|policy_entropy, or path/to/file.py:Class for one's own, with
--objective_kwargs '{"alpha": 0.3}'. Settings also come from --config file.yaml; flags are TRL's. The run folder holds
the resolved config, metrics.jsonl, samples before and after, report.md, curves.png and the model with its card.
"""

import sys

from scope_rlhf.runtime import run_main


def main(argv: list[str]) -> int:
    from scope_rlhf.experiments.imdb import main as experiment

    return experiment(argv)


if __name__ == "__main__":
    sys.exit(run_main(main))
