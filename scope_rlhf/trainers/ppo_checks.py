"""What ScopePPOConfig refuses, before anything is loaded; each message says what was given and where to set it."""

import math
import warnings
from typing import Any

from scope_rlhf.models.critic_backbones import require_lora
from scope_rlhf.models.value_head import check_critic_folder, initial_bias
from scope_rlhf.objectives import CriticLossFunction, make_critic_loss
from scope_rlhf.runtime.settings import did_you_mean

PPO_CRITICS = ("mse", "hl_gauss", "two_hot")
ESTIMATORS, BACKBONES = ("gae", "rloo", "group"), ("shared", "adapter", "model")
# What has a meaning with advantage_estimator="gae" only.
CRITIC_ONLY = (
    "critic", "critic_kwargs", "critic_backbone", "critic_model_name_or_path", "critic_path", "critic_learning_rate",
    "initial_value", "vf_coef", "cliprange_value", "value_warmup_steps", "gamma", "lam", "whiten_rewards",
)  # fmt: skip


def check_choices(config: Any) -> None:
    """Settings that exclude or need each other."""
    for name, valid in (("advantage_estimator", ESTIMATORS), ("critic_backbone", BACKBONES)):
        if getattr(config, name) not in valid:
            raise ValueError(f"{name} must be one of {', '.join(valid)}, got {getattr(config, name)!r}; set --{name}.")
    for name in ("whiten_advantages", "whiten_rewards", "use_score_scaling", "use_score_norm"):
        if getattr(config, name) not in (True, False, None):
            raise ValueError(f"{name} must be true or false, got {getattr(config, name)!r}; set --{name}.")
    if config.advantage_estimator != "gae":
        fields = type(config).__dataclass_fields__
        given = [name for name in CRITIC_ONLY if getattr(config, name) != fields[name].default]
        if given:
            raise ValueError(
                f"{', '.join(given)} given, but advantage_estimator={config.advantage_estimator!r} has no critic; "
                "use --advantage_estimator gae, or leave them out."
            )
        if config.num_generations < 2:
            raise ValueError(
                f"advantage_estimator={config.advantage_estimator!r} compares the completions of a prompt: set "
                f"--num_generations to 2 or more, got {config.num_generations}."
            )
    if config.scale_rewards not in ("group", True) and config.advantage_estimator != "group":
        raise ValueError("scale_rewards acts with advantage_estimator='group' only; see whiten_advantages.")
    if config.scale_rewards == "batch":
        raise ValueError("scale_rewards='batch' is not for PPO; use group or none, or --whiten_advantages.")
    if config.multi_objective_aggregation != "sum_then_normalize":
        raise ValueError("multi_objective_aggregation must be sum_then_normalize in PPO: scores are weighted sums.")
    if config.beta not in (0.0, config.kl_coef):
        raise ValueError(f"beta={config.beta!r} is GRPO's KL in the loss; PPO has it in the reward: set --kl_coef.")
    if config.cliprange is not None and config.epsilon not in (None, config.cliprange):
        raise ValueError(f"cliprange={config.cliprange} and epsilon={config.epsilon} are one clip; set one of them.")
    if config.total_episodes is not None and config.max_steps > 0:
        raise ValueError("total_episodes and max_steps both say how long to train; set one of them.")
    if (config.critic_model_name_or_path is None) == (config.critic_backbone == "model"):
        raise ValueError(
            f"critic_backbone={config.critic_backbone!r} with critic_model_name_or_path="
            f"{config.critic_model_name_or_path!r}: a critic on a model of its own needs both "
            "(--critic_backbone model --critic_model_name_or_path NAME), another one neither."
        )
    if config.critic_backbone == "adapter" and config.gradient_checkpointing:
        raise ValueError(
            "critic_backbone='adapter' does not go with gradient_checkpointing, whose second forward pass would "
            "run under the policy's adapter; set --gradient_checkpointing false."
        )
    if config.missing_eos_penalty is not None and config.missing_eos_score is not None:
        raise ValueError("missing_eos_penalty and missing_eos_score are two ways to score a cut completion; set one.")
    if config.use_score_norm and not config.use_score_scaling:
        raise ValueError("use_score_norm acts with --use_score_scaling true only.")
    if config.stop_token is not None and config.stop_token_id is not None:
        raise ValueError("stop_token and stop_token_id are one setting; set one of them.")
    if config.use_vllm and (config.stop_token or "eos", config.stop_token_id) != ("eos", None):
        raise ValueError("stop_token with use_vllm: give vLLM --generation_kwargs '{\"stop_token_ids\": [...]}'.")
    if config.target_kl is not None and config.fp16:
        raise ValueError("target_kl does not go with fp16, whose gradient scaler needs every step; use --bf16.")


