"""Evaluation of a policy on held-out prompts: samples, rewards, KL to the reference, and the state of the language."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from scope_rlhf.metrics.diversity import paired_distinct_n
from scope_rlhf.metrics.intervals import PairedDifference, paired_interval
from scope_rlhf.models.adapters import base_of
from scope_rlhf.models.rollout_weights import rollout_weights
from scope_rlhf.models.sampling import softmax_sampling


@dataclass(frozen=True)
class Sample:
    """One prompt with one completion and what was measured on it.

    scores: by name of scorer; kl: log p_policy - log p_reference summed over the completion's tokens (k1, nats);
    reference_nll: -log p_reference, summed, nats; completion_ids: up to and with the first end-of-text token.
    """

    prompt: str
    completion: str
    completion_ids: list[int]
    ended: bool
    scores: dict[str, float]
    kl: float
    reference_nll: float


@contextmanager
def reference_policy(model: Any, reference: Any | None) -> Iterator[Any]:
    """The reference model: `reference` where given, else `model` without its adapter (or with the adapter "ref").

    The trained adapter is active again afterwards, also after an exception.
    """
    if reference is not None:
        yield reference
    elif not isinstance(model, PeftModel):
        raise ValueError("a fully fine-tuned policy needs its own reference model: give reference.")
    elif "ref" in model.peft_config:
        trained = model.active_adapter
        model.set_adapter("ref")
        try:
            yield model
        finally:
            model.set_adapter(trained)
    else:
        with model.disable_adapter():
            yield model


def completion_log_probs(
    model: Any, prompt_ids: Sequence[list[int]], completion_ids: Sequence[list[int]], pad_id: int, temperature: float
) -> list[Tensor]:
    """log p of every completion token, one float32 tensor [length] for each row, without gradient.

    Prompts are padded on the left and completions on the right; the masks come from lengths, so a pad id that is also
    EOS does no harm. The logits are divided by `temperature`, as in sampling.
    """
    width, length = max(map(len, prompt_ids)), max(map(len, completion_ids))
    ids = torch.full((len(prompt_ids), width + length), pad_id)
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(zip(prompt_ids, completion_ids, strict=True)):
        ids[row, width - len(prompt) : width + len(completion)] = torch.tensor([*prompt, *completion])
        mask[row, width - len(prompt) : width + len(completion)] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=length + 1).logits
    log_probs = (logits[:, :-1].float() / temperature).log_softmax(-1)
    chosen = log_probs.gather(-1, ids[:, width:].unsqueeze(-1)).squeeze(-1)
    return [chosen[row, : len(completion)].cpu() for row, completion in enumerate(completion_ids)]


def sample_policy(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    scorers: dict[str, Callable[[list[str]], Tensor]],
    *,
    max_new_tokens: int,
    reference: Any | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    description: str = "sampling",
    show_progress: bool = True,
) -> list[Sample]:
    """One completion for each prompt, by plain sampling (no top-k, no top-p), scored on prompt + completion.

    The random state of the caller stays untouched: the same seed gives the same samples, and training goes on as if
    no evaluation had been. The model's training mode is restored.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive to sample, got {temperature}.")
    was_training = model.training
    model.eval()
    samples: list[Sample] = []
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            starts = range(0, len(prompts), batch_size)
            for start in tqdm(starts, desc=description, disable=not show_progress, leave=False, dynamic_ncols=True):
                batch = list(prompts[start : start + batch_size])
                samples += _sample_batch(model, tokenizer, batch, scorers, max_new_tokens, reference, temperature)
    finally:
        model.train(was_training)
    return samples


def _sample_batch(model, tokenizer, prompts, scorers, max_new_tokens, reference, temperature) -> list[Sample]:
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
    base = base_of(model)
    with torch.no_grad(), rollout_weights(model), softmax_sampling(base, temperature):
        output = model.generate(
            **inputs, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
    width = inputs["input_ids"].shape[1]
    completion_ids = [_until_end(row, tokenizer.eos_token_id) for row in output[:, width:].tolist()]
    prompt_ids = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts]
    arguments = (prompt_ids, completion_ids, tokenizer.pad_token_id, temperature)
    policy = completion_log_probs(model, *arguments)
    with reference_policy(model, reference) as reference_model:
        log_probs = completion_log_probs(reference_model, *arguments)
    completions = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    texts = [p + c for p, c in zip(prompts, completions, strict=True)]
    scores = {name: scorer(texts).tolist() for name, scorer in scorers.items()}
    return [
        Sample(
            prompt=prompts[i],
            completion=completions[i],
            completion_ids=completion_ids[i],
            ended=completion_ids[i][-1] == tokenizer.eos_token_id,
            scores={name: values[i] for name, values in scores.items()},
            kl=float((policy[i] - log_probs[i]).sum()),
            reference_nll=float(-log_probs[i].sum()),
        )
        for i in range(len(prompts))
    ]


def _until_end(ids: list[int], end_id: int) -> list[int]:
    return ids[: ids.index(end_id) + 1] if end_id in ids else ids


def compare_samples(
    before: Sequence[Sample], after: Sequence[Sample], labels: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Before and after on the same prompts: name -> label, before, after, difference and its 95 % paired interval.

    Means over prompts and perplexity take the paired bootstrap, distinct-2 the paired jackknife. `labels` names the
    scorers in the order of the table.
    """
    if [s.prompt for s in before] != [s.prompt for s in after]:
        raise ValueError("the two samples must be of the same prompts in the same order.")

    def mean(value: Callable[[Sample], float]) -> PairedDifference:
        return paired_interval([value(s) for s in before], [value(s) for s in after])

    rows: dict[str, tuple[str, PairedDifference]] = {
        name: (label, mean(lambda s, name=name: s.scores[name])) for name, label in labels.items()
    }
    rows["kl"] = ("KL to the reference (nats per sequence)", mean(lambda s: s.kl))
    lengths = [[len(s.completion_ids) for s in side] for side in (before, after)]
    token_nll = [
        [s.reference_nll / n for s, n in zip(side, counts, strict=True)]
        for side, counts in zip((before, after), lengths, strict=True)
    ]
    # exp(mean -log p_reference per completion token) over all tokens of all samples
    difference = paired_interval(*token_nll, before_weights=lengths[0], after_weights=lengths[1], transform=np.exp)
    rows["perplexity"] = ("perplexity under the reference", difference)
    rows["distinct_2"] = (
        "distinct-2",
        paired_distinct_n([s.completion_ids for s in before], [s.completion_ids for s in after], 2),
    )
    rows["length"] = ("length (tokens)", mean(lambda s: len(s.completion_ids)))
    rows["eos_rate"] = ("ended by itself", mean(lambda s: float(s.ended)))
    return {
        name: {
            "label": label,
            **{k: getattr(d, k) for k in ("before", "after", "difference", "low", "high")},
        }
        for name, (label, d) in rows.items()
    }
