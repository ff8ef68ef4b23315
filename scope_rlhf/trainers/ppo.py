"""PPO with any objective and any critic, on the GRPO trainer: rollout, rewards, advantages, epochs of minibatches."""

import warnings
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from trl.trainer.utils import disable_dropout_in_model

from scope_rlhf.losses import fill_masked
from scope_rlhf.models.critic_backbones import make_value_head
from scope_rlhf.models.kernels import use_fast_kernels
from scope_rlhf.models.loading import find_model
from scope_rlhf.models.reference import prepare_reference
from scope_rlhf.models.value_head import leave_critic_out, load_any_critic
from scope_rlhf.objectives import CriticLoss
from scope_rlhf.rl import RunningMoments, last_counted, token_rewards, whiten
from scope_rlhf.trainers.critic_checkpoints import CriticCheckpoints
from scope_rlhf.trainers.lengths import unsort
from scope_rlhf.trainers.minibatches import reference_tokens, reshuffle
from scope_rlhf.trainers.ppo_checks import check_adapter, check_columns, find_stop_token
from scope_rlhf.trainers.ppo_config import ScopePPOConfig
from scope_rlhf.trainers.ppo_targets import critic_targets, group_targets, shape_scores
from scope_rlhf.trainers.update_gate import UpdateGate


