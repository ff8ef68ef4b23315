"""Unique n-grams of words over all n-grams of all texts (Li et al. 2016)."""

import datasets
import evaluate

from scope_rlhf.metrics import distinct_n

INPUTS = """
    predictions: texts, split into words at white space. n: words of an n-gram.
Returns distinct_n.
"""


class DistinctN(evaluate.Metric):
    """Unique n-grams of words over all n-grams of all texts (Li et al. 2016)."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("string")})
        return evaluate.MetricInfo(description=str(__doc__), citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions, n=2) -> dict[str, float | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return {"distinct_n": distinct_n([text.split() for text in predictions], n)}
