"""GRPO with any objective: TRL's GRPOTrainer with its inlined loss replaced by a call of the loss core."""

import warnings
from collections import defaultdict
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import ProcessorMixin

from scope_rlhf.losses import fill_masked, reduce_loss
from scope_rlhf.models.loading import find_model
from scope_rlhf.models.positions import derive_positions
from scope_rlhf.objectives import PolicyInputs
from scope_rlhf.trainers.grpo_config import ScopeGRPOConfig, check_model_sampling
from scope_rlhf.trainers.lean_rollouts import LeanRollouts
from scope_rlhf.trainers.prompts import check_batches, check_dataset, check_lengths, check_templates
from scope_rlhf.trainers.rewards import check_reward_function, probe_reward

HUB_SETTINGS = ("revision", "trust_remote_code")
# The strength of these is relative to advantages of unit spread (paper: z-scored, eq. 9).
NEEDS_UNIT_SPREAD = ("scope", "focal", "policy_entropy")


class ScopeGRPOTrainer(LeanRollouts):
    """GRPOTrainer that minimises `args.objective`.

    Generation, vLLM and its importance ratio, tool masks, reward functions and models, reference KL with the bias
    correction, evaluation and Hub push are the parent's. Advantages are the parent's group-relative ones, expanded to
    tokens; `log_ratio` is per token, or the sequence mean expanded to tokens (importance_sampling_level="sequence").
    The loss is reduce_loss(objective, loss_type) plus beta times the k3 KL, on TRL's scale, so that the objective
    `ppo` gives the parent's loss and gradient.

    Metrics, beside the parent's of generation and rewards: `objective/<stat>`, `kl`, `entropy` and
    `clip_ratio/region_mean`, each a masked sum over a count, both summed over micro-batches and ranks between two logs.

    Dropout is off and positions follow the attention mask (`derive_positions`). Resuming is exact at every step, also
    inside a generation batch, because the rollout in use is saved with each checkpoint; it is refused when the
    objective or its file has changed (unless args.allow_objective_change).

    Raises ValueError at construction for what is not supported, by name, and for reward functions that fail a trial
    call; during training for a reward that is NaN or infinite, before the update.
    """

    algorithm = "grpo"

    def __init__(self, model, reward_funcs=None, args: ScopeGRPOConfig | None = None, **kwargs: Any):
        if args is None:
            args = ScopeGRPOConfig("scope-grpo")
        if not isinstance(args, ScopeGRPOConfig):
            raise ValueError(f"args must be a ScopeGRPOConfig, got {type(args).__name__}: it names the objective.")
        if isinstance(kwargs.get("processing_class"), ProcessorMixin):
            raise ValueError("processing_class is a multimodal processor; ScopeGRPOTrainer trains text models only.")
        for name in ("train_dataset", "eval_dataset"):
            check_dataset(kwargs.get(name), name)
        self.objective = args.make_objective()
        unscaled = args.unscaled_advantages()
        if unscaled and args.objective in NEEDS_UNIT_SPREAD:
            warnings.warn(
                f"{unscaled}: advantages keep a scale of their own, and alpha of {args.objective} is relative to "
                "advantages of unit spread.",
                stacklevel=2,
            )
        if isinstance(model, str):
            own: Any = args.model_init_kwargs or {}
            given = {"trust_remote_code": args.trust_remote_code, **own}
            model = find_model(model, "model", **{name: given[name] for name in HUB_SETTINGS if name in given})[0]
        elif args.beta and kwargs.get("peft_config") is None:
            _check_reference(model)
        functions = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        functions = [check_reward_function(f, args) for f in functions if f is not None]
        super().__init__(model, functions, args, **kwargs)
        check_batches(self.train_dataset, args)
        config: Any = self.model.config
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        for name in ("train_dataset", "eval_dataset"):
            data = getattr(self, name)
            check_lengths(data, name, self._tokenizer, positions, self.max_completion_length)
            check_templates(data, self.reward_func_names, self.reward_processing_classes)
        check_model_sampling(self.model, getattr(self, "generation_kwargs", None))
        if self.aux_loss_enabled:
            raise ValueError("mixture-of-experts balancing (output_router_logits) is not supported: set it to False.")
        self._add_heads()
        for each in (self.model, self.ref_model):
            if each is not None:
                derive_positions(each)
        self._sums: dict[str, dict[str, Tensor]] = {"train": defaultdict(_zero), "eval": defaultdict(_zero)}
        self._counts: dict[str, str] = {}
        if args.probe_rewards and isinstance(self.train_dataset, Dataset):
            rows = [self.train_dataset[i] for i in range(min(2, len(self.train_dataset)))]
            extra = {"trainer_state": self.state, "log_extra": _ignore, "log_metric": _ignore}
            for function in self.reward_funcs:
                if not isinstance(function, nn.Module):
                    probe_reward(function, rows, self._tokenizer.eos_token_id, **extra)

    def _compute_loss(self, model, inputs):
        prompt_mask, completion_mask = inputs["prompt_mask"], inputs["completion_mask"]
        mask = (completion_mask * inputs["tool_mask"] if "tool_mask" in inputs else completion_mask).bool()
        log_probs, entropy, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([prompt_mask, completion_mask], dim=1),
            mask.size(1),
            compute_entropy=True,
        )
        old_log_probs = inputs.get("old_per_token_logps")
        old_log_probs = log_probs.detach() if old_log_probs is None else old_log_probs
        log_probs, old_log_probs, entropy = (fill_masked(x, mask) for x in (log_probs, old_log_probs, entropy))
        log_ratio = log_probs - old_log_probs
        if self.importance_sampling_level == "sequence":
            log_ratio = log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
            log_ratio = log_ratio.expand_as(log_probs)
        advantages = inputs["advantages"]
        advantages = advantages.unsqueeze(1).expand_as(log_probs) if advantages.dim() == 1 else advantages
        if not getattr(self.objective, "needs_entropy", False):
            entropy = cast("Tensor", entropy).detach()
        policy = self.objective(PolicyInputs(log_probs, advantages, old_log_probs, log_ratio, entropy))
        per_token, stats = policy.per_decision, {f"objective/{k}": v for k, v in policy.stats.items()}
        if self.use_vllm and self.vllm_importance_sampling_correction:
            per_token = per_token * inputs["importance_sampling_ratio"]
        self._note_sampling_gap(log_probs.detach(), inputs, mask)
        per_token, more = self._add_terms(per_token, inputs, mask, log_probs, log_ratio)
        self._accumulate({**stats, **more, "entropy": entropy.detach()}, mask)
        return self._reduce(per_token, mask, inputs["num_items_in_batch"])

    def _note_sampling_gap(self, log_probs: Tensor, inputs: dict[str, Any], mask: Tensor) -> None:
        """How far the sampler's log-probs are from those of the training pass, before the first step on a rollout."""
        into = self._step % ((self.args.steps_per_generation or 1) * self.num_iterations)
        if "sampling_per_token_logps" in inputs and (
            not self.model.training or into < self.args.gradient_accumulation_steps
        ):
            gap = (log_probs - fill_masked(inputs["sampling_per_token_logps"], mask)).abs()
            gap = gap.nan_to_num(0.0)  # vLLM leaves out log-probs that it could not score
            self._accumulate({"rollout/log_prob_gap": gap}, mask, count="sampled_tokens")

    def _add_terms(
        self, per_token: Tensor, inputs: dict[str, Any], mask: Tensor, log_probs: Tensor, log_ratio: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss per token with what is added to the objective, here beta times the k3 KL; and stats [B, T]."""
        if self.beta == 0.0:
            return per_token, {}
        log_gap = fill_masked(inputs["ref_per_token_logps"], mask) - log_probs
        kl = torch.exp(log_gap) - log_gap - 1
        kl = kl * log_ratio.exp() if self.args.use_bias_correction_kl else kl
        return per_token + self.beta * kl, {"kl": kl.detach()}

    def _reduce(self, per_token: Tensor, mask: Tensor, num_items_in_batch: Tensor) -> Tensor:
        """The scalar loss on TRL's scale: divided by gradient accumulation; dapo over the global token count."""
        accumulation = self.current_gradient_accumulation_steps if self.model.training else 1.0
        if self.loss_type == "dapo":
            # The count spans the generation batch and all processes; take it to one accumulation window and rank.
            count = num_items_in_batch.clamp(min=1.0) / self.accelerator.num_processes
            if self.model.training:
                count = count * accumulation / self.args.steps_per_generation
            return reduce_loss(per_token, mask, "dapo", normalizer=count)
        horizon = self.max_completion_length if self.loss_type == "dr_grpo" else None
        return reduce_loss(per_token, mask, self.loss_type, normalizer=horizon) / accumulation

    def _accumulate(self, stats: dict[str, Tensor], mask: Tensor, count: str = "count") -> None:
        """Add masked sums and the count of counted tokens, on the device, without a sync.

        `count` names the count that the stats are divided by when they are logged.
        """
        sums = self._sums["train" if self.model.training else "eval"]
        sums[count] = sums[count] + mask.sum()
        for name, values in stats.items():
            self._counts[name] = count
            sums[name] = sums[name] + fill_masked(values, mask).sum(dtype=torch.float64)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        sums = self._sums[mode]
        if sums:
            # Every rank holds the same names: one collective for all.
            totals: Any = torch.stack([x.to(self.accelerator.device, torch.float64) for x in sums.values()])
            totals = self.accelerator.reduce(totals, reduction="sum")
            totals = dict(zip(sums, totals.tolist(), strict=True))
            means = {
                name: totals[name] / max(totals[count], 1) for name, count in self._counts.items() if name in totals
            }
            for name, value in means.items():
                self._metrics[mode][name] = [value]
            if "objective/clip_fraction" in means:
                self._metrics[mode]["clip_ratio/region_mean"] = [means["objective/clip_fraction"]]
            sums.clear()
        if self.num_generations == 1:  # a group of one has no spread
            self._metrics[mode].pop("frac_reward_zero_std", None)
        super().log(logs, start_time)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        for column, (name, function) in enumerate(zip(self.reward_func_names, self.reward_funcs, strict=True)):
            if self.args.nan_reward == "drop":
                rewards[~rewards[:, column].isfinite(), column] = torch.nan
                continue
            # None of a function arrives as NaN and is legal; a model has no None.
            bad = rewards[:, column].isinf() if not isinstance(function, nn.Module) else ~rewards[:, column].isfinite()
            if bad.any():
                row = int(bad.nonzero()[0])
                value = rewards[row, column].item()
                raise ValueError(
                    f"reward {name} gave {value} for row {row} of the batch; no update was made with it. "
                    "--nan_reward drop leaves such rows out."
                )
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["rollout/dropped"].append(rewards.isnan().all(dim=1).float().mean().item())
        self._raw_rewards = rewards
        return rewards

    def _share(self, rows: int) -> slice:
        """Where this process's rows lie among those of all processes."""
        return slice(self.accelerator.process_index * rows, (self.accelerator.process_index + 1) * rows)

    def _show_advantages(self, advantages: Tensor, mask: Tensor) -> None:
        """Mean advantages in the table of completions (log_completions), where the parent put those of groups."""
        whole = self.accelerator.gather(advantages.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).tolist()
        shown = self._logs["advantages"]
        for _ in whole[: len(shown)]:
            shown.pop()
        shown.extend(whole)


def _check_reference(model: Any) -> None:
    """The parent loads the reference of a model without adapters from where the model came from."""
    if not isinstance(model, PeftModel) and not getattr(getattr(model, "config", None), "_name_or_path", "x"):
        raise ValueError(
            "beta (kl_coef in PPO) needs a reference, which is loaded from the model's folder or name, and this model "
            "was made in memory: save it and load it from there, train an adapter (peft_config), or set --beta 0."
        )


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stands in for log_extra and log_metric during the trial call."""
