"""Dual-path on-policy distillation (SCOPE, arXiv 2604.10688; not the Scope loss) on the GRPO trainer, and plain OPD."""

import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scope_rlhf.rl import (
    dual_path_advantages,
    dual_path_weights,
    sequence_mean_log_probs,
    teacher_advantages,
    weight_entropy,
)
from scope_rlhf.trainers.distillation_config import DualPathDistillationConfig
from scope_rlhf.trainers.grpo import ScopeGRPOTrainer
from scope_rlhf.trainers.remote_teacher import RemoteTeacher
from scope_rlhf.trainers.teachers import (
    AdapterTeacher,
    EndpointTeacher,
    ModelTeacher,
    Teacher,
    check_vocabulary,
    find_teacher,
    vocabulary_size,
)

# What the stand-in for a verifier would have logged; what takes a verdict is not defined and left out anyway.
OF_VERDICTS = ("reward", "frac_reward", "rollout/dropped", "distillation/unscored")


class DualPathDistillationTrainer(ScopeGRPOTrainer):
    """Completions of the student, routed by a verifier (arXiv 2604.10688, eq. 6):

        correct:  L = -sum_t w_i r_t                                   w_i = PPL_S^(1/tau), normalised over the correct
        wrong:    L =  sum_t w_i r_t (log pi_S - log pi_T)             w_i = PPL_T^(-1/tau), normalised over the wrong

    of each prompt; r_t = pi / pi_old. As a policy gradient the advantage of a token is w_i, or w_i (log pi_T - log
    pi_S): that of the sampled token, not of the vocabulary. It goes to `args.objective` (ppo clips r_t where a rollout
    is used for several updates; on policy r_t = 1 and the gradient is the equation's). Gradient flows through
    log-probs only. There is no baseline, and beta, the KL to a reference, is 0 unless it is set. A group whose
    completions are all correct, or all wrong, counts.

    mode="opd" is plain on-policy distillation: every completion is on the KL path with weight 1.

    reward_funcs are the verifiers: the weighted sum of their rewards is correct from args.correct_threshold on. A
    completion for which all of them return None, and one without tokens, has weight 0. They may be left out in "opd".
    teacher_model: a name, a folder or an instance, of which the tokenizer is checked where teacher_processing_class is
    given; otherwise the settings name the teacher. Its log-probs are taken once a rollout. A score that is missing is
    an error.

    Metrics beside those of ScopeGRPOTrainer: distillation/*; the README explains each. Raises ValueError at
    construction as ScopeGRPOTrainer, and for a teacher that is missing, is the student, or has other tokens.
    """

    algorithm = "distillation"
    args: DualPathDistillationConfig

    def __init__(
        self,
        model,
        reward_funcs=None,
        args: DualPathDistillationConfig | None = None,
        *,
        teacher_model=None,
        teacher_processing_class=None,
        **kwargs: Any,
    ):
        args = DualPathDistillationConfig("dual-path-distillation") if args is None else args
        if not isinstance(args, DualPathDistillationConfig):
            raise ValueError(
                f"args must be a DualPathDistillationConfig, got {type(args).__name__}: it names mode and teacher."
            )
        verified = reward_funcs is not None and reward_funcs != []
        if not verified:
            _check_without_verifier(args)
        if isinstance(teacher_model, str):  # as TRL takes it
            if args.teacher_model_name_or_path not in (None, teacher_model):
                raise ValueError(
                    f"teacher_model={teacher_model!r} and teacher_model_name_or_path="
                    f"{args.teacher_model_name_or_path!r} name two teachers; give one of them."
                )
            args.teacher_model_name_or_path, teacher_model = teacher_model, None
        teacher, tokenizer = find_teacher(args, model, teacher_processing_class, teacher_model)
        super().__init__(model, reward_funcs if verified else [_no_verifier], args, **kwargs)
        self._verified, self._warned = verified, False
        check_vocabulary(self._tokenizer, teacher, tokenizer)
        self._teacher_vocabulary = vocabulary_size(teacher)
        self.teacher = self._make_teacher(teacher)

    def _make_teacher(self, model: Any) -> Teacher:
        args = self.args
        temperature = args.temperature if args.teacher_temperature is None else args.teacher_temperature
        endpoint = args.teacher_endpoint()
        if endpoint is not None:
            cache = Path(str(args.output_dir), "teacher_cache", f"rank{self.accelerator.process_index}.sqlite")
            remote = RemoteTeacher(endpoint, self._tokenizer, cache if args.teacher_cache else None)
            remote.probe()
            return EndpointTeacher(self, remote)
        if args.teacher_adapter_name is not None:
            return AdapterTeacher(self, args.teacher_adapter_name, args.teacher_model_name_or_path, temperature)
        return ModelTeacher(self, model, temperature)

    def _generate_and_score_completions(self, inputs):
        training = self.model.training
        rollout = super()._generate_and_score_completions(inputs)
        mask = (rollout["completion_mask"] * rollout.get("tool_mask", 1)).bool()
        self._check_ids(rollout["completion_ids"])
        if "old_per_token_logps" not in rollout:  # one update per rollout: the parent goes without
            rollout["old_per_token_logps"] = self._old_log_probs(rollout)
        started = self._time()
        teacher_log_probs = self.teacher.log_probs(rollout)
        seconds = self._time() - started
        log_probs = rollout["old_per_token_logps"]
        rows = [sequence_mean_log_probs(x, mask) for x in (log_probs, teacher_log_probs)]
        # A group may span processes: its weights are those of all its completions.
        student, teacher, tokens = self.accelerator.gather(torch.stack([*rows, mask.sum(1)], dim=1).float()).unbind(1)
        _check_scores(teacher, tokens)
        size = int((self.num_generations if training else self.num_generations_eval) or 1)
        correct = self._correct().masked_fill(tokens == 0, torch.nan)
        if self.args.mode == "opd":
            weighed, weights = None, (torch.zeros_like(student), torch.ones_like(student))
        else:
            signs = dict(zip(("student_sign", "teacher_sign"), self.args.signs(), strict=True))
            weighed = weights = dual_path_weights(
                student, teacher, correct, size, self.args.tau, str(self.args.normalization), **signs
            )
        metrics = {"teacher_seconds": seconds, **_rollout_metrics(student, teacher, tokens, correct, weighed, size)}
        for name, value in metrics.items():
            self._metrics["train" if training else "eval"][f"distillation/{name}"].append(value)
        share = self._share(len(mask))
        ratios = teacher_advantages(log_probs, teacher_log_probs, mask)
        rollout["advantages"] = dual_path_advantages(weights[0][share], weights[1][share], ratios, mask)
        if self.args.reduction == "eq6":  # the parent's sum over tokens, divided by the prompts in place of tokens
            rollout["num_items_in_batch"] = torch.tensor(len(student) / size, device=mask.device)
        self._show_advantages(rollout["advantages"], mask)
        return rollout

    def _time(self) -> float:
        """Seconds on the clock when the device has done what it was given."""
        if self.accelerator.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    def _correct(self) -> Tensor:
        """1, 0 or NaN (no verdict, or no verifier) for the completions of all processes [B]."""
        rewards, weights = self._raw_rewards, self.reward_weights.to(self._raw_rewards.device)
        verdict = ~rewards[:, weights != 0].isnan().all(dim=1) & self._verified
        scores = (rewards * weights).nansum(dim=1)
        threshold = self.args.correct_threshold
        odd = verdict & (scores != 0) & (scores != 1)
        if threshold is None and odd.any() and not self._warned:
            self._warned = True
            warnings.warn(
                f"a verifier gave {scores[odd][0].item():g}, which is neither 0 nor 1; rewards from .5 on count as "
                "correct. Set --correct_threshold to say where.",
                stacklevel=2,
            )
        return (scores >= (0.5 if threshold is None else threshold)).float().masked_fill(~verdict, torch.nan)

    def _check_ids(self, ids: Tensor) -> None:
        """The student's head may be padded beyond its tokenizer, and the teacher's may end earlier. Masked tokens go
        through the teacher too.
        """
        if self._teacher_vocabulary is not None and ids.numel():
            highest = int(ids.max())
            if highest >= self._teacher_vocabulary:
                raise ValueError(
                    f"the student sampled token {highest}, and the teacher knows {self._teacher_vocabulary} tokens; no "
                    "update was made with it. Set --teacher_model_name_or_path to a teacher with the same vocabulary."
                )

    def describe(self) -> dict[str, Any]:
        names = ("mode", "weights", "reverse_weights", "tau", "normalization", "reduction", "correct_threshold")
        names += ("teacher_model_name_or_path", "teacher_adapter_name", "teacher_base_url", "teacher_temperature")
        return {**super().describe(), "distillation": {name: getattr(self.args, name) for name in names}}

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.teacher_adapter_name is None:
            super()._save(output_dir, state_dict)
            return
        model: Any = self.accelerator.unwrap_model(self.model)
        # PEFT saves every adapter; the teacher's has its own place, which may be the folder that PEFT would write to.
        students = [name for name in model.peft_config if name != self.args.teacher_adapter_name]
        model.save_pretrained = partial(model.save_pretrained, selected_adapters=students)
        try:
            super()._save(output_dir, state_dict)
        finally:
            del model.save_pretrained

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if not self._verified:
            metrics = self._metrics["train" if self.model.training else "eval"]
            for name in [n for n in metrics if n.startswith(OF_VERDICTS)]:
                metrics.pop(name)
            self._logs["rewards"].clear()
        super().log(logs, start_time)


