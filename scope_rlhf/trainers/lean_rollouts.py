"""Rollouts and passes over them at the cost that they need: merged weights while sampling, the sampler's own log-probs,
the log-prob head on counted rows, no padding that sorting by length can spare."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing

from scope_rlhf.models.adapters import base_of
from scope_rlhf.models.kernels import use_fast_kernels
from scope_rlhf.models.log_prob_head import add_log_prob_head
from scope_rlhf.models.rollout_weights import find_rollout_dtype, rollout_weights
from scope_rlhf.models.sampling import softmax_sampling
from scope_rlhf.trainers.exact_resume import ExactResume
from scope_rlhf.trainers.lengths import length_order, needed_columns, sort_by_length, spans, trim


class LeanRollouts(ExactResume):
    """GRPOTrainer whose log-prob passes, generation and micro-batches are this project's.

    A subclass calls `_add_heads` when its models are there. `_needs_values` says that the pass for old log-probs is one
    for the critic too; `_state_reader` is what gives the critic's outputs from the policy's last hidden states, None
    where it has states of its own. `_critic_outputs` [B, T, outputs] are those of the last pass, None without a critic.
    """

    _critic_outputs: Tensor | None = None
    _needs_values = False
    _state_reader: Any = None
    _sampled: Tensor | None = None
    _sampled_outputs: Tensor | None = None
    _old_pass_next = False

    def _add_heads(self) -> None:
        args = self.args
        for model, frozen in ((self.model, False), (self.ref_model, True)):
            if model is not None:
                model = self.accelerator.unwrap_model(model)
                base = base_of(model)
                add_log_prob_head(base, self.temperature, args.head_impl, args.cast_lm_head_to_fp32, frozen)
                use_fast_kernels(base)
        self._rollout_dtype = find_rollout_dtype(args.rollout_dtype, self.accelerator.device)

    def _may_reuse_sampled(self) -> bool:
        """Whether the sampler's log-probs are those of a pass over the rollout: the same weights without dropout, the
        full softmax at the same temperature (settings that truncate are refused), in float32. In bfloat16 a pass over
        whole sequences rounds otherwise than token by token, by about .01 a token.
        """
        dtypes = {w.dtype for w in self.model.parameters() if w.is_floating_point()}
        return (
            self.args.reuse_sampling_log_probs
            and self.args.disable_dropout
            and not self.tools  # what tools wrote was not sampled
            and self.rollout_func is None
            and self._rollout_dtype in (None, *dtypes)
            and dtypes <= {torch.float32, torch.float64}
            and self.accelerator.mixed_precision == "no"
        )

    def _generate_and_score_completions(self, inputs):
        self._sampled = self._sampled_outputs = None
        every = (self.args.steps_per_generation or 1) * self.num_iterations
        # The parent's own condition for a pass of the policy, which comes before the reference's.
        self._old_pass_next = self.args.gradient_accumulation_steps % every != 0 or (
            self.use_vllm and self.vllm_importance_sampling_correction
        )
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            self._old_pass_next = False

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        if self.use_vllm or self.use_transformers_continuous_batching:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        model: Any = self.accelerator.unwrap_model(self.model_wrapped)
        base = base_of(model)
        reuse, outputs = self._may_reuse_sampled(), list[Tensor]()
        with (
            _reading_states(base, self._state_reader if reuse else None, outputs),
            rollout_weights(model, self._rollout_dtype, self.args.merge_for_rollout),
            softmax_sampling(base, self.temperature) as sampler,
        ):
            completion_ids, log_probs = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        if sampler.log_probs is not None:
            if reuse:
                self._sampled = sampler.log_probs
                if outputs:  # on a GPU some passes more are made before a stop is noticed
                    self._sampled_outputs = torch.cat(outputs, dim=1)[:, : sampler.log_probs.size(1)]
            rows = sampler.log_probs.tolist()
            log_probs = [row[: len(ids)] for row, ids in zip(rows, completion_ids, strict=True)]
        return completion_ids, log_probs

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
    ):
        """The parent's (log_probs [B, T], entropy [B, T] or None, None); without a gradient, in batches of like length.

        The first pass of a rollout that has known log-probs is left out, or made for the critic alone.
        """
        if kwargs.pop("compute_aux_loss", False):
            raise ValueError("mixture-of-experts balancing is not supported.")
        known = None
        if self._old_pass_next and not torch.is_grad_enabled():
            self._old_pass_next, known = False, self._sampled
        if known is not None:
            known = _fit(known, logits_to_keep)
            if not self._needs_values or self._sampled_outputs is not None:
                outputs = self._sampled_outputs
                self._critic_outputs = None if outputs is None else _fit(outputs, logits_to_keep)
                return known, None, None
        gradient = torch.is_grad_enabled()
        purpose = "none"
        if compute_entropy:
            purpose = "gradient" if gradient and getattr(self.objective, "needs_entropy", False) else "metric"
        made: list[Any] = []

        def recording(*, labels, **inputs):
            if known is not None:
                labels = torch.full_like(labels, -100)  # no row goes through the head
            output = model(**inputs, labels=labels, head_entropy=purpose)
            made.append(output)
            return output

        rows = input_ids.size(0)
        sizes = [rows] if gradient else [len(part) for part in torch.arange(rows).split(batch_size or rows)]
        order, lengths = torch.arange(rows), None
        if not gradient and self.args.sort_by_length:
            lengths = spans(attention_mask[:, :-logits_to_keep], attention_mask[:, -logits_to_keep:])
            order = length_order(*lengths, sizes)
        found: dict[str, list[Tensor]] = {"log_probs": [], "entropy": [], "critic_outputs": []}
        for index in order.to(input_ids.device).split(sizes):
            kept, start = logits_to_keep, 0
            if lengths is not None:
                before, after = (needed_columns(each[index], self.pad_to_multiple_of) for each in lengths)
                kept = min(logits_to_keep, after)
                start = max(0, input_ids.size(1) - logits_to_keep - before)
            columns = slice(start, input_ids.size(1) - logits_to_keep + kept)
            ids, mask = input_ids[index, columns], attention_mask[index, columns]
            result = super()._get_per_token_logps_and_entropies(
                recording, ids, mask, kept, compute_entropy=compute_entropy, **kwargs
            )
            critic = getattr(made.pop(), "critic_outputs", None)
            fields = (*result[:2], None if critic is None else critic[:, -kept:])
            for parts, value in zip(found.values(), fields, strict=True):
                if value is not None:
                    parts.append(_fit(value, logits_to_keep))
        back = torch.argsort(order).to(input_ids.device)
        log_probs, entropy, self._critic_outputs = (
            torch.cat(parts)[back] if parts else None for parts in found.values()
        )
        return cast("Tensor", log_probs) if known is None else known, entropy, None

    def _rollout_log_probs(self, model: Any, rollout: dict[str, Tensor]) -> Tensor:
        """Log-probs [B, T] of the completions under `model`, which has a log-prob head; no gradient."""
        rows = self.args.per_device_train_batch_size if self.model.training else self.args.per_device_eval_batch_size
        ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
        attention = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
        width = rollout["completion_ids"].size(1)
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            return self._get_per_token_logps_and_entropies(model, ids, attention, width, rows)[0]

    def _old_log_probs(self, rollout: dict[str, Tensor]) -> Tensor:
        """Those of the policy that sampled: the sampler's own where they may be reused, else by a pass."""
        self._old_pass_next = True
        try:
            return self._rollout_log_probs(self.model, rollout)
        finally:
            self._old_pass_next = False

    def _arrange(self, batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """The micro-batches of a rollout with rows of like lengths together, within each optimizer step."""
        if not self.args.sort_by_length or self.loss_type == "bnpo":  # whose normalizer is the micro-batch's own
            return batches
        accumulation, every = self.args.gradient_accumulation_steps, len(batches)
        # A rollout that is no whole number of steps, or a step of no whole number of rollouts, is left as it is.
        window = accumulation if every % accumulation == 0 else every if accumulation % every == 0 else 1
        return sort_by_length(batches, window)

    def _prepare_inputs(self, generation_batch):
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        buffer = self._buffered_inputs
        if self.model.training and buffer is not None and buffer is not before:
            self._buffered_inputs = self._arrange(buffer)
            inputs = self._buffered_inputs[self._step % len(buffer)]
        return trim(inputs, self.pad_to_multiple_of) if self.args.sort_by_length else inputs


def _fit(values: Tensor, width: int) -> Tensor:
    """values [B, T] or [B, T, outputs] with `width` columns: cut off, or zeros behind."""
    values = values[:, :width]
    return torch.nn.functional.pad(values, (0, 0) * (values.ndim - 2) + (0, width - values.size(1)))


@contextmanager
def _reading_states(base: Any, reader: Any, outputs: list[Tensor]) -> Iterator[None]:
    """Within the context each pass of `generate` adds what `reader` says of its last states, [B, 1, outputs]."""
    if reader is None:
        yield
        return

    def read(module: Any, given: Any, output: Any) -> None:
        outputs.append(reader(output.last_hidden_state[:, -1:]))

    handle = base.base_model.register_forward_hook(read)
    try:
        yield
    finally:
        handle.remove()
