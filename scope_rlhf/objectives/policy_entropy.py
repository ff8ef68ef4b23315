"""Policy + entropy loss (PEL): the usual entropy bonus."""

from dataclasses import dataclass
from typing import ClassVar

from scope_rlhf.losses import entropy_penalty
from scope_rlhf.objectives.base import ClippedObjective, PolicyInputs, PolicyLoss


@dataclass(frozen=True, kw_only=True)
class PolicyEntropy(ClippedObjective):
    """policy term - alpha H, H = -sum_j p_j log p_j the entropy of the whole distribution, given in the inputs.

    Gradient through the policy term and H: with respect to the logits -A (onehot - probs) + alpha probs (log probs + H)
    in the score-function form, a vector, so there is no G. On-policy its fixed point is softmax(A / alpha).
    alpha >= 0; the published values are .01 in reinforcement learning and 8e-6 supervised, where it is cross-entropy
    to rounding.

    Stats: those of PPO and entropy_magnitude = |alpha H|.

    Raises:
        ValueError: inputs without the entropy.
    """

    alpha: float = 0.01

    needs_entropy: ClassVar[bool] = True
    formula: ClassVar[str] = "policy term - alpha H(p), over the whole distribution"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("alpha", at_least=0)

    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        if inputs.entropy is None:
            raise ValueError("policy_entropy: no entropy given, expected PolicyInputs(entropy=...) with its gradient")
        surrogate, ratio = self.surrogate(inputs)
        term = self.alpha * entropy_penalty(inputs.entropy)
        stats = self.policy_stats(inputs, surrogate, ratio)
        stats["entropy_magnitude"] = term.detach().abs()
        return PolicyLoss(-self.policy_coef * surrogate + term, stats)
