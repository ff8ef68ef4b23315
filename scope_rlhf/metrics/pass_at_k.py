"""Pass@k and Avg@k out of n verified completions for each prompt, with intervals over prompts.

`correct` is a matrix [prompts, n] of 0 and 1 (or truth values): row p holds whether each of the n completions of
prompt p is right. Pass@k is the chance that at least one of k completions is right, Avg@k the mean accuracy of k.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from scope_rlhf.metrics.intervals import Interval, mean_interval


def pass_at_k_estimates(correct: Any, k: int) -> np.ndarray:
    """The unbiased estimate of Pass@k of each prompt [prompts], float64 (Chen et al. 2021, arXiv 2107.03374, eq. 1).

    1 - C(n - c, k) / C(n, k), with c of the n completions right; as a product 1 - prod_{i = n-c+1}^{n} (1 - k / i), in
    log space, so that no binomial coefficient is ever formed. k = 1 gives c / n; k = n whether any is right.

    ValueError for a matrix that is empty or not binary, and for k < 1 or k > n.
    """
    matrix = _binary(correct)
    n = matrix.shape[1]
    _check_k(k, n)
    rights = matrix.sum(axis=1)
    # log(1 - k / i) for i = k+1 .. n, summed from the end: entry c is the sum over the last c of them.
    i = np.arange(n, k, -1, dtype=np.float64)
    sums = np.concatenate([[0.0], np.cumsum(np.log1p(-k / i))])
    # With fewer than k wrong completions every draw of k holds a right one.
    certain = rights > n - k
    return np.where(certain, 1.0, -np.expm1(sums[np.where(certain, 0, rights)]))


def pass_at_k(correct: Any, k: int, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean over prompts of `pass_at_k_estimates` with its BCa bootstrap interval over prompts.

    The interval is about other prompts from the same source; how far n completions pin down one prompt is not in it.
    ValueError as for the estimates.
    """
    return mean_interval(pass_at_k_estimates(correct, k), confidence, resamples, seed)


def avg_at_k(correct: Any, k: int = 1, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean accuracy of k completions with its BCa bootstrap interval over prompts.

    Its expectation does not depend on k, so the estimate uses all n >= k completions and is the same for every k: the
    mean of `correct`. ValueError as for Pass@k.
    """
    matrix = _binary(correct)
    _check_k(k, matrix.shape[1])
    return mean_interval(matrix.mean(axis=1), confidence, resamples, seed)


def pass_at_k_curve(
    correct: Any, ks: Iterable[int], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> dict[int, Interval]:
    """Pass@k for each k in increasing order; every k is on the same resamples of the prompts."""
    return {k: pass_at_k(correct, k, confidence, resamples, seed) for k in sorted(set(ks))}


def _binary(correct: Any) -> np.ndarray:
    matrix = np.asarray(correct)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"correct must be a matrix [prompts, n] with at least one value, got shape {matrix.shape}")
    wrong = ~np.isin(matrix, (0, 1))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"correct must hold 0 and 1 only; completion {column} of prompt {row} is {matrix[row, column]}"
        )
    return matrix.astype(np.int64)


def _check_k(k: int, n: int) -> None:
    if isinstance(k, bool) or int(k) != k or not 1 <= k <= n:
        raise ValueError(f"k must be a whole number from 1 to the {n} completions of each prompt, got {k}")
