from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch

from scope_rlhf.metrics import avg_at_k, mean_interval, pass_at_k, pass_at_k_curve, pass_at_k_estimates


@pytest.fixture
def correct() -> np.ndarray:
    """Seven prompts of six completions: none right to all right."""
    generator = np.random.default_rng(3)
    return np.array([generator.permutation(np.arange(6) < rights) for rights in (0, 1, 2, 3, 4, 5, 6)])


@pytest.mark.parametrize("k", range(1, 7))
def test_the_estimate_is_the_share_of_all_subsets_of_size_k_that_hold_a_right_one(correct, k):
    subsets = list(combinations(range(6), k))
    slow = [np.mean([row[list(subset)].any() for subset in subsets]) for row in correct]
    assert pass_at_k_estimates(correct, k) == pytest.approx(slow, abs=1e-15)
    assert pass_at_k(correct, k).value == pytest.approx(np.mean(slow))


def test_k_1_is_the_accuracy_and_k_n_is_whether_any_is_right(correct):
    assert pass_at_k_estimates(correct, 1) == pytest.approx(correct.mean(axis=1), abs=1e-15)
    assert pass_at_k_estimates(correct, 6).tolist() == correct.any(axis=1).tolist()
    one, mean = pass_at_k(correct, 1), avg_at_k(correct)
    assert (one.value, one.low, one.high, one.n) == pytest.approx((mean.value, mean.low, mean.high, 7))


def test_pass_at_k_rises_with_k_and_a_curve_is_its_points_in_order(correct):
    curve = pass_at_k_curve(correct, [6, 3, 1, 3, 2, 5, 4])
    assert list(curve) == [1, 2, 3, 4, 5, 6]
    for bound in ("value", "low", "high"):
        heights = [getattr(interval, bound) for interval in curve.values()]
        assert heights == sorted(heights)
    assert curve[3] == pass_at_k(correct, 3)


def test_avg_at_k_uses_all_completions_whatever_k(correct):
    assert avg_at_k(correct, 1) == avg_at_k(correct, 6) == mean_interval(correct.mean(axis=1))


def test_the_estimate_is_unbiased_where_pass_at_k_of_n_completions_taken_k_at_a_time_is_not():
    """P(right) = .3: Pass@4 = 1 - .7^4 = .7599; 1 - (1 - c / n)^k, the plug-in, is lower by several points."""
    draws = np.random.default_rng(0).random((100_000, 8)) < 0.3
    estimates = pass_at_k_estimates(draws, 4)
    assert estimates.mean() == pytest.approx(1 - 0.7**4, abs=0.003)
    assert (1 - (1 - draws.mean(axis=1)) ** 4).mean() < 0.73


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("k", [1, 7, 1000, 100_000, 199_999, 200_000])
def test_huge_n_neither_overflows_nor_loses_small_values(k):
    n = 200_000
    correct = np.zeros((3, n), dtype=bool)
    correct[1, :1] = correct[2, :5] = True
    expected = [0.0, k / n, 1 - comb(n - 5, k) / comb(n, k) if k < 1001 else 1 - _chance(n, 5, k)]
    assert pass_at_k_estimates(correct, k) == pytest.approx(expected, rel=1e-9)


def _chance(n: int, c: int, k: int) -> float:
    """C(n-c, k) / C(n, k) as the chance that c given completions are all outside of k."""
    chance = 1.0
    for j in range(c):
        chance *= max(0, n - k - j) / (n - j)
    return chance


def test_tensors_and_lists_of_0_and_1_are_the_same_as_truth_values(correct):
    same = pass_at_k_estimates(correct, 2).tolist()
    assert pass_at_k_estimates(torch.tensor(correct), 2).tolist() == same
    assert pass_at_k_estimates(correct.astype(float).tolist(), 2).tolist() == same


@pytest.mark.parametrize(
    ("given", "k", "message"),
    [
        ([[0, 1]], 3, "k must be a whole number from 1 to the 2 completions of each prompt, got 3"),
        ([[0, 1]], 0, "got 0"),
        ([[0, 1]], 1.5, "got 1.5"),
        ([[0, 1], [1, 0.5]], 1, "0 and 1 only; completion 1 of prompt 1 is 0.5"),
        ([[0, float("nan")]], 1, "completion 1 of prompt 0 is nan"),
        ([], 1, "at least one value, got shape (0,)"),
        ([[]], 1, "got shape (1, 0)"),
        ([0, 1], 1, "got shape (2,)"),
    ],
)
def test_what_is_no_binary_matrix_and_no_k_is_refused(given, k, message):
    for function in (pass_at_k, pass_at_k_estimates, avg_at_k):
        with pytest.raises(ValueError) as error:
            function(given, k)
        assert message in str(error.value)
