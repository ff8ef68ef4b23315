"""Resuming a GRPO run exactly, at every step: what is saved beside the parent's checkpoint, and what is checked."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from trl import GRPOTrainer
from trl.trainer.utils import get_config_model_id

from scope_rlhf.objectives import describe_objective
from scope_rlhf.runtime import write_text
from scope_rlhf.trainers.card import checkpoint_card
from scope_rlhf.trainers.checkpoints import STATE, check_complete, damage_named, newest_checkpoint
from scope_rlhf.trainers.grpo_config import ScopeGRPOConfig
from scope_rlhf.trainers.rollout_state import load_rollout, read_state, save_rollout, skip_orders

OBJECTIVE_FILE = "objective.json"


class ExactResume(GRPOTrainer):
    """GRPOTrainer whose checkpoints hold the rollout in use, the order of the prompts, unlogged metrics, the objective.

    A subclass fills `_sums` and `_counts` (see ScopeGRPOTrainer._accumulate) and sets `objective` and `algorithm`.
    """

    args: ScopeGRPOConfig
    accelerator: Any
    model: nn.Module
    objective: Any
    algorithm: str
    _sums: dict[str, dict[str, Tensor]]
    _counts: dict[str, str]
    _micro_batches_before = 0

    def describe(self) -> dict[str, Any]:
        """What a resumed run must have again: the record of describe_objective."""
        return describe_objective(self.objective)

    def _get_train_sampler(self, dataset=None):
        sampler = super()._get_train_sampler(dataset)
        skip_orders(sampler, self._micro_batches_before)
        return sampler

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any):  # pyright: ignore[reportIncompatibleMethodOverride]
        self._micro_batches_before = 0
        if resume_from_checkpoint:
            folder = resume_from_checkpoint
            folder = newest_checkpoint(self.args.output_dir or ".") if folder is True else folder
            if folder is None:
                raise ValueError(f"no complete checkpoint in {self.args.output_dir}; check --resume_from_checkpoint.")
            self._restore_rollout(Path(str(folder)), self.check_checkpoint(Path(str(folder))))
            resume_from_checkpoint = str(folder)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def check_checkpoint(self, folder: Path) -> int:
        """The number of micro-batches before the checkpoint; ValueError where the run could not go on exactly."""
        state, objective = folder / STATE, folder / OBJECTIVE_FILE
        if not state.exists():
            raise ValueError(f"{folder} is not a checkpoint: it has no {STATE}; set --resume_from_checkpoint.")
        rank, processes, _ = self._place()
        check_complete(folder, rank, processes, self.is_deepspeed_enabled or self.is_fsdp_enabled)
        step = read_state(state)["global_step"]
        before = _identity(read_state(objective) if objective.exists() else {})
        now = _identity(json.loads(json.dumps(self.describe())))
        if before != now and not self.args.allow_objective_change:
            changed = [k for k in {**before, **now} if before.get(k) != now.get(k)]
            was, is_now = ({k: record.get(k) for k in changed} for record in (before, now))
            raise ValueError(
                f"the objective has changed since {folder} was written ({', '.join(changed)}): was {was}, is {is_now}. "
                "Resume with the same objective, or say so with --allow_objective_change."
            )
        micro_batches = step * self.args.gradient_accumulation_steps
        every = (self.args.steps_per_generation or 1) * self.num_iterations
        if micro_batches % every and load_rollout(folder, *self._place()) is None:
            raise ValueError(
                f"{folder} lies within a generation batch and holds no rollout for process {self._place()[0]} of "
                f"{self._place()[1]}, so it cannot go on exactly. Resume with as many processes as wrote it, or "
                f"from a checkpoint at a multiple of {every // self.args.gradient_accumulation_steps} steps."
            )
        return micro_batches

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        with damage_named(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint):
        with damage_named(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint):
        with damage_named(checkpoint):
            super()._load_rng_state(checkpoint)

    def _place(self) -> tuple[int, int, torch.device]:
        return self.accelerator.process_index, self.accelerator.num_processes, self.accelerator.device

    def _restore_rollout(self, folder: Path, micro_batches: int) -> None:
        self._step = self._micro_batches_before = micro_batches
        state = load_rollout(folder, *self._place())
        if state is not None:
            self._buffered_inputs = state["buffer"]
            self._metrics["train"].update(state["metrics"])
            self._sums["train"].update(state["sums"])
            self._counts.update(state.get("counts", dict.fromkeys(state["sums"], "count")))

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """A short README.md with the objective; the parent's names none, and None as the base of a local model."""
        if self.is_world_process_zero() and self.args.output_dir:
            text = checkpoint_card(model_name, get_config_model_id(self.model.config), self.describe(), self.algorithm)
            write_text(Path(self.args.output_dir, "README.md"), text)

    def _checkpoint_folder(self, trial: Any) -> Path:
        """Where the parent is about to save."""
        return Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"

    def _save_checkpoint(self, model, trial):
        # Before the parent's files, of which trainer_state.json comes last: a checkpoint that has it is whole.
        folder = self._checkpoint_folder(trial)
        rank, processes, _ = self._place()
        state = {"buffer": self._buffered_inputs, "metrics": dict(self._metrics["train"])}
        state |= {"sums": dict(self._sums["train"]), "counts": self._counts}
        save_rollout(folder, rank, processes, state)
        if self.args.should_save:
            write_text(folder / OBJECTIVE_FILE, json.dumps(self.describe(), indent=2) + "\n")
        super()._save_checkpoint(model, trial)


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    """What must not change: a user's own file may move, so its text and class count, not where it lies; and the
    settings of a distillation.
    """
    names = ("class", "sha256") if record.get("sha256") else ("name",)
    return {name: record.get(name) for name in (*names, "parameters")} | record.get("distillation", {})
