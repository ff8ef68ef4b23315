"""ROUGE-1, ROUGE-2 and ROUGE-L: mean F1 over pairs of texts, words stemmed."""

import datasets
import evaluate

from scope_rlhf.metrics import rouge_scores

INPUTS = """
    predictions, references: texts in pairs.
Returns rouge1, rouge2, rougeL.
"""


class Rouge(evaluate.Metric):
    """ROUGE-1, ROUGE-2 and ROUGE-L: mean F1 over pairs of texts, words stemmed."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description=str(__doc__), citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions, references) -> dict[str, float | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return dict(rouge_scores(predictions, references))
