"""ROUGE (Lin 2004): how many words, pairs of words and runs of words a summary shares with a reference."""

from collections.abc import Sequence

import numpy as np

KINDS = ("rouge1", "rouge2", "rougeL")


def rouge_each(predictions: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """F1 of each pair, [n] for each of rouge1, rouge2 and rougeL, in [0, 1].

    F1 = 2 P R / (P + R), with P and R the shared n-grams (rougeL: the longest common subsequence) over those of the
    prediction and of the reference. Words are lower case, split at what is no letter or digit, and stemmed (Porter),
    by Google's rouge-score, whose figures the literature of TL;DR gives. An empty text has F1 0.
    ValueError for unequal lengths, no pair, or what is no text.
    """
    if len(predictions) != len(references):
        raise ValueError(f"predictions and references pair up, but hold {len(predictions)} and {len(references)} texts")
    if not len(predictions):
        raise ValueError("ROUGE needs at least one pair of texts, got none")
    for name, texts in (("predictions", predictions), ("references", references)):
        wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        if wrong is not None:
            raise ValueError(f"{name} must be texts, row {wrong} is {texts[wrong]!r}")
    # Imports nltk, which takes a second that the other metrics do without.
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(KINDS), use_stemmer=True)
    rows = [scorer.score(reference, text) for text, reference in zip(predictions, references, strict=True)]
    return {kind: np.array([row[kind].fmeasure for row in rows]) for kind in KINDS}


def rouge_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F1 over the pairs: {"rouge1": ..., "rouge2": ..., "rougeL": ...}. Errors as in rouge_each."""
    return {kind: float(values.mean()) for kind, values in rouge_each(predictions, references).items()}
