"""How far a student is from its teacher on given completions: the exact KL of the next token."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from scope_rlhf.models.positions import derive_positions


def kl_to_teacher(
    student: Any,
    teacher: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    temperature: float = 1.0,
    batch_size: int = 64,
) -> np.ndarray:
    """Mean over the states of each completion of KL(pi_S | pi_T), in nats, [rows]: summed over the vocabulary.

    The states of a completion are those in which its tokens and its end token are chosen, so an empty one has one.
    Both distributions are at `temperature`; where one head is padded to more tokens than the other, over those of the
    smaller one. Training modes stay as they were; no gradient. The logits of a batch of both models are in memory.
    ValueError for unequal lengths and for a prompt without tokens.
    """
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts and {len(completions)} completions do not pair up")
    if not len(prompts):
        return np.zeros(0)
    prompt_ids, completion_ids = (
        tokenizer(list(texts), add_special_tokens=False)["input_ids"] for texts in (prompts, completions)
    )
    if not all(prompt_ids):
        raise ValueError(f"prompt {[bool(ids) for ids in prompt_ids].index(False)} has no tokens")
    models = (student, teacher)
    modes = [model.training for model in models]
    means: list[float] = []
    try:
        for model in models:
            derive_positions(model)
            model.eval()
        with torch.no_grad():
            for start in range(0, len(prompts), batch_size):
                rows = slice(start, start + batch_size)
                means += _batch(models, prompt_ids[rows], completion_ids[rows], tokenizer.pad_token_id, temperature)
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)
    return np.array(means)


def _batch(
    models: tuple[Any, Any], prompts: list[list[int]], completions: list[list[int]], pad_id: int, temperature: float
) -> list[float]:
    whole = [p + c for p, c in zip(prompts, completions, strict=True)]
    width = max(map(len, whole))
    ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in whole])
    lengths = torch.tensor([[len(p), len(row)] for p, row in zip(prompts, whole, strict=True)])
    columns = torch.arange(width)
    mask = (columns < lengths[:, 1:]).long()
    states = (columns >= lengths[:, :1] - 1) & (columns < lengths[:, 1:])
    logits = [
        model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits.float().cpu() / temperature
        for model in models
    ]
    shared = min(x.size(-1) for x in logits)
    ours, theirs = (x[..., :shared].log_softmax(-1) for x in logits)
    kl = (ours.exp() * (ours - theirs)).sum(-1)
    return ((kl * states).sum(1) / states.sum(1)).tolist()
