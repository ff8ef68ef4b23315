"""Sampling of a rollout from a LoRA policy, --batch x --completion tokens after --prompt tokens, in float32.

- trl: `generate` on the model with its adapter, as TRL's trainers call it, drawing tokens by torch.multinomial.
- sampler: the same with `softmax_sampling`, which draws the tokens of ours and records their log-probs.
- merged, merged bfloat16: that inside `rollout_weights`, the making of these weights included, on the kernels of
  models/kernels.py, as ScopeGRPOTrainer does it (--rollout_dtype bfloat16 for the second, which is left out where the
  device has no instructions for it).
- merged, oneDNN off: with torch's own float32 products, where those of `merged` are oneDNN's (models/products.py).

Compared: every weight is bitwise what it was, also its place in memory; the completion is whole; recorded log-probs are
those of plain float32 logits over the whole rows, to 1e-4, with bfloat16 weights to .1. And the tokens are draws from
the softmax: log p + entropy, from plain logits, has mean 0 over draws; its mean is at most 5 of its standard errors.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from benchmarks.speed.measure import ONEDNN_OFF, Call, Options, Row, Section, compare, offered, products_of
from benchmarks.speed.sides import make_policy, plain_log_softmax
from scope_rlhf.models.kernels import use_fast_kernels
from scope_rlhf.models.rollout_weights import rollout_weights
from scope_rlhf.models.sampling import softmax_sampling

GAPS = {"trl": 0.0, "sampler": 1e-4, "merged": 1e-4, "merged" + ONEDNN_OFF: 1e-4, "merged bfloat16": 0.1}
STANDARD_ERRORS = 5.0


def set_up(shape: str, variant: str, options: Options) -> tuple[Any, Tensor]:
    """The variant's policy, of the same weights for all, and the prompts."""
    policy = make_policy(shape, options).to(options.device).eval()
    if variant.startswith("merged"):
        use_fast_kernels(policy)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(options.vocabulary, (options.batch, options.prompt), generator=generator)
    return policy, prompts.to(options.device)


def sample(policy: Any, prompts: Tensor, variant: str, options: Options) -> tuple[Tensor, Tensor | None]:
    """(sequences, log-probs [B, T] that the sampler recorded; TRL's records none)."""
    settings = GenerationConfig(
        max_new_tokens=options.completion, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        pad_token_id=options.vocabulary,
    )  # fmt: skip
    torch.manual_seed(0)
    dtype = torch.bfloat16 if variant.endswith("bfloat16") else None
    weights = rollout_weights(policy, dtype, merge=True) if variant.startswith("merged") else nullcontext()
    sampling = nullcontext() if variant == "trl" else softmax_sampling(policy.get_base_model(), 1.0)
    with torch.no_grad(), products_of(variant), weights, sampling as sampler:
        sequences = policy.generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), generation_config=settings
        )
    return sequences, None if sampler is None else sampler.log_probs


def call_of(policy: Any, prompts: Tensor, variant: str, options: Options) -> Call:
    return lambda: sample(policy, prompts, variant, options)


def prepare(case: str, variant: str, options: Options) -> Call:
    return call_of(*set_up(case, variant, options), variant, options)


def compare_shape(shape: str, variants: list[str], options: Options) -> list[Row]:
    set_ups = {variant: set_up(shape, variant, options) for variant in variants}
    before = {
        variant: {name: (weight.data_ptr(), weight.detach().clone()) for name, weight in policy.named_parameters()}
        for variant, (policy, _) in set_ups.items()
    }

    def check(variant: str, found: tuple[Tensor, Tensor | None]) -> dict[str, tuple[float, float]]:
        sequences, recorded = found
        policy = set_ups[variant][0]
        now = dict(policy.named_parameters())
        same = [
            name in now and now[name].data_ptr() == place and torch.equal(now[name], weight)
            for name, (place, weight) in before[variant].items()
        ]
        changed, missing = same.count(False), options.prompt + options.completion - sequences.size(1)
        errors = {"changed weights": (float(changed), 0.0), "missing tokens": (float(missing), 0.0)}
        parts = {"prompt_ids": sequences[:, : options.prompt], "completion_ids": sequences[:, options.prompt :]}
        with torch.no_grad():
            log_p = plain_log_softmax(policy, parts)
        log_probs = log_p.gather(-1, parts["completion_ids"][..., None]).squeeze(-1)
        if variant != "trl":
            gap = torch.inf if recorded is None else float((log_probs - recorded.double()).abs().max())
            errors["log p"] = (gap, GAPS[variant])
        surplus = log_probs - (log_p.exp() * log_p).sum(-1)
        standard_error = surplus.std() / surplus.numel() ** 0.5
        return errors | {"standard errors of log p": (float((surplus.mean() / standard_error).abs()), STANDARD_ERRORS)}

    calls = {variant: call_of(*set_ups[variant], variant, options) for variant in variants}
    return compare("generate", shape, calls, check, options, options.batch * options.completion)


def run(options: Options) -> list[Section]:
    rows = [row for shape in options.shapes for row in compare_shape(shape, offered(GAPS, options), options)]
    title = f"sampling of {options.batch} x {options.completion} tokens after {options.prompt}, V {options.vocabulary}"
    return [Section(title, rows)]
