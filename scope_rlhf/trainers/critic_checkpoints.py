"""What a trainer with a critic adds around its loop: the critic's learning rate, its own file, and more state."""

import json
import shutil
from pathlib import Path
from typing import Any

from scope_rlhf.models.value_head import ADAPTER_NAME, load_critic, save_critic, split_critic
from scope_rlhf.objectives import CriticLossFunction
from scope_rlhf.rl import FixedKLController, RunningMoments
from scope_rlhf.runtime import write_text
from scope_rlhf.trainers.grpo import ScopeGRPOTrainer
from scope_rlhf.trainers.ppo_config import ScopePPOConfig
from scope_rlhf.trainers.rollout_state import read_state
from scope_rlhf.trainers.update_gate import UpdateGate

PPO_STATE = "ppo_state.json"


class CriticCheckpoints(ScopeGRPOTrainer):
    """What ScopePPOTrainer saves and loads beside ScopeGRPOTrainer: critic.safetensors and critic.json, ppo_state.json
    (KL coefficient, running moments of the scores, whether the rest of the rollout's updates is skipped).
    """

    args: ScopePPOConfig
    critic: CriticLossFunction | None
    kl_controller: FixedKLController
    moments: RunningMoments
    gate: UpdateGate

    def create_optimizer(self, model=None):
        made = self.optimizer is None
        optimizer: Any = super().create_optimizer(model)
        rate = self.args.critic_learning_rate
        if made and rate is not None and self.critic is not None:
            own = {id(weight) for weight in split_critic(dict((model or self.model).named_parameters()))[1].values()}
            for group in list(optimizer.param_groups):
                critic = [weight for weight in group["params"] if id(weight) in own]
                group["params"] = [weight for weight in group["params"] if id(weight) not in own]
                if critic:
                    optimizer.add_param_group({**group, "params": critic, "lr": rate})
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.critic is None or not self.args.should_save:
            super()._save(output_dir, state_dict)
            return
        policy, critic = split_critic(self.model.state_dict() if state_dict is None else state_dict)
        folder = Path(output_dir or str(self.args.output_dir))
        super()._save(str(folder), policy)
        # PEFT saves every adapter; the critic's is in its own file.
        shutil.rmtree(folder / ADAPTER_NAME, ignore_errors=True)
        if critic:
            save_critic(folder, critic, self.critic)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.critic is not None:
            load_critic(resume_from_checkpoint, self.model, self.critic)

    def _load_best_model(self):
        super()._load_best_model()
        if self.critic is not None and not self.is_deepspeed_enabled:
            load_critic(str(self.state.best_model_checkpoint), self.model, self.critic)

    def check_checkpoint(self, folder: Path) -> int:
        micro_batches = super().check_checkpoint(folder)
        if not (folder / PPO_STATE).exists():
            raise ValueError(
                f"{folder} holds no {PPO_STATE}, so it is no checkpoint of PPO; set --resume_from_checkpoint."
            )
        return micro_batches

    def _restore_rollout(self, folder: Path, micro_batches: int) -> None:
        super()._restore_rollout(folder, micro_batches)
        state = read_state(folder / PPO_STATE)
        self.kl_controller.load_state_dict(state["kl_controller"])
        self.moments.load_state_dict(state["moments"])
        self.gate.stopped = state["stopped"]

    def _save_checkpoint(self, model, trial):
        if self.args.should_save:
            state = {"kl_controller": self.kl_controller.state_dict(), "moments": self.moments.state_dict()}
            write_text(
                self._checkpoint_folder(trial) / PPO_STATE, json.dumps({**state, "stopped": self.gate.stopped}) + "\n"
            )
        super()._save_checkpoint(model, trial)