def check_batches(config: Any) -> None:
    """Sizes of a rollout, its minibatches and micro-batches."""
    steps = config.gradient_accumulation_steps * config.num_mini_batches
    if config.generation_batch_size is not None:
        raise ValueError(
            "PPO has no generation_batch_size: a rollout has per_device_train_batch_size x "
            "gradient_accumulation_steps x num_mini_batches completions on each process; set these."
        )
    if config.steps_per_generation != steps:
        raise ValueError(
            f"steps_per_generation={config.steps_per_generation}, but gradient_accumulation_steps "
            f"{config.gradient_accumulation_steps} x num_mini_batches {config.num_mini_batches} = {steps} micro-batches"
            " make a rollout; nearest valid value: "
            f"--num_mini_batches {max(round(config.steps_per_generation / config.gradient_accumulation_steps), 1)} "
            "without --steps_per_generation."
        )
    if config.num_iterations != config.num_ppo_epochs:
        raise ValueError(f"num_iterations={config.num_iterations} is num_ppo_epochs in PPO; set --num_ppo_epochs.")
    if config.per_device_train_batch_size * steps < 2:
        raise ValueError(
            "a rollout of one completion on each process is too small; nearest valid values: "
            "--per_device_train_batch_size 2, or --num_mini_batches 2."
        )


def critic_loss(name: str, kwargs: dict[str, Any], cliprange_value: float | None) -> CriticLossFunction:
    """make_critic_loss for PPO: mse clips by cliprange_value (.2). ValueError for what cannot serve PPO."""
    if name == "c51":
        raise ValueError(
            "critic 'c51' needs the next state's distribution, which PPO's scalar returns do not give: with them "
            "it is two_hot; set --critic two_hot."
        )
    if name == "mse":
        if cliprange_value is not None and kwargs.get("cliprange_value", cliprange_value) != cliprange_value:
            raise ValueError(
                f"cliprange_value={cliprange_value} and cliprange_value={kwargs['cliprange_value']} in critic_kwargs "
                "are one clip; set one of --cliprange_value and --critic_kwargs."
            )
        kwargs = {"cliprange_value": 0.2 if cliprange_value is None else cliprange_value, **kwargs}
    elif cliprange_value is not None:
        raise ValueError(
            f"cliprange_value={cliprange_value} given, but critic {name!r} is trained by cross-entropy,"
            " where clipping a value has no meaning; leave --cliprange_value out."
        )
    if name not in PPO_CRITICS:
        meant = did_you_mean(name, PPO_CRITICS)
        raise ValueError(f"unknown critic {name!r}{meant}; valid: {', '.join(PPO_CRITICS)}; set --critic.")
    try:
        return make_critic_loss(name, **kwargs)
    except ValueError as error:
        raise ValueError(f"{error}; set --critic and --critic_kwargs.") from error


def check_critic(config: Any, critic: CriticLossFunction | None) -> None:
    """Initial value and saved weights go with the critic."""
    if critic is not None:
        initial_bias(critic, config.initial_value)
        if config.use_score_scaling and config.critic != "mse":
            warnings.warn(
                f"critic {config.critic!r} has a fixed support, and use_score_scaling moves the scale of the returns "
                "under it: watch value/out_of_range, or use --critic mse.",
                stacklevel=4,
            )
        if config.critic_path is not None:
            check_critic_folder(config.critic_path, critic)


