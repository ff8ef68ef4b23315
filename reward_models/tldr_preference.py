"""Train a reward model of summaries, or the held-out judge, from preference pairs.

No arguments: the small GPT-2 that ships with the package and synthetic pairs out of installed documentation (labelled
so everywhere), about two minutes on two CPU cores. Expected accuracy: reward_models/README.md.

    accelerate launch reward_models/tldr_preference.py --sampled_from runs/tldr/sft-<hash>/model
    accelerate launch reward_models/tldr_preference.py --role judge --sampled_from runs/tldr/sft-<hash>/model

With the Hub, by LoRA on one GPU (the adapter is merged into what is saved):

    accelerate launch reward_models/tldr_preference.py --model_name_or_path CarperAI/openai_summarize_tldr_sft \\
        --dataset_name trl-lib/tldr-preference --dtype bfloat16 --use_peft --lora_r 8 --lora_alpha 64

Flags are those of TRL's RewardConfig and ModelConfig; `--help` lists them. Called again with the same arguments it goes
on from its last checkpoint. In <output_dir>/<role>-<hash>: model with card, calibration.png, metrics.jsonl, stage.json.
"""

import sys

from scope_rlhf.runtime import run_main


def main(argv: list[str]) -> int:
    from scope_rlhf.experiments.tldr_reward import main as experiment

    return experiment(argv)


if __name__ == "__main__":
    sys.exit(run_main(main))