def _check_without_verifier(args: DualPathDistillationConfig) -> None:
    if args.mode != "opd":
        raise ValueError("mode='dual_path' needs a verifier: give reward_funcs, or set --mode opd.")
    if args.correct_threshold is not None:
        raise ValueError(
            f"correct_threshold={args.correct_threshold} needs a verifier: give reward_funcs, or leave "
            "--correct_threshold out."
        )
    best = args.metric_for_best_model
    if args.load_best_model_at_end and best and best.removeprefix("eval_").startswith(OF_VERDICTS):
        raise ValueError(
            f"metric_for_best_model={best!r} needs a verifier: give reward_funcs, or set --metric_for_best_model "
            "distillation/log_ratio --greater_is_better false."
        )


def _no_verifier(prompts, completions, **kwargs) -> list[float]:
    """Stands where the parent wants a reward function; nothing reads it."""
    return [0.0] * len(prompts)


def _check_scores(means: Tensor, tokens: Tensor) -> None:
    missing = (tokens > 0) & ~means.isfinite()
    if missing.any():
        raise ValueError(
            f"the teacher gave no finite log-prob for {int(missing.sum())} of {len(means)} completions (the first is "
            f"completion {int(missing.nonzero()[0])} of the rollout); no update was made with them. A missing score is "
            "no number: as log-prob 0 it would have the largest weight."
        )


