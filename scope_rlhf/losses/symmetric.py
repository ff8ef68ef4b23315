"""Reverse terms of the symmetric RL loss (arXiv 2405.17618): the policy and the sampled action change places.

Z < 0 stands for log 0 (-1 in every published script), m is `clip_mask`, A the advantage. All are minimised.
"""

from torch import Tensor

from scope_rlhf.losses.policy import bounded_exp


def reverse_term(log_probs: Tensor, advantages: Tensor, log_zero: float) -> Tensor:
    """-A Z (1 - p), gradient through p: G = A Z p. The reverse term of SA2C; m times it is the form without 1/p_o."""
    return advantages * log_zero * log_probs.expm1()


def reverse_term_over_old(ratio: Tensor, advantages: Tensor, log_zero: float) -> Tensor:
    """+A Z r, gradient through r: G = A Z r. The published -A Z (1 - p) / p_o minus its constant -A Z / p_o.

    (1 - p) / p_o = 1 / p_o - r, so both have one gradient, but the published expression is NaN in float32 below
    log p = -88 and loses its relative precision as soon as 1 - p is rounded. Hence with m the reverse term is a
    multiple of PPO's: the whole symmetric PPO gradient is (a - b Z) times the PPO gradient.
    """
    return advantages * log_zero * ratio


def reverse_term_published(ratio: Tensor, old_log_probs: Tensor, advantages: Tensor, log_zero: float) -> Tensor:
    """-A Z (1 / p_o - r), the published value, for logging only: it is dominated by 1/p_o. Its exponent stops at 80."""
    return -advantages * log_zero * (bounded_exp(-old_log_probs) - ratio)
