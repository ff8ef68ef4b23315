"""Small language models of a generated task, made here: GPT-2 shapes trained from nothing on its solutions (SFT)."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, set_seed
from trl import SFTConfig, SFTTrainer

from scope_rlhf.data.generated_tasks import character_tokenizer
from scope_rlhf.data.verifiable import load_verifiable
from scope_rlhf.experiments.policy_run import quiet_callbacks
from scope_rlhf.experiments.stages import Stage, run_stage, stage_inputs
from scope_rlhf.runtime import RunFolder
from scope_rlhf.trainers.checkpoints import newest_checkpoint

POSITIONS = 64


@dataclass(frozen=True)
class TaskModel:
    """Shape and training of one model: heads are 32 wide, batches hold 64 solutions, the rate falls to 0."""

    n_layer: int
    n_embd: int
    max_steps: int
    learning_rate: float = 3e-3
    batch_size: int = 64

    def __post_init__(self):
        for name, least in (("n_layer", 1), ("n_embd", 32), ("max_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} of a task model must be at least {least}, got {getattr(self, name)}.")
        if self.n_embd % 32:
            raise ValueError(f"n_embd of a task model must be a multiple of 32, got {self.n_embd}.")


def make_model(shape: TaskModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 without dropout and with random weights."""
    set_seed(seed)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=shape.n_embd, n_layer=shape.n_layer,
        n_head=shape.n_embd // 32, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=end, eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def train_task_model(
    name: str,
    shape: TaskModel,
    task: str,
    task_kwargs: dict[str, Any],
    root: Path,
    console: Console,
    *,
    num_problems: int,
    seed: int,
    quiet: bool,
) -> Stage:
    """The stage `name` below root: solutions of the task's training part as completions; <folder>/model at the end.

    Done once for each shape, task and seed; an interrupted one goes on from its last checkpoint.
    """
    inputs = stage_inputs(
        asdict(shape), task=task, task_kwargs=task_kwargs, num_problems=num_problems, seed=seed, positions=POSITIONS
    )

    def work(folder: Path) -> dict[str, Any]:
        problems = load_verifiable(task, "train", num_problems, seed, task_kwargs=task_kwargs)
        rows = Dataset.from_dict({"prompt": problems["prompt"], "completion": problems["solution"]})
        return _train(shape, rows, folder, seed, quiet)

    return run_stage(root, name, inputs, work, console)


def _train(shape: TaskModel, rows: Dataset, folder: Path, seed: int, quiet: bool) -> dict[str, Any]:
    tokenizer = character_tokenizer()
    training = SFTConfig(
        str(folder), per_device_train_batch_size=shape.batch_size, max_steps=shape.max_steps, seed=seed,
        learning_rate=shape.learning_rate, lr_scheduler_type="cosine", warmup_steps=min(100, shape.max_steps // 10),
        gradient_checkpointing=False, bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        use_cpu=not torch.accelerator.is_available(), logging_steps=50, save_steps=250, save_total_limit=1,
        report_to="none", dataloader_pin_memory=False, disable_tqdm=quiet, weight_decay=0.01,
    )  # fmt: skip
    with RunFolder(folder) as run:
        model = make_model(shape, tokenizer, seed)
        trainer = SFTTrainer(model, args=training, train_dataset=rows, processing_class=tokenizer)
        quiet_callbacks(trainer, run)
        checkpoint = newest_checkpoint(folder)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.save_model(str(folder / "model"))
        if trainer.is_world_process_zero():
            tokenizer.save_pretrained(folder / "model")
    return {"parameters": model.num_parameters(), "loss": trainer.state.log_history[-1].get("train_loss")}
