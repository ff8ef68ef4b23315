"""Sampling of a rollout from a LoRA policy, --batch x --completion tokens after --prompt tokens, in float32.

- trl: `generate` on the model with its adapter, as TRL's trainers call it, drawing tokens by torch.multinomial.
- merged, merged bfloat16: inside `rollout_weights` and `softmax_sampling`, the making of these weights and the
  log-probs of the tokens included, as ScopeGRPOTrainer does it (--rollout_dtype bfloat16 for the second, which is left
  out where the device has no instructions for it).

Compared: every weight is bitwise what it was, also its place in memory; the completion is whole; the log-probs of the
sampled tokens are those of plain float32 logits over the whole rows, to 1e-4, with bfloat16 weights to .1.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from benchmarks.speed.measure import Call, Options, Row, Section, compare
from benchmarks.speed.sides import make_policy, plain_log_probs
from scope_rlhf.models.rollout_weights import find_rollout_dtype, rollout_weights
from scope_rlhf.models.sampling import softmax_sampling

GAPS = {"trl": 1e-4, "merged": 1e-4, "merged bfloat16": 0.1}


def set_up(shape: str, options: Options) -> tuple[Any, Tensor]:
    policy = make_policy(shape, options).to(options.device).eval()
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(options.vocabulary, (options.batch, options.prompt), generator=generator)
    return policy, prompts.to(options.device)


def sample(policy: Any, prompts: Tensor, variant: str, options: Options, record: bool) -> tuple[Tensor, Tensor | None]:
    """(sequences, the sampler's log-probs [B, T] where they are recorded)."""
    settings = GenerationConfig(
        max_new_tokens=options.completion, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        pad_token_id=options.vocabulary,
    )  # fmt: skip
    torch.manual_seed(0)
    dtype = torch.bfloat16 if variant.endswith("bfloat16") else None
    weights = nullcontext() if variant == "trl" else rollout_weights(policy, dtype, merge=True)
    recorder = softmax_sampling(policy.get_base_model(), 1.0) if record else nullcontext()
    with torch.no_grad(), weights, recorder as recorded:
        sequences = policy.generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), generation_config=settings
        )
    return sequences, None if recorded is None else recorded.log_probs


def call_of(policy: Any, prompts: Tensor, variant: str, options: Options) -> Call:
    return lambda: sample(policy, prompts, variant, options, record=variant != "trl")


def prepare(case: str, variant: str, options: Options) -> Call:
    return call_of(*set_up(case, options), variant, options)


def compare_shape(shape: str, variants: list[str], options: Options) -> list[Row]:
    policy, prompts = set_up(shape, options)
    weights = dict(policy.named_parameters())
    before = {name: (weight.data_ptr(), weight.detach().clone()) for name, weight in weights.items()}

    def check(variant: str, found: tuple[Tensor, Tensor | None]) -> dict[str, tuple[float, float]]:
        # TRL records nothing while it is timed, so its log-probs come from a call more.
        sequences, log_probs = found if found[1] is not None else sample(policy, prompts, variant, options, record=True)
        now = dict(policy.named_parameters())
        same = [
            name in now and now[name].data_ptr() == place and torch.equal(now[name], weight)
            for name, (place, weight) in before.items()
        ]
        changed, missing = same.count(False), options.prompt + options.completion - sequences.size(1)
        errors = {"changed weights": (float(changed), 0.0), "missing tokens": (float(missing), 0.0)}
        assert log_probs is not None
        parts = {"prompt_ids": sequences[:, : options.prompt], "completion_ids": sequences[:, options.prompt :]}
        with torch.no_grad():
            gap = (plain_log_probs(policy, parts) - log_probs.double()).abs().max()
        return errors | {"log p": (float(gap), GAPS[variant])}

    calls = {variant: call_of(policy, prompts, variant, options) for variant in variants}
    return compare("generate", shape, calls, check, options)


def run(options: Options) -> list[Section]:
    has_bf16 = find_rollout_dtype("bfloat16", torch.device(options.device)) is not None
    variants = [variant for variant in GAPS if has_bf16 or not variant.endswith("bfloat16")]
    rows = [row for shape in options.shapes for row in compare_shape(shape, variants, options)]
    title = f"sampling of {options.batch} x {options.completion} tokens after {options.prompt}, V {options.vocabulary}"
    return [Section(title, rows)]
