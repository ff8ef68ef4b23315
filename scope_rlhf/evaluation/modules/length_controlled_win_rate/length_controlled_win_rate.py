"""Win rate that is left when both systems write equally long texts."""

import datasets
import evaluate

from scope_rlhf.metrics import length_controlled_win_rate

INPUTS = """
    scores: of system A in each pair, 1, .5 or 0; length_difference: length of A - length of B.
    confidence, resamples, seed: of the bootstrap interval.
Returns win_rate, low, high.
"""


class LengthControlledWinRate(evaluate.Metric):
    """Win rate that is left when both systems write equally long texts."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"scores": datasets.Value("float64"), "length_difference": datasets.Value("float64")}
        )
        return evaluate.MetricInfo(description=str(__doc__), citation="", inputs_description=INPUTS, features=features)

    def _compute(self, scores, length_difference, confidence=0.95, resamples=2_000, seed=0) -> dict[str, float | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        found = length_controlled_win_rate(scores, length_difference, confidence, resamples, seed)
        return {"win_rate": found.value, "low": found.low, "high": found.high}
