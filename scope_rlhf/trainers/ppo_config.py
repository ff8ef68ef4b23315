"""Configuration of PPO with any objective and any critic."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from scope_rlhf.objectives import CriticLossFunction, make_critic_loss
from scope_rlhf.rl import AdaptiveKLController, FixedKLController
from scope_rlhf.trainers.grpo_config import ScopeGRPOConfig

ESTIMATORS, BACKBONES = ("gae", "rloo", "group"), ("shared", "adapter", "model")


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


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
    num_generations: int = _option(1, "Completions of one prompt; 1 will do with a critic.")
    num_ppo_epochs: int = _option(4, "Passes over each rollout.")
    num_mini_batches: int = _option(1, "Minibatches, that is optimizer steps, in one pass.")
    total_episodes: int | None = _option(None, "Completions to sample in all; sets max_steps.")
    advantage_estimator: str = _option("gae", "gae (critic), rloo (leave-one-out) or group (group-relative).")
    critic: str | None = _option(None, "mse, hl_gauss or two_hot; default mse with gae, none otherwise.")
    critic_kwargs: dict[str, Any] | str | None = _option(
        None, 'Parameters of the critic as JSON, for example \'{"v_min": -1, "v_max": 1}\'.'
    )
    critic_backbone: str = _option(
        "shared", "shared (the policy's), adapter (a LoRA of its own on the same base) or model."
    )
    critic_model_name_or_path: str | None = _option(
        None, "Model that a critic with critic_backbone=model starts from; a reward model."
    )
    critic_path: str | None = _option(
        None, "Folder of a saved critic, or a checkpoint of TRL <= 1.12 with v_head.*, to start from."
    )
    initial_value: float = _option(0.0, "What a new scalar critic says at the start.")
    vf_coef: float = _option(0.1, "Coefficient of the critic's loss.")
    cliprange: float | None = _option(None, "Clip of the probability ratio; default: the objective's (.2).")
    cliprange_value: float | None = _option(None, "Clip of the value, mse only; default .2.")
    gamma: float = _option(1.0, "Discount per token.")
    lam: float = _option(0.95, "Lambda of generalised advantage estimation.")
    kl_coef: float = _option(0.05, "Coefficient of the KL penalty in the reward.")
    kl_target: float | None = _option(
        None, "KL per sequence (nats) that an adaptive kl_coef aims at; default: kl_coef is fixed."
    )
    kl_horizon: int = _option(10000, "Sequences over which the adaptive kl_coef moves.")
    whiten_rewards: bool = _option(False, "Give the token rewards unit spread, keeping their mean.")
    whiten_advantages: bool | None = _option(
        None, "z-score the advantages over the global batch; default: on, except for group."
    )
    missing_eos_penalty: float | None = _option(None, "Subtracted from the score of a completion that was cut.")
    missing_eos_score: float | None = _option(None, "Score of a completion that was cut, in place of its own.")
    score_clip: float | None = _option(None, "Clip the score to +- this, after scaling.")
    use_score_scaling: bool = _option(False, "Divide scores by their running spread.")
    use_score_norm: bool = _option(False, "With use_score_scaling: subtract their running mean first.")
    target_kl: float | None = _option(
        None, "Skip the rest of a rollout's updates once the mean approx_kl of a minibatch is above this."
    )
    value_warmup_steps: int = _option(0, "Optimizer steps that train the critic only.")
    target_coef: float = _option(
        0.0, "Coefficient of the mean NLL of reference completions (column target_column); 0: off."
    )
    target_column: str = _option("completion", "Dataset column with the reference completions.")
    stop_token: str | None = _option(None, "'eos', or a text of one token at which completions end too.")
    stop_token_id: int | None = _option(None, "The same by its id.")

    def __post_init__(self):
        self._read_dicts()
        self._check_numbers()
        self._check_choices()
        self._set_batches()
        # The parent wants a group of two and a beta that asks for the reference; both are ours again afterwards.
        generations, self.beta = self.num_generations, self.kl_coef
        self.num_generations_eval = self.num_generations_eval or generations
        rows = self.per_device_train_batch_size * (self.steps_per_generation or 1)
        self.num_generations = next(size for size in range(2, rows + 1) if rows % size == 0)
        super().__post_init__()
        self.num_generations, rows = generations, self.generation_batch_size or rows
        if rows % generations:
            near = sorted((size for size in range(1, rows + 1) if rows % size == 0), key=lambda s: abs(s - generations))
            raise ValueError(
                f"the {rows} completions of a rollout are no multiple of num_generations={generations}; nearest valid "
                f"values of --num_generations: {', '.join(map(str, sorted(near[:2])))}."
            )
        if self.total_episodes is not None:
            if self.max_steps > 0:
                raise ValueError("total_episodes and max_steps both say how long to train; set one of them.")
            self.max_steps = max(self.total_episodes // rows, 1) * self.num_ppo_epochs * self.num_mini_batches
        self.make_critic()
        self.make_kl_controller()

    def _set_batches(self) -> None:
        steps = self.gradient_accumulation_steps * self.num_mini_batches
        if self.generation_batch_size is not None:
            raise ValueError(
                "PPO has no generation_batch_size: a rollout has per_device_train_batch_size x "
                "gradient_accumulation_steps x num_mini_batches completions on each process; set these."
            )
        if self.steps_per_generation not in (None, steps):
            raise ValueError(
                f"steps_per_generation={self.steps_per_generation}, but gradient_accumulation_steps "
                f"{self.gradient_accumulation_steps} x num_mini_batches {self.num_mini_batches} = {steps} micro-batches"
                " make a rollout; nearest valid value: "
                f"--num_mini_batches {max(round(self.steps_per_generation / self.gradient_accumulation_steps), 1)} "
                "without --steps_per_generation."
            )
        if self.num_iterations not in (1, self.num_ppo_epochs):
            raise ValueError(f"num_iterations={self.num_iterations} is num_ppo_epochs in PPO; set --num_ppo_epochs.")
        self.steps_per_generation, self.num_iterations = steps, self.num_ppo_epochs
        if self.per_device_train_batch_size * steps < 2:
            raise ValueError(
                "a rollout of one completion on each process is too small; nearest valid values: "
                "--per_device_train_batch_size 2, or --num_mini_batches 2."
            )

    def _check_choices(self) -> None:
        for name, valid in (("advantage_estimator", ESTIMATORS), ("critic_backbone", BACKBONES)):
            if getattr(self, name) not in valid:
                raise ValueError(f"{name} must be one of {', '.join(valid)}, got {getattr(self, name)!r}.")
        if self.advantage_estimator == "gae":
            self.critic = self.critic or "mse"
        else:
            given = [n for n in ("critic", "critic_kwargs", "critic_path", "cliprange_value") if getattr(self, n)]
            given += [
                n for n, off in (("critic_backbone", "shared"), ("value_warmup_steps", 0)) if getattr(self, n) != off
            ]
            if given:
                raise ValueError(
                    f"{', '.join(given)} given, but advantage_estimator={self.advantage_estimator!r} has no critic; "
                    "use --advantage_estimator gae, or leave them out."
                )
            if self.num_generations < 2:
                raise ValueError(
                    f"advantage_estimator={self.advantage_estimator!r} compares the completions of a prompt: set "
                    f"--num_generations to 2 or more, got {self.num_generations}."
                )
        if self.scale_rewards not in ("group", True) and self.advantage_estimator != "group":
            raise ValueError("scale_rewards acts with advantage_estimator='group' only; see whiten_advantages.")
        if self.scale_rewards == "batch":
            raise ValueError("scale_rewards='batch' is not for PPO; use group or none, or --whiten_advantages.")
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError("multi_objective_aggregation must be sum_then_normalize in PPO: scores are weighted sums.")
        if self.whiten_advantages is None:
            self.whiten_advantages = self.advantage_estimator != "group"
        if self.beta not in (0.0, self.kl_coef):
            raise ValueError(f"beta={self.beta!r} is GRPO's KL in the loss; PPO has it in the reward: set --kl_coef.")
        if self.cliprange is not None:
            if self.epsilon not in (None, self.cliprange):
                raise ValueError(
                    f"cliprange={self.cliprange} and epsilon={self.epsilon} are one clip; set one of them."
                )
            self.epsilon = self.cliprange
        if (self.critic_model_name_or_path is None) == (self.critic_backbone == "model"):
            raise ValueError(
                f"critic_backbone={self.critic_backbone!r} with critic_model_name_or_path="
                f"{self.critic_model_name_or_path!r}: a critic on a model of its own needs both "
                "(--critic_backbone model --critic_model_name_or_path NAME), another one neither."
            )
        if self.critic_backbone == "adapter" and self.gradient_checkpointing:
            raise ValueError(
                "critic_backbone='adapter' does not go with gradient_checkpointing, whose second forward pass would "
                "run under the policy's adapter; set --gradient_checkpointing false."
            )
        if self.missing_eos_penalty is not None and self.missing_eos_score is not None:
            raise ValueError(
                "missing_eos_penalty and missing_eos_score are two ways to score a cut completion; set one."
            )
        if self.use_score_norm and not self.use_score_scaling:
            raise ValueError("use_score_norm acts with --use_score_scaling true only.")
        if self.stop_token is not None and self.stop_token_id is not None:
            raise ValueError("stop_token and stop_token_id are one setting; set one of them.")
        if self.use_vllm and (self.stop_token or "eos", self.stop_token_id) != ("eos", None):
            raise ValueError("stop_token with use_vllm: give vLLM --generation_kwargs '{\"stop_token_ids\": [...]}'.")
        if self.target_kl is not None and self.fp16:
            raise ValueError("target_kl does not go with fp16, whose gradient scaler needs every step; use --bf16.")

    def _check_numbers(self) -> None:
        super()._check_numbers()
        _check(
            self,
            ("num_ppo_epochs", "num_mini_batches", "num_generations", "kl_horizon", "total_episodes"),
            1,
            whole=True,
        )
        _check(self, ("value_warmup_steps", "stop_token_id"), 0, whole=True)
        _check(
            self,
            ("kl_coef", "vf_coef", "target_coef", "missing_eos_penalty", "kl_target", "score_clip", "target_kl"),
            0,
        )
        _check(self, ("gamma", "lam"), 0, 1)
        _check(self, ("initial_value", "missing_eos_score"), -math.inf)
        for name in ("kl_target", "score_clip", "target_kl"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be positive, got 0; leave --{name} out to turn it off.")

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
        kwargs = self.critic_kwargs or {}
        if not isinstance(kwargs, dict):
            raise ValueError(f"critic_kwargs must be a JSON object or a dict, got {kwargs!r}; set --critic_kwargs.")
        if self.critic == "c51":
            raise ValueError(
                "critic 'c51' needs the next state's distribution, which PPO's scalar returns do not give: with them "
                "it is two_hot; set --critic two_hot."
            )
        if self.critic == "mse":
            clip = 0.2 if self.cliprange_value is None else self.cliprange_value
            kwargs = {"cliprange_value": clip, **kwargs}
        elif self.cliprange_value is not None:
            raise ValueError(
                f"cliprange_value={self.cliprange_value} given, but critic {self.critic!r} is trained by cross-entropy,"
                " where clipping a value has no meaning; leave --cliprange_value out."
            )
        if self.critic != "mse" and self.initial_value:
            raise ValueError(f"initial_value is for critic mse; {self.critic} starts at the middle of its support.")
        return make_critic_loss(self.critic, **kwargs)


def _check(
    config: ScopePPOConfig, names: tuple[str, ...], low: float, high: float = math.inf, whole: bool = False
) -> None:
    for name in names:
        value = getattr(config, name)
        kinds = int if whole else (int, float)
        bad = (
            isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value)
            if value is not None
            else False
        )
        if value is not None and (bad or not low <= value <= high):
            kind = "whole number" if whole else "number"
            bounds = (
                f"in [{low}, {high}]"
                if math.isfinite(high)
                else f">= {low}"
                if math.isfinite(low)
                else "that is finite"
            )
            raise ValueError(f"{name} must be a {kind} {bounds}, got {value!r}; set --{name}.")
