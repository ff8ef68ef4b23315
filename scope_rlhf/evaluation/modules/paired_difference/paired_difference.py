"""Mean difference of two systems on the same prompts, with its paired bootstrap interval."""

import datasets
import evaluate

from scope_rlhf.metrics import paired_interval

INPUTS = """
    before, after: one value of each system for each prompt.
    confidence, resamples, seed: of the bootstrap interval.
Returns before, after (means), difference, low, high.
"""


class PairedDifferenceModule(evaluate.Metric):
    """Mean difference of two systems on the same prompts, with its paired bootstrap interval."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"before": datasets.Value("float64"), "after": datasets.Value("float64")})
        return evaluate.MetricInfo(description=str(__doc__), citation="", inputs_description=INPUTS, features=features)

    def _compute(self, before, after, confidence=0.95, resamples=10_000, seed=0) -> dict[str, float | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        found = paired_interval(before, after, confidence, resamples, seed)
        names = ("before", "after", "difference", "low", "high")
        return {name: getattr(found, name) for name in names}
