"""Layer 0: elementwise, unreduced, stateless loss functions, and the one file that reduces them. Torch only."""

from scope_rlhf.losses.categorical_value import (
    categorical_cross_entropy,
    distribution_entropy,
    expected_value,
    hl_gauss_probs,
    project_probs,
    two_hot_probs,
)
from scope_rlhf.losses.entropy import categorical_entropy, entropy_penalty, p_log_p
from scope_rlhf.losses.focal import focal_actor_critic, focal_factor, focal_ppo, focal_sign_preserving
from scope_rlhf.losses.policy import (
    approx_kl,
    bounded_exp,
    bounded_ratio,
    clip_mask,
    clipped_surrogate,
    policy_gradient,
    ppo_clip,
)
from scope_rlhf.losses.reduction import REDUCTIONS, TRL_REDUCTIONS, fill_masked, masked_mean, reduce_loss
from scope_rlhf.losses.scope import scope_term, scope_term_detached, scope_term_weighted
from scope_rlhf.losses.symmetric import reverse_term, reverse_term_over_old, reverse_term_published

__all__ = [
    "REDUCTIONS",
    "TRL_REDUCTIONS",
    "approx_kl",
    "bounded_exp",
    "bounded_ratio",
    "categorical_cross_entropy",
    "categorical_entropy",
    "clip_mask",
    "clipped_surrogate",
    "distribution_entropy",
    "entropy_penalty",
    "expected_value",
    "fill_masked",
    "focal_actor_critic",
    "focal_factor",
    "focal_ppo",
    "focal_sign_preserving",
    "hl_gauss_probs",
    "masked_mean",
    "p_log_p",
    "policy_gradient",
    "ppo_clip",
    "project_probs",
    "reduce_loss",
    "reverse_term",
    "reverse_term_over_old",
    "reverse_term_published",
    "scope_term",
    "scope_term_detached",
    "scope_term_weighted",
    "two_hot_probs",
]
