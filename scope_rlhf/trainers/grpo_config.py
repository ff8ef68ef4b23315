"""Configuration of GRPO with any objective."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers.integrations import get_available_reporting_integrations
from trl import GRPOConfig

from scope_rlhf.models.log_prob_head import check_head_impl
from scope_rlhf.models.rollout_weights import check_rollout_dtype
from scope_rlhf.objectives import make_trainer_objective, require_trainable
from scope_rlhf.runtime.settings import json_object

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")
# Settings of the parent that the overridden loss does not carry: name -> (the only value allowed, what to use instead).
UNSUPPORTED = {
    "delta": (None, "it is TRL's two-sided clip; write it as an objective of your own"),
    "top_entropy_quantile": (1.0, "the objective sees every counted token"),
    "entropy_coef": (0.0, "use --objective policy_entropy"),
    "use_adaptive_entropy": (False, "use --objective policy_entropy"),
    "off_policy_mask_threshold": (None, "the objective sees every counted token"),
    "router_aux_loss_coef": (None, "mixture-of-experts balancing is not carried"),
    "use_liger_kernel": (False, "it replaces the forward pass that gives the log-probs"),
}
# Sampling from a truncated distribution makes the full-vocabulary ratio biased: its mean is the kept mass, not 1.
# The first four are settings, the others come by generation_kwargs, spelled as in transformers or vLLM.
SAMPLING = {
    "top_p": (1.0,), "top_k": (0, None), "min_p": (None, 0.0), "repetition_penalty": (1.0,), "typical_p": (1.0, None),
    "epsilon_cutoff": (0.0, None), "eta_cutoff": (0.0, None), "top_h": (None,), "no_repeat_ngram_size": (0, None),
    "do_sample": (True,), "num_beams": (1,), "penalty_alpha": (None,), "guidance_scale": (None, 1.0),
    "bad_words_ids": (None,), "suppress_tokens": (None,), "begin_suppress_tokens": (None,), "sequence_bias": (None,),
    "min_length": (0, None), "min_new_tokens": (0, None), "exponential_decay_length_penalty": (None,),
    "encoder_repetition_penalty": (1.0, None), "forced_bos_token_id": (None,), "forced_eos_token_id": (None,),
    "presence_penalty": (0.0,), "frequency_penalty": (0.0,), "logit_bias": (None,), "min_tokens": (0,),
    "bad_words": (None,), "allowed_token_ids": (None,),
}  # fmt: skip
WHOLE_NUMBERS = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "steps_per_generation",
    "num_iterations", "max_completion_length", "num_generations",
)  # fmt: skip
FROM_ZERO = ("beta", "learning_rate", "seed", "max_grad_norm", "warmup_steps", "weight_decay")


def _refuse_changed_sampling(sampling: dict[str, Any], advice: str) -> None:
    """ValueError for a setting of SAMPLING that is none of its allowed values, with advice on {name} and {value}."""
    for name, allowed in SAMPLING.items():
        if name in sampling and sampling[name] not in allowed:
            raise ValueError(
                f"{name}={sampling[name]!r} samples from a changed distribution, while the ratio is taken over the "
                f"full vocabulary, so it would be biased; {advice.format(name=name, value=allowed[0])}"
            )


def smallest_group(rows: int) -> int:
    """The smallest group of at least two that divides the completions of a rollout: what the parent is shown while it
    checks a configuration whose num_generations is 1. ValueError for a rollout of one completion.
    """
    if rows < 2:
        raise ValueError(
            "a rollout of one completion on each process is too small; nearest valid value: "
            "--per_device_train_batch_size 2."
        )
    return next(size for size in range(2, rows + 1) if rows % size == 0)


def check_model_sampling(model: Any, ours: dict[str, Any] | None) -> None:
    """ValueError for a model whose own generation_config changes the distribution where a run sets nothing: `generate`
    fills in from there what it is given as None. vLLM (`ours` is None) does not read it.
    """
    config = getattr(model, "generation_config", None)
    if ours is None or config is None:
        return
    filled_in = {name: getattr(config, name, None) for name in SAMPLING if ours.get(name) is None}
    _refuse_changed_sampling(
        {name: value for name, value in filled_in.items() if value not in (None, [])},
        "it comes from the model's generation_config: set model.generation_config.{name} = {value}, or give "
        "--generation_kwargs '{{\"{name}\": ...}}' with a value that changes nothing.",
    )


@dataclass
class ScopeGRPOConfig(GRPOConfig):
    """GRPOConfig with an objective.

    `objective` is a name of the catalogue, or `module:Class` / `path/to/file.py:Class` for one's own; its parameters
    come by `objective_kwargs` (a dict, or JSON on the command line). The clip has one source: `epsilon` and
    `epsilon_high` set clip_low and clip_high unless objective_kwargs does; both given and different is a ValueError.
    `scale_rewards` is where advantages get their unit spread; there is no second z-score on top.

    Departures from GRPOConfig: `epsilon` has no value of its own (the objective's clip_low, .2, holds), `bf16` is on
    where a CUDA device has it and off on a CPU, `disable_dropout` is True, the best model is the one of the highest
    held-out reward, and what the loss does not carry is refused
    (UNSUPPORTED, truncated sampling, other loss types).
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*GRPOConfig._VALID_DICT_FIELDS, "objective_kwargs"]

    objective: str = field(
        default="ppo", metadata={"help": "Name of the objective, or module:Class, or path/to/file.py:Class."}
    )
    objective_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Parameters of the objective as JSON, for example '{\"alpha\": 0.3}'."}
    )
    allow_objective_change: bool = field(
        default=False,
        metadata={"help": "Resume although the objective, or its file, has changed."},
    )
    probe_rewards: bool = field(
        default=True, metadata={"help": "Call every reward function once before training, to fail early."}
    )
    nan_reward: str = field(
        default="error",
        metadata={"help": "What a NaN or infinite reward does: 'error' stops the run, 'drop' leaves its row out."},
    )
    epsilon: float | None = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None, metadata={"help": "Lower (and default upper) clip of the ratio; default: the objective's."}
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Turn dropout off, so that the ratio is 1 on the first pass."}
    )
    head_impl: str = field(
        default="auto",
        metadata={
            "help": "How log-probs come from hidden states: auto (the fastest), jacobian (frozen head), recompute, trl "
            "(TRL's fused head) or dense (all logits)."
        },
    )
    merge_for_rollout: bool = field(
        default=True, metadata={"help": "Merge the LoRA adapter into the weights while completions are sampled."}
    )
    rollout_dtype: str | None = field(
        default=None,
        metadata={
            "help": "Dtype of the weights while completions are sampled: bfloat16 or float32; default: their own. Old "
            "log-probs are then taken by a pass of the policy."
        },
    )
    reuse_sampling_log_probs: bool = field(
        default=True,
        metadata={"help": "Take the sampler's log-probs as old log-probs where they are those of the policy."},
    )
    sort_by_length: bool = field(
        default=True,
        metadata={
            "help": "Put rows of like lengths into a micro-batch, within an optimizer step, and cut its padding off."
        },
    )

    def __post_init__(self):
        if self.bf16 is None and not self.fp16:
            self.bf16 = not self.use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        self._read_dicts()
        self._check_numbers()
        check_head_impl(self.head_impl)
        check_rollout_dtype(self.rollout_dtype)
        if self.load_best_model_at_end and getattr(self.eval_strategy, "value", self.eval_strategy) == "no":
            raise ValueError("load_best_model_at_end needs evaluations: set --eval_strategy steps and --eval_steps N.")
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "reward"  # transformers' own choice, the loss, says nothing here
        super().__post_init__()
        self._refuse_unsupported()
        missing = [
            name
            for name in self.report_to or ()
            if name not in ("none", "all", *get_available_reporting_integrations())
        ]
        if missing:
            raise ValueError(
                f"report_to names {', '.join(missing)}, which is not installed; install it or set --report_to none."
            )
        chosen = self.make_objective()
        require_trainable(chosen, ratio=True, source=self.objective)
        # The parent reads these for its own logging.
        self.epsilon = getattr(chosen, "clip_low", self.epsilon)
        self.epsilon_high = getattr(chosen, "clip_high", self.epsilon_high)

    def to_dict(self) -> dict[str, Any]:
        """The parent's, which hides every value whose name ends with _token: only those of the Hub are secret."""
        hidden = [name for name in self.__dataclass_fields__ if name.endswith("_token") and "hub" not in name]
        return {**super().to_dict(), **{name: getattr(self, name) for name in hidden}}

    def _check_numbers(self) -> None:
        """What the parent would divide by, sample with or multiply into the loss, before it does."""
        for name in WHOLE_NUMBERS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}; set --{name}.")
        for name in FROM_ZERO:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number >= 0, got {value!r}; set --{name}.")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive to sample, got {self.temperature!r}; set --temperature.")
        if self.max_steps == 0 or self.max_steps < -1 or (self.max_steps < 0 and not self.num_train_epochs > 0):
            raise ValueError(
                f"max_steps={self.max_steps} trains nothing; set --max_steps, or -1 for --num_train_epochs."
            )
        if self.scale_rewards not in (True, False, "group", "batch", "none"):
            raise ValueError(f"scale_rewards must be group, batch or none, got {self.scale_rewards!r}.")
        for name in ("merge_for_rollout", "reuse_sampling_log_probs", "sort_by_length"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}; set --{name}.")
        if self.nan_reward not in ("error", "drop"):
            raise ValueError(f"nan_reward must be error or drop, got {self.nan_reward!r}; set --nan_reward.")
        if self.reward_weights is not None and not all(math.isfinite(weight) for weight in self.reward_weights):
            raise ValueError(f"reward_weights must be finite, got {self.reward_weights}; set --reward_weights.")

    def _read_dicts(self) -> None:
        """Dictionaries come from the command line as JSON; the parent reads them too, but names no setting."""
        for name in self._VALID_DICT_FIELDS:
            text = getattr(self, name, None)
            if isinstance(text, str) and (text.lstrip().startswith("{") or name == "objective_kwargs"):
                setattr(self, name, json_object(name, text))

    def make_objective(self):
        """The objective of this configuration; ValueError for an unknown name, parameter, or a clip set twice."""
        return make_trainer_objective(
            self.objective, self._dict_of("objective_kwargs"), epsilon=self.epsilon, epsilon_high=self.epsilon_high
        )

    def _dict_of(self, name: str) -> dict[str, Any] | None:
        """A setting that _read_dicts has read; ValueError for what is no dictionary."""
        kwargs = getattr(self, name)
        if kwargs is not None and not isinstance(kwargs, dict):
            raise ValueError(f"{name} must be a JSON object or a dict, got {kwargs!r}; set --{name}.")
        return kwargs

    def unscaled_advantages(self) -> str | None:
        """The setting by which advantages keep the scale of the reward, in words; None where they have unit spread."""
        return "scale_rewards='none'" if self.scale_rewards == "none" else None

    def _refuse_unsupported(self) -> None:
        if self.loss_type not in LOSS_TYPES:
            raise ValueError(
                f"loss_type {self.loss_type!r} is not supported with an objective: it is an objective of its own. "
                f"Valid reductions: {', '.join(LOSS_TYPES)}; set --loss_type."
            )
        for name, (allowed, instead) in UNSUPPORTED.items():
            if getattr(self, name) != allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not supported: {instead}; leave --{name} unset.")
        sampling = {name: getattr(self, name) for name in SAMPLING if hasattr(self, name)}
        if isinstance(self.generation_kwargs, dict):
            sampling |= self.generation_kwargs
            if "temperature" in self.generation_kwargs:
                raise ValueError(
                    "generation_kwargs sets temperature, which the log-probs would not follow; set --temperature."
                )
        _refuse_changed_sampling(sampling, "leave {name} at {value}.")
        if self.importance_sampling_level not in ("token", "sequence"):
            raise ValueError(
                f"importance_sampling_level must be token or sequence, got {self.importance_sampling_level!r}."
            )
