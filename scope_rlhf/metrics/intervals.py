"""Confidence intervals: BCa bootstrap for means and paired differences, Wilson for a proportion.

The bootstrap unit is the prompt. BCa (bias-corrected and accelerated, Efron 1987) shifts the percentiles of the
resampled statistic for its median bias and its skew, which matters for KL and perplexity. With fewer than about 20
prompts every bootstrap interval is too narrow.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

# Rows drawn at once: bounds the memory at about 20 MB.
_DRAWS = 500_000

Values = Sequence[float] | np.ndarray | Any
"""Anything np.asarray takes: a list, an array, a CPU tensor without gradient."""


@dataclass(frozen=True)
class Interval:
    """A value and its confidence interval; infinite where n = 1."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class PairedDifference:
    """after - before over the same n prompts; low and high bound the difference, infinite where n = 1."""

    before: float
    after: float
    difference: float
    low: float
    high: float
    n: int


def paired_interval(
    before: Values,
    after: Values,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    *,
    before_weights: Values | None = None,
    after_weights: Values | None = None,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
) -> PairedDifference:
    """transform(mean of after) - transform(mean of before), with a BCa bootstrap interval over prompts.

    Row i of `before` and of `after` belong to the same prompt and are resampled together. With weights the means are
    sum(w x) / sum(w): perplexity is `transform=np.exp` over the per-token negative log-likelihood of each completion,
    weighted by its tokens. All rows equal: the interval is the difference itself. n = 1: the bounds are infinite.

    Raises ValueError for unequal lengths, no rows, or values that are not finite.
    """
    check_settings(confidence, resamples)
    columns = [value_column("before", before), value_column("after", after)]
    weights = [
        _weights("before_weights", before_weights, columns[0]),
        _weights("after_weights", after_weights, columns[1]),
    ]
    n = len(columns[0])
    if len(columns[1]) != n:
        raise ValueError(f"before and after pair up by prompt, but hold {n} and {len(columns[1])} values")
    # One row of sums per prompt: w x before, w before, w x after, w after. Every resample is a mean of these rows.
    rows = np.stack([weights[0] * columns[0], weights[0], weights[1] * columns[1], weights[1]], axis=1)
    apply = transform or (lambda mean: mean)

    def statistic(sums: np.ndarray) -> np.ndarray:
        return apply(sums[..., 2] / sums[..., 3]) - apply(sums[..., 0] / sums[..., 1])

    low, high = _bca(rows, statistic, confidence, resamples, seed)
    total = rows.sum(axis=0)
    return PairedDifference(
        before=float(apply(total[0] / total[1])),
        after=float(apply(total[2] / total[3])),
        difference=float(statistic(total)),
        low=low,
        high=high,
        n=n,
    )


def mean_interval(values: Values, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean with its BCa bootstrap interval. n = 1: the bounds are infinite. ValueError as in paired_interval."""
    check_settings(confidence, resamples)
    column = value_column("values", values)
    rows = np.stack([column, np.ones_like(column)], axis=1)
    low, high = _bca(rows, lambda sums: sums[..., 0] / sums[..., 1], confidence, resamples, seed)
    return Interval(float(column.mean()), low, high, len(column))


def interval_over_runs(
    runs: Sequence[Values], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean over runs (seeds) of their means, with a hierarchical bootstrap: runs are drawn, then prompts in each.

    Percentile bounds; n is the number of runs. With fewer than about five runs the interval is too narrow, since the
    runs that were made are all that it knows of. One run: prompts only. ValueError as in mean_interval.
    """
    check_settings(confidence, resamples)
    columns = [value_column(f"run {number}", run) for number, run in enumerate(runs)]
    if not columns:
        raise ValueError("at least one run is needed")
    generator = np.random.default_rng(seed)
    # Means of every run over its own resampled prompts, then a draw of runs for each resample.
    means = np.stack([_resampled_means(column, resamples, generator) for column in columns], axis=1)
    drawn = np.empty(resamples)
    for row, picks in enumerate(generator.integers(len(columns), size=(resamples, len(columns)))):
        # A run that is drawn twice takes other prompts the second time.
        drawn[row] = np.mean([means[(row + repeat) % resamples, run] for repeat, run in enumerate(picks)])
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(np.mean([c.mean() for c in columns])), float(low), float(high), len(columns))


def _resampled_means(column: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    step = max(1, _DRAWS // len(column))
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    return np.concatenate([column[generator.integers(len(column), size=(k, len(column)))].mean(1) for k in sizes])


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """A proportion with its Wilson score interval: never outside [0, 1], and sensible at 0 and n successes.

    centre = (p + z^2 / 2n) / (1 + z^2 / n),  half width = z sqrt(p (1-p) / n + z^2 / 4n^2) / (1 + z^2 / n).
    Ties that count one half are not successes of a proportion: mean_interval over the scores is the tool for them.
    """
    check_settings(confidence, 1)
    if n < 1 or not 0 <= successes <= n or int(successes) != successes:
        raise ValueError(
            f"successes must be a whole number between 0 and n >= 1, got {successes} of {n}; "
            "where ties count 0.5 use mean_interval"
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half), int(n))


def _bca(
    rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """BCa bounds of statistic(sum of rows); rows [n, columns]."""
    n = len(rows)
    if n == 1:
        return -math.inf, math.inf
    total = rows.sum(axis=0)
    value = float(statistic(total))
    without = statistic(total - rows)  # [n]: the jackknife
    # Equal rows leave nothing to resample; rounding in the sums would otherwise read as spread.
    if np.allclose(rows, rows[0], rtol=1e-12, atol=0) or np.ptp(without) <= 1e-12 * max(1.0, abs(value)):
        return value, value
    generator = np.random.default_rng(seed)
    drawn = []
    step = max(1, _DRAWS // n)
    for start in range(0, resamples, step):
        picks = generator.integers(n, size=(min(step, resamples - start), n))
        drawn.append(statistic(rows[picks].sum(axis=1)))
    return bca_bounds(value, np.concatenate(drawn), without, confidence)


def bca_bounds(value: float, samples: np.ndarray, without: np.ndarray, confidence: float) -> tuple[float, float]:
    """BCa bounds of a statistic: its value, its resamples [R] and its values [n] without each row (the jackknife)."""
    resamples, normal = len(samples), NormalDist()
    below = ((samples < value).mean() + (samples <= value).mean()) / 2
    bias = normal.inv_cdf(float(np.clip(below, 0.5 / resamples, 1 - 0.5 / resamples)))
    spread = without.mean() - without
    acceleration = float((spread**3).sum() / (6 * (spread**2).sum() ** 1.5))
    levels = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        shifted = bias + normal.inv_cdf(tail)
        levels.append(normal.cdf(bias + shifted / (1 - acceleration * shifted)))
    low, high = np.quantile(samples, levels)
    return float(low), float(high)


def check_settings(confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")


def value_column(name: str, values: Values, unit: str = "prompt") -> np.ndarray:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1 or not len(column):
        raise ValueError(f"{name} must be one number per {unit}, at least one; got shape {column.shape}")
    bad = np.flatnonzero(~np.isfinite(column))
    if len(bad):
        raise ValueError(f"{name} must be finite; value {bad[0]} of {len(column)} is {column[bad[0]]}")
    return column


def _weights(name: str, weights: Values | None, column: np.ndarray) -> np.ndarray:
    if weights is None:
        return np.ones_like(column)
    values = value_column(name, weights)
    if values.shape != column.shape or (values <= 0).any():
        raise ValueError(f"{name} must be one positive number per prompt ({len(column)}), got shape {values.shape}")
    return values
