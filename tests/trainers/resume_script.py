"""Tiny trainers for tests of resume, and the run that test_kill_and_resume.py kills.

python -m tests.trainers.resume_script ppo FOLDER [CHECKPOINT] [--kill-... N] [--save-to FILE]
"""

import argparse
import os
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerState

from scope_rlhf.trainers import ScopeGRPOTrainer
from tests.tiny import length_reward, prompt_dataset, tiny_gpt2, tiny_tokenizer
from tests.trainers.makers import TRAINERS

COMMON = {
    "max_completion_length": 6, "max_steps": 16, "report_to": "none", "learning_rate": 1e-2, "use_cpu": True,
    "gradient_checkpointing": False, "save_strategy": "steps", "save_steps": 1, "logging_steps": 4,
    "disable_tqdm": True, "seed": 7, "lr_scheduler_type": "linear", "per_device_train_batch_size": 4,
}  # fmt: skip
# A rollout of 8 completions serves 4 updates; the 24 prompts last for 12, so that a run of 16 crosses a data epoch.
PPO: dict[str, Any] = {
    "objective": "scope", "num_mini_batches": 2, "num_ppo_epochs": 2, "kl_coef": 0.05, "kl_target": 1.0,
    "kl_horizon": 40, "use_score_scaling": True, "use_score_norm": True, "critic": "hl_gauss",
    "critic_kwargs": {"v_min": -4.0, "v_max": 4.0, "bins": 11},
}  # fmt: skip
GRPO = {"objective": "scope", "num_generations": 2, "steps_per_generation": 2, "num_iterations": 2, "beta": 0.05}
DISTILLATION = {**GRPO, "num_generations": 4, "beta": 0.0}
SETTINGS = {"ppo": PPO, "grpo": GRPO, "distillation": DISTILLATION}


def is_long(prompts, completions, **kwargs) -> list[float]:
    """A verifier that random models satisfy about half of the time."""
    return [float(reward > 1.6) for reward in length_reward(prompts, completions)]


def make_trainer(kind: str, folder: Path, rewards: Any = None, lora: bool = True, **settings: Any) -> ScopeGRPOTrainer:
    """kind: one of SETTINGS; `settings` are laid over those above, and None leaves one out."""
    trainer, config = TRAINERS[kind]
    given = {"teacher_model": tiny_gpt2(tiny_tokenizer(), seed=1)} if kind == "distillation" else {}
    rewards = rewards or (is_long if kind == "distillation" else length_reward)
    settings = {**COMMON, **SETTINGS[kind], **settings}
    args = config(str(folder), **{name: value for name, value in settings.items() if value is not None})
    tokenizer = tiny_tokenizer()
    model = tiny_gpt2(tokenizer)
    if not lora:  # a model without an adapter takes its reference from the files it came from
        model.save_pretrained(folder / "start")
        model = type(model).from_pretrained(folder / "start")
    peft_config = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, r=4) if lora else None
    return trainer(
        model, [rewards], args, train_dataset=prompt_dataset(), eval_dataset=prompt_dataset(1),
        processing_class=tokenizer, peft_config=peft_config, **given,
    )  # fmt: skip


def trained_weights(trainer: ScopeGRPOTrainer) -> dict[str, torch.Tensor]:
    """Policy and critic, by name."""
    return {n: w.detach().clone().contiguous() for n, w in trainer.model.named_parameters() if w.requires_grad}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KillInStep(TrainerCallback):
    """Dies in that update, after the gradient and before the optimizer has moved a weight."""

    def __init__(self, step: int):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs: Any):
        if state.global_step + 1 == self.step:
            die()


class KillAfter(TrainerCallback):
    """Dies that many seconds after its first checkpoint, whatever it is doing then."""

    def __init__(self, seconds: float):
        self.seconds, self.started = seconds, False

    def on_save(self, args, state, control, **kwargs: Any):
        if not self.started:
            threading.Timer(self.seconds, die).start()
        self.started = True


def kill_in_save(step: int) -> None:
    """Dies while that checkpoint is written: model, critic, optimizer and half of the trainer's state are there."""
    save = TrainerState.save_to_json

    def cut(state: TrainerState, json_path: str) -> None:
        save(state, json_path)
        if state.global_step == step:
            os.truncate(json_path, os.path.getsize(json_path) // 2)
            die()

    TrainerState.save_to_json = cut


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=SETTINGS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--kill-in-step", type=int)
    parser.add_argument("--kill-in-save", type=int)
    parser.add_argument("--kill-after", type=float)
    parser.add_argument("--save-to", type=Path)
    given = parser.parse_args()
    trainer = make_trainer(given.kind, given.folder)
    if given.kill_in_step is not None:
        trainer.add_callback(KillInStep(given.kill_in_step))
    if given.kill_in_save is not None:
        kill_in_save(given.kill_in_save)
    if given.kill_after is not None:
        trainer.add_callback(KillAfter(given.kill_after))
    trainer.train(resume_from_checkpoint=given.checkpoint)
    if given.save_to is not None:
        save_file(trained_weights(trainer), given.save_to)


if __name__ == "__main__":
    main()
