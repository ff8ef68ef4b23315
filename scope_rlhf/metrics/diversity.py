"""Distinct-n: how much of what a model writes is new."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np

from scope_rlhf.metrics.intervals import PairedDifference

TokenLists = Sequence[Sequence[Hashable]]


def distinct_n(token_lists: TokenLists, n: int) -> float:
    """Unique n-grams over all n-grams of all completions (Li et al. 2016), in (0, 1].

    Falls with the amount of text: compare only sides with equally many completions of about equal length. NaN where no
    completion has n tokens. ValueError for n < 1 or no completion.
    """
    _, unique, total = _counts(token_lists, n)
    return unique / total if total else math.nan


def paired_distinct_n(before: TokenLists, after: TokenLists, n: int, confidence: float = 0.95) -> PairedDifference:
    """distinct_n(after) - distinct_n(before) with a delete-one jackknife interval over prompts.

    The bootstrap does not fit here: drawing a completion twice makes repeated n-grams. The jackknife leaves completion
    i out of both sides, distinct_i = (unique - n-grams found in i only) / (total - n-grams of i); its variance is an
    upper bound in expectation (Efron and Stein 1981), so the interval errs on the wide side. It is infinite for one
    prompt, and where a side has no n-grams without some completion. ValueError as in distinct_n, and for unequal
    lengths.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}")
    if len(before) != len(after):
        raise ValueError(f"before and after pair up by prompt, but hold {len(before)} and {len(after)} completions")
    values = [distinct_n(side, n) for side in (before, after)]
    difference = values[1] - values[0]
    without = _leave_one_out(after, n) - _leave_one_out(before, n)
    rows = len(before)
    low, high = -math.inf, math.inf
    if rows > 1 and np.isfinite(without).all():
        error = math.sqrt((rows - 1) / rows * ((without - without.mean()) ** 2).sum())
        half = NormalDist().inv_cdf((1 + confidence) / 2) * error
        low, high = difference - half, difference + half
    return PairedDifference(values[0], values[1], difference, low, high, rows)


def _counts(token_lists: TokenLists, n: int) -> tuple[list[Counter], int, int]:
    """n-grams of each completion, unique ones of all, and their number."""
    if n < 1:
        raise ValueError(f"n of distinct-n must be at least 1, got {n}")
    if not len(token_lists):
        raise ValueError("distinct-n needs at least one completion, got none")
    grams = []
    for tokens in token_lists:
        row = list(tokens)
        grams.append(Counter(tuple(row[start : start + n]) for start in range(len(row) - n + 1)))
    return grams, len(set().union(*grams)), sum(counter.total() for counter in grams)


def _leave_one_out(token_lists: TokenLists, n: int) -> np.ndarray:
    grams, unique, total = _counts(token_lists, n)
    holders = Counter(gram for counter in grams for gram in counter)
    kept_unique = np.array(
        [unique - sum(holders[gram] == 1 for gram in counter) for counter in grams], dtype=np.float64
    )
    kept_total = np.array([total - counter.total() for counter in grams], dtype=np.float64)
    return np.divide(kept_unique, kept_total, out=np.full_like(kept_total, math.nan), where=kept_total > 0)
