"""Symmetric RL loss: the policy term plus a reverse term, in each published and ablated form."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scope_rlhf.losses import bounded_exp, clip_mask, reverse_term, reverse_term_over_old, reverse_term_published
from scope_rlhf.objectives.base import ClippedObjective, PolicyInputs, PolicyLoss


@dataclass(frozen=True, kw_only=True)
class Symmetric(ClippedObjective):
    """alpha * policy term + beta * reverse term (arXiv 2405.17618; a, b and Z are alpha, beta and log_zero).

    | form | reverse term of the loss | G |
    |---|---|---|
    | without a ratio (SA2C) | -A Z (1 - p) | -A (a - b Z p) |
    | masked, over_old: as published in code (SPPO) | m A Z r | -m r A (a - b Z) |
    | masked=False: as the paper's equation | A Z r | clipped decisions keep moving |
    | over_old=False: without 1/p_o | -m A Z (1 - p) | -A (a r m - b Z p m) |

    SPPO is PPO with its policy term multiplied by a - b Z = a + b, so with the defaults it IS PPO: a run of it needs
    the control ppo(policy_coef=alpha + beta). The other three are different losses. Over p_o the loss holds the
    published term minus its constant -m A Z / p_o, with the same gradient; see `reverse_term_over_old`.

    Gradient through r and p; m has none. alpha, beta >= 0 and log_zero <= 0. Without a ratio there is neither a clip
    nor a p_o, so masked and over_old have nothing to change. policy_coef multiplies alpha * policy term only.

    Stats: those of PPO; reverse_magnitude = |beta * reverse term| as in the loss; over p_o also reverse_published, beta
    times the value as published (dominated by 1/p_o); advantage_factor, the number in A's place in the gradient of an
    unclipped decision, -G / r (-G without a ratio). It never changes A's sign, as Z <= 0.
    """

    alpha: float = 0.5
    beta: float = 0.5
    log_zero: float = -1.0
    masked: bool = True
    over_old: bool = True

    formula: ClassVar[str] = "alpha * policy term + beta m A Z r; reverse term -A Z (1 - p) without old log-probs"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("alpha", at_least=0)
        self._check_number("beta", at_least=0)
        self._check_number("log_zero", at_most=0)
        self._check_bool("masked")
        self._check_bool("over_old")

    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        surrogate, ratio = self.surrogate(inputs)
        if ratio is not None and self.over_old:
            term = reverse_term_over_old(ratio, inputs.advantages, self.log_zero)
        else:
            term = reverse_term(inputs.log_probs, inputs.advantages, self.log_zero)
        mask = self._mask(inputs, ratio)
        term = self.beta * (term if mask is None else term * mask)
        stats = self.policy_stats(inputs, surrogate, ratio)
        stats["reverse_magnitude"] = term.detach().abs()
        log_ratio = inputs.resolve_log_ratio()
        stats["advantage_factor"] = self._advantage_factor(inputs, log_ratio)
        if ratio is not None and log_ratio is not None and self.over_old:
            stats["reverse_published"] = self._published(inputs, ratio, log_ratio, mask)
        return PolicyLoss(-self.policy_coef * self.alpha * surrogate + term, stats)

    def _mask(self, inputs: PolicyInputs, ratio: Tensor | None) -> Tensor | None:
        if ratio is None or not self.masked:
            return None
        return clip_mask(ratio, inputs.advantages, self.clip_low, self.clip_high).to(inputs.log_probs.dtype)

    @torch.no_grad()
    def _published(self, inputs: PolicyInputs, ratio: Tensor, log_ratio: Tensor, mask: Tensor | None) -> Tensor:
        old_log_probs = inputs.old_log_probs
        if old_log_probs is None:  # a ratio was given alone: p_o = p / r
            old_log_probs = inputs.log_probs - log_ratio
        value = self.beta * reverse_term_published(ratio, old_log_probs, inputs.advantages, self.log_zero)
        return value if mask is None else value * mask

    @torch.no_grad()
    def _advantage_factor(self, inputs: PolicyInputs, log_ratio: Tensor | None) -> Tensor:
        pushed = torch.ones_like(inputs.log_probs)
        if log_ratio is None:
            pushed = inputs.log_probs.exp()
        elif not self.over_old:
            pushed = bounded_exp(inputs.log_probs - log_ratio)
        return inputs.advantages * (self.policy_coef * self.alpha - self.beta * self.log_zero * pushed)
