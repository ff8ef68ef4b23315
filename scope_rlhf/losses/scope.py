"""The scope term of Scope Loss (arXiv 2308.04024): p log p of the sampled action instead of the whole entropy.

Its gradient G = p (1 + log p) pushes the sampled action up for p < 1/e and down for p > 1/e whatever the sign of the
advantage, and no clip stops it.
"""

import torch
from torch import Tensor

from scope_rlhf.losses.entropy import p_log_p


def scope_term(log_probs: Tensor) -> Tensor:
    """p log p (eqs. 7, 8 and 12), gradient through both factors: G = p (1 + log p)."""
    return p_log_p(log_probs)


def scope_term_detached(log_probs: Tensor) -> Tensor:
    """sg(p) log p: the value of `scope_term`, gradient through log p only: G = p. An ablation, it never pushes up."""
    finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
    return finite.detach().exp() * finite


def scope_term_weighted(log_probs: Tensor, ratio: Tensor) -> Tensor:
    """r log p, gradient through both factors: G = r (1 + log p).

    In expectation over the behaviour policy it is the gradient of sum_j p_j log p_j, the true negative entropy.
    """
    return ratio * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
