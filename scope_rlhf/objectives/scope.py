"""Scope Loss: the policy term plus alpha p log p of the sampled action."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scope_rlhf.losses import bounded_exp, scope_term, scope_term_detached, scope_term_weighted
from scope_rlhf.objectives.base import ClippedObjective, PolicyInputs, PolicyLoss, sign_flip


@dataclass(frozen=True, kw_only=True)
class Scope(ClippedObjective):
    """policy term + alpha p log p (arXiv 2308.04024): eq. 12 with a ratio, eq. 7, -(A - alpha p) log p, without.

    With advantages of one and alpha 1 it is eq. 8, -(1 - p) log p. Gradient through the policy term and both factors of
    p log p: G = -m r A + alpha p (1 + log p), respectively alpha p (1 + log p) - A. The term is not clipped, and pushes
    the action up for p < 1/e and down for p > 1/e whatever the sign of A.

    alpha >= 0; the published values are .01 in reinforcement learning, 1 supervised. At .01 and |A| near 1 the term is
    at most 1 % of the policy push; effects show from about .3.
    detach_factor: alpha sg(p) log p in both forms, an ablation with G = ... + alpha p; the instance declares
        stops_gradient.
    importance_weighted: alpha r log p with gradient through both factors, in expectation the entropy gradient; the
        instance declares needs_old_log_probs. On-policy, pass log_probs.detach() as the old log-probs.

    Stats: those of PPO; scope_magnitude = |alpha p log p|; advantage_factor, the number in A's place in the gradient
    of an unclipped decision, -G / r (-G without a ratio): A - alpha p_o (1 + log p) as published; factor_sign_flip.

    Raises:
        ValueError: importance_weighted without a ratio, or with detach_factor (alpha sg(r) log p has an expected
            gradient of 0, so the two are not combined).
    """

    alpha: float = 0.01
    detach_factor: bool = False
    importance_weighted: bool = False

    formula: ClassVar[str] = "policy term + alpha p log p; -(A - alpha p) log p without old log-probs"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("alpha", at_least=0)
        self._check_bool("detach_factor")
        self._check_bool("importance_weighted")
        if self.detach_factor and self.importance_weighted:
            raise ValueError(
                "scope: detach_factor and importance_weighted are both true, expected at most one: the importance-"
                "weighted term needs the gradient of its factor; set one of them to false"
            )
        object.__setattr__(self, "stops_gradient", self.detach_factor)
        object.__setattr__(self, "needs_old_log_probs", self.importance_weighted)

    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        surrogate, ratio = self.surrogate(inputs)
        if self.importance_weighted:
            if ratio is None:
                raise ValueError(
                    "scope: importance_weighted without old_log_probs, expected PolicyInputs(old_log_probs=...); "
                    "on-policy pass log_probs.detach()"
                )
            term = self.alpha * scope_term_weighted(inputs.log_probs, ratio)
        elif self.detach_factor:
            term = self.alpha * scope_term_detached(inputs.log_probs)
        else:
            term = self.alpha * scope_term(inputs.log_probs)
        stats = self.policy_stats(inputs, surrogate, ratio)
        stats["scope_magnitude"] = term.detach().abs()
        stats["advantage_factor"] = self._advantage_factor(inputs)
        stats["factor_sign_flip"] = sign_flip(stats["advantage_factor"], inputs.advantages)
        return PolicyLoss(-self.policy_coef * surrogate + term, stats)

    @torch.no_grad()
    def _advantage_factor(self, inputs: PolicyInputs) -> Tensor:
        push = torch.ones_like(inputs.log_probs) if self.detach_factor else 1 + inputs.log_probs
        if not self.importance_weighted:
            log_ratio = inputs.resolve_log_ratio()
            push = push * bounded_exp(inputs.log_probs if log_ratio is None else inputs.log_probs - log_ratio)
        return self.policy_coef * inputs.advantages - self.alpha * push
