"""Win rate of system A over system B from the verdicts of both orders."""

import datasets
import evaluate

from scope_rlhf.metrics import win_rate

INPUTS = """
    forward: verdicts with A in front ("A", "B", "tie" or "invalid"); backward: of the same pairs with B in front.
    confidence, resamples, seed: of the bootstrap interval.
Returns win_rate, low, high, decided (and its Wilson bounds; None without a decision), wins, ties, losses, invalid,
order_consistency, first_position.
"""


class WinRateModule(evaluate.Metric):
    """Win rate of system A over system B from the verdicts of both orders."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"forward": datasets.Value("string"), "backward": datasets.Value("string")})
        return evaluate.MetricInfo(description=str(__doc__), citation="", inputs_description=INPUTS, features=features)

    def _compute(self, forward, backward, confidence=0.95, resamples=10_000, seed=0) -> dict[str, float | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        found = win_rate(forward, backward, confidence, resamples, seed)
        decided = found.decided
        return {
            "win_rate": found.rate.value, "low": found.rate.low, "high": found.rate.high,
            "decided": decided and decided.value, "decided_low": decided and decided.low,
            "decided_high": decided and decided.high, "wins": found.wins, "ties": found.ties, "losses": found.losses,
            "invalid": found.invalid, "order_consistency": found.order_consistency,
            "first_position": found.first_position,
        }  # fmt: skip
