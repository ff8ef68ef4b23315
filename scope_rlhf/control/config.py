"""Settings of a run on environments, and of DQN; on_policy_config.py has those of PPO and A2C. Names are CleanRL's and
TRL's; every mistake is told here, by ValueError, before an environment starts.
"""

import math
from dataclasses import dataclass
from typing import Any

from scope_rlhf.objectives import CriticLossFunction, make_critic_loss
from scope_rlhf.runtime.settings import CheckedSettings, json_object, option


@dataclass
class ControlConfig(CheckedSettings):
    """What PPO, A2C and DQN have in common. Sizes are global: num_envs is split over the processes."""

    suite: str = option("classic", "atari, procgen, mujoco, box2d, classic, or gymnasium (any registered id).")
    env: str = option("CartPole", "Name in the suite: Breakout, StarPilot, HalfCheetah, LunarLander, CartPole, ...")
    backend: str | None = option(None, "ale, envpool or gymnasium; default: the suite's first.")
    protocol: str | None = option(None, "Atari: v5, NoFrameskip-v4 or v0. Procgen: easy, hard or extreme.")
    env_kwargs: dict[str, Any] | str | None = option(None, "Keywords for the environment, as JSON.")
    episodic_life: bool | None = option(None, "Atari: a lost life ends a training episode; default: the protocol's.")
    repeat_action_probability: float | None = option(
        None, "Sticky actions: the last action is repeated with this probability; default: the protocol's, or 0."
    )
    num_envs: int = option(8, "Environments, over all processes.")
    total_timesteps: int = option(100_000, "Steps of all environments together; an Atari step is 4 frames.")
    seed: int = option(1, "Seed of weights, sampling, environments and noise.")
    output_dir: str | None = option(None, "Run folder; default runs/control/<env>-<algorithm>/<time>.")

    learning_rate: float = option(2.5e-4, "Learning rate.")
    lr_scheduler_type: str = option("linear", "linear (to 0 at the end) or constant.")
    max_grad_norm: float = option(0.5, "Clip of the gradient's norm; 0: no clip.")
    gamma: float = option(0.99, "Discount.")
    critic: str = option("mse", "mse, hl_gauss, two_hot, and c51 for DQN.")
    critic_kwargs: dict[str, Any] | str | None = option(
        None, 'Parameters of the critic as JSON, such as \'{"v_min": -10, "v_max": 10}\'.'
    )
    network: str | None = option(None, "nature, impala or mlp; default: nature for pixels, mlp for vectors.")
    hidden_sizes: list[int] = option([64, 64], "Widths of the mlp.")
    bf16: bool = option(False, "bfloat16 autocast in the network.")

    clip_rewards: bool = option(False, "Train on the sign of the reward.")
    normalize_observations: bool = option(False, "Running mean and spread of vector observations.")
    normalize_rewards: bool = option(False, "Divide rewards by the running spread of the discounted return.")
    reward_flip_probability: float = option(0.0, "Noise, training only: flip the sign of a reward.")
    reward_noise_std: float = option(0.0, "Noise, training only: Gaussian, added after normalize_rewards.")

    logging_steps: int = option(1, "Updates (DQN: 100 steps) between log lines.")
    save_steps: int = option(0, "Updates (DQN: steps) between checkpoints; 0: at the end only.")
    save_total_limit: int = option(2, "Checkpoints to keep.")
    resume: bool = option(False, "Go on from the newest checkpoint of output_dir.")
    resume_from_checkpoint: str | None = option(None, "Go on from this checkpoint folder.")
    eval_steps: int = option(0, "Updates (DQN: steps) between evaluations; 0: at the end only.")
    num_eval_episodes: int = option(20, "Episodes of an evaluation, on environments of their own; 0: none.")
    eval_sampling: bool = option(False, "Evaluate with sampled actions in place of the most probable ones.")
    eval_seed: int = option(10_000, "Seed of the evaluation's environments.")
    video: str | None = option(None, "mp4 or gif: film an episode after the last evaluation.")
    report_to: list[str] = option([], "tensorboard, wandb, trackio, beside metrics.jsonl.")
    num_threads: int | None = option(None, "CPU threads of torch; default: all cores, or OMP_NUM_THREADS.")

    def __post_init__(self) -> None:
        for name in ("env_kwargs", "critic_kwargs", "objective_kwargs"):
            if hasattr(self, name):
                setattr(self, name, json_object(name, getattr(self, name)))
        self._check()

    def _check(self) -> None:
        self.at_least("num_envs", 1)
        self.at_least("total_timesteps", 1)
        self.at_least("seed", 0)
        if self.seed >= 2**32:
            raise ValueError(f"seed must be less than 2**32, got {self.seed}; set --seed.")
        self.between("learning_rate", 0, math.inf, open_low=True)
        self.one_of("lr_scheduler_type", ("linear", "constant"))
        self.between("max_grad_norm", 0, math.inf)
        self.between("gamma", 0, 1)
        self.between("reward_flip_probability", 0, 1)
        self.between("reward_noise_std", 0, math.inf)
        if self.num_envs > self.total_timesteps:
            raise ValueError(
                f"num_envs={self.num_envs} is more than total_timesteps={self.total_timesteps}; set --num_envs."
            )
        if self.repeat_action_probability is not None:
            self.between("repeat_action_probability", 0, 1)
        for name in ("save_steps", "eval_steps", "num_eval_episodes", "eval_seed"):
            self.at_least(name, 0)
        for name in ("logging_steps", "save_total_limit"):
            self.at_least(name, 1)
        if self.num_threads is not None:
            self.at_least("num_threads", 1)
        if not self.hidden_sizes or any(type(width) is not int or width < 1 for width in self.hidden_sizes):
            raise ValueError(f"hidden_sizes must be widths >= 1, got {self.hidden_sizes}; set --hidden_sizes 64 64.")
        if self.video is not None:
            self.one_of("video", ("mp4", "gif"))
            if not self.num_eval_episodes:
                raise ValueError(
                    f"video={self.video!r} films an evaluation, and num_eval_episodes is 0; set one of them."
                )
        self.check_report_to()
        if self.eval_steps and not self.num_eval_episodes:
            raise ValueError(
                f"eval_steps={self.eval_steps} with num_eval_episodes=0 evaluates nothing; set one of them."
            )
        self.check_resume()

    def make_critic(self) -> CriticLossFunction:
        """The critic's loss. ValueError for an unknown one, or a support that is missing."""
        try:
            return make_critic_loss(self.critic, **(self.critic_kwargs or {}))  # type: ignore[arg-type]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{error}; set --critic and --critic_kwargs.") from error


