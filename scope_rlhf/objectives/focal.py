"""Focal losses: as published for reinforcement learning, and the variant that keeps the advantage's sign."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scope_rlhf.losses import bounded_exp, focal_actor_critic, focal_factor, focal_ppo, focal_sign_preserving
from scope_rlhf.objectives.base import ClippedObjective, PolicyInputs, PolicyLoss, sign_flip


@dataclass(frozen=True, kw_only=True)
class Focal(ClippedObjective):
    """-(A - alpha p)^gamma log p; with a ratio -s A + 2 alpha s p - alpha^2 p^2 log p (arXiv 2308.04024, eq. 14).

    s = min(r A, clip(r) A). Gradient through p, log p and s; G is in `scope_rlhf.losses.focal`. With advantages of one
    and alpha 1 it is the focal loss -(1 - p)^gamma log p, with gamma 0 cross-entropy. As published it squares away the
    advantage's sign: actions of A < 0 are pushed UP.

    sign_preserving: -A (1 - alpha p)^gamma log p, with a ratio -s (1 - alpha p)^gamma: any gamma, either sign.
    alpha >= 0, gamma >= 0; the published values in reinforcement learning are 2 and 2. Focal modulates the policy term
    and adds none, so policy_coef multiplies the whole loss.

    A gamma that is not a whole number is NaN where A < alpha p, so it needs alpha <= 1 and either sign_preserving or
    advantages of one (supervised; both forms are then the same function). The advantages are looked at for such a gamma
    only: at once on a CPU, by an assertion that does not wait for the device elsewhere.

    Stats: those of PPO; focal_magnitude = |loss - loss at alpha 0|; advantage_factor, the number in A's place in the
    gradient of an unclipped decision, -G / r (-G without a ratio); factor_sign_flip.

    Raises:
        ValueError: alpha > 1 with such a gamma, at construction; advantages other than one with it, unless
            sign_preserving; a ratio with a gamma other than 2, unless sign_preserving.
    """

    alpha: float = 1.0
    gamma: float = 2.0
    sign_preserving: bool = False

    formula: ClassVar[str] = "-(A - alpha p)^gamma log p; eq. 14 with old log-probs"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("alpha", at_least=0)
        self._check_number("gamma", at_least=0)
        self._check_bool("sign_preserving")
        if not self.gamma.is_integer() and self.alpha > 1:
            raise ValueError(
                f"focal: gamma={self.gamma:g} with alpha={self.alpha:g} given, expected a whole gamma or alpha <= 1 "
                "(1 - alpha p may not be negative); set objective parameter gamma or alpha"
            )

    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        surrogate, ratio = self.surrogate(inputs)
        if self.sign_preserving:
            loss = focal_sign_preserving(inputs.log_probs, surrogate, self.alpha, self.gamma)
            plain = -surrogate
        elif ratio is None and not self.gamma.is_integer():
            self._require_supervised(inputs.advantages)
            loss = focal_sign_preserving(inputs.log_probs, surrogate, self.alpha, self.gamma)
            plain = -surrogate
        elif ratio is None:
            loss = focal_actor_critic(inputs.log_probs, inputs.advantages, self.alpha, self.gamma)
            plain = -(inputs.advantages**self.gamma) * inputs.log_probs
        elif self.gamma == 2:
            loss = focal_ppo(inputs.log_probs, inputs.advantages, surrogate, self.alpha)
            plain = -surrogate * inputs.advantages
        else:
            raise ValueError(
                f"focal: gamma={self.gamma:g} with old log-probs given, expected gamma 2 (arXiv 2308.04024, eq. 14) or "
                "sign_preserving=True; set objective parameter gamma or sign_preserving"
            )
        stats = self.policy_stats(inputs, surrogate, ratio)
        stats["focal_magnitude"] = self.policy_coef * (loss.detach() - plain.detach()).abs()
        stats["advantage_factor"] = self.policy_coef * self._advantage_factor(inputs)
        stats["factor_sign_flip"] = sign_flip(stats["advantage_factor"], inputs.advantages)
        return PolicyLoss(self.policy_coef * loss, stats)

    def _require_supervised(self, advantages: Tensor) -> None:
        supervised = (advantages == 1).all()
        if advantages.device.type != "cpu":
            torch._assert_async(supervised, "focal: a gamma that is not whole needs advantages of one")
        elif not supervised:
            raise ValueError(
                f"focal: gamma={self.gamma:g} with advantages other than one given, expected a whole gamma, advantages "
                "of one (supervised), or sign_preserving=True; set objective parameter gamma or sign_preserving"
            )

    @torch.no_grad()
    def _advantage_factor(self, inputs: PolicyInputs) -> Tensor:
        log_probs, advantages, alpha, gamma = inputs.log_probs, inputs.advantages, self.alpha, self.gamma
        log_ratio, probs = inputs.resolve_log_ratio(), log_probs.exp()
        if self.sign_preserving or not self.gamma.is_integer():
            kept = log_probs if log_ratio is None else 1.0  # s / A, respectively s / (r A)
            slope = gamma * focal_factor(log_probs, alpha, gamma - 1) * alpha * probs if gamma else 0.0
            return advantages * (focal_factor(log_probs, alpha, gamma) - kept * slope)
        if log_ratio is None:
            base = advantages - alpha * probs
            slope = gamma * base ** (gamma - 1) * alpha * probs if gamma else 0.0
            return base**gamma - slope * log_probs
        old_probs = bounded_exp(log_probs - log_ratio)
        return advantages**2 - 4 * alpha * probs * advantages + alpha**2 * probs * old_probs * (1 + 2 * log_probs)
