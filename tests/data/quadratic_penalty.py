"""An objective of one's own: PPO's clip replaced by a quadratic penalty on the log ratio."""

from dataclasses import dataclass

from scope_rlhf.objectives import PolicyInputs, PolicyLoss


@dataclass(frozen=True)
class QuadraticPenalty:
    """-r A + penalty_coef / 2 (log r)^2, and -A log p without old log-probs."""

    penalty_coef: float = 1.0

    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        log_ratio = inputs.resolve_log_ratio()
        if log_ratio is None:
            return PolicyLoss(-inputs.advantages * inputs.log_probs, {})
        ratio = log_ratio.clamp(max=80).exp()  # e^89 overflows float32
        penalty = self.penalty_coef / 2 * log_ratio.square()
        return PolicyLoss(penalty - ratio * inputs.advantages, {"penalty_magnitude": penalty.detach()})
