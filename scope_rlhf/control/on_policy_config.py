"""Settings of PPO and A2C on environments, on top of those in config.py."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from scope_rlhf.control.config import ControlConfig
from scope_rlhf.objectives import (
    CriticLossFunction,
    Objective,
    make_critic_loss,
    make_trainer_objective,
    require_trainable,
)
from scope_rlhf.runtime.settings import option


@dataclass
class OnPolicyConfig(ControlConfig):
    """What PPO and A2C have in common."""

    objective: str = option("ppo", "See `scope-rlhf objectives`; path/to/file.py:Class for one's own.")
    objective_kwargs: dict[str, Any] | str | None = option(None, "Its parameters as JSON, such as '{\"alpha\": 0.3}'.")
    num_steps: int = option(128, "Steps of each environment between updates.")
    lam: float = option(0.95, "Lambda of generalised advantage estimation.")
    vf_coef: float = option(0.5, "Coefficient of the critic's loss, (V - R)^2 / 2 for mse.")
    ent_coef: float = option(0.0, "Coefficient of the entropy bonus; not with policy_entropy, which has its own.")
    allow_objective_change: bool = option(False, "Resume with an objective that is not the checkpoint's.")
    policy: str | None = option(
        None, "categorical, binned or gaussian; default: categorical, gaussian for continuous actions."
    )
    bins: int = option(11, "Values of each action dimension of a binned policy.")
    per_dimension: bool = option(False, "Treat each action dimension as a decision with a ratio of its own.")

    def _check(self) -> None:
        super()._check()
        self.at_least("num_steps", 1)
        self.between("lam", 0, 1)
        self.between("vf_coef", 0, math.inf)
        self.between("ent_coef", 0, math.inf)
        self.at_least("bins", 2)
        if self.critic == "c51":
            raise ValueError(
                "critic 'c51' needs the next state's distribution, which scalar returns do not have: with them it is "
                "two_hot; set --critic two_hot, or use DQN."
            )
        if self.total_timesteps < self.num_envs * self.num_steps:
            raise ValueError(
                f"total_timesteps={self.total_timesteps} is less than one rollout, num_envs x num_steps = "
                f"{self.num_envs} x {self.num_steps}; set --total_timesteps."
            )
        objective = self.make_objective()
        if self.ent_coef and self.objective == "policy_entropy":
            raise ValueError(
                f"ent_coef={self.ent_coef} with objective policy_entropy counts the entropy twice; leave ent_coef out "
                "and set its alpha by --objective_kwargs."
            )
        require_trainable(objective, ratio=self.uses_ratio, source=self.objective)
        self.make_critic()

    uses_ratio: ClassVar[bool] = True

    @property
    def num_updates(self) -> int:
        """Rollouts of the whole run."""
        return self.total_timesteps // (self.num_envs * self.num_steps)

    def make_objective(self) -> Objective:
        raise NotImplementedError


@dataclass
class PPOConfig(OnPolicyConfig):
    """PPO: several epochs over shuffled minibatches of each rollout."""

    num_ppo_epochs: int = option(4, "Passes over each rollout.")
    num_mini_batches: int = option(4, "Minibatches, that is optimizer steps, in one pass.")
    cliprange: float | None = option(None, "Clip of the probability ratio; default: the objective's (.2).")
    clip_scheduler_type: str = option("constant", "linear (to 0 at the end) or constant, for both clips.")
    cliprange_value: float | None = option(None, "Clip of the value, mse only; default: none.")
    whiten_advantages: str = option("minibatch", "z-score the advantages over each minibatch, over the rollout, or no.")
    target_kl: float | None = option(None, "End the epochs of a rollout once the mean approx_kl of one is above this.")
    adam_epsilon: float = option(1e-5, "Adam's epsilon.")

    def _check(self) -> None:
        for name in ("cliprange", "cliprange_value"):
            if getattr(self, name) is not None:
                self.between(name, 0, math.inf, open_low=True)
        super()._check()
        self.at_least("num_ppo_epochs", 1)
        self.at_least("num_mini_batches", 1)
        self.one_of("clip_scheduler_type", ("linear", "constant"))
        self.one_of("whiten_advantages", ("minibatch", "rollout", "no"))
        self.between("adam_epsilon", 0, math.inf, open_low=True)
        if self.target_kl is not None:
            self.between("target_kl", 0, math.inf, open_low=True)
        if self.num_envs * self.num_steps < self.num_mini_batches:
            raise ValueError(
                f"num_mini_batches={self.num_mini_batches} is more than the {self.num_envs} x {self.num_steps} steps "
                "of a rollout; set --num_mini_batches."
            )
        if self.clip_scheduler_type == "linear" and not hasattr(self.make_objective(), "clip_low"):
            raise ValueError(
                f"clip_scheduler_type=linear needs an objective with clip_low and clip_high; {self.objective} has none."
            )

    def make_objective(self) -> Objective:
        return make_trainer_objective(
            self.objective,
            self.objective_kwargs,
            epsilon=self.cliprange,
            names=("cliprange", "cliprange"),  # type: ignore[arg-type]
        )

    def make_critic(self) -> CriticLossFunction:
        if self.cliprange_value is None:
            return super().make_critic()
        if self.critic != "mse":
            raise ValueError(
                f"cliprange_value={self.cliprange_value} given, but cross-entropy has no clip of values; leave it "
                f"out with critic {self.critic}."
            )
        kwargs = {"cliprange_value": self.cliprange_value, **(self.critic_kwargs or {})}  # type: ignore[dict-item]
        if kwargs["cliprange_value"] != self.cliprange_value:
            raise ValueError(
                f"cliprange_value={self.cliprange_value} and {kwargs['cliprange_value']} in critic_kwargs are two "
                "values for one clip; set one of them."
            )
        return make_critic_loss(self.critic, **kwargs)


@dataclass
class A2CConfig(OnPolicyConfig):
    """A2C: one step on each short rollout, without old log-probs: objectives take their score-function form."""

    num_envs: int = option(16, "Environments, over all processes.")
    num_steps: int = option(5, "Steps of each environment between updates.")
    learning_rate: float = option(7e-4, "Learning rate.")
    lam: float = option(1.0, "Lambda of generalised advantage estimation; 1: n-step returns.")
    whiten_advantages: str = option("no", "rollout (z-score over the rollout) or no.")
    optimizer: str = option("rmsprop", "rmsprop (alpha .99) or adam.")
    optimizer_epsilon: float = option(1e-5, "Epsilon of the optimizer.")

    def _check(self) -> None:
        super()._check()
        self.one_of("whiten_advantages", ("rollout", "no"))
        self.one_of("optimizer", ("rmsprop", "adam"))
        self.between("optimizer_epsilon", 0, math.inf, open_low=True)

    uses_ratio: ClassVar[bool] = False

    def make_objective(self) -> Objective:
        return make_trainer_objective(self.objective, self.objective_kwargs)  # type: ignore[arg-type]
