"""From per-decision losses to one number: the only file that reduces. Callers fill, compute, reduce, in that order."""

import math

import torch
from torch import Tensor

REDUCTIONS = ("token_mean", "sequence_mean", "fixed_horizon")
TRL_REDUCTIONS = {  # TRL's loss_type names
    "grpo": "sequence_mean",
    "bnpo": "token_mean",
    "dapo": "token_mean",
    "dr_grpo": "fixed_horizon",
}


def fill_masked(x: Tensor, mask: Tensor | None, value: float = 0.0) -> Tensor:
    """x where the mask counts and `value` elsewhere; gradient 0 elsewhere. mask None: x itself.

    Used on the inputs of an objective: a NaN that enters its graph comes back as 0 * NaN even if masked afterwards.
    """
    if mask is None:
        return x
    return x.masked_fill(~_as_bool(mask, x), value)


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the counted positions, whatever the masked ones hold; 0 if none counts. Float32 for half precision."""
    return reduce_loss(x, mask, "token_mean")


def reduce_loss(
    per_decision: Tensor, mask: Tensor | None, reduction: str, normalizer: float | Tensor | None = None
) -> Tensor:
    """Reduce per-decision losses [*D] to a scalar; masked positions change neither value nor gradient.

    | reduction | TRL's name | formula | normalizer |
    |---|---|---|---|
    | token_mean | bnpo, dapo | sum over counted / normalizer | default: the local count |
    | sequence_mean | grpo | mean over rows of the row's masked mean; a row without a counted decision gives 0 | none |
    | fixed_horizon | dr_grpo | sum over counted / (rows * normalizer) | the horizon, required |

    Rows are the first dimension. bnpo is the local mean and takes no normalizer; dapo needs the global count (so that
    the gradient does not depend on how a batch is split). mask None: all count; a mask has the shape of the losses and
    counts where it is not 0. With nothing counted the result is 0, with a graph and a gradient of 0. bfloat16 and
    float16 are summed, and returned, in float32.

    Raises:
        ValueError: unknown reduction, a mask of another shape, a scalar (already reduced) loss, a normalizer that is
            missing, not positive, or given to a reduction that would ignore it.
    """
    if reduction not in REDUCTIONS and reduction not in TRL_REDUCTIONS:
        known = ", ".join([*REDUCTIONS, *TRL_REDUCTIONS])
        raise ValueError(f"reduce_loss: unknown reduction {reduction!r}; expected one of {known}")
    if per_decision.dim() == 0:
        raise ValueError("reduce_loss: per_decision is a scalar; expected one loss per decision, not yet reduced")
    _check_normalizer(reduction, normalizer)

    counts = torch.ones_like(per_decision, dtype=torch.bool) if mask is None else _as_bool(mask, per_decision)
    losses = fill_masked(per_decision, counts)
    if losses.dtype in (torch.bfloat16, torch.float16):
        losses = losses.float()  # a bfloat16 count is wrong from 257 on
    counts = counts.to(losses.dtype)

    form = TRL_REDUCTIONS.get(reduction, reduction)
    rows = max(losses.shape[0], 1)
    if form == "sequence_mean":
        shape = (losses.shape[0], math.prod(losses.shape[1:]))  # -1 would be ambiguous for an empty batch
        losses, counts = losses.reshape(shape), counts.reshape(shape)
        return (losses.sum(dim=1) / counts.sum(dim=1).clamp(min=1)).sum() / rows
    if form == "fixed_horizon":
        return losses.sum() / (rows * normalizer)  # type: ignore[operator]  # checked above
    if normalizer is None:
        return losses.sum() / counts.sum().clamp(min=1)
    if isinstance(normalizer, Tensor):  # a global count of 0: the sum is 0 too, and 0 / 1 keeps the graph
        normalizer = torch.where(normalizer == 0, 1, normalizer)
    return losses.sum() / (normalizer if isinstance(normalizer, Tensor) else normalizer or 1)


def _as_bool(mask: Tensor, x: Tensor) -> Tensor:
    if mask.shape != x.shape:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, expected {tuple(x.shape)} as the values it masks; nothing broadcasts"
        )
    return mask if mask.dtype == torch.bool else mask != 0


def _check_normalizer(reduction: str, normalizer: float | Tensor | None) -> None:
    form = TRL_REDUCTIONS.get(reduction, reduction)
    if normalizer is None:
        if form == "fixed_horizon":
            raise ValueError(f"reduce_loss: {reduction} needs normalizer = the horizon (the longest completion)")
        if reduction == "dapo":
            raise ValueError(
                "reduce_loss: dapo needs normalizer = the global count of decisions; for a local mean use bnpo"
            )
        return
    if form == "sequence_mean" or reduction == "bnpo":
        raise ValueError(
            f"reduce_loss: {reduction} takes no normalizer, given {normalizer!r}; token_mean and fixed_horizon do"
        )
    if isinstance(normalizer, Tensor):
        if normalizer.dim() != 0:
            raise ValueError(f"reduce_loss: normalizer has shape {tuple(normalizer.shape)}, expected a number")
    elif not 0 <= normalizer < math.inf or (form == "fixed_horizon" and normalizer == 0):
        raise ValueError(f"reduce_loss: normalizer={normalizer!r} given, expected a positive number")
