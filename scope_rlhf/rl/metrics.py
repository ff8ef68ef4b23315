"""What tells whether a critic learns."""

from collections.abc import Callable

import torch
from torch import Tensor

from scope_rlhf.losses import fill_masked


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, *, all_reduce: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the counted decisions, a 0-dim float64 tensor.

    1 is a perfect critic, 0 one that knows the mean only, below 0 one that is worse. NaN where the returns have no
    spread. values, returns, mask: one shape; all_reduce sums a tensor over the processes, which must all call.
    """
    if values.shape != returns.shape or mask.shape != returns.shape:
        raise ValueError(
            f"explained_variance: values {tuple(values.shape)}, returns {tuple(returns.shape)} and mask "
            f"{tuple(mask.shape)} must have one shape"
        )
    values, returns = (fill_masked(x.detach(), mask).double() for x in (values, returns))
    errors = returns - values

    def total(*sums: Tensor) -> Tensor:
        stacked = torch.stack(sums)
        return stacked if all_reduce is None else all_reduce(stacked)

    count, returned, missed = total((mask != 0).sum().double(), returns.sum(), errors.sum())
    count = count.clamp(min=1)
    around = [fill_masked(x - mean / count, mask).square().sum() for x, mean in ((errors, missed), (returns, returned))]
    unexplained, variance = total(*around)
    return torch.where(variance > 0, 1 - unexplained / variance, torch.nan)
