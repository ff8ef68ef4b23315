"""Completions as masks: built from lengths and stop tokens, never from a pad id, which may be the end token too."""

import torch
from torch import Tensor


def mask_from_lengths(lengths: Tensor, width: int) -> Tensor:
    """[B] -> bool [B, width]: the first `lengths` positions count. ValueError for a length beyond the width."""
    if lengths.dim() != 1:
        raise ValueError(f"mask_from_lengths: lengths has shape {tuple(lengths.shape)}, expected [B]")
    if len(lengths) and (int(lengths.max()) > width or int(lengths.min()) < 0):
        raise ValueError(f"mask_from_lengths: lengths {lengths.tolist()} do not fit in 0 to {width}")
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)


def truncate_at_stop(ids: Tensor, mask: Tensor, stop_id: int) -> tuple[Tensor, Tensor]:
    """End every completion behind its first counted stop token, which itself counts.

    ids, mask [B, T] -> (mask, bool [B, T]; stopped, bool [B]). A row without the token keeps its mask and has
    stopped=False: it was cut. A stop id in masked positions (padding) is no stop.
    """
    if ids.shape != mask.shape or ids.dim() != 2:
        raise ValueError(f"truncate_at_stop: ids {tuple(ids.shape)} and mask {tuple(mask.shape)} must both be [B, T]")
    counts = mask != 0
    stops = (ids == stop_id) & counts
    before = stops.cumsum(dim=1) - stops.long()  # stop tokens strictly before each position
    return counts & (before == 0), stops.any(dim=1)


def last_counted(mask: Tensor) -> Tensor:
    """Index [B] of the last counted position of each row [B, T]; -1 where none counts."""
    counts = mask != 0
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device) * counts
    return places.amax(dim=1) - 1 if mask.shape[1] else torch.full((len(mask),), -1, device=mask.device)
