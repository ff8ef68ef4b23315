"""Configuration of dual-path on-policy distillation."""

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from scope_rlhf.rl.dual_path import NORMALIZATIONS
from scope_rlhf.runtime.settings import option
from scope_rlhf.trainers.grpo_config import ScopeGRPOConfig, smallest_group
from scope_rlhf.trainers.remote_teacher import TeacherEndpoint

MODES, BRANCHES = ("dual_path", "opd"), ("both", "student", "teacher", "none")
# reduction -> the loss_type of the parent that does it; eq6 divides the sum by the number of prompts instead.
REDUCTIONS = {"token_mean": "dapo", "sequence_mean": "grpo", "fixed_horizon": "dr_grpo", "eq6": "dapo"}
DUAL_PATH_ONLY = ("weights", "reverse_weights", "tau", "normalization")
# Settings of the parent that shape advantages, which are the weights and log-ratios here.
OF_GRPO = ("scale_rewards", "multi_objective_aggregation")


@dataclass
class DualPathDistillationConfig(ScopeGRPOConfig):
    """ScopeGRPOConfig for dual-path on-policy distillation (SCOPE, arXiv 2604.10688), and for plain OPD.

    | setting | values | effect |
    |---|---|---|
    | mode | dual_path, opd | opd: every completion on the KL path with weight 1, no verifier needed |
    | weights | both, student, teacher, none | which branches are weighted; default both |
    | reverse_weights | none, student, teacher, both | exponent of these weights with the other sign (ablation) |
    | tau | > 0 | temperature of the weights: large is uniform |
    | normalization | mean, sum | weights of a branch have the mean 1, or sum to 1 (eqs. 4, 5) |
    | reduction | token_mean, sequence_mean, fixed_horizon, eq6 | eq6: the sum over tokens, divided by the prompts |
    | correct_threshold | number | a reward from here on counts as correct; default .5, with a warning for rewards \
other than 0 and 1 |

    reduction="eq6" takes normalization="sum" unless it is given: that is eq. 6 to the letter. The teacher is a path, a
    name, an adapter of the student's own model, or an endpoint (see TeacherEndpoint); an instance goes to the trainer.
    Teacher and student have the same temperature unless teacher_temperature is given.

    num_generations=1 is for mode="opd" and weights="none": in a group of one every weight is 1. Raises ValueError for
    settings that exclude each other, by name.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*ScopeGRPOConfig._VALID_DICT_FIELDS, "teacher_model_init_kwargs"]

    mode: str = option("dual_path", "dual_path, or opd: plain on-policy distillation.")
    weights: str | None = option(None, "Weighted branches: both, student, teacher or none; default both.")
    reverse_weights: str = option("none", "Branches whose weights are reversed, for ablation.")
    tau: float = option(1.0, "Temperature of the weights.")
    normalization: str | None = option(None, "mean or sum; default mean, and sum with reduction eq6.")
    reduction: str = option("token_mean", "token_mean, sequence_mean, fixed_horizon or eq6.")
    correct_threshold: float | None = option(None, "Reward from which a completion counts as correct; default .5.")
    teacher_model_name_or_path: str | None = option(
        None, "Teacher: folder or Hub name; with teacher_base_url the model's name there."
    )
    teacher_model_revision: str | None = option(None, "Revision of the teacher on the Hub.")
    teacher_model_init_kwargs: dict[str, Any] | str | None = option(
        None, 'Arguments of from_pretrained for the teacher as JSON, such as \'{"dtype": "bfloat16"}\'.'
    )
    teacher_adapter_name: str | None = option(
        None,
        "Adapter of the student's own model that is the teacher; with teacher_model_name_or_path it is loaded from "
        "there. No second model.",
    )
    teacher_temperature: float | None = option(None, "Temperature of the teacher; default: temperature.")
    teacher_base_url: str | None = option(
        None, "OpenAI-compatible endpoint with prompt log-probs, up to /v1, such as http://127.0.0.1:8000/v1."
    )
    teacher_api: str = option("prompt_logprobs", "prompt_logprobs (vLLM) or echo (as once OpenAI, llama.cpp).")
    teacher_api_key_variable: str = option("OPENAI_API_KEY", "Environment variable with the endpoint's key.")
    teacher_timeout: float = option(120.0, "Seconds for one request.")
    teacher_retries: int = option(5, "Further attempts after a transient failure.")
    teacher_concurrency: int = option(8, "Requests at once.")
    teacher_request_batch_size: int = option(16, "Completions in one request.")
    teacher_cache: bool = option(True, "Keep the endpoint's answers in output_dir/teacher_cache.")

    def __post_init__(self):
        self._check_choices()
        self._check_teacher()
        if self.weights is None:
            self.weights = "none" if self.mode == "opd" else "both"
        if self.normalization is None:
            self.normalization = "sum" if self.reduction == "eq6" else "mean"
        generations = self.num_generations
        if generations == 1:
            self._check_group_of_one()
            rows = self.generation_batch_size or self.per_device_train_batch_size * (
                self.steps_per_generation or self.gradient_accumulation_steps
            )
            # The parent wants two; any divisor of the batch will do while it checks.
            self.num_generations = smallest_group(rows)
            self.num_generations_eval = self.num_generations_eval or 1
        super().__post_init__()
        self.num_generations = generations
        given = type(self).__dataclass_fields__["loss_type"].default
        if self.loss_type not in (given, REDUCTIONS[self.reduction]):
            named = next((name for name, kind in REDUCTIONS.items() if kind == self.loss_type), "token_mean")
            raise ValueError(f"loss_type={self.loss_type!r} is the reduction of GRPO; here it is --reduction {named}.")
        self.loss_type = REDUCTIONS[self.reduction]

    def _check_choices(self) -> None:
        for name, valid in (
            ("mode", MODES), ("weights", (*BRANCHES, None)), ("reverse_weights", BRANCHES),
            ("normalization", (*NORMALIZATIONS, None)), ("reduction", tuple(REDUCTIONS)),
        ):  # fmt: skip
            value = getattr(self, name)
            if value not in valid:
                raise ValueError(
                    f"{name} must be one of {', '.join(x for x in valid if x)}, got {value!r}; set --{name}."
                )
        if not _is_number(self.tau) or not self.tau > 0:
            raise ValueError(f"tau must be a positive number, got {self.tau!r}; set --tau.")
        threshold = self.correct_threshold
        if threshold is not None and not (_is_number(threshold) and math.isfinite(threshold)):
            raise ValueError(f"correct_threshold must be a number, got {threshold!r}; set --correct_threshold.")
        changed = self._changed(DUAL_PATH_ONLY)
        if self.mode == "opd" and changed and not (changed == ["weights"] and self.weights == "none"):
            raise ValueError(
                f"{', '.join(changed)} given, but mode='opd' has no weights: every completion is on the KL path with "
                "weight 1. Leave them out, or use --mode dual_path."
            )
        if self.mode == "dual_path" and self.weights == "none" and self._changed(("tau",)):
            raise ValueError(
                f"tau={self.tau} is the temperature of the weights, which weights='none' leaves out; set --weights, or "
                "leave --tau out."
            )
        reversed_branches = {"both": ("student", "teacher"), "none": ()}.get(
            self.reverse_weights, (self.reverse_weights,)
        )
        unweighted = [name for name in reversed_branches if self.weights not in (None, "both", name)]
        if unweighted:
            raise ValueError(
                f"reverse_weights={self.reverse_weights!r} reverses weights that weights={self.weights!r} leaves out; "
                f"set --weights both or {unweighted[0]}."
            )
        changed = self._changed(OF_GRPO)
        if changed:
            raise ValueError(
                f"{', '.join(changed)} shape the advantages of GRPO; distillation's are weights and log-ratios. Leave "
                f"--{changed[0]} out."
            )

    def _check_teacher(self) -> None:
        temperature = self.teacher_temperature
        if temperature is not None and not (_is_number(temperature) and 0 < temperature < math.inf):
            raise ValueError(f"teacher_temperature must be positive, got {temperature!r}; set --teacher_temperature.")
        shared = ("teacher_base_url", "teacher_model_name_or_path", "temperature")
        of_endpoint = [*(f.name for f in fields(TeacherEndpoint) if f.name not in shared), "teacher_cache"]
        of_loading = ("teacher_model_revision", "teacher_model_init_kwargs")
        remote, name, adapter = self.teacher_base_url, self.teacher_model_name_or_path, self.teacher_adapter_name
        if remote is not None and name is None:
            raise ValueError(
                f"teacher_base_url={remote!r} needs the model's name there: set --teacher_model_name_or_path."
            )
        local = "are for a teacher on this machine, not behind teacher_base_url"
        for holds, names, why in (
            (remote is None, of_endpoint, "are for a teacher behind --teacher_base_url"),
            (remote is not None, ("teacher_adapter_name", *of_loading), local),
            (adapter is not None, of_loading, "do not go with teacher_adapter_name, whose model is the student's"),
            (name is None, of_loading, "are for a teacher that is loaded: set --teacher_model_name_or_path"),
        ):
            wrong = self._changed(names) if holds else []
            if wrong:
                raise ValueError(f"{', '.join(wrong)} {why}.")

    def _check_group_of_one(self) -> None:
        if self.mode == "dual_path" and self.weights != "none":
            raise ValueError(
                f"num_generations=1 with weights={self.weights!r}: in a group of one every weight is 1, so nothing is "
                "weighted. Set --num_generations to 2 or more, --weights none, or --mode opd."
            )

    def _changed(self, names) -> list[str]:
        """Those that do not have their default any more."""
        defaults = type(self).__dataclass_fields__
        return [name for name in names if getattr(self, name) != defaults[name].default]

    def signs(self) -> tuple[int, int]:
        """student_sign and teacher_sign of dual_path_weights."""
        weighted, flipped = (
            {"both": ("student", "teacher"), "none": ()}.get(str(choice), (str(choice),))
            for choice in (self.weights, self.reverse_weights)
        )
        student, teacher = ((name in weighted) * (-1 if name in flipped else 1) for name in ("student", "teacher"))
        return student, teacher

    def teacher_endpoint(self) -> TeacherEndpoint | None:
        """Where the teacher is asked; None for one on this machine. ValueError as TeacherEndpoint."""
        if self.teacher_base_url is None:
            return None
        temperature = self.temperature if self.teacher_temperature is None else self.teacher_temperature
        settings = {f.name: getattr(self, f.name) for f in fields(TeacherEndpoint)}
        return TeacherEndpoint(**{**settings, "temperature": temperature})

    def unscaled_advantages(self) -> str | None:
        return "distillation"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
