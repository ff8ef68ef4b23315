"""How often a reward model agrees with preferences, and its calibration."""

import datasets
import evaluate

from scope_rlhf.metrics import calibration_error, preference_accuracy

INPUTS = """
    margins: score of the chosen text - score of the rejected one. bins: of the calibration error.
Returns accuracy with its 95 % Wilson bounds low and high, calibration_error.
"""


class PreferenceAccuracy(evaluate.Metric):
    """How often a reward model agrees with preferences, and its calibration."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"margins": datasets.Value("float64")})
        return evaluate.MetricInfo(description=str(__doc__), citation="", inputs_description=INPUTS, features=features)

    def _compute(self, margins, bins=8) -> dict[str, float | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        found = preference_accuracy(margins)
        error = calibration_error(margins, bins)
        return {"accuracy": found.value, "low": found.low, "high": found.high, "calibration_error": error}
