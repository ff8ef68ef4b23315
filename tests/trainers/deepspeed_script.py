"""Run under torchrun by test_deepspeed.py: a short PPO training with or without ZeRO, its log and its saved files.

Words after folder and stage: "full" trains all weights, without LoRA and reference; another one is a checkpoint.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from scope_rlhf.runtime import leave_process_group
from scope_rlhf.trainers import ScopePPOConfig, ScopePPOTrainer
from tests.tiny import length_reward, prompt_dataset, tiny_gpt2, tiny_tokenizer


def main(folder: Path, stage: int) -> None:
    zero: dict[str, Any] = {
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }
    tokenizer, full = tiny_tokenizer(), "full" in sys.argv[3:]
    lora = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, r=4)
    args = ScopePPOConfig(
        str(folder), objective="scope", critic="hl_gauss", critic_kwargs={"v_min": -2.0, "v_max": 6.0, "bins": 21},
        per_device_train_batch_size=4, num_mini_batches=2, num_ppo_epochs=2, max_completion_length=6, max_steps=8,
        learning_rate=1e-2, gradient_checkpointing=False, use_cpu=True, bf16=False, logging_steps=1,
        save_strategy="steps", save_steps=6, report_to="none", disable_tqdm=True, seed=7,
        deepspeed=zero if stage else None, kl_coef=0.0 if full else 0.05,
    )  # fmt: skip
    trainer = ScopePPOTrainer(
        tiny_gpt2(tokenizer), [length_reward], args, train_dataset=prompt_dataset(), processing_class=tokenizer,
        peft_config=None if full else lora,
    )  # fmt: skip
    checkpoint = [word for word in sys.argv[3:] if word != "full"]
    trainer.train(resume_from_checkpoint=checkpoint[0] if checkpoint else None)
    trainer.save_model(str(folder / "model"))
    if trainer.is_world_process_zero():
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
    leave_process_group()
