"""Policy gradient and PPO's clipped objective."""

from dataclasses import dataclass
from typing import ClassVar

from scope_rlhf.objectives.base import ClippedObjective, PolicyInputs, PolicyLoss


@dataclass(frozen=True, kw_only=True)
class PPO(ClippedObjective):
    """policy_coef * -min(r A, clip(r) A) with a ratio (arXiv 1707.06347, eq. 7), policy_coef * -A log p without.

    Without a ratio and with advantages of one it is cross-entropy. Gradient through r, respectively log p:
    G = -m r A, exactly 0 where the clip binds, respectively -A.

    Stats: surrogate; with a ratio ratio, approx_kl, clip_fraction; entropy where given.
    """

    formula: ClassVar[str] = "-min(r A, clip(r) A), or -A log p without old log-probs"

    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        surrogate, ratio = self.surrogate(inputs)
        return PolicyLoss(-self.policy_coef * surrogate, self.policy_stats(inputs, surrogate, ratio))
