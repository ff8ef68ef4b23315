"""TL;DR from end to end: SFT, reward model and held-out judge, RL under the Scope objective, win rate.

No arguments: the small GPT-2 that ships with the package learns to summarise the documentation of installed packages,
no Hub and no GPU; under 12 minutes on 2 CPU cores. Finished stages are kept in runs/tldr and not made again, so another
objective or seed takes half of that; an interrupted run goes on when the command is given again.

    accelerate launch recipes/tldr_scope.py
    accelerate launch recipes/tldr_scope.py --algorithm grpo --objective symmetric --seed 43

With the Hub (TL;DR with GPT-J, 4-bit, LoRA r 8 alpha 64: the setting of arXiv 2405.17618; the N implementation details
of arXiv 2403.17031):

    accelerate launch recipes/tldr_scope.py --config recipes/configs/tldr_gptj_paper.yaml
    accelerate launch recipes/tldr_scope.py --config recipes/configs/tldr_n_details.yaml

--sft_model_name_or_path, --reward_model_name_or_path and --judge_model_name_or_path put existing models in the place of
a stage; --sft_config and --reward_config are YAML files with flags of recipes/tldr_sft.py and of
reward_models/tldr_preference.py. Each stage leaves metrics, results and pictures in its folder; the win rate's
pairs.html shows every pair with the judge's verdicts.
"""

import sys

from scope_rlhf.runtime import run_main


def main(argv: list[str]) -> int:
    from scope_rlhf.experiments.tldr import main as experiment

    return experiment(argv)


if __name__ == "__main__":
    sys.exit(run_main(main))