def _rollout_metrics(
    student: Tensor, teacher: Tensor, tokens: Tensor, correct: Tensor, weights: tuple[Tensor, Tensor] | None, size: int
) -> dict[str, float]:
    """Of a rollout on all processes; what is not defined (no wrong completion, no branch of two) is left out. weights:
    None in mode opd.
    """
    counted = tokens > 0
    ratios = torch.where(counted, (student - teacher) * tokens, 0.0)

    def log_ratio(branch: Tensor) -> Tensor:
        return (ratios * branch).sum() / (tokens * branch).sum()

    known = ~correct.isnan().view(-1, size)
    right = (correct == 1).view(-1, size)
    groups = known.any(dim=1)
    found = {
        "correct": correct.nanmean(),
        "unscored": correct.isnan().float().mean(),
        "student_perplexity": (-student[counted]).exp().mean(),
        "teacher_perplexity": (-teacher[counted]).exp().mean(),
        "log_ratio": log_ratio(counted),
        "log_ratio_correct": log_ratio(correct == 1),
        "log_ratio_wrong": log_ratio(correct == 0),
        "groups_all_correct": (groups & (right | ~known).all(dim=1)).sum() / groups.sum(),
        "groups_all_wrong": (groups & ~right.any(dim=1)).sum() / groups.sum(),
    }
    for name, branch in zip(("student", "teacher"), weights or (), strict=False):
        found[f"{name}_weight_entropy"] = weight_entropy(branch, size).nanmean()
    return {
        name: value
        for name, value in zip(found, torch.stack(list(found.values())).tolist(), strict=True)
        if value == value
    }