class ScopePPOTrainer(CriticCheckpoints):
    """PPO (arXiv 1707.06347, 1909.08593): the objective on token advantages + vf_coef * critic + target_coef * NLL.

    A rollout: completions are sampled and scored; one pass gives old log-probs and old values together; the reward of
    a token is -kl_coef (log p - log p_ref), and the score comes on the last token (rl.token_rewards); advantages by
    GAE, leave-one-out or within groups, z-scored over the global batch. Then num_ppo_epochs passes over
    num_mini_batches minibatches, shuffled anew in each pass.

    The reference is the model with its new adapter disabled, a frozen copy of an adapter that was loaded, a second
    copy of a model without adapters, or `ref_model`. Values come from a head on the policy's backbone, on an adapter
    or on a model of its own, and go through the same forward. The critic is saved beside the policy as
    critic.safetensors and critic.json; the policy's files do not hold it. Gradient flows through log-probs, the
    critic's outputs and the reference NLL; advantages, returns and old values carry none.

    Metrics beside those of ScopeGRPOTrainer: policy/*, value/*, rollout/*; the README explains each.
    Raises ValueError at construction as ScopeGRPOTrainer, and for a critic, stop token or reference that does not fit.
    """

    algorithm = "ppo"
    args: ScopePPOConfig

    def __init__(self, model, reward_funcs=None, args: ScopePPOConfig | None = None, *, ref_model=None, **kwargs: Any):
        args = ScopePPOConfig("scope-ppo") if args is None else args
        if not isinstance(args, ScopePPOConfig):
            raise ValueError(
                f"args must be a ScopePPOConfig, got {type(args).__name__}: it names critic and estimator."
            )
        self.critic, self.kl_controller, self.moments = args.make_critic(), args.make_kl_controller(), RunningMoments()
        check_columns(args, kwargs.get("train_dataset"))
        check_adapter(args, isinstance(model, PeftModel | str) or kwargs.get("peft_config") is not None)
        if args.critic_model_name_or_path is not None:
            find_model(args.critic_model_name_or_path, "--critic_model_name_or_path")
        args.beta = 0.0 if ref_model is not None else args.kl_coef
        super().__init__(model, reward_funcs, args, **kwargs)
        if ref_model is not None:
            self.ref_model = prepare_reference(
                ref_model, self.accelerator, self.temperature, args.cast_lm_head_to_fp32, head_impl=args.head_impl
            )
            self.beta = args.beta = args.kl_coef
        if args.target_kl is not None and self.is_deepspeed_enabled:
            raise ValueError(
                "target_kl does not go with DeepSpeed, which steps inside backward; leave --target_kl out."
            )
        stop = find_stop_token(args, self._tokenizer)
        if stop is not None:
            self.eos_token_ids = sorted({*self.eos_token_ids, stop})
            self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = self.eos_token_ids
        self._outputs: list[Tensor] = []
        self._warned = False
        self.value_head = None
        if self.critic is not None:
            self.value_head = make_value_head(
                self.model, self.critic, args.critic_backbone, args.critic_model_name_or_path, args.initial_value
            )
            # The critic's adapter or model is newer than the parent's turn at these.
            use_fast_kernels(self.model)
            if args.disable_dropout:
                disable_dropout_in_model(self.model)
            if args.critic_path is not None:
                load_any_critic(args.critic_path, self.model, self.critic)
            if self.use_vllm:
                leave_critic_out(self.vllm_generation)
        self.gate = UpdateGate(self)
        self.add_callback(self.gate)

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        result = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if self._critic_outputs is not None:
            self._outputs.append(self._critic_outputs)
            if self.value_head is not None and not torch.is_grad_enabled():
                self.value_head.active = False  # of a rollout's passes only the first, the policy's, needs values
        return result

    @property
    def _needs_values(self) -> bool:
        return self.value_head is not None and self.value_head.active

    @property
    def _state_reader(self) -> Any:
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        shared = self.value_head is not None and self.value_head.kind == "shared"
        return self.value_head if shared and not sharded else None

    def _sum(self, x: Tensor) -> Any:
        return self.accelerator.reduce(x, reduction="sum")

    def _activate(self, active: bool = True) -> None:
        self._outputs = []
        if self.value_head is not None:
            self.value_head.active = active

    def _generate_and_score_completions(self, inputs):
        training = self.model.training
        self._activate()
        rollout = super()._generate_and_score_completions(inputs)
        mask = rollout["completion_mask"] * rollout.get("tool_mask", 1)
        if "old_per_token_logps" not in rollout:  # one update per rollout: the parent goes without
            self._activate()
            rollout["old_per_token_logps"] = self._old_log_probs(rollout)
        share = self._share(len(mask))
        raw = self._raw_rewards[share]
        dropped = raw.isnan().all(dim=1)
        if self._raw_rewards.isnan().all(dim=1).any():
            mask = mask * ~dropped.unsqueeze(1)
            rollout["tool_mask"] = mask
            rollout["num_items_in_batch"] = self.accelerator.gather(mask.sum()).sum()
        mask = mask.bool()
        scores = (raw * self.reward_weights.to(raw.device)).nansum(dim=1)
        last = rollout["completion_ids"].gather(1, last_counted(mask).clamp(min=0).unsqueeze(1)).squeeze(1)
        ended = torch.isin(last, torch.tensor(self.eos_token_ids, device=last.device)) & mask.any(dim=1)
        if self.args.use_score_scaling and training:
            self.moments.update(scores[~dropped], self._sum)
        shaped = shape_scores(self.args, scores, ended, self.moments)
        rewards, kl = token_rewards(
            shaped, rollout["old_per_token_logps"], rollout.get("ref_per_token_logps"), mask, self.kl_controller.kl_coef
        )
        metrics = {"rollout/kl_coef": self.kl_controller.kl_coef}
        if self.critic is not None:
            values = self.critic.decode(self._outputs[0])
            targets, stats = critic_targets(self.args, self.critic, rewards, values, mask, self._sum)
        else:
            group = self.num_generations if training else self.num_generations_eval
            targets = group_targets(self.args, rewards, mask, group, self.accelerator.gather, share)
            stats = {}
        if self.args.whiten_advantages:
            targets["advantages"], white = whiten(targets["advantages"], mask, all_reduce=self._sum)
            stats |= {f"policy/{'advantage_' * (k in ('mean', 'std')) + k}": v for k, v in white.items()}
        per_row = {"score": scores, "reward": rewards.sum(1), "length": mask.sum(1), "eos_rate": ended}
        if "ref_per_token_logps" in rollout:  # with kl_coef=0 there is no reference, and no KL to show
            rollout["kl"] = kl
            per_row["kl"] = kl.sum(1)
        rollout |= targets
        sums = torch.stack([(x * mask.any(1)).sum().double() for x in (*per_row.values(), torch.ones_like(scores))])
        *sums, rows = self._sum(sums).tolist()
        metrics |= {f"rollout/{name}": x / max(rows, 1.0) for name, x in zip(per_row, sums, strict=True)}
        metrics |= {name: float(x) for name, x in stats.items()}
        self._warn_out_of_range(metrics.pop("out_of_range", 0.0))
        for name, value in metrics.items():
            self._metrics["train" if training else "eval"][name].append(value)
        if training and rows:
            self.kl_controller.update(metrics.get("rollout/kl", 0.0), int(rows))
        self._show_advantages(targets["advantages"], mask)
        if self.args.target_coef:
            rollout |= reference_tokens(inputs, self.args.target_column, self._tokenizer, self.max_completion_length)
            rollout = {k: v.to(mask.device) for k, v in rollout.items()}
            rollout["num_target_items"] = self.accelerator.gather(rollout["target_mask"].sum()).sum()
        if training:  # an evaluation within a rollout leaves its stop as it is
            self.gate.stopped = False
        return rollout

    def _warn_out_of_range(self, share: float) -> None:
        if share and not self._warned:
            self._warned = True
            warnings.warn(
                f"{100 * share:.1f} % of the returns of a rollout lie outside the critic's support and are clamped to "
                f"it ({self.critic}); widen v_min and v_max in --critic_kwargs. It is logged as value/out_of_range.",
                stacklevel=2,
            )

    @property
    def warming_up(self) -> bool:
        """Whether this step trains the critic only."""
        return self.state.global_step < self.args.value_warmup_steps

    def _compute_loss(self, model, inputs):
        self._activate()
        if self.value_head is not None:
            self.value_head.detached = self.warming_up
        loss = super()._compute_loss(model, inputs)
        if self.args.target_coef and not self.warming_up:
            self._activate(False)
            ids = torch.cat([inputs["prompt_ids"], inputs["target_ids"]], dim=1)
            attention = torch.cat([inputs["prompt_mask"], inputs["target_mask"]], dim=1)
            mask = inputs["target_mask"].bool()
            log_probs, _, _ = self._get_per_token_logps_and_entropies(model, ids, attention, mask.size(1))
            nll = -fill_masked(log_probs, mask)
            self._accumulate({"policy/target_nll": nll.detach()}, mask, count="target_tokens")
            loss = loss + self.args.target_coef * self._reduce(nll, mask, inputs["num_target_items"])
        return loss

    def _add_terms(self, per_token, inputs, mask, log_probs, log_ratio):
        approx_kl = (log_ratio.exp() - 1 - log_ratio).detach()
        self.gate.note(approx_kl, mask)
        stats = {"policy/approx_kl": approx_kl} | ({"kl": inputs["kl"]} if "kl" in inputs else {})
        if self.warming_up:
            per_token = 0.0 * per_token
        if self.critic is not None:
            outputs = fill_masked(self._outputs[0], mask.unsqueeze(-1).expand_as(self._outputs[0]))
            critic: CriticLoss = self.critic(outputs, inputs["returns"], old_values=inputs["old_values"])
            per_token = per_token + self.args.vf_coef * critic.per_decision
            stats |= {"value/loss": critic.per_decision.detach(), "value/mean": critic.values}
            stats |= {f"value/{name}": x for name, x in critic.stats.items()}
        return per_token, stats

    def _prepare_inputs(self, generation_batch):
        every = self.args.steps_per_generation or 1
        again = self._step % every == 0 and self._step % (every * self.num_iterations) != 0
        if self.model.training and self._buffered_inputs is not None and again:
            seed = (self.args.seed, self._step, self.accelerator.process_index)
            self._buffered_inputs = self._arrange(reshuffle(unsort(self._buffered_inputs), seed))
        return super()._prepare_inputs(generation_batch)

    def training_step(self, model, inputs, num_items_in_batch):
        if self.gate.stopped and self._step % ((self.args.steps_per_generation or 1) * self.num_iterations):
            self._step += 1
            model.train()  # as the parent does after an evaluation, or metrics would go under eval
            return torch.zeros((), device=self.accelerator.device)
        return super().training_step(model, inputs, num_items_in_batch)