@dataclass
class DQNConfig(ControlConfig):
    """DQN with a scalar or a categorical critic. Steps are those of all environments together."""

    num_envs: int = option(1, "Environments, over all processes.")
    lr_scheduler_type: str = option("constant", "linear (to 0 at the end) or constant.")
    max_grad_norm: float = option(10.0, "Clip of the gradient's norm; 0: no clip.")
    hidden_sizes: list[int] = option([120, 84], "Widths of the mlp.")
    adam_epsilon: float = option(1.5e-4, "Adam's epsilon.")
    buffer_size: int = option(100_000, "Transitions kept, over all processes.")
    learning_starts: int = option(10_000, "Random steps before the first update.")
    train_frequency: int = option(4, "Steps between updates.")
    target_update_frequency: int = option(8_000, "Steps between copies to the target network.")
    batch_size: int = option(32, "Transitions of an update, over all processes.")
    exploration_initial: float = option(1.0, "Probability of a random action at the start.")
    exploration_final: float = option(0.01, "Probability of a random action after the decay.")
    exploration_steps: int = option(250_000, "Steps of the linear decay, from learning_starts on.")
    eval_epsilon: float = option(0.001, "Probability of a random action in evaluations.")
    double: bool = option(False, "Double DQN: the online network chooses the next action (arXiv 1509.06461).")

    def _check(self) -> None:
        super()._check()
        for name in ("buffer_size", "train_frequency", "target_update_frequency", "batch_size"):
            self.at_least(name, 1)
        for name in ("learning_starts", "exploration_steps"):
            self.at_least(name, 0)
        for name in ("exploration_initial", "exploration_final", "eval_epsilon"):
            self.between(name, 0, 1)
        self.between("adam_epsilon", 0, math.inf, open_low=True)
        if self.buffer_size < self.batch_size:
            raise ValueError(
                f"buffer_size={self.buffer_size} is less than batch_size={self.batch_size}; set --buffer_size."
            )
        if self.learning_starts >= self.total_timesteps:
            raise ValueError(
                f"learning_starts={self.learning_starts} leaves no update in total_timesteps={self.total_timesteps}; "
                "set --learning_starts."
            )
        if self.normalize_observations or self.normalize_rewards:
            raise ValueError(
                "normalize_observations and normalize_rewards move while a replayed transition does not; leave them "
                "out with DQN."
            )
        if self.eval_sampling:
            raise ValueError("eval_sampling is for policies; DQN has --eval_epsilon.")
        self.make_critic()
