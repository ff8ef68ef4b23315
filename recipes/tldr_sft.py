"""Supervised fine-tuning on summaries: what TL;DR's reward model and RL begin from.

No arguments: the small GPT-2 that ships with the package on the documentation of installed packages, under two minutes
on two CPU cores. Expected: held-out loss and ROUGE as in the README.

    accelerate launch recipes/tldr_sft.py

With the Hub, by LoRA on one GPU (the adapter is merged into what is saved):

    accelerate launch recipes/tldr_sft.py --model_name_or_path EleutherAI/gpt-j-6b --dataset_name trl-lib/tldr \\
        --use_peft --lora_r 8 --lora_alpha 64 --output_dir runs/tldr

Flags are those of TRL's SFTConfig and ModelConfig; `--help` lists them. Called again with the same arguments it goes on
from its last checkpoint, or says that it is done. The model is in <output_dir>/sft-<hash>/model.
"""

import sys

from scope_rlhf.runtime import run_main


def main(argv: list[str]) -> int:
    from scope_rlhf.experiments.tldr_sft import main as experiment

    return experiment(argv)


if __name__ == "__main__":
    sys.exit(run_main(main))
