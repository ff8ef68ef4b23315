"""Focal losses (arXiv 1708.02002), as Scope Loss (arXiv 2308.04024) carries them to reinforcement learning.

Squaring A - alpha p loses the advantage's sign: as published, focal pushes actions up for A < 0. The sign-preserving
form keeps it and equals the published one for A = 1.
"""

import torch
from torch import Tensor

from scope_rlhf.losses.entropy import p_log_p


def focal_actor_critic(log_probs: Tensor, advantages: Tensor, alpha: float, gamma: float) -> Tensor:
    """-(A - alpha p)^gamma log p, gradient through p and log p; supervised -(1 - p)^gamma log p for A = alpha = 1.

    G = gamma alpha p (A - alpha p)^(gamma - 1) log p - (A - alpha p)^gamma. The base may be negative, so gamma must
    be a whole number; `focal_sign_preserving` is the form for any other.
    """
    return -((advantages - alpha * log_probs.exp()) ** gamma) * log_probs


def focal_ppo(log_probs: Tensor, advantages: Tensor, surrogate: Tensor, alpha: float) -> Tensor:
    """-s A + 2 alpha s p - alpha^2 p^2 log p with s = min(r A, clip(r) A) (arXiv 2308.04024, eq. 14; gamma 2).

    Gradient through s, p and log p: G = -m r A^2 + 2 alpha p (m r A + s) - alpha^2 p^2 (1 + 2 log p).
    """
    probs = log_probs.exp()
    return -surrogate * advantages + 2 * alpha * surrogate * probs - alpha**2 * probs * p_log_p(log_probs)


def focal_factor(log_probs: Tensor, alpha: float, gamma: float) -> Tensor:
    """(1 - alpha p)^gamma, gradient through p. Formed from expm1, so it does not cancel as p approaches 1.

    A gamma that is not a whole number needs alpha <= 1 (base never negative). There the base is kept above the
    smallest normal number: for gamma < 1 the gradient at p = 1 is otherwise inf * 0.
    """
    base = (1 - alpha) - alpha * log_probs.expm1()
    if not float(gamma).is_integer():
        base = base.clamp(min=torch.finfo(base.dtype).tiny)
    return base**gamma


def focal_sign_preserving(log_probs: Tensor, surrogate: Tensor, alpha: float, gamma: float) -> Tensor:
    """-s (1 - alpha p)^gamma with s = A log p, or s = min(r A, clip(r) A) in the PPO form; gradient through s and p.

    G = -s' (1 - alpha p)^gamma + s gamma alpha p (1 - alpha p)^(gamma - 1), s' = A or m r A.
    """
    return -surrogate * focal_factor(log_probs, alpha, gamma)
