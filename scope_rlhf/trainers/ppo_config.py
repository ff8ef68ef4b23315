"""Configuration of PPO with any objective and any critic."""

from dataclasses import dataclass
from typing import Any, ClassVar

from scope_rlhf.objectives import CriticLossFunction, make_trainer_objective
from scope_rlhf.rl import AdaptiveKLController, FixedKLController
from scope_rlhf.runtime.settings import option
from scope_rlhf.trainers.grpo_config import ScopeGRPOConfig, smallest_group
from scope_rlhf.trainers.ppo_checks import (
    check_batches,
    check_choices,
    check_critic,
    check_groups,
    check_numbers,
    critic_loss,
)


@dataclass
class ScopePPOConfig(ScopeGRPOConfig):
    """ScopeGRPOConfig for PPO: token-level KL in the reward, a critic, GAE, several epochs over shuffled minibatches.

    One rollout has per_device_train_batch_size x gradient_accumulation_steps x num_mini_batches completions on each
    process, and gives num_ppo_epochs x num_mini_batches optimizer steps; steps_per_generation and num_iterations of
    the parent follow from these. Names are those of TRL's PPOConfig (removed in 1.13); the README has the table.

    The parent's `beta` is not for PPO: the KL is in the reward (kl_coef), not in the loss. `scale_rewards` acts with
    advantage_estimator="group" only.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*ScopeGRPOConfig._VALID_DICT_FIELDS, "critic_kwargs"]
    num_generations: int = option(1, "Completions of one prompt; 1 will do with a critic.")
    num_ppo_epochs: int = option(4, "Passes over each rollout.")
    num_mini_batches: int = option(1, "Minibatches, that is optimizer steps, in one pass.")
    total_episodes: int | None = option(None, "Completions to sample in all; sets max_steps.")
    advantage_estimator: str = option("gae", "gae (critic), rloo (leave-one-out) or group (group-relative).")
    critic: str | None = option(None, "mse, hl_gauss or two_hot; default mse with gae, none otherwise.")
    critic_kwargs: dict[str, Any] | str | None = option(
        None, 'Parameters of the critic as JSON, for example \'{"v_min": -1, "v_max": 1}\'.'
    )
    critic_backbone: str = option(
        "shared", "shared (the policy's), adapter (a LoRA of its own on the same base) or model."
    )
    critic_model_name_or_path: str | None = option(
        None, "Model that a critic with critic_backbone=model starts from; a reward model."
    )
    critic_path: str | None = option(
        None, "Folder of a saved critic, or a checkpoint of TRL <= 1.12 with v_head.*, to start from."
    )
    initial_value: float | None = option(
        None, "What a new critic says at the start; default 0, or the middle of a support."
    )
    vf_coef: float = option(0.1, "Coefficient of the critic's loss.")
    critic_learning_rate: float | None = option(None, "Rate of the critic's own weights; default: learning_rate.")
    cliprange: float | None = option(None, "Clip of the probability ratio; default: the objective's (.2).")
    cliprange_value: float | None = option(None, "Clip of the value, mse only; default .2.")
    gamma: float = option(1.0, "Discount per token.")
    lam: float = option(0.95, "Lambda of generalised advantage estimation.")
    kl_coef: float = option(0.05, "Coefficient of the KL penalty in the reward.")
    kl_target: float | None = option(
        None, "KL per sequence (nats) that an adaptive kl_coef aims at; default: kl_coef is fixed."
    )
    kl_horizon: int = option(10000, "Sequences over which the adaptive kl_coef moves.")
    whiten_rewards: bool = option(False, "Give the token rewards unit spread, keeping their mean.")
    whiten_advantages: bool | None = option(
        None, "z-score the advantages over the global batch; default: on, except for group."
    )
    missing_eos_penalty: float | None = option(None, "Subtracted from the score of a completion that was cut.")
    missing_eos_score: float | None = option(None, "Score of a completion that was cut, in place of its own.")
    score_clip: float | None = option(None, "Clip the score to +- this, after scaling.")
    use_score_scaling: bool = option(False, "Divide scores by their running spread.")
    use_score_norm: bool = option(False, "With use_score_scaling: subtract their running mean first.")
    target_kl: float | None = option(
        None, "Skip the rest of a rollout's updates once the mean approx_kl of a minibatch is above this."
    )
    value_warmup_steps: int = option(0, "Optimizer steps that train the critic only.")
    target_coef: float = option(
        0.0, "Coefficient of the mean NLL of reference completions (column target_column); 0: off."
    )
    target_column: str = option("completion", "Dataset column with the reference completions.")
    stop_token: str | None = option(None, "'eos', or a text of one token at which completions end too.")
    stop_token_id: int | None = option(None, "The same by its id.")

    def __post_init__(self):
        self._check_numbers()
        check_choices(self)
        self._fill_in()
        check_batches(self)
        # The parent wants a group of two and a beta that asks for the reference; both are ours again afterwards.
        generations, self.beta = self.num_generations, self.kl_coef
        self.num_generations_eval = self.num_generations_eval or generations
        rows = self.per_device_train_batch_size * (self.steps_per_generation or 1)
        self.num_generations = smallest_group(rows)
        super().__post_init__()
        self.num_generations = generations
        rows = check_groups(self)
        if self.total_episodes is not None:
            self.max_steps = self.total_episodes // rows * self.num_ppo_epochs * self.num_mini_batches
        check_critic(self, self.make_critic())
        self.make_kl_controller()

    def _fill_in(self) -> None:
        """What follows from other settings."""
        if self.advantage_estimator == "gae":
            self.critic = self.critic or "mse"
        if self.whiten_advantages is None:
            self.whiten_advantages = self.advantage_estimator != "group"
        if self.steps_per_generation is None:
            self.steps_per_generation = self.gradient_accumulation_steps * self.num_mini_batches
        self.num_iterations = self.num_ppo_epochs if self.num_iterations == 1 else self.num_iterations

    def make_objective(self):
        names = ("epsilon", "epsilon_high") if self.cliprange is None else ("cliprange", "epsilon_high")
        low = self.epsilon if self.cliprange is None else self.cliprange
        return make_trainer_objective(
            self.objective, self._dict_of("objective_kwargs"), epsilon=low, epsilon_high=self.epsilon_high, names=names
        )

    def _check_numbers(self) -> None:
        super()._check_numbers()
        check_numbers(self)

    def unscaled_advantages(self) -> str | None:
        scaled = self.whiten_advantages or (self.advantage_estimator == "group" and self.scale_rewards == "group")
        return None if scaled else "whiten_advantages=False"

    def make_kl_controller(self) -> FixedKLController:
        """The KL coefficient: fixed, or adaptive where kl_target is set. ValueError for kl_coef < 0."""
        if self.kl_target is None:
            return FixedKLController(self.kl_coef)
        return AdaptiveKLController(self.kl_coef, self.kl_target, self.kl_horizon)

    def make_critic(self) -> CriticLossFunction | None:
        """The critic's loss; None without a critic. ValueError for what cannot serve PPO."""
        if self.critic is None:
            return None
        return critic_loss(self.critic, self._dict_of("critic_kwargs") or {}, self.cliprange_value)
