"""Reward evaluation of several systems on the same prompts: scores, KL, perplexity, diversity, length, ROUGE.

The training reward model is biased upward on a policy that was trained against it; a held-out one beside it tells how
much of the gain is real.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from scope_rlhf.evaluation.completions import System, align, describe_decoding
from scope_rlhf.evaluation.policy import completion_log_probs, sample_policy
from scope_rlhf.metrics.diversity import distinct_n, paired_distinct_n
from scope_rlhf.metrics.intervals import PairedDifference, mean_interval, paired_interval
from scope_rlhf.metrics.rouge import rouge_each

Scorers = dict[str, Callable[[list[str]], Tensor]]
QUANTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class Scored:
    """What was measured on the completions of one system, one value for each prompt; None where it is not known.

    scores: name of scorer -> its scores of prompt + completion. kl: log p_policy - log p_reference of the completion
    (k1, nats). reference_nll: -log p_reference of the completion, nats, over reference_tokens tokens.
    """

    system: System
    scores: dict[str, list[float]]
    kl: list[float] | None = None
    reference_nll: list[float] | None = None
    reference_tokens: list[int] | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Scored":
        return cls(**{**row, "system": System(**row["system"])})


def score_policy(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    scorers: Scorers,
    *,
    name: str,
    max_new_tokens: int,
    reference: Any | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
) -> Scored:
    """Sample a policy and measure it. reference None: the policy without its adapter. Errors as in sample_policy."""
    samples = sample_policy(
        model, tokenizer, prompts, scorers, max_new_tokens=max_new_tokens, reference=reference,
        temperature=temperature, seed=seed, batch_size=batch_size, description=name,
    )  # fmt: skip
    how = describe_decoding(max_new_tokens, temperature, seed)
    system = System(name, list(prompts), [s.completion for s in samples], [s.ended for s in samples], how)
    return Scored(
        system,
        {scorer: [s.scores[scorer] for s in samples] for scorer in scorers},
        [s.kl for s in samples],
        [s.reference_nll for s in samples],
        [len(s.completion_ids) for s in samples],
    )


def score_system(
    system: System,
    scorers: Scorers,
    reference: Any | None = None,
    tokenizer: Any | None = None,
    temperature: float = 1.0,
    batch_size: int = 64,
) -> Scored:
    """Measure completions that are there; under `reference`, with its tokenizer, their likelihood too.

    reference: with positions from the attention mask, as load_policy gives it.

    The end token counts where the completion is known to have ended, and for an empty one.
    ValueError for texts that do not fit into the reference's positions.
    """
    texts = [prompt + completion for prompt, completion in zip(system.prompts, system.completions, strict=True)]
    scores = {name: scorer(texts).tolist() for name, scorer in scorers.items()}
    if reference is None or tokenizer is None:
        return Scored(system, scores)
    prompt_ids = tokenizer(system.prompts, add_special_tokens=False, verbose=False)["input_ids"]
    ids = tokenizer(system.completions, add_special_tokens=False, verbose=False)["input_ids"]
    ended = system.ended or [False] * len(ids)
    ids = [[*row, tokenizer.eos_token_id] if end or not row else row for row, end in zip(ids, ended, strict=True)]
    positions = getattr(reference.config, "max_position_embeddings", None)
    longest = max(len(p) + len(c) for p, c in zip(prompt_ids, ids, strict=True))
    if positions is not None and longest > positions:
        raise ValueError(
            f"{system.name} has a prompt and completion of {longest} tokens, more than the {positions} positions of "
            "the reference; leave --reference_model_name_or_path out, or cut the texts."
        )
    nll: list[float] = []
    for start in range(0, len(ids), batch_size):
        part = slice(start, start + batch_size)
        rows = completion_log_probs(reference, prompt_ids[part], ids[part], tokenizer.pad_token_id, temperature)
        nll += [float(-row.sum()) for row in rows]
    return Scored(system, scores, None, nll, [len(row) for row in ids])


def summarise(
    scored: Sequence[Scored],
    labels: dict[str, str],
    references: Sequence[str] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """The figures of all systems; the first one is the baseline of the paired differences.

    labels: name of scorer -> what tables call it. references: of the first system's prompts, for ROUGE.
    Each metric of a system has mean, low, high, std, quantiles and difference (value, low, high; None for the baseline
    and where the baseline lacks it); perplexity is over tokens and distinct-2 over words, and have no quantiles.
    ValueError for systems with other prompts than the first.
    """
    first = scored[0].system
    scored = [_aligned(first, s) for s in scored]
    columns = [_columns(s, labels, references) for s in scored]
    systems = []
    for s, values in zip(scored, columns, strict=True):
        metrics: dict[str, Any] = {}
        for name, (label, column) in values.items():
            before = columns[0].get(name)
            paired = None
            if s is not scored[0] and before is not None:
                paired = paired_interval(before[1], column, confidence, seed=seed)
            metrics[name] = {"label": label, **_describe(column, confidence, seed), "difference": _difference(paired)}
        if s.reference_nll is not None:
            metrics["perplexity"] = _perplexity(scored[0], s, confidence, seed)
        metrics["distinct_2"] = _distinct(scored[0], s, confidence)
        systems.append({"name": s.system.name, "decoding": s.system.decoding, "metrics": metrics})
    return {"prompts": len(first.prompts), "confidence": confidence, "systems": systems}


def _aligned(first: System, scored: Scored) -> Scored:
    system = align(first, scored.system)
    if system is scored.system:
        return scored
    rows = {prompt: i for i, prompt in enumerate(scored.system.prompts)}
    order = [rows[prompt] for prompt in first.prompts]

    def sort(values: Any) -> Any:
        return None if values is None else [values[i] for i in order]

    scores = {name: sort(values) for name, values in scored.scores.items()}
    return Scored(system, scores, sort(scored.kl), sort(scored.reference_nll), sort(scored.reference_tokens))


def _columns(
    scored: Scored, labels: dict[str, str], references: Sequence[str] | None
) -> dict[str, tuple[str, Sequence[float]]]:
    """One value for each prompt, by metric, with its label."""
    found: dict[str, tuple[str, Sequence[float]]] = {name: (labels[name], x) for name, x in scored.scores.items()}
    if scored.kl is not None:
        found["kl"] = ("KL to the reference (nats per sequence)", scored.kl)
    found["length"] = ("length (words)", scored.system.lengths)
    if scored.system.ended is not None:
        found["eos_rate"] = ("ended by itself", [float(x) for x in scored.system.ended])
    if references is not None:
        for kind, values in rouge_each(scored.system.completions, references).items():
            found[kind] = (f"ROUGE-{kind.removeprefix('rouge')} F1", values.tolist())
    return found


def _describe(column: Sequence[float], confidence: float, seed: int) -> dict[str, Any]:
    interval = mean_interval(column, confidence, seed=seed)
    return {
        "mean": interval.value, "low": interval.low, "high": interval.high, "std": float(np.std(column)),
        "quantiles": dict(zip(map(str, QUANTILES), np.percentile(column, QUANTILES).tolist(), strict=True)),
    }  # fmt: skip


def _difference(paired: PairedDifference | None) -> dict[str, float] | None:
    return None if paired is None else {"value": paired.difference, "low": paired.low, "high": paired.high}


def _perplexity(first: Scored, scored: Scored, confidence: float, seed: int) -> dict[str, Any]:
    """exp(mean -log p_reference per token) over all tokens of all completions."""

    def against(before: Scored | None) -> PairedDifference:
        values, tokens = _token_nll(scored)
        # Nothing to compare with: a perplexity of exp(0) = 1, which the caller adds again.
        others, counts = ([0.0] * len(values), tokens) if before is None else _token_nll(before)
        return paired_interval(
            others, values, confidence, seed=seed, before_weights=counts, after_weights=tokens, transform=np.exp
        )

    alone = against(None)
    paired = against(first) if scored is not first and first.reference_nll is not None else None
    return {
        "label": "perplexity under the reference", "mean": alone.after, "low": alone.low + 1, "high": alone.high + 1,
        "std": None, "quantiles": None, "difference": _difference(paired),
    }  # fmt: skip


def _token_nll(scored: Scored) -> tuple[list[float], list[int]]:
    assert scored.reference_nll is not None and scored.reference_tokens is not None
    pairs = zip(scored.reference_nll, scored.reference_tokens, strict=True)
    return [nll / tokens for nll, tokens in pairs], scored.reference_tokens


def _distinct(first: Scored, scored: Scored, confidence: float) -> dict[str, Any]:
    words, before = ([text.split() for text in s.system.completions] for s in (scored, first))
    value = distinct_n(words, 2)
    both = scored is not first and math.isfinite(value) and math.isfinite(distinct_n(before, 2))
    paired = paired_distinct_n(before, words, 2, confidence) if both else None
    return {
        "label": "distinct-2 (words)", "mean": value, "low": None, "high": None, "std": None, "quantiles": None,
        "difference": _difference(paired),
    }  # fmt: skip
