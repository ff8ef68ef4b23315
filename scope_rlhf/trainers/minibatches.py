"""Rows of a rollout: shuffled anew for each pass, and joined by reference completions."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import apply_chat_template, is_conversational


def reshuffle(batches: list[dict[str, Tensor]], seed: tuple[int, ...]) -> list[dict[str, Tensor]]:
    """The same rows in minibatches of the same sizes, dealt anew.

    The order depends on `seed` alone, such as (seed of the run, step, rank): a resumed run deals alike, and the global
    random state is not touched. Scalars, such as a count over the rollout, go to every minibatch.
    """
    rows = sum(len(batch["completion_ids"]) for batch in batches)
    return deal(batches, torch.from_numpy(np.random.default_rng(seed).permutation(rows)))


def deal(batches: list[dict[str, Tensor]], order: Tensor) -> list[dict[str, Tensor]]:
    """The rows of all batches in this order, in batches of the same sizes; scalars stay where they are."""
    sizes = [len(batch["completion_ids"]) for batch in batches]
    dealt: list[dict[str, Tensor]] = [{} for _ in batches]
    for name, value in batches[0].items():
        if value.ndim == 0:
            parts = [batch[name] for batch in batches]
        else:
            parts = torch.cat([batch[name] for batch in batches])[order.to(value.device)].split(sizes)
        for batch, part in zip(dealt, parts, strict=True):
            batch[name] = part
    return dealt


def reference_tokens(
    rows: list[dict[str, Any]], column: str, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, Tensor]:
    """target_ids and target_mask [B, T] of the reference completions in `column`, an end token behind each.

    A plain text goes on where the prompt ends; a list of messages goes through the chat template. Longer ones are cut
    to max_length, without an end token. An empty or missing reference has no counted token.
    """
    ids = []
    for row in rows:
        text = row.get(column)
        if text and is_conversational(row):
            text = apply_chat_template({"prompt": row["prompt"], "completion": text}, tokenizer)["completion"]
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            tokens = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] if text else []
        ids.append(tokens[:max_length])
    width = max(1, *map(len, ids))
    mask = torch.tensor([[1] * len(x) + [0] * (width - len(x)) for x in ids])
    padded = torch.tensor([x + [tokenizer.pad_token_id] * (width - len(x)) for x in ids])
    return {"target_ids": padded, "target_mask": mask}
