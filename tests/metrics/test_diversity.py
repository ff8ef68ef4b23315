import math

import numpy as np
import pytest

from scope_rlhf.metrics import distinct_n, paired_distinct_n


def slow_distinct(token_lists, n):
    grams = [tuple(tokens[i : i + n]) for tokens in token_lists for i in range(len(tokens)) if i + n <= len(tokens)]
    return len(set(grams)) / len(grams)


@pytest.fixture
def completions():
    generator = np.random.default_rng(0)
    return [generator.integers(12, size=generator.integers(1, 9)).tolist() for _ in range(40)]


def test_repetition_counts_once():
    # "a b a b": bigrams ab, ba, ab -> 2 unique of 3. With "a b" a second time: 2 of 4.
    assert distinct_n([["a", "b", "a", "b"]], 2) == pytest.approx(2 / 3)
    assert distinct_n([["a", "b", "a", "b"], ["a", "b"]], 2) == pytest.approx(2 / 4)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_n_equals_a_plain_loop(completions, n):
    assert distinct_n(completions, n) == pytest.approx(slow_distinct(completions, n))


def test_ngrams_do_not_cross_completions():
    assert distinct_n([[1, 2], [3, 4]], 2) == 1.0
    assert math.isnan(distinct_n([[1], [2]], 2))


def test_tokens_may_be_numpy_rows():
    assert distinct_n(np.array([[1, 1, 1], [1, 1, 2]]), 2) == pytest.approx(2 / 4)


def test_jackknife_equals_leaving_each_completion_out_by_hand(completions):
    after = [[*tokens, 0, 0, 0] for tokens in completions]
    result = paired_distinct_n(completions, after, 2)
    rows = len(completions)
    without = np.array(
        [
            slow_distinct(after[:i] + after[i + 1 :], 2) - slow_distinct(completions[:i] + completions[i + 1 :], 2)
            for i in range(rows)
        ]
    )
    error = math.sqrt((rows - 1) / rows * ((without - without.mean()) ** 2).sum())
    assert result.difference == pytest.approx(slow_distinct(after, 2) - slow_distinct(completions, 2))
    assert result.low == pytest.approx(result.difference - 1.959964 * error, rel=1e-6)
    assert result.high == pytest.approx(result.difference + 1.959964 * error, rel=1e-6)
    assert result.n == rows


def test_identical_sides_differ_by_nothing(completions):
    result = paired_distinct_n(completions, completions, 2)
    assert (result.difference, result.low, result.high) == (0.0, 0.0, 0.0)


def test_one_prompt_has_an_unbounded_interval():
    result = paired_distinct_n([[1, 2, 3]], [[1, 1, 1]], 2)
    assert result.difference == pytest.approx(-0.5)
    assert (result.low, result.high) == (-math.inf, math.inf)


@pytest.mark.parametrize(("lists", "n", "message"), [([[1, 2]], 0, "at least 1"), ([], 2, "at least one completion")])
def test_what_has_no_ngrams_by_construction_is_refused(lists, n, message):
    with pytest.raises(ValueError, match=message):
        distinct_n(lists, n)


def test_unequal_numbers_of_completions_are_refused():
    with pytest.raises(ValueError, match="1 and 2"):
        paired_distinct_n([[1, 2]], [[1, 2], [3, 4]], 2)
