"""Less padding: rows of like lengths share a micro-batch, and columns that are padding in all of its rows are cut off.

A row of a rollout is [padding, prompt, completion, padding]. Which micro-batch of an optimizer step a row is in does
not change the step's gradient, as long as the loss is a sum over tokens or rows with a normalizer that is not the
micro-batch's own (all reductions but bnpo).
"""

from itertools import pairwise

import torch
from torch import Tensor

from scope_rlhf.trainers.minibatches import deal

# Blocks of columns, each under a mask; what else is as wide as the completions belongs to them.
PROMPT, TARGET = ("prompt_ids", "prompt_mask"), ("target_ids", "target_mask")
PLACE = "unsorted_place"


def spans(prompt_mask: Tensor, completion_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Columns that each row needs of its prompt, from the right, and of its completion, from the left; [B] each.

    Masks may have holes: the first counted column of the prompt and the last of the completion decide.
    """
    return _reach(prompt_mask.flip(1)), _reach(completion_mask)


def _reach(mask: Tensor) -> Tensor:
    columns = torch.arange(1, mask.size(1) + 1, device=mask.device)
    return (mask.bool() * columns).amax(dim=1) if mask.size(1) else mask.new_zeros(len(mask), dtype=torch.long)


def processed_tokens(prompts: Tensor, completions: Tensor, sizes: list[int]) -> int:
    """Columns times rows over consecutive batches of these sizes, each as wide as its longest prompt and completion."""
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    parts = [slice(a, b) for a, b in pairwise(ends) if b > a]
    return sum((int(prompts[p].max()) + int(completions[p].max())) * (p.stop - p.start) for p in parts)


def length_order(prompts: Tensor, completions: Tensor, sizes: list[int]) -> Tensor:
    """The order of the rows that costs the fewest processed tokens, of: as given, by completion, by prompt, by sum."""
    rows = torch.arange(len(prompts))
    longest = max(int(prompts.max()), int(completions.max())) + 1 if len(prompts) else 1
    keys = [completions * longest + prompts, prompts * longest + completions, prompts + completions]
    orders = [rows, *(torch.argsort(key.cpu(), stable=True) for key in keys)]
    prompts, completions = prompts.cpu(), completions.cpu()
    return min(orders, key=lambda order: processed_tokens(prompts[order], completions[order], sizes))


def sort_by_length(batches: list[dict[str, Tensor]], window: int) -> list[dict[str, Tensor]]:
    """The same rows, sorted among each `window` consecutive batches (the micro-batches of one optimizer step), with
    their places before it as PLACE [B], for `unsort`.
    """
    result, first = [], 0
    for batch in batches:
        rows = len(batch["prompt_mask"])
        batch[PLACE] = torch.arange(first, first + rows, device=batch["prompt_mask"].device)
        first += rows
    for start in range(0, len(batches), window):
        part = batches[start : start + window]
        masks = (torch.cat([batch[name] for batch in part]) for name in ("prompt_mask", "completion_mask"))
        result += deal(part, length_order(*spans(*masks), [len(batch["prompt_mask"]) for batch in part]))
    return result


def unsort(batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The batches that sort_by_length was given; others as they are. A new deal must not depend on the sorting."""
    if PLACE not in batches[0]:
        return batches
    return deal(batches, torch.cat([batch[PLACE] for batch in batches]).argsort())


def needed_columns(spans: Tensor, multiple: int | None = None) -> int:
    """Columns of a batch whose rows need `spans` [B] of them: at least one, and a multiple of `multiple`."""
    columns = max(1, int(spans.max()))
    return columns if multiple is None else -(-columns // multiple) * multiple


def trim(batch: dict[str, Tensor], multiple: int | None = None) -> dict[str, Tensor]:
    """The batch without the columns that are padding in all of its rows; one of each block, or `multiple`, is kept."""
    width = batch["completion_mask"].size(1)
    reach = spans(batch["prompt_mask"], batch["completion_mask"])
    prompt, completion = (needed_columns(x, multiple) for x in reach)
    target = needed_columns(_reach(batch["target_mask"])) if "target_mask" in batch else 0
    trimmed = {}
    for name, value in batch.items():
        if name == PLACE:  # of the rollout's book-keeping, not of the loss
            continue
        if name in PROMPT:
            value = value[:, -prompt:]
        elif name in TARGET:
            value = value[:, :target]
        elif value.ndim > 1 and value.size(1) == width:
            value = value[:, :completion]
        trimmed[name] = value
    return trimmed