def check_adapter(config: Any, lora: bool) -> None:
    """An adapter for the critic needs LoRA for the policy."""
    if config.critic_backbone == "adapter":
        require_lora(lora)


def check_groups(config: Any) -> int:
    """The completions of a rollout over all processes, after ValueError where num_generations does not divide them."""
    rows, size = config.generation_batch_size, config.num_generations
    if config.total_episodes is not None and config.total_episodes < rows:
        raise ValueError(
            f"total_episodes={config.total_episodes} is less than the {rows} completions of one rollout; set "
            f"--total_episodes to {rows} or more, or make the rollout smaller (--num_mini_batches)."
        )
    if rows % size:
        near = sorted((n for n in range(1, rows + 1) if rows % n == 0), key=lambda n: abs(n - size))[:2]
        raise ValueError(
            f"the {rows} completions of a rollout are no multiple of num_generations={size}; nearest valid values: "
            f"--num_generations {' or '.join(map(str, sorted(near)))}."
        )
    return rows


def check_columns(config: Any, dataset: Any) -> None:
    """The dataset holds the references that target_coef needs."""
    columns = getattr(dataset, "column_names", None)
    if config.target_coef and columns and config.target_column not in columns:
        raise ValueError(
            f"target_coef needs reference completions, but train_dataset has no column {config.target_column!r}; its "
            f"columns are {columns}. Set --target_column."
        )


def find_stop_token(config: Any, tokenizer: Any) -> int | None:
    """The id of stop_token or stop_token_id; None for none, or the tokenizer's end token."""
    stop = config.stop_token_id
    if stop is None and config.stop_token not in (None, "eos"):
        ids = tokenizer(config.stop_token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(
                f"stop_token={config.stop_token!r} is {len(ids)} tokens of this tokenizer, expected one; set "
                "--stop_token_id."
            )
        stop = ids[0]
    if stop is not None and stop >= len(tokenizer):
        raise ValueError(f"stop_token_id={stop} is beyond the {len(tokenizer)} tokens of the tokenizer.")
    return stop


def check_numbers(config: Any) -> None:
    """Numbers in their ranges."""
    _check(
        config,
        ("num_ppo_epochs", "num_mini_batches", "num_generations", "kl_horizon", "total_episodes"),
        1,
        whole=True,
    )
    _check(config, ("value_warmup_steps", "stop_token_id"), 0, whole=True)
    _check(
        config,
        (
            "kl_coef",
            "vf_coef",
            "target_coef",
            "missing_eos_penalty",
            "kl_target",
            "score_clip",
            "target_kl",
            "critic_learning_rate",
        ),
        0,
    )
    _check(config, ("gamma", "lam"), 0, 1)
    _check(config, ("cliprange", "cliprange_value"), 0)
    _check(config, ("initial_value", "missing_eos_score"), -math.inf)
    if config.cliprange is not None and not 0 < config.cliprange < 1:
        raise ValueError(f"cliprange={config.cliprange!r} must lie in (0, 1); set --cliprange.")
    for name in ("kl_target", "score_clip", "target_kl", "cliprange_value"):
        if getattr(config, name) == 0:
            raise ValueError(f"{name} must be positive, got 0; leave --{name} out to turn it off.")


def _check(config: Any, names: tuple[str, ...], low: float, high: float = math.inf, whole: bool = False) -> None:
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not (right and math.isfinite(value) and low <= value <= high):
            bounds = f" in [{low}, {high}]" if math.isfinite(high) else f" >= {low}" if math.isfinite(low) else ""
            kind = "whole" if whole else "finite"
            raise ValueError(f"{name} must be a {kind} number{bounds}, got {value!r}; set --{name}.")
