"""Intervals for statistics of a whole sample that are no mean of rows, such as perplexity."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from scope_rlhf.metrics.intervals import PairedDifference

Row = TypeVar("Row")


def paired_jackknife(
    before: Sequence[Row], after: Sequence[Row], statistic: Callable[[Sequence[Row]], float], z: float = 1.96
) -> PairedDifference:
    """statistic(after) - statistic(before) with the interval difference +- z * standard error.

    The standard error is the leave-one-out jackknife over pairs (row i of both samples is left out together; Efron and
    Stein 1981): sqrt((n-1)/n * sum (d_i - mean d)^2). With n = 1 the interval is infinite.

    ValueError where the samples differ in length or are empty.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"paired samples need the same positive number of rows, got {len(before)} and {len(after)}.")
    n = len(before)
    first, second = statistic(before), statistic(after)
    if n == 1:
        return PairedDifference(first, second, second - first, -np.inf, np.inf, n)
    rest = [statistic([*after[:i], *after[i + 1 :]]) - statistic([*before[:i], *before[i + 1 :]]) for i in range(n)]
    error = float(np.sqrt((n - 1) / n * np.sum((np.asarray(rest) - np.mean(rest)) ** 2)))
    difference = second - first
    return PairedDifference(first, second, difference, difference - z * error, difference + z * error, n)
