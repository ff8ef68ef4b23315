"""The coefficient of the KL penalty: fixed, or moved towards a target."""

import math
from typing import Any


class FixedKLController:
    """kl_coef stays as it is. ValueError for kl_coef < 0."""

    def __init__(self, kl_coef: float):
        if not (math.isfinite(kl_coef) and kl_coef >= 0):
            raise ValueError(f"kl_coef must be a number >= 0, got {kl_coef!r}; set --kl_coef")
        self.kl_coef = float(kl_coef)

    def update(self, kl: float, sequences: int) -> None:
        """Take note of the mean KL per sequence (nats) over that many sequences."""

    def state_dict(self) -> dict[str, Any]:
        return {"kl_coef": self.kl_coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: a fixed coefficient is the setting's, also where a run goes on with another one."""


class AdaptiveKLController(FixedKLController):
    """kl_coef <- kl_coef (1 + clip(KL / target - 1, -.2, .2) * sequences / horizon)  (arXiv 1909.08593, section 2.2).

    target: nats per sequence; horizon: sequences. ValueError unless kl_coef, target and horizon are positive.
    """

    def __init__(self, kl_coef: float, target: float, horizon: int):
        super().__init__(kl_coef)
        for name, value in (("kl_coef", kl_coef), ("kl_target", target), ("kl_horizon", horizon)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"{name} must be positive for the adaptive KL coefficient, got {value!r}; set --{name}"
                )
        self.target, self.horizon = float(target), float(horizon)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kl_coef = float(state["kl_coef"])

    def update(self, kl: float, sequences: int) -> None:
        if not math.isfinite(kl):  # one bad rollout must not end the control for good
            return
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        # More sequences than the horizon would overshoot, past 0 for a long enough batch.
        self.kl_coef *= 1 + error * min(sequences / self.horizon, 1.0)
