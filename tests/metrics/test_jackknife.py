import math

import numpy as np
import pytest

from scope_rlhf.metrics.diversity import distinct_n, paired_distinct_n
from scope_rlhf.metrics.jackknife import paired_jackknife


def test_jackknife_error_of_a_mean_is_the_standard_error():
    generator = np.random.default_rng(0)
    before, after = generator.normal(size=40).tolist(), generator.normal(1.0, size=40).tolist()
    result = paired_jackknife(before, after, lambda rows: float(np.mean(rows)))
    differences = np.subtract(after, before)
    error = differences.std(ddof=1) / math.sqrt(40)
    assert result.difference == pytest.approx(differences.mean())
    assert (result.low, result.high) == pytest.approx(
        (result.difference - 1.96 * error, result.difference + 1.96 * error)
    )


def test_jackknife_of_distinct_2_is_paired_distinct_n():
    generator = np.random.default_rng(0)
    before, after = ([generator.integers(limit, size=8).tolist() for _ in range(20)] for limit in (9, 6))
    slow = paired_jackknife(before, after, lambda rows: distinct_n(rows, 2))
    fast = paired_distinct_n(before, after, 2)
    assert (slow.difference, slow.low, slow.high) == pytest.approx((fast.difference, fast.low, fast.high), rel=1e-3)


def test_unpaired_samples_are_refused():
    with pytest.raises(ValueError, match="got 1 and 2"):
        paired_jackknife([1.0], [1.0, 2.0], sum)
    with pytest.raises(ValueError, match="got 0 and 0"):
        paired_jackknife([], [], sum)
