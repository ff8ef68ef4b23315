"""The policy term: score-function form, PPO's clipped surrogate, and the clip mask.

Symbols: p probability of the sampled action, p_o the same under the behaviour policy, r = p / p_o, A advantage,
clip(r) = clamp(r, 1 - clip_low, 1 + clip_high), m = 1 where PPO's minimum has a gradient and 0 where the clip binds.
G is defined by dL/dlogits = G (onehot(action) - probs), hence G = dL/dlog p. Every function is elementwise.
"""

import torch
from torch import Tensor

MAX_EXPONENT = 80.0  # e^80 = 5.5e34 leaves a factor 6e3 below the largest float32 and bfloat16
MAX_LOG_RATIO = 60.0  # e^60 = 1.1e26 leaves room for what a ratio is multiplied with, as focal's slope at p near 1


def bounded_exp(exponent: Tensor) -> Tensor:
    """exp(min(exponent, 80)): finite in float32 and bfloat16, exact below 80, gradient 0 above."""
    return exponent.clamp(max=MAX_EXPONENT).exp()


def bounded_ratio(log_ratio: Tensor) -> Tensor:
    """r = exp(min(log_ratio, 60)), gradient r below the bound and 0 above.

    Without the bound a log ratio of 89 gives inf in float32, and a clipped decision the gradient 0 * inf = NaN.
    """
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()


def policy_gradient(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """-A log p, the score-function loss (A2C; cross-entropy when A = 1). Gradient through log p only: G = -A."""
    return -advantages * log_probs


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """s = min(r A, clip(r) A), which PPO maximises (arXiv 1707.06347, eq. 7). Gradient through r: ds/dlog p = m r A."""
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def ppo_clip(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """-min(r A, clip(r) A), the PPO loss. G = -m r A, exactly 0 where the clip binds."""
    return -clipped_surrogate(ratio, advantages, clip_low, clip_high)


def clip_mask(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """m, boolean: False where the clip binds (A > 0 and r > 1 + clip_high, or A < 0 and r < 1 - clip_low).

    A ratio outside the interval on the other side of the advantage's sign still has its gradient. No gradient.
    """
    above = (advantages > 0) & (ratio > 1 + clip_high)
    below = (advantages < 0) & (ratio < 1 - clip_low)
    return ~(above | below)


def approx_kl(log_ratio: Tensor) -> Tensor:
    """k3 = r - 1 - log r, never negative: over actions of the behaviour policy its mean is KL(p_o || p).

    Written with expm1 so that a ratio near one does not cancel; the exponent is bounded at 80.
    """
    return log_ratio.clamp(max=MAX_EXPONENT).expm1() - log_ratio
